"""A small model, one sentence at a time: the engine beside bare ONNX Runtime; start and memory.

    python -m benchmarks.small_model CHECKPOINT --data PREPARED

CHECKPOINT is of the README's model (3 + 3 layers, dim 128), PREPARED the folder that ``prepare.py``
made of its corpus, with a test set. Greedy search without scores on one thread; the forms take
turns. "Bare" is the loop of docs/onnx.md, which is given ids: it neither splits text nor joins
pieces. A start is one run of ``python -m resmlp_mt.translate`` with one line.
Writes small_model.json and small_model.md beside this file.
"""

import argparse
import dataclasses
import datetime
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed.machine import describe
from benchmarks.speed.timing import Run, Spread, interleaved, ratio, spread
from resmlp_mt.command_line import command
from resmlp_mt.engine import model_folder
from resmlp_mt.engine.onnx_export import export_int8, export_onnx
from resmlp_mt.engine.options import SearchOptions
from resmlp_mt.engine.translator import Translator
from resmlp_mt.fairseq_plugin.conversion import load_trained
from resmlp_mt.files import write_text
from resmlp_mt.model.encoder_decoder import EncoderDecoder
from resmlp_mt.models import resmlp_mt  # noqa: F401  registers the architectures

HERE = Path(__file__).resolve().parent
LOOP = re.compile(r"This is greedy search:\n\n```python\n(.*?)```", re.DOTALL)
FORMS = {
    "PyTorch, float32": ("float32", None),
    "PyTorch, int8": ("int8", None),
    "ONNX Runtime, float32": ("float32", export_onnx),
    "ONNX Runtime, int8": ("int8", export_int8),
}
BARE = {f"bare {name}": f"time / bare {dtype}" for name, (dtype, graphs) in FORMS.items() if graphs}


def documented_loop(folder: Path) -> Callable[[list[int]], list[int]]:
    """The greedy search of docs/onnx.md over the graphs of a folder, with one thread."""
    found = LOOP.search((HERE.parent / "docs/onnx.md").read_text(encoding="utf-8"))
    assert found is not None
    code = re.sub('f?"model/', 'f"{folder}/', found.group(1))
    code = code.replace("onnxruntime.InferenceSession(", "session(")

    def session(path: str) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        return onnxruntime.InferenceSession(path, options)

    names: dict[str, Any] = {"folder": folder, "session": session}
    exec(compile(code, "docs/onnx.md", "exec"), names)  # nosec B102: our own page
    loop: Callable[[list[int]], list[int]] = names["greedy"]
    return loop


CHILD = """
import runpy, sys
sys.argv = ["translate", *sys.argv[1:]]
try:
    runpy.run_module("resmlp_mt.translate", run_name="__main__")
finally:
    status = open("/proc/self/status").read()
    print(status.split("VmHWM:")[1].split()[0], file=sys.stderr)
"""


def start(folder: Path, line: str) -> tuple[float, float]:
    """Processor seconds and MB at the peak of ``translate`` with one line.

    The process reads its own peak: the system's for a child includes its parent's before ``exec``.
    """
    before = os.times()
    done = subprocess.run(
        [sys.executable, "-c", CHILD, folder, "--threads", "1", "--beam", "1"],
        input=f"{line}\n", stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, encoding="utf-8",
        check=True,
    )  # fmt: skip
    used = os.times()
    seconds = used.children_user + used.children_system
    seconds -= before.children_user + before.children_system
    return seconds, int(done.stderr.split()[-1]) * 1024 / 1e6


