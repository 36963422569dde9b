"""``python -m resmlp_mt.average``: the mean of several checkpoints as one checkpoint.

It has the options of fairseq's average_checkpoints.py, which fails at the safe loader of
PyTorch >= 2.6.
"""

from argparse import BooleanOptionalAction
from collections.abc import Sequence
from pathlib import Path

from resmlp_mt.command_line import Parser, command, flags
from resmlp_mt.errors import UserError
from resmlp_mt.files import check_outputs, expanded, writing
from resmlp_mt.option_types import NOT_NEGATIVE, POSITIVE

KINDS = ("epoch", "update", "best")


@command
def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser("resmlp_mt.average", "Average the parameters of several checkpoints.")
    parser.add_argument(
        "--inputs",
        required=True,
        nargs="+",
        type=expanded,
        help="checkpoint files, or one folder together with one of the --num-* options",
    )
    parser.add_argument(*flags("output"), required=True, type=expanded, help="file to write")
    which = parser.add_mutually_exclusive_group()
    for kind in KINDS:
        those = "" if kind == "best" else "last "
        which.add_argument(
            f"--num-{kind}-checkpoints",
            type=POSITIVE,
            metavar="N",
            help=f"average the {those}N {kind} checkpoints of the folder",
        )
    parser.add_argument(
        "--checkpoint-upper-bound",
        type=NOT_NEGATIVE,
        metavar="N",
        help="leave out checkpoints after epoch (or update) N",
    )
    parser.add_argument(
        "--maximize-best-checkpoint-metric",
        action=BooleanOptionalAction,
        help="whether the best checkpoints have the largest values (default: as in the training)",
    )
    args = parser.parse_args(argv)

    from resmlp_mt import tensor_files
    from resmlp_mt.fairseq_plugin.checkpoints import average
    from resmlp_mt.fairseq_plugin.ranking import best_checkpoints, latest_checkpoints

    chosen = [kind for kind in KINDS if getattr(args, f"num_{kind}_checkpoints") is not None]
    if args.checkpoint_upper_bound is not None and chosen not in (["epoch"], ["update"]):
        raise UserError(
            "--checkpoint-upper-bound needs --num-epoch-checkpoints or --num-update-checkpoints."
        )
    if args.maximize_best_checkpoint_metric is not None and chosen != ["best"]:
        raise UserError("--maximize-best-checkpoint-metric needs --num-best-checkpoints.")
    if args.output.suffix.lower() in (".safetensors", ".onnx"):
        raise UserError(f"--output {args.output}: the file is a checkpoint, so name it .pt.")
    check_outputs(("--output", args.output))
    paths: list[Path] = args.inputs
    for kind in chosen:
        count: int = getattr(args, f"num_{kind}_checkpoints")
        if len(paths) != 1 or not paths[0].is_dir():
            raise UserError(f"--num-{kind}-checkpoints needs --inputs to name one existing folder.")
        if kind == "best":
            paths = best_checkpoints(paths[0], count, args.maximize_best_checkpoint_metric)
        else:
            bound = args.checkpoint_upper_bound
            paths = latest_checkpoints(paths[0], count, by=kind, upper_bound=bound)
    for path in paths:
        if path.is_dir() and not chosen:
            raise UserError(
                f"--inputs {path} is a folder: add --num-epoch-checkpoints N or another --num-*."
            )
        if args.output.exists() and path.exists() and args.output.samefile(path):
            raise UserError(
                f"--output {args.output} is one of the checkpoints to average: choose another name."
            )
    averaged = average(paths)
    with writing(args.output, "--output"):
        tensor_files.write(averaged, args.output)
    print(f"wrote {args.output}, the mean of " + ", ".join(path.name for path in paths))


if __name__ == "__main__":
    main()
