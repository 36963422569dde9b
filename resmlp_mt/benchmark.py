"""``python -m resmlp_mt.benchmark`` runs the speed benchmark, in a checkout."""

import importlib.util

if __name__ == "__main__":
    if importlib.util.find_spec("benchmarks") is None:
        raise SystemExit("benchmarks/speed is not installed: run this in a checkout of resmlp_mt.")
    from benchmarks.speed.command import main

    main()
