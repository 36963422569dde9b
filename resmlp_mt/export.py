"""``python -m resmlp_mt.export``: a checkpoint as a folder that translates without fairseq.

    python -m resmlp_mt.export checkpoint_best.pt --output model --sentencepiece-model spm.model
    python -m resmlp_mt.translate model < text.en > text.de

All affine maps and scales are folded into the linear layers beside them. docs/engine.md lists the
files.
"""

import importlib.util
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from resmlp_mt.command_line import Parser, command, option
from resmlp_mt.engine.options import DTYPES
from resmlp_mt.errors import UserError
from resmlp_mt.extras import installation
from resmlp_mt.files import not_a_checkpoint


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is exported."""

    checkpoint: Path = option(..., "checkpoint", metavar="CKPT", help="file from fairseq-train")
    output: Path = option(..., metavar="DIR", help="folder to write")
    format: str = option(
        "safetensors",
        choices=("safetensors", "onnx"),
        help="onnx: graphs for ONNX Runtime and others",
    )
    dtype: str = option("float32", choices=DTYPES, help="type of embeddings and linear layers")
    data: Path | None = option(
        None, metavar="DIR", help="folder of the dictionaries (default: the training's)"
    )
    sentencepiece_model: Path | None = option(
        None, metavar="FILE",
        help="the subword model (default: spm.model beside the folder of the dictionaries)",
    )  # fmt: skip
    shortlist: Path | None = option(
        None, metavar="DATA-BIN",
        help="make a shortlist from this binarised training text, for translate --shortlist",
    )  # fmt: skip


def parse_args(argv: Sequence[str] | None) -> Options:
    """Parse the command line; exits with status 2 on a wrong one.

    Raises:
        UserError: if an extra is not installed.
    """
    parser = Parser(
        "resmlp_mt.export",
        "Fold a trained model and write it for translation without fairseq.",
        needs=["fairseq"],
    )
    parser.add_options(Options)
    parser.refuse("a converter", "converters")
    options = Options(**vars(parser.parse_args(argv)))
    if options.format == "onnx" and options.dtype == "bfloat16":
        parser.error("--format onnx has float32 or int8 weights: choose one of them for --dtype")
    if options.format == "onnx":
        graphs = "onnxscript", "onnx", *(("onnxruntime",) if options.dtype == "int8" else ())
        lacking = [name for name in graphs if importlib.util.find_spec(name) is None]
        if lacking:
            raise UserError(f"--format onnx needs {lacking[0]}: run {installation(lacking[0])}.")
    return options


@command
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    from resmlp_mt.engine import model_folder

    if not args.checkpoint.is_file():
        raise not_a_checkpoint(args.checkpoint)
    model_folder.check_is_free(args.output)
    logging.getLogger("fairseq").setLevel(logging.WARNING)
    # after the logger is set up, because fairseq logs while it is imported
    from resmlp_mt.fairseq_plugin.conversion import (
        build_shortlist,
        load_trained,
        read_training_text,
    )
    from resmlp_mt.models import resmlp_mt  # noqa: F401  registers the architectures

    loaded = load_trained(args.checkpoint, args.data, args.sentencepiece_model)
    if args.shortlist is not None:
        text = read_training_text(args.shortlist, loaded)
        loaded.shortlist = build_shortlist(text, loaded)
    write = None
    if args.format == "onnx":
        from resmlp_mt.engine.onnx_export import export_int8, export_onnx

        write = export_int8 if args.dtype == "int8" else export_onnx
    model_folder.save(loaded, args.output, args.dtype, write)
    size = sum(path.stat().st_size for path in args.output.iterdir())
    print(f"wrote {args.output}: {size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
