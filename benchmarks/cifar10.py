"""ResMLP on CIFAR-10 beside timm's blocks, a ViT and a distilled run, on CPU.

    python -m benchmarks.cifar10 --data cifar10.tar.gz --work DIR --part resmlp-1
    python -m benchmarks.cifar10 --data cifar10.tar.gz --work DIR --report

Each part is one training by resmlp_mt.vision.train on one thread. An interrupted part is continued.
All use configs/vision/cifar10_scratch.yaml and the same loop, data and order:

=============  ==================================================================================
resmlp-SEED    resmlp_tiny of this project
timm-SEED      timm's MlpMixer of ResBlock and Affine, from the same initial weights
vit-SEED       timm's VisionTransformer of about as many parameters, for about as many seconds
teacher-1      a small residual convnet of timm's
student-SEED   resmlp-SEED that also learns the hard labels of teacher-1
speed          images/s of training steps, the models in turn
=============  ==================================================================================

A part of 20 epochs takes most of an hour of one slow core. Parts may run at the same time, each on
its own --core. Fewer --epochs make a shorter comparison. --report writes cifar10.json, cifar10.md
and cifar10.png beside this file from the existing parts.
"""

import argparse
import csv
import datetime
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import matplotlib
import torch
from torch import Tensor, nn

from resmlp_mt.command_line import command
from resmlp_mt.vision import train
from resmlp_mt.vision.checkpoints import load
from resmlp_mt.vision.distributed import measured_on
from resmlp_mt.vision.factory import build_model, create_model
from resmlp_mt.vision.libraries import timm
from resmlp_mt.vision.loader import seed_all
from resmlp_mt.vision.model import ResMLP
from resmlp_mt.vision.presets import MODELS
from resmlp_mt.vision.state_dicts import renamed

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # isort: skip
from resmlp_mt.files import replacing, write_text

HERE = Path(__file__).resolve().parent
CONFIG = HERE.parent / "configs/vision/cifar10_scratch.yaml"
TINY = MODELS["resmlp_tiny"]
IMG_SIZE = TINY.img_size
MODEL = {  # --model of each kind of part
    "resmlp": "resmlp_tiny",
    "timm": "timm:cifar10_timm",
    "vit": "timm:cifar10_vit",
    "teacher": "timm:cifar10_convnet",
    "student": "resmlp_tiny",
}
NAMES = {
    "resmlp": "ResMLP, this project",
    "timm": "ResMLP, timm's blocks",
    "vit": "ViT, timm",
    "teacher": "convnet, the teacher",
    "student": "ResMLP, this project, distilled",
}
BATCH_SIZE = 128
SPEED_ROUNDS, SPEED_STEPS = 6, 12


def timm_names(model: ResMLP) -> dict[str, Tensor]:
    """The state dict of a model with mean pooling and linear mixing, under timm's names."""
    converted = {}
    for key, value in model.state_dict().items():
        if key == "patch_embed.proj.weight":
            value = value.unflatten(1, (-1, model.patch_size, model.patch_size))
        elif key.endswith((".alpha", ".beta")) and "_post." not in key:
            value = value.view(1, 1, -1)
        converted[renamed(key, 0, 1)] = value
    return converted


def cifar10_timm(num_classes: int = 10, **_: Any) -> nn.Module:
    """The same configuration of timm's blocks, with our initial weights for this seed."""
    ours = create_model("resmlp_tiny", num_classes=num_classes)
    model: Any = timm.models.mlp_mixer.MlpMixer(
        num_classes=num_classes,
        img_size=IMG_SIZE,
        patch_size=TINY.patch_size,
        num_blocks=TINY.depth,
        embed_dim=TINY.embed_dim,
        mlp_ratio=4,
        block_layer=timm.models.mlp_mixer.ResBlock,
        norm_layer=timm.models.mlp_mixer.Affine,
    )
    model.load_state_dict(timm_names(ours))
    scales = {name for name, _ in model.named_parameters() if name.endswith(("alpha", "beta"))}
    model.no_weight_decay = lambda: scales  # timm takes its own (1, 1, dim) scales for matrices
    result: nn.Module = model
    return result


def cifar10_vit(num_classes: int = 10, **_: Any) -> nn.Module:
    """A ViT of the same depth and patches, narrower: attention has more parameters than mixing."""
    model: nn.Module = timm.models.VisionTransformer(
        img_size=IMG_SIZE,
        patch_size=TINY.patch_size,
        num_classes=num_classes,
        embed_dim=55,
        depth=TINY.depth,
        num_heads=5,
        class_token=False,
        global_pool="avg",
    )
    return model


def cifar10_convnet(num_classes: int = 10, **_: Any) -> nn.Module:
    """A stem that halves the image, then three residual stages that halve it again."""
    stages = tuple(
        timm.models.byobnet.ByoBlockCfg(type="basic", d=1, c=channels, s=2, br=1.0)
        for channels in (64, 128, 256)
    )
    config = timm.models.byobnet.ByoModelCfg(
        blocks=stages, stem_type="3x3", stem_chs=16, stem_pool=""
    )
    model: nn.Module = timm.models.byobnet.ByobNet(config, num_classes=num_classes)
    return model


