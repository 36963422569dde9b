"""``python -m resmlp_mt.vision.train``: train, fine-tune or distil an image classifier.

    python -m resmlp_mt.vision.train
    python -m resmlp_mt.vision.train --config configs/vision/resmlp_s12.yaml --data DIR
    torchrun --nproc-per-node 8 -m resmlp_mt.vision.train --config ... --data DIR
    python -m resmlp_mt.vision.train --resume outputs/vision/last.pth

The first line trains on scikit-learn's handwritten digits. The output folder receives args.yaml
(the resolved options, which --config takes again), summary.csv, last.pth and best.pth. SIGTERM,
Ctrl-C or a closed terminal finish the step, save last.pth and end with status 143, 130 or 129;
docs/vision.md has more.
"""

from collections.abc import Sequence

from resmlp_mt.command_line import command
from resmlp_mt.vision.memory import memory_told
from resmlp_mt.vision.training_arguments import parse_args


@command
def main(argv: Sequence[str] | None = None) -> None:
    options = parse_args(argv)
    from resmlp_mt.vision.training import run  # with PyTorch

    with memory_told():
        run(options)


if __name__ == "__main__":
    main()
