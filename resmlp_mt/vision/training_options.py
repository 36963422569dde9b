"""The options of the training, named as in timm's train.py.

:mod:`resmlp_mt.vision.training_arguments` reads them; :mod:`resmlp_mt.vision.options` answers for
the options of timm that are not here.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from resmlp_mt.command_line import option
from resmlp_mt.files import path_text
from resmlp_mt.option_types import FINITE, NOT_NEGATIVE, POSITIVE, PROBABILITY, SHARE, SOME, number
from resmlp_mt.vision.options import (
    INTERPOLATIONS,
    WORKERS,
    ImagePreparation,
    KeyValues,
    ModelArguments,
    OnError,
    model_name,
    path_if_any,
    split_name,
)

LR = 1e-3
SCHEDULES = (
    "none", "constant", "cosine", "multistep", "plateau", "poly", "rsqrt", "step", "tanh", "wsd",
)  # fmt: skip


def whole(text: str) -> int:
    """A whole number from 0 on, also as timm's 3.0."""
    return int(NOT_NEGATIVE(text.removesuffix(".0")))


@dataclass(frozen=True)
class DataOptions(ImagePreparation):
    """Data."""

    data: list[str] = option(
        ["digits"], "--data-dir", type=path_text, nargs="+", metavar="DATA",
        help="DIR (train/, val/), cifar10-tar FILE, wds DIR (WebDataset shards), or digits",
    )  # fmt: skip
    train_split: str = option(
        "train", metavar="NAME", type=split_name, help="the part of the data to train on"
    )
    val_split: str = option("val", metavar="NAME", type=split_name, help="the part to validate on")
    num_classes: int | None = option(
        None, type=POSITIVE, help="checked, because the data determine the classes"
    )
    img_size: list[int] | None = option(
        None, type=POSITIVE, nargs="+", metavar="PIXELS",
        help="side, or height and width; default: the size of images in memory if all have one, "
        "else the model's",
    )  # fmt: skip
    batch_size: int = option(128, "-b", type=POSITIVE, help="images per process and step")
    validation_batch_size: int | None = option(
        None, "-vb", type=POSITIVE, help="default: that of training"
    )
    workers: int | None = option(
        None, "-j", type=WORKERS,
        help="loading processes; default: 0 for data in memory, else 4",
    )  # fmt: skip
    pin_mem: bool = option(False, help="pinned host memory, for CUDA")
    on_error: OnError = option(
        "raise", choices=["raise", "skip"], help="at a bad image: stop, or skip it"
    )


@dataclass(frozen=True)
class ModelOptions(ModelArguments):
    """Model."""

    model: str = option(
        "resmlp_tiny", type=model_name, help="one of ours or timm's; timm:NAME for timm's own code"
    )
    drop: float = option(
        0.0, type=number(float, least=0, below=1), help="dropout before the classifier"
    )
    drop_path: float = option(0.0, type=number(float, least=0, below=1), help="stochastic depth")
    grad_checkpointing: bool = option(False, help="less memory, a third more computation")
    weights: str | None = option(
        None, "--initial-checkpoint", type=path_text, metavar="FILE",
        help="start from these weights (.pth, .safetensors), or timm:NAME for timm's from the hub",
    )  # fmt: skip
    reset_head: bool = option(False, help="--weights or --pretrained without the classifier")


@dataclass(frozen=True)
class OptimizationOptions:
    """Optimization."""

    opt: str = option("adamw", help="one of timm's optimizers")
    opt_kwargs: dict[str, Any] = option(
        {}, nargs="*", action=KeyValues, metavar="KEY=VALUE",
        help="further arguments of the optimizer",
    )  # fmt: skip
    opt_eps: float | None = option(None, type=SOME, help="its epsilon; default: the optimizer's")
    opt_betas: list[float] | None = option(
        None, type=FINITE, nargs="+", help="its betas; default: the optimizer's"
    )
    lr: float | None = option(
        None, type=FINITE, help=f"learning rate; default: {LR}, or that of --lr-base"
    )
    lr_base: float | None = option(
        None, type=FINITE, help="learning rate for updates of --lr-base-size images"
    )
    lr_base_size: int = option(256, type=POSITIVE, help="images for which --lr-base is meant")
    lr_base_scale: str | None = option(
        None, choices=["linear", "sqrt"],
        help="how --lr-base grows with the images of an update; default: sqrt for Adam, LAMB and "
        "their like, else linear",
    )  # fmt: skip
    weight_decay: float = option(0.05, type=FINITE, help="not on scales, norms and biases")
    momentum: float = option(0.9, type=FINITE, help="for optimizers that have one")
    layer_decay: float | None = option(None, type=SHARE, help="of learning rates from the top down")
    clip_grad: float | None = option(None, type=SOME, help="largest norm of the gradient")
    clip_mode: str = option("norm", choices=["norm", "value", "agc"], help="what is clipped")
    grad_accum_steps: int = option(1, type=POSITIVE, help="batches per update")
    model_ema: bool = option(False, help="moving average of the weights")
    model_ema_decay: float = option(0.9998, type=PROBABILITY, help="its decay")
    model_ema_warmup: bool = option(False, help="a smaller decay at first")


