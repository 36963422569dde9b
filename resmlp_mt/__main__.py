"""``python -m resmlp_mt`` prints the folder to give to ``--user-dir``."""

import sys
from pathlib import Path

from resmlp_mt.command_line import Parser

FOLDER = Path(__file__).resolve().parent


def main() -> None:
    parser = Parser("resmlp_mt", "Print the folder of the fairseq plugin, for --user-dir.")
    name = next(iter(sys.argv[1:]), "")
    if name.isidentifier() and (FOLDER / f"{name}.py").is_file():
        parser.error(f"the command is python -m resmlp_mt.{name}")
    parser.parse_args()
    print(FOLDER)


if __name__ == "__main__":
    main()
