"""``python -m resmlp_mt.benchmark`` runs the speed benchmark, in a checkout."""

from importlib.util import find_spec

from resmlp_mt.command_line import CommandError

if __name__ == "__main__":
    if find_spec("benchmarks") is None:
        raise CommandError("benchmarks/speed is missing: run this in a checkout of resmlp_mt.")
    from benchmarks.speed.options import parse_args

    options = parse_args()
    from benchmarks.speed.command import run  # with PyTorch

    run(options)
