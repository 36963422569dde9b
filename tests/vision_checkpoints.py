"""Small image classifiers with random weights, and images, for the tests of the commands."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from conftest import ROOT
from resmlp_mt.vision.checkpoints import save
from resmlp_mt.vision.factory import create_model

DIGITS = [str(digit) for digit in range(10)]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Malicious:
    """Unpickled, it runs a command."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("echo this must not run",)


def random_model(seed: int, **model_args: Any) -> nn.Module:
    """A model whose logits differ a lot between images."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = create_model(**model_args)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def checkpoint(
    path: Path,
    classes: Sequence[str] = DIGITS,
    size: int = 8,
    seed: int = 0,
    ema_seed: int | None = None,
    **changes: Any,
) -> Path:
    """Write a checkpoint of ``resmlp_tiny``; entries that ``changes`` sets to None are absent."""
    args = {
        "name": "resmlp_tiny",
        "num_classes": len(classes),
        "img_size": size,
        "patch_size": 2,
    }
    state: dict[str, Any] = {
        "model": random_model(seed, **args).state_dict(),
        "model_args": args,
        "classes": list(classes),
        "data_config": {
            "input_size": (3, size, size),
            "mean": MEAN,
            "std": STD,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
        },
        "config": {"data": ["digits"]},
        **changes,
    }
    if ema_seed is not None:
        state["model_ema"] = random_model(ema_seed, **args).state_dict()
    save({name: value for name, value in state.items() if value is not None}, path)
    return path


def image(path: Path, seed: int = 0, size: int = 8) -> Path:
    """Write noise as an image file of the kind that the name says."""
    noise = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise).save(path)
    return path


def folder(root: Path, split: str = "val", **images: int) -> Path:
    """Write ROOT/SPLIT/CLASS/N.png, so many for each class; all differ."""
    for number, (name, count) in enumerate(images.items()):
        for index in range(count):
            image(root / split / name / f"{index}.png", seed=1000 * number + index)
    return root


def run_json(main: Callable[[list[str]], None], path: Path, *words: object) -> dict[str, Any]:
    """Run a command with ``--json`` in this process and return the report."""
    main([*map(str, words), "--workers", "0", "--json", str(path)])
    report: dict[str, Any] = json.loads(path.read_text())
    return report


def start(*words: object) -> "subprocess.Popen[str]":
    """Run a module in a process of its own session, on one thread."""
    return subprocess.Popen(
        [sys.executable, "-m", *map(str, words)], cwd=ROOT, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def wait_for(path: Path, process: "subprocess.Popen[str]") -> None:
    """Wait until a file exists, as long as the process runs."""
    deadline = time.monotonic() + 300
    while not path.exists() and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
