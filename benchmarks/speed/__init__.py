"""The parts of ``python -m resmlp_mt.benchmark``: what is measured, how, and how it is reported."""
