"""``python -m resmlp_mt.vision.train``: train, fine-tune or distil an image classifier.

    python -m resmlp_mt.vision.train
    python -m resmlp_mt.vision.train --config configs/vision/resmlp_s12.yaml --data DIR
    torchrun --nproc-per-node 8 -m resmlp_mt.vision.train --config ... --data DIR
    python -m resmlp_mt.vision.train --resume outputs/vision/last.pth

The first line trains on scikit-learn's handwritten digits. The output folder receives args.yaml
(the resolved options, which --config takes again), summary.csv, last.pth and best.pth. SIGTERM
and SIGINT save last.pth and end; docs/vision.md has more.
"""

import argparse
import logging
import os
import signal
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import yaml
from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from tqdm.contrib.logging import logging_redirect_tqdm

from resmlp_mt.errors import UserError
from resmlp_mt.vision.checkpoints import TIMM, build_model, load, save
from resmlp_mt.vision.data import (
    ImageDataset,
    Normalize,
    create_dataset,
    create_training_transform,
    create_transform,
)
from resmlp_mt.vision.distill import DistillationLoss, load_teacher
from resmlp_mt.vision.distributed import Process, start_process
from resmlp_mt.vision.images import SkipCounter
from resmlp_mt.vision.loader import EpochBatches, seed_all, training_loader, validation_loader
from resmlp_mt.vision.model import MODELS, ResMLP
from resmlp_mt.vision.options import parse_args, to_config
from resmlp_mt.vision.trainer import Loss, Trainer
from resmlp_mt.vision.weights import hub_weights, load_weights

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command.

    Raises:
        UserError: a sentence for the user, and exit status 1.
    """
    options = parse_args(argv)
    earlier = options.output / "last.pth"
    try:
        exists = earlier.exists()
    except OSError as error:
        raise UserError(f"--output {options.output} cannot be read: {error.strerror}.") from error
    goes_on = options.resume and options.resume.parent.resolve() == options.output.resolve()
    if exists and not goes_on:
        raise UserError(
            f"--output {options.output} holds a training already: go on with --resume {earlier}, "
            "or give another folder."
        )
    process = start_process(options.device)
    logging.basicConfig(
        level=logging.INFO if process.rank == 0 else logging.WARNING,
        format="%(message)s",
    )
    trainer: Trainer | None = None
    try:
        trainer = create_trainer(options, process)
        if options.resume:
            trainer.resume(load(options.resume), options.resume)
            if process.rank == 0 and not goes_on:
                _copy_best(options)
        if process.rank == 0:
            _write_config(options)
        if trainer.position.epoch >= options.epochs:
            logger.info("--resume %s: all %d epochs are done.", options.resume, options.epochs)
        with _stops_at_signals(trainer), logging_redirect_tqdm():
            finished = trainer.fit()
        skipped = process.union(trainer.counter.skipped)
        if skipped and process.rank == 0:
            logger.warning("%d bad images were skipped; they are named above.", len(skipped))
        if not finished:
            logger.info(
                "stopped after update %d; go on with --resume %s",
                trainer.position.updates,
                options.output / "last.pth",
            )
    finally:
        if trainer is not None:
            trainer.leave()
        if dist.is_initialized():
            dist.destroy_process_group()


def create_trainer(options: argparse.Namespace, process: Process) -> Trainer:
    """Put together data, model, optimizer and losses as the options say.

    The options that depend on the data (``img_size``, ``crop_pct``, ``workers``) are filled in.

    Raises:
        UserError: for anything in the options or the data that cannot be used.
    """
    if options.torchcompile:  # listing the backends loads the compiler
        backends = torch.compiler.list_backends(exclude_tags=())
        if options.torchcompile not in backends:
            raise UserError(
                f"--torchcompile {options.torchcompile} is no backend of torch.compile: expected "
                f"one of {', '.join(backends)}."
            )
    train = create_dataset(options.data, "train")
    validation = create_dataset(options.data, "val", classes=train.classes)
    unseen = sorted(set(validation.targets) - set(train.targets))
    if unseen:  # indices of WebDataset shards may leave some out
        names = ", ".join(train.classes[index] for index in unseen[:5])
        raise UserError(
            f"--data {' '.join(options.data)}: validation has classes that training lacks "
            f"({names}); remove them or train with them."
        )
    _resolve(options, train)
    data_config = {
        "input_size": (3, *options.img_size),
        "interpolation": options.interpolation,
        "mean": tuple(options.mean),
        "std": tuple(options.std),
        "crop_pct": options.crop_pct,
    }
    train.transform = _training_transform(options, data_config)
    validation.transform = create_transform(data_config, normalize=False)

    seed_all(options.seed)
    model, model_args = _model(options, train.classes)
    model.to(process.device)
    _try_forward(model, f"--model {options.model}", options, process.device, len(train.classes))
    if options.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    ema = None
    if options.model_ema:
        ema = ModelEmaV3(model, decay=options.model_ema_decay, use_warmup=options.model_ema_warmup)
    batches = EpochBatches(
        train,
        options.batch_size,
        options.seed,
        process.rank,
        process.world_size,
        repeats=options.aug_repeats,
        multiple=options.grad_accum_steps,
    )
    optimizer = _optimizer(options, model)
    trainer = Trainer(
        options=options,
        process=process,
        model=model,
        optimizer=optimizer,
        scheduler=_scheduler(options, optimizer, len(batches) // options.grad_accum_steps),
        loss=_loss(options, train.classes, data_config, process.device),
        batches=batches,
        train=training_loader(train, batches, options.workers, options.pin_mem),
        validation=validation_loader(
            validation,
            options.validation_batch_size or options.batch_size,
            options.workers,
            options.pin_mem,
            process.rank,
            process.world_size,
        ),
        normalize=Normalize(options.mean, options.std).to(process.device),
        counter=SkipCounter(options.on_error),
        description={
            "model_args": model_args,
            "classes": train.classes,
            "data_config": data_config,
            "config": to_config(options),
        },
        mixup=_mixup(options, len(train.classes)),
        erasing=_erasing(options, process.device),
        ema=ema,
    )
    logger.info(
        "%s with %.2f M parameters; %d training and %d validation images of %d classes",
        options.model,
        sum(parameter.numel() for parameter in model.parameters()) / 1e6,
        len(train),
        len(validation),
        len(train.classes),
    )
    return trainer


def _copy_best(options: argparse.Namespace) -> None:
    """Take the best epoch so far to the folder in which the training goes on."""
    best = options.resume.with_name("best.pth")
    if best.exists():
        save(load(best), options.output / "best.pth")


def _resolve(options: argparse.Namespace, train: ImageDataset) -> None:
    """Fill in what depends on the data."""
    in_memory = train.image_size is not None
    usual = MODELS[options.model].img_size if options.model in MODELS else 224
    size = options.img_size or train.image_size or (usual,)
    options.img_size = [size[0], size[-1]]
    if options.crop_pct is None:
        options.crop_pct = 1.0 if in_memory else 0.9
    if options.workers is None:
        options.workers = 0 if in_memory else 4


def _training_transform(options: argparse.Namespace, data_config: dict[str, Any]) -> Any:
    try:
        return create_training_transform(
            {
                **data_config,
                # without augmentation, training sees what validation sees
                "interpolation": options.train_interpolation
                if options.aug
                else options.interpolation,
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


def _model(options: argparse.Namespace, classes: Sequence[str]) -> tuple[nn.Module, dict[str, Any]]:
    """The model and the arguments of ``build_model`` that make it again."""
    model_args: dict[str, Any] = {"name": options.model, "num_classes": len(classes)}
    if options.model.startswith(TIMM):
        if options.drop_path:
            model_args["drop_path_rate"] = options.drop_path
    else:
        model_args["img_size"] = tuple(options.img_size)
        model_args["drop_path"] = options.drop_path
        if options.patch_size:
            model_args["patch_size"] = options.patch_size
    model_args.update(options.model_kwargs)
    model = build_model(**model_args)
    if isinstance(model, ResMLP):  # weights.load_weights takes the grid from these two
        model_args |= {"img_size": model.img_size, "patch_size": model.patch_size}
    if options.weights and not options.resume:  # last.pth has what became of them
        if not isinstance(model, ResMLP):
            raise UserError("--weights starts our models only; timm:NAME starts from random ones.")
        source: Any = options.weights
        if source.startswith(TIMM):
            source = hub_weights(source)
        load_weights(model, source, head="reset" if options.reset_head else "keep")
    return model, model_args


@torch.no_grad()
def _try_forward(
    model: nn.Module,
    flag: str,
    options: argparse.Namespace,
    device: torch.device,
    num_classes: int,
) -> None:
    """Show the model an image, before the first epoch does: not every one takes every size."""
    height, width = options.img_size
    mode = model.training
    try:
        logits = model.eval()(torch.zeros(1, 3, height, width, device=device))
    except (ValueError, AssertionError, RuntimeError, AttributeError, TypeError) as error:
        raise UserError(
            f"{flag} does not take images of {height} x {width} pixels (--img-size): "
            f"{textwrap.shorten(str(error), 200)}."
        ) from error
    shape = getattr(logits, "shape", None)
    if shape != (1, num_classes):
        raise UserError(
            f"{flag} does not give the scores of {num_classes} classes for an image, but "
            f"{type(logits).__name__} {'' if shape is None else tuple(shape)}; look at "
            "--model-kwargs."
        )
    model.train(mode)


def _optimizer(options: argparse.Namespace, model: nn.Module) -> torch.optim.Optimizer:
    try:
        optimizer: torch.optim.Optimizer = create_optimizer_v2(
            model,
            opt=options.opt,
            lr=options.lr,
            weight_decay=options.weight_decay,
            momentum=options.momentum,
            **options.opt_kwargs,
        )
    except (ValueError, TypeError, KeyError, AssertionError) as error:
        raise UserError(f"--opt {options.opt}: {error}.") from error
    return optimizer


def _scheduler(
    options: argparse.Namespace, optimizer: torch.optim.Optimizer, updates_per_epoch: int
) -> Any:
    try:
        return create_scheduler_v2(
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


def _mixup(options: argparse.Namespace, num_classes: int) -> Mixup | None:
    if not (options.mixup or options.cutmix):
        return None
    if options.batch_size % 2:
        raise UserError("--mixup and --cutmix need an even --batch-size.")
    return Mixup(
        mixup_alpha=options.mixup,
        cutmix_alpha=options.cutmix,
        prob=options.mixup_prob,
        switch_prob=options.mixup_switch_prob,
        mode=options.mixup_mode,
        label_smoothing=options.smoothing,
        num_classes=num_classes,
    )


def _erasing(options: argparse.Namespace, device: torch.device) -> RandomErasing | None:
    if not options.reprob or not options.aug:
        return None
    return RandomErasing(
        options.reprob, mode=options.remode, max_count=options.recount, device=device
    )


def _loss(
    options: argparse.Namespace,
    classes: Sequence[str],
    data_config: dict[str, Any],
    device: torch.device,
) -> Loss:
    base: nn.Module
    if options.mixup or options.cutmix:
        base = SoftTargetCrossEntropy()  # the labels come smoothed from the mixup
    elif options.smoothing:
        base = LabelSmoothingCrossEntropy(options.smoothing)
    else:
        base = nn.CrossEntropyLoss()
    if options.distillation_type == "none":
        if options.teacher:
            raise UserError("--teacher needs --distillation-type hard or soft.")

        def loss(images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
            value: Tensor = base(logits, labels)
            return value

        return loss
    if not options.teacher:
        raise UserError(f"--distillation-type {options.distillation_type} needs --teacher.")
    teacher = load_teacher(options.teacher, options.teacher_weights, classes, data_config)
    teacher.to(device)
    _try_forward(teacher, f"--teacher {options.teacher}", options, device, len(classes))
    return DistillationLoss(
        base,
        teacher,
        options.distillation_type,
        options.distillation_alpha,
        options.distillation_tau,
    )


def _write_config(options: argparse.Namespace) -> None:
    path: Path = options.output / "args.yaml"
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(yaml.safe_dump(to_config(options), sort_keys=False))
        os.replace(partial, path)
    except OSError as error:
        raise UserError(
            f"--output {options.output} cannot be written to: {error.strerror}; choose a folder "
            "that can."
        ) from error


@contextmanager
def _stops_at_signals(trainer: Trainer) -> Iterator[None]:
    """SIGTERM and SIGINT ask for a stop at the next step; a second SIGINT ends at once."""

    def ask(number: int, frame: object) -> None:
        trainer.stop = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    earlier = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    main()
