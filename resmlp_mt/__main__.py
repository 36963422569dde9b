"""``python -m resmlp_mt`` prints the folder to give to ``--user-dir``."""

import os
import sys
from pathlib import Path

from resmlp_mt.command_line import Parser, command

FOLDER = Path(__file__).absolute().parent  # links as they are: fairseq compares the path


@command
def main() -> None:
    parser = Parser("resmlp_mt", "Print the folder of the fairseq plugin, for --user-dir.")
    if sys.argv[1:] and not sys.argv[1].startswith("-"):
        parser.error(hint(sys.argv[1]))
    parser.parse_args()
    # the bytes of the path, whatever the locale is: the output is UTF-8
    print(os.fsencode(FOLDER).decode("utf-8", "surrogateescape"))


def hint(word: str) -> str:
    """Which command was meant, by its name or that of its script; else all commands."""
    files = [*sorted(FOLDER.glob("[!_]*.py")), *sorted(FOLDER.glob("vision/[!_]*.py"))]
    modules = [
        ".".join(path.relative_to(FOLDER).with_suffix("").parts)
        for path in files
        if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
    ]
    name = word.removeprefix("resmlp-").replace("-", ".")
    if name in modules:
        return f"the command is python -m resmlp_mt.{name}"
    return (
        f"unknown command {word}: run python -m resmlp_mt.COMMAND with one of "
        f"{', '.join(modules)}, or fairseq-train to train a translation model"
    )


if __name__ == "__main__":
    main()
