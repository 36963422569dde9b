"""``python -m resmlp_mt.benchmark`` runs the speed benchmark, in a checkout."""

from collections.abc import Sequence
from importlib.util import find_spec

from resmlp_mt.command_line import command
from resmlp_mt.errors import UserError


@command
def main(argv: Sequence[str] | None = None) -> None:
    if find_spec("benchmarks") is None:
        raise UserError("benchmarks/speed is missing: run this in a checkout of resmlp_mt.")
    from benchmarks.speed.options import parse_args

    options = parse_args(argv)
    from benchmarks.speed.command import run  # with PyTorch

    run(options)


if __name__ == "__main__":
    main()