@dataclass(frozen=True)
class ScheduleOptions:
    """Schedule of the learning rate."""

    epochs: int = option(100, type=POSITIVE, help="passes over the data")
    sched: str = option("cosine", choices=SCHEDULES, help="timm's schedule")
    sched_on_updates: bool = option(False, help="step the schedule by update, not by epoch")
    warmup_epochs: int = option(5, type=NOT_NEGATIVE, help="epochs of linear warm-up")
    warmup_lr: float = option(1e-6, type=FINITE, help="learning rate at the start of the warm-up")
    warmup_prefix: bool = option(False, help="the warm-up is before --epochs, not part of them")
    cooldown_epochs: int = option(0, type=NOT_NEGATIVE, help="epochs at --min-lr after --epochs")
    min_lr: float = option(1e-6, type=FINITE, help="learning rate at the end")
    decay_epochs: float | None = option(
        None,
        type=SOME,
        help="step: epochs between decays; wsd, rsqrt: length of the decay, in epochs or, below 1, "
        "as a share; default: timm's",
    )
    decay_milestones: list[int] = option(
        [90, 180, 270], type=POSITIVE, nargs="+", help="multistep: epochs of decays"
    )
    decay_rate: float = option(
        0.1, "--dr", type=SOME, help="step, multistep, plateau: the factor; poly: the power"
    )
    lr_decay_fn: str | None = option(
        None, metavar="NAME", help="wsd, rsqrt: form of the decay; default: timm's"
    )
    lr_stable_timescale: float | None = option(
        None, type=SOME, metavar="EPOCHS", help="rsqrt: its time scale; default: the warm-up"
    )
    patience_epochs: int = option(
        10, type=NOT_NEGATIVE, help="plateau: epochs without improvement before a decay"
    )
    lr_noise: list[float] | None = option(
        None,
        type=FINITE,
        nargs="+",
        help="noise from this share of the epochs on, or between two shares",
    )
    lr_noise_pct: float = option(0.67, type=SOME, help="its limit, as a share")
    lr_noise_std: float = option(1.0, type=SOME, help="its standard deviation")
    lr_cycle_mul: float = option(1.0, type=SOME, help="cosine, tanh, poly: growth of a cycle")
    lr_cycle_decay: float = option(
        0.5, type=SOME, help="cosine, tanh, poly: decay of the learning rate by cycle"
    )
    lr_cycle_limit: int = option(1, type=POSITIVE, help="cosine, tanh, poly: number of cycles")
    lr_k_decay: float = option(1.0, type=SOME, help="cosine, poly: k of k-decay")


