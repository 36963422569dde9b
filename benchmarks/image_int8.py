"""Accuracy of ResMLP-S12 in float32, bfloat16 and int8, on a trained model.

    python -m benchmarks.image_int8 --work DIR

Trains S12 on scikit-learn's digits (2 x 2 pixels per patch), unless DIR has that training, and
evaluates it in each type. --checkpoint FILE --data ... evaluates another training. Writes
image_int8.json and image_int8.md beside this file.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed.machine import describe, measured_on
from resmlp_mt.command_line import command
from resmlp_mt.files import replacing
from resmlp_mt.machine import computes_in_bfloat16
from resmlp_mt.vision import evaluate, train
from resmlp_mt.vision.checkpoints import load

HERE = Path(__file__).resolve().parent
RECIPE = [
    "--model=resmlp_s12", "--img-size=8", "--patch-size=2", "--warmup-epochs=0",
    "--sched-on-updates", "--lr=1e-3", "--no-progress", "--model-kwargs", "layer_scale_init=1.0",
]  # fmt: skip


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="of the training")
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="another training")
    parser.add_argument("--data", nargs="+", help="of --checkpoint, if not what it was trained on")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--output", type=Path, default=HERE, metavar="DIR", help="of the report")
    args = parser.parse_args()
    checkpoint: Path = args.checkpoint or args.work / "training/best.pth"
    if not checkpoint.exists():
        train.main([*RECIPE, f"--epochs={args.epochs}", f"--output={checkpoint.parent}"])
    rows = [measure(checkpoint, dtype, args.data, args.work) for dtype in types()]
    recipe = load(checkpoint)["config"]
    report = {"model": recipe["model"], "machine": describe(torch.get_num_threads()), "rows": rows}
    write(args.output / "image_int8.json", json.dumps(report, indent=1) + "\n")
    write(args.output / "image_int8.md", text(report))


def types() -> list[str]:
    """The types that this processor supports."""
    return ["float32", *(["bfloat16"] if computes_in_bfloat16() else []), "int8"]


def measure(checkpoint: Path, dtype: str, data: list[str] | None, work: Path) -> dict[str, Any]:
    """The evaluation's report for one type."""
    path = work / f"{dtype}.json"
    words = [str(checkpoint), f"--dtype={dtype}", f"--json={path}", "--workers=0", "-b", "64"]
    evaluate.main([*words, *(["--data", *data] if data else [])])
    report: dict[str, Any] = json.loads(path.read_text())
    kept = ("data", "images", "top1", "top5")
    return {"dtype": dtype, **{name: report[name] for name in kept}}


def text(report: dict[str, Any]) -> str:
    """The table."""
    rows = report["rows"]
    first = rows[0]
    lines = [
        "# int8 inference of an image model",
        "",
        f"`{report['model']}` trained on {' '.join(first['data'])}, "
        f"{first['images']} validation images, by "
        "`benchmarks/image_int8.py`. int8 rounds the feed-forward layers alone. "
        + measured_on(report["machine"]),
        "",
        "| type | top-1 % | top-5 % |",
        "|-|-|-|",
    ]
    lines += [f"| {row['dtype']} | {row['top1']:.2f} | {row['top5']:.2f} |" for row in rows]
    return "\n".join(lines) + "\n"


def write(path: Path, content: str) -> None:
    """Write a file, completely or not at all."""
    with replacing(path) as partial:
        partial.write_text(content)
    print(content)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