for _model in (cifar10_timm, cifar10_vit, cifar10_convnet):
    timm.models.register_model(_model)


def parse_args() -> argparse.Namespace:
    """The command line; see `--help`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, metavar="FILE", help="cifar10.tar.gz")
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="for the parts")
    parser.add_argument("--part", metavar="NAME", help="MODEL-SEED or speed")
    parser.add_argument("--report", action="store_true", help="write the table and the plot")
    parser.add_argument("--epochs", type=int, default=20, help="of all but ViT and teacher")
    parser.add_argument("--teacher-epochs", type=int, default=16, help="of the teacher")
    parser.add_argument("--out", type=Path, default=HERE, metavar="DIR", help="of the report")
    parser.add_argument("--core", type=int, help="run on this core alone")
    return parser.parse_args()


@command
def main() -> None:
    """Run one part, or report."""
    args = parse_args()
    if args.core is not None:
        os.sched_setaffinity(0, {args.core})
    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    if args.part == "speed":
        speeds = measure_speed(["resmlp", "timm", "vit", "teacher"])
        write_json(args.work / "speed.json", speeds)
    elif args.part:
        run(args.part, args)
    if args.report:
        report(args)


def run(part: str, args: argparse.Namespace) -> None:
    """Train one model, or continue its training."""
    kind, seed = part.split("-")
    output = args.work / part
    epochs = args.teacher_epochs if kind == "teacher" else args.epochs
    if kind == "vit":
        epochs = equal_time_epochs(args)
    options = [
        f"--config={CONFIG}",
        "--data", "cifar10-tar", str(args.data),
        f"--model={MODEL[kind]}",
        f"--epochs={epochs}",
        f"--batch-size={BATCH_SIZE}",
        f"--seed={seed}",
        f"--output={output}",
        "--recovery-interval=100",
    ]  # fmt: skip
    if kind == "student":
        teacher = args.work / "teacher-1/best.pth"
        options += [f"--teacher={teacher}", "--distillation-type=hard"]
    if (output / "last.pth").exists():
        options.append(f"--resume={output / 'last.pth'}")
    train.main(options)


def equal_time_epochs(args: argparse.Namespace) -> int:
    """Number of epochs in which the ViT takes as long as ResMLP; measured once."""
    path = args.work / "vit_speed.json"
    if not path.exists():
        write_json(path, measure_speed(["resmlp", "vit"]))
    speeds = json.loads(path.read_text())
    ratio: float = speeds["vit"]["median"] / speeds["resmlp"]["median"]
    epochs: int = round(args.epochs * ratio)
    return max(1, epochs)


def measure_speed(names: list[str]) -> dict[str, Any]:
    """Speed of training steps on random images, the models in turn (A B A B ...).

    Processor time is measured, because the machine may be shared.
    """
    steps = {}
    for name in names:
        seed_all(0)
        steps[name] = training_step(build_model(MODEL[name], num_classes=10))
        steps[name]()
    rates: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(SPEED_ROUNDS):
        for name in names:
            start = time.process_time()
            for _ in range(SPEED_STEPS):
                steps[name]()
            rates[name].append(BATCH_SIZE * SPEED_STEPS / (time.process_time() - start))
    return {
        name: {"median": statistics.median(values), "rounds": values}
        for name, values in rates.items()
    }


def training_step(model: nn.Module) -> Any:
    """A function that does one update."""
    images = torch.randn(BATCH_SIZE, 3, IMG_SIZE, IMG_SIZE)
    labels = torch.randint(10, (BATCH_SIZE,))
    optimizer = torch.optim.AdamW(model.parameters())

    def step() -> None:
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def write_json(path: Path, values: Any) -> None:
    """Write a file, completely or not at all."""
    write_text(path, json.dumps(values, indent=2) + "\n")


def read_part(folder: Path) -> dict[str, Any]:
    """The results of a finished or unfinished training."""
    kind, seed = folder.name.split("-")
    with (folder / "summary.csv").open() as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    checkpoint = load(folder / "last.pth")
    return {
        "model": NAMES[kind],
        "kind": kind,
        "seed": int(seed),
        "parameters": sum(
            weight.numel() for weight in build_model(MODEL[kind], num_classes=10).parameters()
        ),
        "epochs": len(rows),
        "epochs_planned": checkpoint["config"]["epochs"],
        "seconds": rows[-1]["seconds"],
        "images_per_second": statistics.median(row["images_per_second"] for row in rows),
        "val_top1": rows[-1]["val_top1"],
        "best_val_top1": max(row["val_top1"] for row in rows),
        "curve": [
            {key: row[key] for key in ("seconds", "train_loss", "val_loss", "val_top1")}
            for row in rows
        ],
    }


def report(args: argparse.Namespace) -> None:
    """Write table and plot of the existing parts."""
    folders = [args.work / f"{kind}-{seed}" for kind in MODEL for seed in range(1, 10)]
    parts = [read_part(folder) for folder in folders if (folder / "summary.csv").exists()]
    speed_file = args.work / "speed.json"
    speeds = json.loads(speed_file.read_text()) if speed_file.exists() else {}
    results = {
        "date": datetime.date.today().isoformat(),
        "machine": {**measured_on(torch.device("cpu")), "timm": timm.__version__},
        "threads": 1,
        "data": "CIFAR-10 as JPEG, 45,000 training and 5,000 validation images",
        "config": CONFIG.read_text(),
        "parts": parts,
        "speed": speeds,
    }
    write_json(args.out / "cifar10.json", results)
    write_text(args.out / "cifar10.md", table(results))
    plot(parts, args.out / "cifar10.png")


def table(results: dict[str, Any]) -> str:
    """cifar10.md"""
    lines = [
        "# CIFAR-10 from random weights",
        "",
        f"resmlp_tiny ({TINY.depth} layers of {TINY.embed_dim} channels) at 32 x 32 pixels, "
        f"patch {TINY.patch_size}; 45,000 training and 5,000 validation images, one thread, "
        f"{results['machine']['machine']}, PyTorch {results['machine']['torch']}, "
        f"timm {results['machine']['timm']}, {results['date']}. "
        "Recipe: configs/vision/cifar10_scratch.yaml, batch 128. Accuracy is that of the last "
        "epoch on the validation images, which were used to choose only the teacher's best epoch.",
        "",
        "| model | seed | parameters | epochs | images/s | val top-1 % |",
        "|-|-|-|-|-|-|",
    ]
    for part in results["parts"]:
        planned = part["epochs_planned"]
        epochs = f"{part['epochs']}" + (f" of {planned}" if part["epochs"] < planned else "")
        lines.append(
            f"| {part['model']} | {part['seed']} | {part['parameters']:,} | {epochs} "
            f"| {part['images_per_second']:.0f} | {part['val_top1']:.2f} |"
        )
    lines += [
        "",
        "Images/s are the median over epochs, loading and augmentation included, on a core shared "
        "with other programs: they show how long a training takes, not which model is faster.",
        "The ViT's epochs were chosen to take as much processor time as those of ResMLP with its "
        "seed.",
        "",
        *comparisons(results["parts"]),
    ]
    if results["speed"]:
        lines += [
            "",
            "| training, images per second of processor time | median | range |",
            "|-|-|-|",
        ]
        for kind in ("resmlp", "timm", "vit", "teacher"):
            speed = results["speed"][kind]
            low, high = min(speed["rounds"]), max(speed["rounds"])
            lines.append(f"| {NAMES[kind]} | {speed['median']:.0f} | {low:.0f} - {high:.0f} |")
        lines += [
            "",
            f"{SPEED_ROUNDS} rounds in which each model in turn does {SPEED_STEPS} updates of "
            f"{BATCH_SIZE} random images; without loading and augmentation.",
        ]
    return "\n".join(lines) + "\n"


def comparisons(parts: list[dict[str, Any]]) -> list[str]:
    """Compare the finished parts of each seed with ResMLP."""
    done = {
        (part["kind"], part["seed"]): part
        for part in parts
        if part["epochs"] == part["epochs_planned"]
    }
    lines = []
    for (kind, seed), ours in done.items():
        if kind != "resmlp":
            continue
        for peer in ("timm", "vit", "student"):
            if (peer, seed) not in done:
                continue
            part = done[peer, seed]
            line = (
                f"* Seed {seed}, {NAMES[peer]}: {part['val_top1'] - ours['val_top1']:+.2f} points "
                f"of top-1 compared with {NAMES['resmlp']}"
            )
            if peer == "timm":
                pairs = list(zip(ours["curve"], part["curve"], strict=True))
                furthest = max(abs(a["val_top1"] - b["val_top1"]) for a, b in pairs)
                losses = max(abs(a["train_loss"] - b["train_loss"]) for a, b in pairs)
                line += (
                    f"; over all epochs at most {furthest:.2f} points and {losses:.4f} of the "
                    "training loss apart"
                )
            lines.append(line + ".")
    return lines


def plot(parts: list[dict[str, Any]], path: Path) -> None:
    """Validation accuracy by epoch and training loss by epoch."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    colors = {kind: f"C{index}" for index, kind in enumerate(MODEL)}
    for part in parts:
        style = {
            "color": colors[part["kind"]],
            "linestyle": "-" if part["seed"] == 1 else "--",
            "label": f"{part['model']}, seed {part['seed']}",
        }
        epochs = range(1, part["epochs"] + 1)
        left.plot(epochs, [point["val_top1"] for point in part["curve"]], **style)
        right.plot(epochs, [point["train_loss"] for point in part["curve"]], **style)
    left.set(xlabel="epoch", ylabel="validation top-1 %")
    right.set(xlabel="epoch", ylabel="training loss")
    left.legend(fontsize=8)
    figure.tight_layout()
    with replacing(path) as partial:
        figure.savefig(partial, dpi=120, format="png")


if __name__ == "__main__":
    main()
