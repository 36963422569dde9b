"""The training loop: updates, validation and checkpoints."""

import math
import signal
import time
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from tqdm import tqdm

from resmlp_mt.errors import UserError
from resmlp_mt.vision import checkpoints
from resmlp_mt.vision.checkpoints import Position
from resmlp_mt.vision.distill import Loss
from resmlp_mt.vision.distributed import Process
from resmlp_mt.vision.images import SkipCounter
from resmlp_mt.vision.libraries import timm
from resmlp_mt.vision.loader import TRAINING, EpochBatches, refill, seed_all
from resmlp_mt.vision.output_folder import Summary, score
from resmlp_mt.vision.signals import Stop
from resmlp_mt.vision.training_options import TrainingOptions


@dataclass
class Trainer:
    """The parts of one training; :meth:`fit` runs it.

    Attributes:
        model: the bare model; ``options`` say how it is wrapped.
        loss: a function of (images, logits, labels).
        normalize: see :func:`~resmlp_mt.vision.transforms.create_normalization`.
        description: entries about the model in every checkpoint: model_args, classes, ...
        epochs: in all, with cycles, a warm-up prefix and the cool-down.
        stop: the request to save and end at the next step.
        mixup: timm's, None if off; so are ``erasing`` and ``ema``, the moving average.
        teacher: digest of the teacher, None without one.
    """

    options: TrainingOptions
    process: Process
    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: Any
    epochs: int
    loss: Loss
    batches: EpochBatches
    train: DataLoader[Any]
    validation: DataLoader[Any]
    normalize: Any
    counter: SkipCounter
    description: dict[str, Any]
    mixup: Any = None
    teacher: str | None = None
    stop: Stop = field(default_factory=Stop)
    position: Position = field(default_factory=Position)
    history: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        options, device = self.options, self.process.device
        # a disabled one passes everything through
        self.scaler = torch.amp.GradScaler(
            device.type, enabled=options.amp and options.amp_dtype == "float16"
        )
        self.ema: Any = None
        if options.model_ema:
            self.ema = timm.utils.ModelEmaV3(
                self.model, decay=options.model_ema_decay, use_warmup=options.model_ema_warmup
            )
        self.erasing: Any = None
        if options.reprob and options.aug:
            self.erasing = timm.data.random_erasing.RandomErasing(
                options.reprob, mode=options.remode, max_count=options.recount, device=device
            )
        self.parallel: DistributedDataParallel | None = None
        if self.process.world_size > 1:
            ids = [self.process.local_rank] if device.type == "cuda" else None
            self.parallel = DistributedDataParallel(self.model, device_ids=ids)
        self.forward: Any = self.parallel or self.model
        if options.torchcompile:
            self.forward = torch.compile(
                self.forward, backend=options.torchcompile, mode=options.torchcompile_mode
            )
        self.main = self.process.rank == 0
        self.output: Path = options.output

    def leave(self) -> None:
        """Release DistributedDataParallel; call it before the process group is destroyed.

        It must not be the last reference to the group. If it were, freeing it would join gloo's
        threads with the interpreter locked, and they may be waiting for the interpreter.
        """
        self.parallel, self.forward = None, self.model

    def autocast(self) -> Any:
        """Mixed precision, if asked for."""
        return torch.autocast(
            self.process.device.type,
            dtype=getattr(torch, self.options.amp_dtype),
            enabled=self.options.amp,
        )

    def fit(self) -> bool:
        """Train to the end; False if it was stopped, with everything saved to continue."""
        summary = None
        if self.main:
            summary = Summary(self.output, self.options.tensorboard, self.position.epoch)
            if self.history:  # the earlier run may have ended between last.pth and summary.csv
                summary.write(self.history)
        while self.position.epoch < self.epochs:
            row = self.validate_epoch() if self.train_epoch() else None
            if row is None:
                self.save("last.pth")
                return False
            self.history.append(row)
            accuracy = score(row)[1]
            better = accuracy > self.position.best
            best, epoch = max(accuracy, self.position.best), self.position.epoch + 1
            self.position = replace(self.position, epoch=epoch, step=0, loss_sum=0.0, best=best)
            if self.scheduler:
                self.scheduler.step(self.position.epoch, accuracy)  # for plateau
            # in this order: a kill between the two repeats the epoch, and best.pth with it
            if better:
                self.save("best.pth", resumable=False)
            self.save("last.pth")
            if summary:
                summary.report(self.history)
        return True

    def train_epoch(self) -> bool:
        """Run the remaining steps of the epoch; False if it was stopped before its end."""
        position, options = self.position, self.options
        if options.max_updates and position.updates >= options.max_updates:
            return False
        self.batches.epoch, self.batches.start = position.epoch, position.step
        self.forward.train()
        if self.mixup and options.mixup_off_epoch:
            self.mixup.mixup_enabled = position.epoch < options.mixup_off_epoch
        losses = 0.0
        start, before = time.monotonic(), position.seconds
        with tqdm(
            total=len(self.batches),
            initial=position.step,
            desc=f"epoch {position.epoch}",
            unit="step",
            disable=None if self.main and options.progress else True,  # None: on a terminal only
            leave=False,
        ) as bar:
            for images, labels, bad in self.train:
                self.counter.update(bad)
                images, labels = refill(images, labels, self.batches.batch_size)
                seed_all(options.seed, self.process.rank, position.epoch, position.step, TRAINING)
                last = (position.step + 1) % options.grad_accum_steps == 0
                wait = self.parallel is not None and not last
                with self.parallel.no_sync() if self.parallel and wait else nullcontext():
                    loss = self._forward(images, labels) / options.grad_accum_steps
                    losses += loss.item()
                    stop = False
                    if last:
                        losses, stop = self._agree(losses)
                    self._backward(loss, last)
                position.step += 1
                position.seconds = before + time.monotonic() - start
                bar.update()
                if not last:
                    continue
                position.updates += 1
                position.loss_sum += losses
                bar.set_postfix(loss=f"{losses:.3f}", refresh=False)
                losses = 0.0
                self._after_update()
                if stop or position.updates == options.max_updates:
                    return False
        return True

    def _forward(self, images: Tensor, labels: Tensor) -> Tensor:
        device = self.process.device
        images = self.normalize(images.to(device, non_blocking=True).float())
        labels = labels.to(device, non_blocking=True)
        if self.erasing:
            images = self.erasing(images)
        if self.mixup:
            images, labels = self.mixup(images, labels)
        if self.options.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with self.autocast():
            return self.loss(images, self.forward(images), labels)

    def _agree(self, loss: float) -> tuple[float, bool]:
        """The mean loss of all processes, and whether any of them is to stop."""
        loss, stops = self.process.sum(loss, float(self.stop.number))
        loss /= self.process.world_size
        if not math.isfinite(loss):
            last = self.output / "last.pth"
            kept = f"{last} is the last good checkpoint" if last.exists() else "nothing was saved"
            raise UserError(
                f"the loss became {loss} in epoch {self.position.epoch}, update "
                f"{self.position.updates}: training stops, {kept}; try a smaller --lr, "
                "--clip-grad or a longer --warmup-epochs."
            )
        return loss, self._stops(stops)

    def _stops(self, numbers: float) -> bool:
        """Whether any process is to stop; the answer is the same in all processes."""
        if numbers and not self.stop.number:
            self.stop.number = signal.SIGTERM
        return numbers > 0

    def _backward(self, loss: Tensor, update: bool) -> None:
        options = self.options
        self.scaler.scale(loss).backward()
        if not update:
            return
        if options.clip_grad is not None:
            self.scaler.unscale_(self.optimizer)
            # as in timm, and as Brock et al. (2021, arXiv:2102.06171): agc is not for the head
            agc = options.clip_mode == "agc"
            clipped = timm.models.model_parameters(self.model, exclude_head=agc)
            timm.utils.dispatch_clip_grad(clipped, options.clip_grad, mode=options.clip_mode)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()

    def _after_update(self) -> None:
        updates = self.position.updates
        if self.ema:
            self.ema.update(self.model, step=updates)
        if self.process.world_size > 1 and self.position.step == len(self.batches):
            self._share_statistics()
        if self.scheduler:
            self.scheduler.step_update(updates)
        interval = self.options.recovery_interval
        if interval and updates % interval == 0:
            self.save("last.pth")

    def _share_statistics(self) -> None:
        """Give all processes the same statistics of batch norm at the end of an epoch.

        They are averaged before anything is saved, so that a continued training has the same. Those
        of the moving average are the first process's: last.pth has no others.
        """
        timm.utils.distribute_bn(self.model, self.process.world_size, reduce=True)
        if self.ema:
            timm.utils.distribute_bn(self.ema.module, self.process.world_size, reduce=False)

    def validate_epoch(self) -> dict[str, Any] | None:
        """Validate, and return a row of summary.csv; None if the validation was stopped."""
        result = self.validate(self.model)
        average = self.validate(self.ema.module) if self.ema and result else {}
        if result is None or average is None:
            return None
        position = self.position
        images = self.batches.batch_size * len(self.batches) * self.process.world_size
        earlier = self.history[-1]["seconds"] if self.history else 0.0
        return {
            "epoch": position.epoch,
            "updates": position.updates,
            "lr": max(group["lr"] for group in self.optimizer.param_groups),
            "train_loss": position.loss_sum / (len(self.batches) // self.options.grad_accum_steps),
            **{f"val_{name}": value for name, value in result.items()},
            **{f"ema_{name}": value for name, value in average.items()},
            "seconds": position.seconds,
            "images_per_second": images / (position.seconds - earlier),
        }

    @torch.inference_mode()
    def validate(self, model: nn.Module) -> dict[str, float] | None:
        """Cross-entropy and accuracy in per cent on the validation images; None if stopped.

        Raises:
            UserError: if the loss is not finite, or all images are bad.
        """
        model.eval()
        device = self.process.device
        sums = [0.0] * 4
        for images, labels, bad in self.validation:
            self.counter.update(bad)
            if self.stop.number:
                break
            if not len(images):
                continue
            images = self.normalize(images.to(device, non_blocking=True).float())
            labels = labels.to(device, non_blocking=True)
            with self.autocast():
                logits = model(images).float()
            loss = F.cross_entropy(logits, labels, reduction="sum")
            top1, top5 = timm.utils.accuracy(logits, labels, topk=(1, 5))
            size = float(len(labels))
            new = (size, loss.item(), top1.item() * size, top5.item() * size)
            sums = [a + b for a, b in zip(sums, new, strict=True)]
        count, *totals, stops = self.process.sum(*sums, float(self.stop.number))
        if self._stops(stops):
            return None
        if not count:
            raise UserError("--data: all validation images are bad; see the messages above.")
        if not math.isfinite(totals[0]):
            raise UserError(
                f"the validation loss is {totals[0]} after update {self.position.updates}: "
                f"training stops, {self.output / 'last.pth'} is left as it was; try a smaller --lr."
            )
        return dict(zip(("loss", "top1", "top5"), (t / count for t in totals), strict=True))

    def save(self, name: str, resumable: bool = True) -> None:
        """Write a checkpoint to the output folder; ``resumable`` adds what only ``last.pth`` has.

        Raises:
            UserError: if it cannot be written, or a weight is not finite.
        """
        if not self.main:
            return
        state = {"model": self.model.state_dict(), **self.description}
        if self.ema:
            state["model_ema"] = self.ema.module.state_dict()
        for part in ("model", "model_ema"):
            for key, value in state.get(part, {}).items():
                if not value.isfinite().all():
                    raise UserError(
                        f"{key} is not finite after update {self.position.updates}: training "
                        f"stops, {self.output / name} is left as it was; try a smaller --lr."
                    )
        if resumable:
            state |= checkpoints.state_of(self)
        checkpoints.save(state, self.output / name)
