"""Remedies for fairseq's writing of checkpoints: a kill or a full disk never loses a training.

fairseq copies the newest checkpoint over ``checkpoint_last.pt`` and ``checkpoint_best.pt`` in
place. A training that is killed meanwhile leaves half a file, and cannot start again.
"""

import logging
import os
import re
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from fairseq import checkpoint_utils
from fairseq.distributed import utils as distributed_utils
from fairseq.file_io import PathManager
from omegaconf import open_dict

from resmlp_mt import tensor_files
from resmlp_mt.command_line import flag
from resmlp_mt.errors import UserError, reason
from resmlp_mt.fairseq_plugin import checkpoints, resuming
from resmlp_mt.fairseq_plugin.continue_command import LAST, advice
from resmlp_mt.fairseq_plugin.wrapping import Original, remedy
from resmlp_mt.files import LockedError, locked, not_a_checkpoint, replacing

logger = logging.getLogger(__name__)


class UnsavedError(UserError):
    """A checkpoint could not be written."""


@remedy(checkpoint_utils, "torch_persistent_save")
def _torch_persistent_save(
    original: Original, obj: Any, filename: str, async_write: bool = False
) -> None:
    if async_write or not PathManager.supports_rename(filename):
        original(obj, filename, async_write)
        return
    if isinstance(obj, dict):
        obj = {**obj, "digest": checkpoints.digest(obj)}
    try:
        tensor_files.write(obj, Path(filename))
    except OSError as error:
        raise _unsaved(filename, error) from error


@remedy(PathManager, "copy")
def _copy(original: Original, src_path: str, dst_path: str, overwrite: bool = False) -> Any:
    if PathManager.path_requires_pathmanager(src_path) or not PathManager.supports_rename(dst_path):
        return original(src_path, dst_path, overwrite)
    try:
        with replacing(Path(dst_path)) as partial:
            shutil.copyfile(src_path, partial)
    except OSError as error:
        raise _unsaved(dst_path, error) from error
    return dst_path


def _unsaved(path: str, error: OSError) -> UnsavedError:
    return UnsavedError(f"{path} cannot be written ({reason(error)}), and the training stops.")


@remedy(checkpoint_utils, "save_checkpoint")
def _save_checkpoint(
    original: Original, cfg: Any, trainer: Any, epoch_itr: Any, val_loss: float | None
) -> Any:
    try:
        saved = original(cfg, trainer, epoch_itr, val_loss)
    except UnsavedError as error:
        raise UserError(
            f"{str(error).rstrip('.')}; the earlier checkpoints are complete: make room and "
            f"{advice(cfg, trainer.checkpoint_suffix)}."
        ) from error
    if hasattr(trainer, "stopping_saves"):  # of ``stop_signals``
        trainer.stopping_saves.append(val_loss)
    return saved


_held = ExitStack()
"""The lock of the folder that the training of this process writes to."""


@remedy(distributed_utils, "call_main")
def _call_main(original: Original, *args: Any, **kwargs: Any) -> None:
    with _held:
        original(*args, **kwargs)


def _hold_folder(cfg: Any, suffix: str) -> None:
    """Keep other trainings out of the folder until this one ends; the first process does it.

    Trainings with another ``--checkpoint-suffix`` write to other files.

    Raises:
        UserError: if another training is at work there.
    """
    _held.close()  # of an earlier training of this process
    if cfg.no_save or distributed_utils.get_global_rank() != 0:
        return
    if PathManager.path_requires_pathmanager(cfg.save_dir):
        return
    folder = Path(cfg.save_dir)
    taken = (
        f"another training is writing to {folder}: wait for its end, or give another --save-dir."
    )
    try:
        _held.enter_context(locked(folder / f".lock{suffix}", taken, "--save-dir"))
    except LockedError:
        raise
    except UserError as error:  # no locks there, or the file cannot be read
        logger.warning("%s Until then, start no other training with this --save-dir.", error)


