"""``python -m resmlp_mt.vision.visualize``: :mod:`resmlp_mt.visualize` among the image commands."""

from resmlp_mt.visualize import main

if __name__ == "__main__":
    main()
