"""Blocks of README.md and command lines, as the scripts of this folder write them."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from resmlp_mt.files import write_text

README = Path(__file__).resolve().parent.parent / "README.md"


def write_block(name: str, text: str, readme: Path = README) -> None:
    """Replace the block of a script.

    Args:
        name: of the script; the block stands between ``<!-- written by benchmarks/NAME.py -->``
            and ``<!-- end of NAME -->``.
        text: the new lines.
        readme: the file.

    Raises:
        ValueError: if the file does not have the block once.
    """
    begin, end = f"<!-- written by benchmarks/{name}.py -->\n", f"<!-- end of {name} -->\n"
    before, rest = readme.read_text(encoding="utf-8").split(begin)
    _, after = rest.split(end)
    write_text(readme, f"{before}{begin}{text.rstrip()}\n{end}{after}")


def command_line(words: Sequence[str]) -> str:
    """Options of a measured run for a reader's shell, with the plugin found from any folder."""
    spelt = shlex.join(words)
    return spelt.replace("--user-dir resmlp_mt ", '--user-dir "$(python -m resmlp_mt)" ')
