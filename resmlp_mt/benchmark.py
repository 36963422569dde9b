"""``python -m resmlp_mt.benchmark`` runs the speed benchmark, in a checkout."""

import importlib.util

if __name__ == "__main__":
    if importlib.util.find_spec("benchmarks") is None:
        raise SystemExit("benchmarks/speed is not installed: run this in a checkout of resmlp_mt.")
    from benchmarks.speed.options import parse_args

    options = parse_args()
    from benchmarks.speed.command import run  # with PyTorch

    run(options)
