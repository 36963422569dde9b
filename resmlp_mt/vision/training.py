"""Runs one training from its options: sets up output folder, data and model, and resumes.

:mod:`.training_parts` makes the parts, :mod:`.trainer` has the loop.
"""

import logging
import shlex
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
import yaml
from torch import nn
from tqdm.contrib.logging import logging_redirect_tqdm

from resmlp_mt.errors import UserError, refused
from resmlp_mt.files import write_text
from resmlp_mt.vision import training_parts
from resmlp_mt.vision.checkpoints import digest, load, resume, save
from resmlp_mt.vision.class_map import check_order, check_same, read_class_map
from resmlp_mt.vision.classifier import check_forward
from resmlp_mt.vision.data import create_dataset
from resmlp_mt.vision.distill import Teacher, load_teacher
from resmlp_mt.vision.distributed import Process, start_process
from resmlp_mt.vision.factory import build_model, input_arguments, pretrained_cfg
from resmlp_mt.vision.image_dataset import ImageDataset, MemoryDataset, check_classes
from resmlp_mt.vision.images import SkipCounter
from resmlp_mt.vision.libraries import timm
from resmlp_mt.vision.loader import EpochBatches, Seeded, create_loader, seed_all, share
from resmlp_mt.vision.model import ResMLP
from resmlp_mt.vision.output_folder import best_line, hold_folder
from resmlp_mt.vision.presets import is_ours
from resmlp_mt.vision.signals import Stop, stops
from resmlp_mt.vision.trainer import Trainer
from resmlp_mt.vision.training_options import TrainingOptions
from resmlp_mt.vision.transforms import (
    check_data_config,
    create_normalization,
    create_transform,
)
from resmlp_mt.vision.weights import ClassifierError, Stored, load_weights

logger = logging.getLogger(__name__)


def run(options: TrainingOptions) -> None:
    """Train as the options say.

    Raises:
        UserError: for anything in the options or the data that cannot be used.
        SystemExit: with status 143, 130 or 129 if SIGTERM, SIGINT or SIGHUP ended the training.
    """
    with stops() as stop, logging_redirect_tqdm(), ExitStack() as held:
        process = start_process(options.device)
        logging.basicConfig(
            level=logging.INFO if process.rank == 0 else logging.WARNING,
            format="%(message)s",
        )
        trainer: Trainer | None = None
        try:
            options = replace(options, output=hold_folder(options, process, held))
            trainer = create_trainer(options, process, stop)
            if options.resume:
                resume(trainer, load(options.resume), options.resume)
            if process.rank == 0:
                _begin(options, trainer)
            stop.waits = True
            finished = trainer.fit()
            skipped = process.union(trainer.counter.skipped)
            if process.rank == 0:
                if skipped:
                    logger.warning(
                        "%d bad images were skipped; they are named above.", len(skipped)
                    )
                _end(options, trainer, finished)
            if finished:
                stop.number = 0  # the signal came too late
        finally:
            if trainer is not None:
                trainer.leave()
            if dist.is_initialized():
                dist.destroy_process_group()


def _begin(options: TrainingOptions, trainer: Trainer) -> None:
    """Write args.yaml; if the training continues in another folder, copy the best epoch there."""
    resolved = yaml.safe_dump(options.to_config(), sort_keys=False, allow_unicode=True)
    write_text(options.output / "args.yaml", resolved, "--output")
    if not options.resume:
        is_within = options.sched != "none" and not options.warmup_prefix
        if is_within and options.warmup_epochs >= options.epochs:
            logger.warning(
                "--epochs %d is all warm-up (--warmup-epochs %d), with learning rates below --lr: "
                "give a smaller --warmup-epochs, or more --epochs.",
                options.epochs, options.warmup_epochs,
            )  # fmt: skip
        return
    best, position = options.resume.with_name("best.pth"), trainer.position
    if best.exists() and best.parent.resolve() != options.output.resolve():
        save(load(best), options.output / "best.pth")
    if position.best >= 0 and not best.exists():
        logger.warning("%s is not there: the best epoch is that of the epochs from now on.", best)
        position.best, position.counted = -1.0, position.epoch
    if position.epoch >= trainer.epochs:
        logger.info("--resume %s: all %d epochs are done.", options.resume, trainer.epochs)