@dataclass(frozen=True)
class AugmentationOptions:
    """Augmentation and regularization."""

    # the option is timm's --no-aug
    aug: bool = option(True, help="--no-aug: resize and central crop only")
    scale: list[float] = option([0.08, 1.0], type=SHARE, nargs=2, help="area of the random crop")
    ratio: list[float] = option([3 / 4, 4 / 3], type=SOME, nargs=2, help="its aspect ratio")
    train_crop_mode: str | None = option(None, choices=["rrc", "rkrc", "rkrr"], help="as in timm")
    hflip: float = option(0.5, type=PROBABILITY, help="probability of mirroring")
    vflip: float = option(0.0, type=PROBABILITY, help="probability of turning upside down")
    color_jitter: float = option(0.4, type=FINITE, help="its strength; off with --aa, as in timm")
    color_jitter_prob: float | None = option(
        None, type=PROBABILITY, help="its probability; default: always"
    )
    grayscale_prob: float = option(0.0, type=PROBABILITY, help="probability of grey images")
    gaussian_blur_prob: float = option(0.0, type=PROBABILITY, help="probability of blurred images")
    aa: str | None = option(None, help="AutoAugment policy, such as rand-m9-mstd0.5-inc1")
    train_interpolation: str = option(
        "random", choices=["random", *INTERPOLATIONS], help="filter for the random crop"
    )
    aug_repeats: int = option(
        0, type=whole,
        help="views of an image in a batch (repeated augmentation); the authors use 3; 0: off",
    )  # fmt: skip
    reprob: float = option(0.0, type=PROBABILITY, help="probability of random erasing")
    remode: str = option(
        "pixel", choices=["const", "rand", "pixel"], help="what replaces the erased area"
    )
    recount: int = option(1, type=POSITIVE, help="largest number of erased areas in an image")
    smoothing: float = option(0.1, type=number(float, least=0, below=1), help="label smoothing")
    mixup: float = option(0.0, type=number(float, least=0), help="alpha of mixup; 0: off")
    cutmix: float = option(0.0, type=number(float, least=0), help="alpha of cutmix; 0: off")
    cutmix_minmax: list[float] | None = option(
        None, type=SHARE, nargs=2, help="bounds of the sides of its patch; turns cutmix on"
    )
    mixup_off_epoch: int = option(
        0, type=NOT_NEGATIVE, help="without mixup and cutmix from this epoch on; 0: never"
    )
    mixup_prob: float = option(1.0, type=PROBABILITY, help="probability of either")
    mixup_switch_prob: float = option(0.5, type=PROBABILITY, help="probability of cutmix if both")
    mixup_mode: str = option(
        "batch", choices=["batch", "pair", "elem"], help="one mixing factor for each"
    )
    bce_loss: bool = option(False, help="binary cross-entropy of every class")
    bce_sum: bool = option(False, help="its sum over the classes, not its mean")
    bce_target_thresh: float | None = option(
        None, type=PROBABILITY, help="mixed and smoothed labels above it count as 1, others as 0"
    )
    bce_pos_weight: float | None = option(None, type=SOME, help="weight of the right classes")


@dataclass(frozen=True)
class DistillationOptions:
    """Distillation."""

    teacher: str | None = option(
        None, type=path_text, metavar="MODEL",
        help="one of timm's, or a checkpoint of this command",
    )  # fmt: skip
    teacher_weights: str | None = option(
        None, type=path_text, metavar="FILE",
        help="its weights (.pth, .safetensors), or timm:NAME from timm's hub",
    )  # fmt: skip
    distillation_type: str = option("none", choices=["none", "soft", "hard"], help="as in DeiT")
    distillation_alpha: float = option(0.5, type=PROBABILITY, help="weight of the teacher's term")
    distillation_tau: float = option(1.0, type=SOME, help="temperature, if soft")


@dataclass(frozen=True)
class RunOptions:
    """Running."""

    config: Path | None = option(
        None, "-c", metavar="FILE", type=path_if_any,
        help="YAML with values for these options: a file, or a name such as resmlp_s12",
    )  # fmt: skip
    output: Path = option(
        Path("outputs/vision"),
        help="folder for the results; a second training writes to NAME-1",
    )  # fmt: skip
    resume: Path | None = option(
        None, metavar="FILE", type=path_if_any, help="continue this last.pth, or that of a folder"
    )
    max_updates: int | None = option(
        None, type=POSITIVE, help="save and stop after this many updates in all"
    )
    recovery_interval: int = option(
        0, type=NOT_NEGATIVE,
        help="also save last.pth after this many updates; 0: only after epochs",
    )  # fmt: skip
    seed: int = option(42, type=NOT_NEGATIVE, help="seed of weights, order and augmentation")
    device: str | None = option(None, help="default: cuda if there is one, else cpu")
    amp: bool = option(False, help="mixed precision")
    amp_dtype: str = option("bfloat16", choices=["bfloat16", "float16"], help="its type")
    channels_last: bool = option(False, help="memory layout of the images")
    torchcompile: str | None = option(
        None, nargs="?", const="inductor", metavar="BACKEND", help="torch.compile"
    )
    torchcompile_mode: str | None = option(None, metavar="MODE", help="its mode")
    tensorboard: bool = option(False, help="event files beside summary.csv")
    progress: bool = option(True, help="progress bar")


@dataclass(frozen=True)
class TrainingOptions(
    RunOptions,
    DistillationOptions,
    AugmentationOptions,
    ScheduleOptions,
    OptimizationOptions,
    ModelOptions,
    DataOptions,
):
    """All options of ``python -m resmlp_mt.vision.train``."""

    def to_config(self) -> dict[str, Any]:
        """The options as plain values, which ``--config`` can read."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return {
            name: str(value) if isinstance(value, Path) else value
            for name, value in values.items()
            if name not in ("config", "resume", "max_updates") and value is not None
        }
