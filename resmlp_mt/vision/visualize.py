"""``python -m resmlp_mt.vision.visualize``: ``resmlp_mt.visualize`` among the image commands."""

import runpy

if __name__ == "__main__":
    runpy.run_module("resmlp_mt.visualize", run_name="__main__", alter_sys=True)