def page(report: dict[str, Any]) -> str:
    """The report in Markdown."""
    ratios = " | ".join(BARE.values())
    lines = [f"| form | ms for a sentence | {ratios} | start, CPU s | MB |", "|-|-:|-:|-:|-:|-:|"]
    for name, row in report["rows"].items():
        cells = [f"{row[k]['median']:.3g} [{row[k]['low']:.3g}, {row[k]['high']:.3g}]"
                 for k in ("milliseconds", *BARE.values())]  # fmt: skip
        if name not in BARE:
            for place, key in enumerate(BARE.values(), start=1):
                cells[place] += " met" if row[key]["median"] <= 1 else " **missed**"
        cells += [f"{row[k]['median']:.3g}" if k in row else "" for k in ("seconds", "megabytes")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    machine = report["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return "\n\n".join(
        [
            "# A small model, one sentence at a time",
            f"{report['date']}; {machine['processor']}, {machine['instructions']}, one thread; "
            f"{versions}.\nWritten by `benchmarks/small_model.py`.",
            f"The README's model ({report['parameters']:,} parameters after folding), the first "
            f"{report['sentences']} sentences of {report['text']}, greedy search without scores; "
            f"medians and quartiles of {report['rounds']} rounds.\nA start is one run of "
            "`python -m resmlp_mt.translate` with one line.",
            "The goal is a sentence no slower than with bare ONNX Runtime: at most 1 times its "
            "time. Bare is the loop of\n[docs/onnx.md](../docs/onnx.md). It is given ids, so it "
            "neither splits text nor joins pieces, which the other forms do.",
            "\n".join(lines),
        ]
    )


@command
def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="prepared corpus")
    parser.add_argument("--sentences", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    text = min((args.data / "raw").glob("test.*"), key=lambda file: file.suffix != ".en")
    source = text.read_text(encoding="utf-8").splitlines()[: args.sentences]
    runs: dict[str, Run] = {}
    starts: dict[str, list[tuple[float, float]]] = {}

    def one_by_one(translate: Callable[[str], object]) -> Run:
        def run(_: int) -> float:
            for line in source:
                translate(line)
            return float(len(source))

        return run

    with tempfile.TemporaryDirectory() as temporary:
        for name, (dtype, graphs) in FORMS.items():
            folder = Path(temporary) / name
            trained = load_trained(args.checkpoint, args.data / "bin", args.data / "spm.model")
            assert isinstance(trained.model, EncoderDecoder)
            parameters = sum(weights.numel() for weights in trained.model.parameters())
            model_folder.save(trained, folder, dtype, graphs)
            loaded = model_folder.load(folder, threads=1)
            translator = Translator(loaded, SearchOptions(beam=1), batch_size=1)
            runs[name] = one_by_one(
                lambda line, t=translator: t.translate([line], return_scores=False)  # type: ignore[misc]
            )
            starts[name] = [start(folder, source[0]) for _ in range(args.rounds)]
            if graphs is not None:
                greedy = documented_loop(folder)
                ids = {line: translator.encode(line) for line in source}
                runs[f"bare {name}"] = one_by_one(
                    lambda line, ids=ids, loop=greedy: loop(ids[line])  # type: ignore[misc]
                )
        speeds = interleaved(runs, args.rounds)
    times = {name: spread([1000 / s for s in each.samples]) for name, each in speeds.items()}
    rows: dict[str, dict[str, Spread]] = {}
    for name, each in times.items():
        ratios = {key: ratio(each, times[bare]) for bare, key in BARE.items()}
        rows[name] = {"milliseconds": each, **ratios}
        if name in starts:
            seconds, megabytes = zip(*starts[name], strict=True)
            rows[name] |= {"seconds": spread([*seconds]), "megabytes": spread([*megabytes])}
    report = {
        "date": datetime.date.today().isoformat(),
        "machine": describe(1),
        "parameters": parameters,
        "text": text.name,
        "sentences": len(source),
        "rounds": args.rounds,
        "rows": {
            name: {key: dataclasses.asdict(value) for key, value in row.items()}
            for name, row in rows.items()
        },
    }
    write_text(HERE / "small_model.json", json.dumps(report, indent=1) + "\n")
    write_text(HERE / "small_model.md", page(report) + "\n")
    print(page(report))


if __name__ == "__main__":
    main()
