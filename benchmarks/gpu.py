"""One command for a machine with one GPU: training, translation, images, torchrun and the tests.

    python -m benchmarks.gpu                        # under nine minutes on one H200
    python -m benchmarks.gpu --device cpu --quick   # the same path on a CPU, at a size of seconds
    python -m benchmarks.gpu --plan                 # the table before anything was measured
    python -m benchmarks.gpu --rows images          # these again; the others stay as they are

Base size, random weights; peers take turns in every round. What does not fit the time, the device
or the installed packages says so in its row. Writes gpu.json and gpu.md into --output.
"""

import json
import logging
import math
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Container, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_measurements import Figures, Settings, images, torchrun, training, translation
from benchmarks.speed.machine import describe
from resmlp_mt.command_line import Parser, command
from resmlp_mt.errors import UserError
from resmlp_mt.files import check_outputs, write_text

HERE = Path(__file__).resolve().parent
MOST_SECONDS = 460
"""On a GPU no part begins after these, so that all ends in nine minutes."""


@dataclass(frozen=True)
class Row:
    """Figures of one setting by model, or the reason why there are none."""

    part: str
    setting: str
    unit: str
    figures: dict[str, float]
    reason: str = ""


@dataclass(frozen=True)
class Part:
    """A row that can be measured."""

    name: str
    setting: str
    unit: str
    measure: Callable[[Settings], Figures]


DTYPES = ("fp32", "bf16", "fp16")
BATCHES = (1, 64, 512)
TOKENS, MEMORY = "target tokens/s", "MiB at the peak"


def parts() -> list[Part]:
    """All rows, the most wanted ones first."""

    def train(dtype: str, unit: str, tokens: int, is_chunked: bool = False) -> Part:
        chunked = ", chunked criterion" if is_chunked else ""
        return Part(
            "training", f"{dtype}, batches of {tokens:,} tokens{chunked}", unit,
            lambda s: training(s, dtype, tokens, unit == MEMORY, is_chunked),
        )  # fmt: skip

    def translate(batch: int) -> Part:
        return Part(
            "translation", f"beam 4, batch {batch}", "sentences/s", lambda s: translation(s, batch)
        )

    def image(size: str, mode: str, variant: str) -> Part:
        return Part(
            "images", f"{size} {mode}, {variant}", "images/s",
            lambda s: images(s, size, mode, variant),
        )  # fmt: skip

    return [
        Part("tests", "pytest -m gpu", "tests passed", tests),
        Part("torchrun", "fairseq-train, 1 process, 5 updates", "seconds", torchrun),
        *(train(dtype, unit, 8192) for dtype in DTYPES for unit in (TOKENS, MEMORY)),
        train("bf16", TOKENS, 32768),  # where arithmetic takes longer than launching it
        *(train("bf16", unit, 8192, is_chunked=True) for unit in (TOKENS, MEMORY)),
        *(translate(batch) for batch in BATCHES),
        *(
            image(size, mode, variant)
            for variant in ("bf16", "bf16 channels-last", "bf16 compiled")
            for size in ("S12", "S24")
            for mode in ("inference", "training")
        ),
    ]


def tests(settings: Settings) -> Figures:
    """The tests with the marker ``gpu``: how many passed.

    Raises:
        RuntimeError: if one failed.
    """
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/test_gpu.py"],
        cwd=HERE.parent,
        capture_output=True,
        encoding="utf-8",
    )
    last = (done.stdout.strip().splitlines() or ["no output"])[-1]
    if done.returncode not in (0, 5):  # 5: there are none
        print(done.stdout, file=sys.stderr)
        raise RuntimeError(last)
    words = last.replace(",", "").split()
    if "passed" not in words:
        raise RuntimeError(f"none ran: {last}")
    return {"ours": float(words[words.index("passed") - 1])}


def measured(
    settings: Settings, most_seconds: float, rows: list[Row], wanted: Container[str]
) -> Iterator[Row]:
    """Measures the wanted parts, and puts each row in its place in ``rows`` before it is given.

    A row that cannot be measured says why.
    """
    begin = time.monotonic()
    for index, part in enumerate(parts()):
        if part.name not in wanted:
            continue
        figures: Figures = {}
        reason = ""
        if time.monotonic() - begin > most_seconds:
            reason = "not measured: the time was up"
        else:
            try:
                figures = part.measure(settings)
            except Exception as error:  # of CUDA, of peers, of the compiler: all are reported
                text = " ".join(str(error).split()) or type(error).__name__
                reason = f"not measured: {text[:160]}"
        rows[index] = Row(part.name, part.setting, part.unit, figures, reason)
        if settings.device == "cuda":
            torch.cuda.empty_cache()
        yield rows[index]


