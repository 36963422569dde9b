"""Writes the text of the demo corpus: `python data_scripts/grammar.py --output DIR`."""

from pathlib import Path

from resmlp_mt.command_line import Parser, number, whole_number
from resmlp_mt.preparation.grammar import write_corpus


def main() -> None:
    parser = Parser("", "Write the English-German demo corpus.", prog="grammar.py")
    parser.add_argument("--output", type=Path, required=True, help="folder for the six files")
    parser.add_argument(
        "--pairs", type=whole_number(1), default=20_000, help="size of all splits together"
    )
    parser.add_argument("--seed", type=number(int), default=1, help="of the random numbers")
    arguments = parser.parse_args()
    try:
        write_corpus(arguments.output, pairs=arguments.pairs, seed=arguments.seed)
    except (OSError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
