"""Makes the parts of a training from its options: transforms, optimizer, schedule, losses."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from resmlp_mt.errors import UserError
from resmlp_mt.vision.distill import DistillationLoss, Teacher
from resmlp_mt.vision.libraries import timm
from resmlp_mt.vision.training_options import (
    AugmentationOptions,
    OptimizationOptions,
    TrainingOptions,
)
from resmlp_mt.vision.transforms import Transform, create_training_transform

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(images, logits, labels) -> scalar"""


def training_transform(
    options: AugmentationOptions, data_config: dict[str, Any], interpolation: str
) -> Transform:
    """The augmentation.

    Args:
        options: the options of the augmentation.
        data_config: input_size, mean, std of the images.
        interpolation: interpolation without augmentation, the same as in validation.

    Raises:
        UserError: for a policy that timm does not know.
    """
    try:
        return create_training_transform(
            {
                **data_config,
                "interpolation": options.train_interpolation if options.aug else interpolation,
            },
            no_aug=not options.aug,
            scale=options.scale,
            ratio=options.ratio,
            train_crop_mode=options.train_crop_mode,
            hflip=options.hflip,
            vflip=options.vflip,
            color_jitter=options.color_jitter or None,
            auto_augment=options.aa,
        )
    except (AssertionError, KeyError, ValueError) as error:
        raise UserError(
            f"--aa {options.aa}, --train-interpolation: timm refuses: {error}."
        ) from error


def create_optimizer(options: OptimizationOptions, model: nn.Module) -> torch.optim.Optimizer:
    """timm's optimizer of this name; scales, norms and biases are not decayed.

    Raises:
        UserError: if there is no such optimizer, or it does not take the options.
    """
    try:
        optimizer: torch.optim.Optimizer = timm.optim.create_optimizer_v2(
            model,
            opt=options.opt,
            lr=options.lr,
            weight_decay=options.weight_decay,
            momentum=options.momentum,
            layer_decay=options.layer_decay,
            **options.opt_kwargs,
        )
    except (ValueError, TypeError, KeyError, AssertionError) as error:
        raise UserError(f"--opt {options.opt}: {error}.") from error
    return optimizer


def create_scheduler(
    options: OptimizationOptions, optimizer: torch.optim.Optimizer, updates_per_epoch: int
) -> Any:
    """timm's schedule of this name; None for ``none``.

    Raises:
        UserError: if there is no such schedule.
    """
    try:
        return timm.scheduler.create_scheduler_v2(
            optimizer,
            sched=options.sched,
            num_epochs=options.epochs,
            warmup_epochs=options.warmup_epochs,
            warmup_lr=options.warmup_lr,
            min_lr=options.min_lr,
            step_on_epochs=not options.sched_on_updates,
            updates_per_epoch=updates_per_epoch,
        )[0]
    except (ValueError, AssertionError) as error:
        raise UserError(f"--sched {options.sched}: {error}.") from error


def create_mixup(options: TrainingOptions, num_classes: int) -> Any:
    """timm's mixup and cutmix; None if both are off.

    Raises:
        UserError: if the batch size is odd.
    """
    if not (options.mixup or options.cutmix):
        return None
    if options.batch_size % 2:
        raise UserError("--mixup and --cutmix need an even --batch-size.")
    return timm.data.Mixup(
        mixup_alpha=options.mixup,
        cutmix_alpha=options.cutmix,
        prob=options.mixup_prob,
        switch_prob=options.mixup_switch_prob,
        mode=options.mixup_mode,
        label_smoothing=options.smoothing,
        num_classes=num_classes,
    )


def create_erasing(options: AugmentationOptions, device: torch.device) -> Any:
    """timm's random erasing; None if it is off."""
    if not options.reprob or not options.aug:
        return None
    return timm.data.random_erasing.RandomErasing(
        options.reprob, mode=options.remode, max_count=options.recount, device=device
    )


def create_average(options: OptimizationOptions, model: nn.Module) -> Any:
    """timm's moving average of the weights; None if it is off."""
    if not options.model_ema:
        return None
    return timm.utils.ModelEmaV3(
        model, decay=options.model_ema_decay, use_warmup=options.model_ema_warmup
    )


def create_loss(options: TrainingOptions, teacher: Teacher | None) -> Loss:
    """Cross-entropy on smoothed or mixed labels, with the teacher's term if there is one."""
    base: nn.Module
    if options.mixup or options.cutmix:
        base = timm.loss.SoftTargetCrossEntropy()  # the labels come smoothed from the mixup
    elif options.smoothing:
        base = timm.loss.LabelSmoothingCrossEntropy(options.smoothing)
    else:
        base = nn.CrossEntropyLoss()
    if teacher is not None:
        return DistillationLoss(
            base,
            teacher,
            options.distillation_type,
            options.distillation_alpha,
            options.distillation_tau,
        )

    def loss(images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        value: Tensor = base(logits, labels)
        return value

    return loss