def line(row: Row) -> str:
    """A row of the table."""
    figures = "; ".join(f"{name} {value:.4g}" for name, value in row.figures.items())
    ours = row.figures.get("faithful")
    peer = next((v for n, v in row.figures.items() if n.startswith(("fairseq", "timm"))), None)
    ratio = f"{ours / peer:.2f}" if ours and peer else ""
    return f"| {row.setting} | {row.unit} | {figures or row.reason} | {ratio} |"


def page(rows: list[Row], machine: dict[str, Any] | None) -> str:
    """gpu.md."""
    lines = [
        "# On a GPU",
        "",
        "By `python -m benchmarks.gpu`; base size, random weights, medians of rounds in which",
        'peers take turns. "ratio": the faithful ResMLP divided by the model of fairseq or timm.',
        "",
        "Training uses autocast, Adam, fairseq's criterion where no other is named, and a gradient",
        'scaler in fp16. Under "translation", "faithful" and "fairseq transformer" are fairseq\'s',
        'generator in float16, and "translate" is the engine.',
        "",
    ]
    if machine is None:
        lines += ["Nothing has been measured yet, because no GPU was available.", ""]
    else:
        versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
        where = machine["gpu"] or f"{machine['processor']}, {machine['threads']} threads"
        date = f"{machine['date']}; " if "date" in machine else ""
        lines += [
            f"{date}{where}; {versions}.",
            *([machine["note"]] if machine["note"] else []),
            "",
        ]
        if machine["quick"]:
            lines += ["Tiny sizes (`--quick`): the figures say only that the path works.", ""]
    for name in dict.fromkeys(row.part for row in rows):
        lines += [f"## {name}", "", "| setting | unit | figures | ratio |", "|-|-|-|-|"]
        lines += [line(row) for row in rows if row.part == name]
        lines.append("")
    return "\n".join(lines)


def planned() -> list[Row]:
    """The rows before anything was measured."""
    return [Row(p.name, p.setting, p.unit, {}, "not measured") for p in parts()]


def kept(stored: Path, machine: dict[str, Any]) -> list[Row]:
    """The rows of an earlier run, and planned rows for those that it does not have.

    Raises:
        UserError: if it was on another machine, or with other versions.
    """
    rows = planned()
    if not stored.exists() or (report := json.loads(stored.read_text()))["machine"] is None:
        return rows
    if not_of_the_day(report["machine"]) != not_of_the_day(machine):
        raise UserError(
            f"{stored} holds rows of another machine or other versions: give another --output, or "
            "measure all rows."
        )
    found = {(row["part"], row["setting"], row["unit"]): row for row in report["rows"]}
    return [Row(**found.get((row.part, row.setting, row.unit), asdict(row))) for row in rows]


def not_of_the_day(machine: dict[str, Any]) -> dict[str, Any]:
    """What must be the same for rows of one table."""
    return {name: value for name, value in machine.items() if name not in ("note", "date")}


def write(out: Path, rows: list[Row], machine: dict[str, Any] | None) -> None:
    """Both files."""
    report = {"machine": machine, "rows": [asdict(row) for row in rows]}
    write_text(out / "gpu.json", json.dumps(report, indent=1) + "\n")
    write_text(out / "gpu.md", page(rows, machine))


@command
def main() -> None:
    parser = Parser("benchmarks.gpu", "Measure speed and memory on one GPU, beside peers.")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="where to run")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run?")
    parser.add_argument("--plan", action="store_true", help='write the table with "not measured"')
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="of each row")
    names = list(dict.fromkeys(part.name for part in parts()))
    parser.add_argument(
        "--rows",
        nargs="+",
        choices=names,
        metavar="PART",
        help="measure these parts only",
    )
    parser.add_argument("--note", default="", metavar="TEXT", help="a sentence on the machine")
    parser.add_argument(
        "--output", "--out", type=Path, default=HERE, metavar="DIR", help="folder for results"
    )
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    stored = args.output / "gpu.json"
    check_outputs(("--output", stored), ("--output", args.output / "gpu.md"))
    if args.plan:
        if stored.exists() and json.loads(stored.read_text())["machine"] is not None:
            raise UserError(f"{stored} holds measurements: give another --output for --plan.")
        write(args.output, planned(), None)
        return
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("PyTorch sees no GPU here: use --device cpu --quick to try the path.")
    if args.device == "cpu" and args.output == HERE:
        raise UserError("--device cpu measures no GPU: give an --output of its own.")
    logging.disable(logging.WARNING)  # of the peers
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as work:
        settings = Settings(args.device, args.quick, args.rounds, Path(work))
        machine = describe(torch.get_num_threads()) | {"quick": args.quick, "note": args.note}
        rows = kept(stored, machine) if args.rows else planned()
        most = MOST_SECONDS if args.device == "cuda" else math.inf
        for row in measured(settings, most, rows, args.rows or names):
            print(line(row), file=sys.stderr, flush=True)
            write(args.output, rows, machine)
    print((args.output / "gpu.md").read_text())


if __name__ == "__main__":
    main()