@remedy(checkpoint_utils, "load_checkpoint")
def _load_checkpoint(original: Original, cfg: Any, trainer: Any, **arguments: Any) -> Any:
    """Start from the newest readable checkpoint where the last one is damaged.

    Raises:
        UserError: if none can be read, another training writes to the folder, or the checkpoint to
            start from does not exist; fairseq would train from the beginning.
    """
    resuming.forget_scores()
    _check_start(cfg, trainer.checkpoint_suffix)
    _hold_folder(cfg, trainer.checkpoint_suffix)
    if cfg.restore_file != LAST or trainer.checkpoint_suffix:
        return original(cfg, trainer, **arguments)
    instead: Path | None = None
    if trainer.data_parallel_rank == 0:
        if not cfg.no_save:
            remove_partial(Path(cfg.save_dir))
        instead = readable_instead(Path(cfg.save_dir))
    if trainer.data_parallel_world_size > 1:
        instead = distributed_utils.broadcast_object(
            instead, src_rank=0, group=trainer.data_parallel_process_group
        )
    if instead is None:
        return original(cfg, trainer, **arguments)
    restore_file, finetune_from_model = cfg.restore_file, cfg.finetune_from_model
    with open_dict(cfg):
        cfg.restore_file, cfg.finetune_from_model = str(instead), None
    try:
        return original(cfg, trainer, **arguments)
    finally:
        with open_dict(cfg):
            cfg.restore_file, cfg.finetune_from_model = restore_file, finetune_from_model


STARTS = "continue_once", "finetune_from_model"
"""Options of checkpoints to start from where the training has none; fairseq takes the first."""


def _check_start(cfg: Any, suffix: str) -> None:
    """Refuse to start from a checkpoint that does not exist, or from a folder of checkpoints.

    Args:
        cfg: fairseq's options of checkpoints.
        suffix: what fairseq puts before the ``.pt`` of names.

    Raises:
        UserError: naming the option that names it.
    """
    option, path = "--restore-file", cfg.restore_file.replace(".pt", f"{suffix}.pt")
    if cfg.restore_file == LAST:
        values = {name: getattr(cfg, name, None) for name in STARTS}
        given = [(flag(name), value) for name, value in values.items() if value is not None]
        if not given or PathManager.exists(os.path.join(cfg.save_dir, path)):
            return
        option, path = given[0]
    if PathManager.isfile(path):
        return
    if PathManager.exists(path):
        raise UserError(f"{option} {not_a_checkpoint(Path(path))}")
    inside = Path(cfg.save_dir, path)
    raise UserError(
        f"{option} {path} does not exist"
        + (f": did you mean {inside}?" if inside.is_file() else ".")
    )


def readable_instead(folder: Path) -> Path | None:
    """The newest readable checkpoint of a run whose last one is damaged; None if it is not.

    Raises:
        UserError: if none can be read.
    """
    last = folder / LAST
    if not last.exists():
        return None
    damage = _damage(last)
    if damage is None:
        return None
    for path in sorted(_others(folder), key=updates, reverse=True):
        if _damage(path) is None:
            logger.warning("%s; the training continues from %s.", damage, path)
            return path
    raise UserError(
        f"{damage}; {folder} has no other checkpoint that can be read: remove the file to begin "
        "again, or give --restore-file."
    )


def remove_partial(folder: Path) -> None:
    """Remove the half-written files of a killed training."""
    for path in folder.glob(".checkpoint*.pt.*"):
        if re.fullmatch(r"\.checkpoint.*\.pt\.[a-z0-9_]{8}", path.name):
            path.unlink(missing_ok=True)


def _others(folder: Path) -> list[Path]:
    """The checkpoints that fairseq writes beside the last one, without averages of them."""
    names = re.compile(r"checkpoint(\d+|_\d+_\d+|_best|\.best_.+)\.pt")
    return [path for path in folder.iterdir() if names.fullmatch(path.name)]


def updates(path: Path) -> int:
    """How many updates a checkpoint has seen; -1 if it cannot be read."""
    try:
        return checkpoints.updates(checkpoints.read(path, only_look=True))
    except UserError:
        return -1


def _damage(path: Path) -> str | None:
    """Why a checkpoint cannot be read, or None; all of its content is checked."""
    try:
        checkpoints.read(path)
    except UserError as error:
        return str(error)
    return None
