"""Images: ResMLP-S12 beside timm's models."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.speed.floors import Rates, operations, products
from benchmarks.speed.profiles import explained
from benchmarks.speed.report import Row, Rows, Unmeasured
from benchmarks.speed.timing import Run, interleaved
from resmlp_mt.errors import UserError
from resmlp_mt.extras import installation

# ResMLP has as many operations as its peer, so the goal of inference is the speed of these alone.
INFERENCE_GOAL = 0.95
TRAINING_GOAL = 1.1
PRODUCTS = "its matrix products alone, by PyTorch"

# The second is the Mixer with the nearest size; it has no goal.
PEERS = ("resmlp_12_224", "mixer_s16_224")


def images(
    rates: Rates,
    *,
    img_size: int = 224,
    device: str = "cpu",
    bf16: bool = False,
    batch_sizes: tuple[int, ...] = (1, 64),
    training_batch: int = 16,
    rounds: int = 5,
    seed: int = 1,
) -> Rows:
    """Images per second in inference and in training (forward, backward, AdamW).

    Inference runs our model as the commands do, with folded affine maps.
    """
    try:
        from resmlp_mt.vision import create_model
        from resmlp_mt.vision.folding import folded
        from resmlp_mt.vision.libraries import timm
    except (ImportError, UserError):
        return [Unmeasured("images", f"needs timm: {installation('timm')}")]
    torch.manual_seed(seed)
    ours = create_model("resmlp_s12", img_size=img_size)
    others = {name: timm.create_model(name, img_size=img_size) for name in PEERS}
    models: dict[str, nn.Module] = {
        name: model.to(device).eval() for name, model in {"resmlp": ours, **others}.items()
    }
    dtype = torch.bfloat16 if bf16 else torch.float32
    shown = f"{device.upper()} {'bf16' if bf16 else 'fp32'}"
    rows: Rows = []

    def measure(
        what: str, goals: dict[str, float], runs: dict[str, Run],
        forward: dict[str, Callable[[], object]], batch: int,
    ) -> None:  # fmt: skip
        speeds = interleaved(runs, rounds, device=device)
        work = {name: operations(run) for name, run in forward.items()}
        floor = batch / rates.seconds(work["resmlp"], dtype="bf16" if bf16 else "fp32")
        for name in [each for each in runs if each != "resmlp"]:
            row = Row(
                measured=f"{what}, {shown}",
                unit="images/s",
                ours=speeds["resmlp"],
                peer_name=f"timm {name}" if name in others else name,
                peer=speeds[name],
                goal=goals.get(name),
                floor=floor,
                work_ratio=work[name] / work["resmlp"] if name in work else None,
            )
            rows.append(explained(row, runs["resmlp"]))

    # before the peers are converted, so that it is folded in float32
    fast = folded(ours, dtype)
    models = {name: model.to(dtype) for name, model in models.items()}
    inference: dict[str, nn.Module] = {**models, "resmlp": fast}
    for batch in batch_sizes:
        pixels = torch.randn(batch, 3, *ours.img_size, device=device, dtype=dtype)
        # kernels of packed weights are not counted
        forward = {name: _forward(model, pixels) for name, model in models.items()}
        alone = products(forward["resmlp"])
        measure(
            f"image inference, batch {batch}",
            {PRODUCTS: INFERENCE_GOAL},
            {name: _predicting(model, pixels) for name, model in inference.items()}
            | {PRODUCTS: _calling(alone, batch)},
            forward,
            batch,
        )
    pixels = torch.randn(training_batch, 3, *ours.img_size, device=device)
    classes = torch.randint(1000, (training_batch,), device=device)
    runs = {
        name: _training(model.float().train(), pixels, classes, bf16)
        for name, model in models.items()
    }
    measure(
        f"image training, batch {training_batch}",
        {"resmlp_12_224": TRAINING_GOAL},
        runs,
        {name: partial(run, 0) for name, run in runs.items()},
        training_batch,
    )
    return rows


def _forward(model: nn.Module, pixels: Tensor) -> Callable[[], object]:
    @torch.no_grad()  # in inference mode not all operations would be counted
    def run() -> object:
        return model(pixels)

    return run


def _predicting(model: nn.Module, pixels: Tensor) -> Run:
    def run(index: int) -> float:
        with torch.inference_mode():
            model(pixels)
        return float(len(pixels))

    return run


def _calling(work: Callable[[], object], count: int) -> Run:
    def run(index: int) -> float:
        work()
        return float(count)

    return run


def _training(model: nn.Module, pixels: Tensor, classes: Tensor, bf16: bool) -> Run:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    loss = nn.CrossEntropyLoss()

    def run(index: int) -> float:
        optimizer.zero_grad()
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=bf16):
            value = loss(model(pixels), classes)
        value.backward()
        optimizer.step()
        return float(len(pixels))

    return run
