"""Batches whose content is a function of (seed, epoch, step, rank) alone.

Neither the number of workers nor an interruption changes the batch of a step, so a training can be
continued exactly without saving the state of any random generator. One process with batches of 2 B
sees the same images in a step as two processes with batches of B.
"""

import errno
import os
import sys
from collections.abc import Iterator
from multiprocessing.queues import Queue
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Sampler, Subset
from tqdm import tqdm

from resmlp_mt import signals
from resmlp_mt.errors import UserError, is_of_memory, reason
from resmlp_mt.vision.image_dataset import ImageDataset
from resmlp_mt.vision.images import BadImage, SkipCounter, collate
from resmlp_mt.vision.libraries import timm
from resmlp_mt.vision.memory import NO_ROOM

Batch = tuple[Tensor, Tensor, list[BadImage]]
# keys of a step's draws: augmentation in a worker, mixup and stochastic depth in the training
AUGMENTATION, TRAINING = 0, 1


def seed_all(*key: int) -> None:
    """Seed the generators of Python, numpy and torch with a hash of non-negative integers."""
    timm.utils.random_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))


class EpochBatches(Sampler[list[tuple[tuple[int, ...], int]]]):
    """The batches of an epoch for one process: ``len(self)`` lists of (random key, index).

    An incomplete last batch is left out, and so are batches that do not fill an update. Before
    iterating, set ``epoch``, and set ``start`` to the first step that is not done yet.

    Args:
        seed: of the order and the random keys.
        repeats: views of an image that one or several processes see at the same time (repeated
            augmentation, Hoffer et al. 2020); 0 for none.
        multiple: batches per update.

    Raises:
        UserError: if the data does not fill one update.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        repeats: int = 0,
        multiple: int = 1,
    ) -> None:
        self.repeats = repeats > 0
        self.sampler: Any
        if repeats:
            self.sampler = timm.data.distributed_sampler.RepeatAugSampler(
                dataset, world_size, rank, num_repeats=repeats
            )
        else:
            self.sampler = DistributedSampler(dataset, world_size, rank, seed=seed)
        self.batch_size = batch_size
        self.key = (seed, rank)
        self.steps = len(self.sampler) // (batch_size * multiple) * multiple
        if not self.steps:
            raise UserError(
                f"--batch-size {batch_size}: the {len(dataset)} training images do not fill one "
                f"update of {world_size} processes x {multiple} batches; choose a smaller one."
            )
        self.epoch = 0
        self.start = 0

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[tuple[tuple[int, ...], int]]]:
        epoch = self.epoch
        if self.repeats:  # this sampler's only seed is the epoch
            epoch = int(np.random.SeedSequence([self.key[0], epoch]).generate_state(1)[0])
        self.sampler.set_epoch(epoch)
        indices = list(self.sampler)
        for step in range(self.start, self.steps):
            key = (*self.key, self.epoch, step, AUGMENTATION)
            chosen = indices[step * self.batch_size : (step + 1) * self.batch_size]
            yield [(key, index) for index in chosen]


class Seeded(Dataset[Any]):
    """Seeds the augmentation of a batch of :class:`EpochBatches` with its random key."""

    def __init__(self, dataset: ImageDataset) -> None:
        self.dataset = dataset

    def __getitems__(self, entries: list[tuple[tuple[int, ...], int]]) -> list[Any]:
        seed_all(*entries[0][0])
        return [self.dataset[index] for _, index in entries]


def _end(error: Exception, _: object) -> None:
    """End a worker that cannot give its batch, as on a full /dev/shm.

    multiprocessing would drop the batch, and the main process wait for it for ever.
    """
    if isinstance(error, EOFError | ConnectionError):
        return
    if is_of_memory(error) or os.strerror(errno.ENOSPC) in str(error):  # of /dev/shm
        os._exit(NO_ROOM)
    told = f"a process of --workers cannot give its batch: {reason(error)}"
    print(told, file=sys.stderr, flush=True)
    os._exit(1)


def _ends_with_its_parent(worker: int) -> None:
    """Ignore signals, which all processes get; the main process still saves.

    If it ends while it takes a tensor, the thread that gives it has nothing to report.
    """
    report = sys.excepthook

    def hook(kind: type[BaseException], *details: Any) -> None:
        if not issubclass(kind, EOFError | ConnectionError):
            report(kind, *details)

    sys.excepthook = hook
    any_queue: Any = Queue
    any_queue._on_queue_feeder_error = staticmethod(_end)  # the hook of multiprocessing
    signals.leave_signals_to_parent()


def share(dataset: ImageDataset, rank: int, world_size: int) -> Dataset[Any]:
    """A process's share of the images; all shares together have each image once."""
    return Subset(dataset, range(rank, len(dataset), world_size))


def create_loader(
    dataset: Dataset[Any], workers: int, pin_memory: bool, **batches: Any
) -> DataLoader[Any]:
    """(images, targets, bad images) by batch; ``batches`` are as for PyTorch's DataLoader."""
    return DataLoader(
        dataset,
        collate_fn=collate,
        num_workers=workers,
        worker_init_fn=_ends_with_its_parent,
        persistent_workers=workers > 0,
        pin_memory=pin_memory,
        **batches,
    )


def refill(images: Tensor, targets: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Fill a batch that lost bad images by repeating the good ones in order.

    All steps then have the same weight, in all processes.

    Raises:
        UserError: if no image is left.
    """
    if len(images) == size:
        return images, targets
    if not len(images):
        raise UserError(f"--data: all {size} images of a batch are bad; see the messages above.")
    again = torch.arange(size) % len(images)
    return images[again], targets[again]


def batches(
    dataset: ImageDataset,
    batch_size: int,
    workers: int,
    device: torch.device,
    counter: SkipCounter,
) -> Iterator[Batch]:
    """Batches of a dataset in its order, under a progress bar, for evaluation and prediction.

    Yields:
        images (batch, channels, height, width) on the device, targets (batch,) on the CPU, and
        the bad images that were left out of the batch.

    Raises:
        UserError: at a bad image, if the counter stops at it.
    """
    loader = create_loader(dataset, workers, device.type == "cuda", batch_size=batch_size)
    with tqdm(total=len(dataset), unit="image", disable=None, leave=False) as progress:
        for images, targets, bad in loader:
            counter.update(bad)
            yield images.to(device, non_blocking=True), targets, bad
            progress.update(len(targets) + len(bad))
