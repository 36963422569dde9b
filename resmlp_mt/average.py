"""``python -m resmlp_mt.average``: the mean of several checkpoints as one checkpoint.

The options are those of fairseq's script of the same purpose, which stops at the safe loader of
PyTorch >= 2.6.
"""

import argparse
from pathlib import Path

from resmlp_mt.translation.checkpoints import average, latest_checkpoints, save
from resmlp_mt.translation.config import OptionError


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m resmlp_mt.average",
        description="Average the parameters of several checkpoints.",
    )
    parser.add_argument(
        "--inputs",
        required=True,
        nargs="+",
        type=Path,
        help="checkpoint files, or one folder together with one of the --num-* options",
    )
    parser.add_argument("--output", required=True, type=Path, help="file to write")
    which = parser.add_mutually_exclusive_group()
    for kind in ("epoch", "update", "best"):
        which.add_argument(
            f"--num-{kind}-checkpoints",
            type=int,
            metavar="N",
            help=f"average the last N {kind} checkpoints of the folder",
        )
    parser.add_argument(
        "--checkpoint-upper-bound",
        type=int,
        metavar="N",
        help="leave out checkpoints behind epoch (or update) N",
    )
    args = parser.parse_args()

    paths: list[Path] = args.inputs
    for kind in ("epoch", "update", "best"):
        count: int | None = getattr(args, f"num_{kind}_checkpoints")
        if count is None:
            continue
        if len(paths) != 1 or not paths[0].is_dir():
            raise OptionError(f"--num-{kind}-checkpoints needs --inputs to be one folder.")
        if count < 1:
            raise OptionError(f"--num-{kind}-checkpoints must be at least 1, but is {count}.")
        paths = latest_checkpoints(
            paths[0], count, by=kind, upper_bound=args.checkpoint_upper_bound
        )
    save(average(paths), args.output)
    print(f"wrote {args.output}, the mean of " + ", ".join(path.name for path in paths))


if __name__ == "__main__":
    main()
