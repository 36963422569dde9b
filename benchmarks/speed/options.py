"""The options of the speed benchmark. PyTorch is not loaded here: ``--help`` answers at once."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks.speed.lengths import SOURCE
from resmlp_mt.command_line import Parser, flags
from resmlp_mt.machine import usable_cores
from resmlp_mt.option_types import POSITIVE, PROCESSES

GROUPS = ("training", "generation", "translate", "presets", "images", "length")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exits with status 2 on a wrong one."""
    parser = Parser(
        "resmlp_mt.benchmark",
        "Measure speed and memory beside peers.",
        needs=["fairseq", "matplotlib", "onnxscript", "onnx"],
    )
    parser.add_argument(
        "--rows", nargs="+", choices=GROUPS, default=list(GROUPS), help="what is measured"
    )
    parser.add_argument(
        "--threads", type=PROCESSES, default=usable_cores(), metavar="N", help="of each computation"
    )
    parser.add_argument(
        "--repeats", type=POSITIVE, default=5, metavar="N", help="rounds of each row"
    )
    parser.add_argument(
        *flags("output"), type=Path, default=Path("."), metavar="DIR", help="folder for results"
    )
    parser.add_argument(
        "--lengths-from",
        type=Path,
        metavar="FILE",
        help=f"subword sentences, source<TAB>target in each line (default: {SOURCE})",
    )
    parser.add_argument("--quick", action="store_true", help="tiny models: does it run?")
    return parser.parse_args(argv)
