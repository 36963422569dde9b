"""Makes the parts of a training from its options: transforms, optimizer, schedule, losses."""

import logging
import math
from typing import Any

import torch
from torch import nn

from resmlp_mt.command_line import did_you_mean, flag
from resmlp_mt.errors import UserError, reason, refused
from resmlp_mt.vision.distill import Loss, Teacher, distillation_loss
from resmlp_mt.vision.libraries import timm
from resmlp_mt.vision.training_options import (
    LR,
    AugmentationOptions,
    OptimizationOptions,
    TrainingOptions,
)
from resmlp_mt.vision.transforms import PaddedCrop, Transform

logger = logging.getLogger(__name__)

OF_LARGE = ("scale", "ratio", "train_crop_mode")
"""Options of the random resized crop."""


def training_transform(options: AugmentationOptions, data_config: dict[str, Any]) -> Transform:
    """timm's augmentation; the result is a uint8 tensor (3, height, width).

    For at most 32 x 32 pixels, a crop from the image, padded by an eighth (4 pixels for CIFAR),
    replaces the random resized crop, as in the authors' code. Images of another size are resized
    first. Without augmentation, images are interpolated as in validation.

    Raises:
        UserError: for options that timm refuses, such as an unknown policy.
    """
    if options.aug:
        data_config = data_config | {"interpolation": options.train_interpolation}
    with refused(
        lambda error: (
            f"timm refuses the augmentation (--aa {options.aa}, --scale, --train-crop-mode, ...): "
            f"{reason(error).rstrip('.')}."
        ),
        *(AssertionError, KeyError, ValueError),
    ):
        transform: Any = timm.data.create_transform(
            **data_config,
            is_training=True,
            normalize=False,
            no_aug=not options.aug,
            scale=options.scale,
            ratio=options.ratio,
            train_crop_mode=options.train_crop_mode,
            hflip=options.hflip,
            vflip=options.vflip,
            color_jitter=options.color_jitter or None,
            color_jitter_prob=options.color_jitter_prob,
            grayscale_prob=options.grayscale_prob,
            gaussian_blur_prob=options.gaussian_blur_prob,
            auto_augment=options.aa,
        )
    size = data_config["input_size"][1:]
    if options.aug and max(size) <= 32:
        usual = AugmentationOptions()
        unused = [name for name in OF_LARGE if getattr(options, name) != getattr(usual, name)]
        if unused:
            logger.warning("%s is for images of more than 32 pixels: not used", flag(unused[0]))
        transform.transforms[0] = PaddedCrop(size, max(size) // 8)
    result: Transform = transform
    return result


def create_optimizer(options: OptimizationOptions, model: nn.Module) -> torch.optim.Optimizer:
    """timm's optimizer of this name; scales, norms and biases are not decayed.

    Raises:
        UserError: if there is no such optimizer, its package is missing, or it does not take the
            options.
    """
    arguments = timm.optim.optimizer_kwargs(options) | options.opt_kwargs
    with refused(
        lambda error: f"--opt {options.opt}: {reason(error).rstrip('.')}.",
        *(ValueError, TypeError, KeyError, AssertionError, ImportError),
    ):
        if options.opt.lower().rpartition("_")[2] not in timm.optim.list_optimizers():
            similar = did_you_mean(options.opt.lower(), timm.optim.list_optimizers())
            raise ValueError(f"timm has no such optimizer{similar}")
        _check_taken(options)
        optimizer: torch.optim.Optimizer = timm.optim.create_optimizer_v2(model, **arguments)
    return optimizer


def _check_taken(options: OptimizationOptions) -> None:
    """Refuse options that timm would leave out silently, or that would fail in the first step."""
    info = timm.optim.get_optimizer_info(options.opt.rpartition("_")[2])
    if info.second_order:
        raise ValueError("it needs second derivatives, which this training does not compute")
    if options.opt_eps is not None and not info.has_eps:
        raise ValueError("it takes no --opt-eps")
    betas = info.num_betas if info.has_betas else 0
    if options.opt_betas is not None and len(options.opt_betas) != betas:
        raise ValueError(f"it takes {betas} --opt-betas, not {len(options.opt_betas)}")


def learning_rate(options: OptimizationOptions, images: int) -> float:
    """``--lr``, or ``--lr-base`` for updates of this many images, scaled as in timm."""
    if options.lr is not None:
        return options.lr
    if options.lr_base is None:
        return LR
    adaptive = any(name in options.opt.lower() for name in ("ada", "lamb"))
    ratio = images / options.lr_base_size
    scale = options.lr_base_scale or ("sqrt" if adaptive else "linear")
    return options.lr_base * (math.sqrt(ratio) if scale == "sqrt" else ratio)


def create_scheduler(
    options: TrainingOptions, optimizer: torch.optim.Optimizer, updates_per_epoch: int
) -> tuple[Any, int]:
    """timm's schedule of this name, None for ``none``, and the number of epochs in all.

    Raises:
        UserError: if there is no such schedule, or it does not take the options.
    """
    given = timm.scheduler.scheduler_kwargs(options)
    arguments = {name: value for name, value in given.items() if value is not None}
    with refused(
        lambda error: f"--sched {options.sched}: {reason(error).rstrip('.')}.",
        *(ValueError, TypeError, AssertionError),
    ):
        scheduler, epochs = timm.scheduler.create_scheduler_v2(
            optimizer, **arguments, updates_per_epoch=updates_per_epoch
        )
    if scheduler is None and options.sched != "none":
        raise UserError(
            f"--sched {options.sched} needs a newer timm than {timm.__version__}: "
            "pip install --upgrade timm."
        )
    return scheduler, int(epochs)


def mixes(options: AugmentationOptions) -> bool:
    """Whether images are mixed."""
    return bool(options.mixup or options.cutmix or options.cutmix_minmax)


def create_mixup(options: TrainingOptions, num_classes: int) -> Any:
    """timm's mixup and cutmix; None if both are off.

    Raises:
        UserError: if the batch size is odd, or the patch of cutmix has no choice of sides.
    """
    if not mixes(options):
        return None
    if options.batch_size % 2:
        raise UserError("--mixup and --cutmix need an even --batch-size.")
    if options.cutmix_minmax:
        least, most = options.cutmix_minmax
        sides = options.img_size or []
        if least >= most or any(int(side * least) >= int(side * most) for side in sides):
            raise UserError(
                f"--cutmix-minmax {least} {most} leaves no choice of sides in images of "
                f"{' x '.join(map(str, sides))} pixels: give a smaller and a larger share."
            )
    return timm.data.Mixup(
        mixup_alpha=options.mixup,
        cutmix_alpha=options.cutmix,
        cutmix_minmax=options.cutmix_minmax,
        prob=options.mixup_prob,
        switch_prob=options.mixup_switch_prob,
        mode=options.mixup_mode,
        label_smoothing=options.smoothing,
        num_classes=num_classes,
    )


def create_loss(options: TrainingOptions, teacher: Teacher | None) -> Loss:
    """Cross-entropy on smoothed or mixed labels, with the teacher's term if there is one."""
    base: nn.Module
    if options.bce_loss:
        base = timm.loss.BinaryCrossEntropy(
            smoothing=options.smoothing,
            target_threshold=options.bce_target_thresh,
            sum_classes=options.bce_sum,
            pos_weight=options.bce_pos_weight,
        )
    elif mixes(options):
        base = timm.loss.SoftTargetCrossEntropy()  # the labels come smoothed from the mixup
    elif options.smoothing:
        base = timm.loss.LabelSmoothingCrossEntropy(options.smoothing)
    else:
        base = nn.CrossEntropyLoss()
    if teacher is None:
        return lambda images, logits, labels: base(logits, labels)
    return distillation_loss(
        base,
        teacher,
        options.distillation_type,
        options.distillation_alpha,
        options.distillation_tau,
    )
