"""The speed benchmark, ``python -m resmlp_mt.benchmark``: measurements, timing and report."""