def _end(options: TrainingOptions, trainer: Trainer, finished: bool) -> None:
    """Print the last line: the best epoch, or how to continue."""
    if finished:
        counted = trainer.history[trainer.position.counted :]
        if counted:
            print(best_line(counted, options.output))
        else:  # all epochs were done before best.pth was lost
            print(f"no epoch was trained: {options.resume} has the weights of the last one")
        return
    start = "python"
    if trainer.process.world_size > 1:
        start = f"torchrun --nproc-per-node {trainer.process.world_size}"
    last = shlex.quote(str(options.output / "last.pth"))
    print(
        f"stopped after update {trainer.position.updates}; continue with: "
        f"{start} -m resmlp_mt.vision.train --resume {last}",
        flush=True,
    )


def create_trainer(options: TrainingOptions, process: Process, stop: Stop | None = None) -> Trainer:
    """Set up data, model, optimizer and losses.

    Raises:
        UserError: for anything in the options or the data that cannot be used.
    """
    if options.torchcompile:  # listing the backends imports the compiler
        backends = torch.compiler.list_backends(exclude_tags=())
        if options.torchcompile not in backends:
            raise UserError(
                f"--torchcompile {options.torchcompile} is not a backend of torch.compile: "
                f"expected one of {', '.join(backends)}."
            )
        mode = options.torchcompile_mode
        with refused(lambda error: f"--torchcompile-mode {mode}: {error}.", RuntimeError):
            torch.compile(nn.Identity(), backend=options.torchcompile, mode=mode)
    elif options.torchcompile_mode:
        raise UserError("--torchcompile-mode needs --torchcompile: give it, or leave out both.")
    training = options.train_split
    folders = [Path(options.data[-1]), Path(options.data[-1]) / training]
    names = read_class_map(options.class_map, folders) if options.class_map else None
    select = "--class-map" if names is not None else ""
    train = create_dataset(options.data, training, classes=names, training=training, select=select)
    if names is not None and train.classes != names:
        data = " ".join(options.data)
        raise UserError(f"--data {data} names its classes itself: leave out --class-map.")
    if options.num_classes not in (None, len(train.classes)):
        raise UserError(
            f"--num-classes {options.num_classes}: --data has {len(train.classes)} classes; leave "
            "it out, or give the data of these classes."
        )
    validation = create_dataset(
        options.data, options.val_split, None, train.classes, training, select=select
    )
    check_classes(train, validation)
    found = {*train.targets}
    if len(found) < 2:
        raise UserError(
            f"--data {' '.join(options.data)} has one class ({train.classes[found.pop()]}): "
            f"nothing can be learned; expected {training}/CLASS/IMAGE, of several classes."
        )
    source = f"--model {options.model}"
    usual = _data_config(options, train, pretrained_cfg(options.model), source)
    options = replace(options, img_size=list(usual["input_size"][1:]))
    seed_all(options.seed)
    model, model_args, preparation = _model(options, train.classes)
    if options.weights:
        source = f"--weights {options.weights}"
    data_config = _data_config(options, train, preparation, source)
    if data_config != usual:
        shown = {name: value for name, value in data_config.items() if name != "input_size"}
        logger.info("images are prepared as for the weights: %s", shown)
    workers = options.workers
    if workers is None:
        workers = 0 if isinstance(train, MemoryDataset) else 4
    images = options.batch_size * options.grad_accum_steps * process.world_size
    options = replace(
        options,
        img_size=list(data_config["input_size"][1:]),
        crop_pct=data_config["crop_pct"],
        mean=list(data_config["mean"]),
        std=list(data_config["std"]),
        interpolation=data_config["interpolation"],
        workers=workers,
        lr=training_parts.learning_rate(options, images),
    )
    train.transform = training_parts.training_transform(options, data_config)
    validation.transform = create_transform(data_config, normalize=False)
    model.to(process.device)
    size = data_config["input_size"]
    check_forward(model, f"--model {options.model}", size, len(train.classes))
    if options.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    teacher = _teacher(options, train.classes, data_config, process.device)
    batches = EpochBatches(
        train,
        options.batch_size,
        options.seed,
        process.rank,
        process.world_size,
        repeats=options.aug_repeats,
        multiple=options.grad_accum_steps,
    )
    optimizer = training_parts.create_optimizer(options, model)
    updates_per_epoch = len(batches) // options.grad_accum_steps
    scheduler, epochs = training_parts.create_scheduler(options, optimizer, updates_per_epoch)
    trainer = Trainer(
        options=options,
        process=process,
        model=model,
        optimizer=optimizer,
        scheduler=scheduler,
        epochs=epochs,
        loss=training_parts.create_loss(options, teacher),
        batches=batches,
        train=create_loader(Seeded(train), workers, options.pin_mem, batch_sampler=batches),
        validation=create_loader(
            share(validation, process.rank, process.world_size),
            workers,
            options.pin_mem,
            batch_size=options.validation_batch_size or options.batch_size,
        ),
        normalize=create_normalization(data_config, process.device),
        counter=SkipCounter(options.on_error),
        description={
            "model_args": model_args,
            "classes": train.classes,
            "data_config": data_config,
            "config": options.to_config(),
        },
        mixup=training_parts.create_mixup(options, len(train.classes)),
        teacher=digest(teacher.state_dict()) if teacher else None,
        stop=stop or Stop(),
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


def _data_config(
    options: TrainingOptions, train: ImageDataset, usual: dict[str, Any], source: str
) -> dict[str, Any]:
    """How images are prepared: as the options say, else as ``usual``, which is of ``source``."""
    size = options.img_size or train.image_size
    given = {
        "input_size": size and (3, size[0], size[-1]),
        "crop_pct": options.crop_pct or (train.image_size and 1.0),
        "mean": options.mean,
        "std": options.std,
        "interpolation": options.interpolation,
    }
    data_config: dict[str, Any] = timm.data.resolve_data_config(given, usual)
    check_data_config(data_config, source)
    return data_config | {name: tuple(data_config[name]) for name in ("mean", "std")}


def _model(
    options: TrainingOptions, classes: list[str]
) -> tuple[nn.Module, dict[str, Any], dict[str, Any]]:
    """The model for these classes.

    Returns:
        the model, the arguments of ``build_model`` that make it again, and how images are prepared
        for its weights: ``data_config`` or ``pretrained_cfg``.
    """
    assert options.img_size is not None
    num_classes = len(classes)
    model_args: dict[str, Any] = {"name": options.model, "num_classes": num_classes}
    if options.drop:
        model_args["drop_rate"] = options.drop
    if is_ours(options.model):
        model_args["drop_path"] = options.drop_path
    elif options.drop_path:
        model_args["drop_path_rate"] = options.drop_path
    height, width = options.img_size
    model_args |= input_arguments(options.model, (height, width), options.patch_size)
    model_args.update(options.model_kwargs)
    start = not options.resume  # last.pth has newer weights
    pretrained = options.pretrained and start
    any_model: Any = build_model(**model_args, pretrained=pretrained)
    model: nn.Module = any_model
    if isinstance(model, ResMLP):  # weights.load_weights takes the grid from these two
        model_args |= {"img_size": model.img_size, "patch_size": model.patch_size}
    if options.reset_head and pretrained:
        any_model.reset_classifier(num_classes)
    stored, source = Stored(), ""
    if options.weights and start:
        source = f"--weights {options.weights}"
        try:
            head: Literal["reset", "keep"] = "reset" if options.reset_head else "keep"
            stored = load_weights(model, options.weights, head)
        except ClassifierError as error:
            raise UserError(f"{error.found}: add --reset-head to train a new one.") from error
    elif pretrained and pretrained_cfg(options.model)["num_classes"] == num_classes:
        source = f"--model {options.model} --pretrained"  # else its classifier is left out
    if source and not options.reset_head:
        remedy = "add --reset-head, or "
        if stored.classes is not None:
            remedy += "if only their order differs, give it with --class-map FILE"
            check_same(stored.classes, classes, source, remedy)
        elif options.class_map is None:
            check_order(classes, source, remedy)
    if options.grad_checkpointing:
        wrong = f"--grad-checkpointing is not for --model {options.model}: leave it out."
        with refused(lambda _: wrong, AssertionError):
            any_model.set_grad_checkpointing()
    return model, model_args, stored.data_config or any_model.pretrained_cfg


def _teacher(
    options: TrainingOptions,
    classes: list[str],
    data_config: dict[str, Any],
    device: torch.device,
) -> Teacher | None:
    if options.distillation_type == "none":
        if options.teacher:
            raise UserError("--teacher needs --distillation-type hard or soft.")
        return None
    if not options.teacher:
        raise UserError(f"--distillation-type {options.distillation_type} needs --teacher.")
    teacher = load_teacher(
        options.teacher,
        options.teacher_weights,
        classes,
        data_config,
        by_letter=options.class_map is None,
    )
    size = data_config["input_size"]
    check_forward(teacher.to(device), f"--teacher {options.teacher}", size, len(classes))
    return teacher
