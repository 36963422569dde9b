"""A checkpoint knows the languages and dictionaries of its training.

Another corpus may have dictionaries of the same size. fairseq would then translate its text into
other words without an error. It also forgets languages that it has found by itself in the data.
"""

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairseq import checkpoint_utils
from fairseq.tasks.translation import TranslationTask
from fairseq.trainer import Trainer

from resmlp_mt import language_codes
from resmlp_mt.errors import UserError
from resmlp_mt.fairseq_plugin import checkpoints
from resmlp_mt.fairseq_plugin.checkpoints import DICTIONARIES
from resmlp_mt.fairseq_plugin.remedies import Original, wrap

logger = logging.getLogger(__name__)


def remember_dictionaries() -> None:
    """Store both in checkpoints, refuse other dictionaries, and tell of the other direction.

    A training may begin with the weights of another vocabulary (``--finetune-from-model``), which
    some people want: it warns of it.
    """
    wrap(Trainer, "state_dict", _state_dict)
    wrap(Trainer, "load_checkpoint", _load_checkpoint)
    wrap(checkpoint_utils, "load_model_ensemble_and_task", _load_model_ensemble_and_task)


def _state_dict(original: Original, self: Any) -> dict[str, Any]:
    state: dict[str, Any] = original(self)
    if isinstance(self.task, TranslationTask):
        state[DICTIONARIES] = _digests(self.task)
        chosen = state["cfg"]["task"]
        if isinstance(chosen, dict):  # not so for tasks that have arguments instead of a config
            chosen["source_lang"] = self.task.cfg.source_lang
            chosen["target_lang"] = self.task.cfg.target_lang
    return state


def _digests(task: TranslationTask) -> dict[str, str]:
    sides = {"source": task.source_dictionary, "target": task.target_dictionary}
    return {
        side: hashlib.sha256("\n".join(words.symbols).encode()).hexdigest()
        for side, words in sides.items()
    }


def _load_checkpoint(
    original: Original,
    self: Any,
    filename: str,
    reset_optimizer: bool = False,
    *args: Any,
    **kwargs: Any,
) -> Any:
    path = Path(filename)
    if isinstance(self.task, TranslationTask) and path.is_file():
        other = _other(self.task, checkpoints.read(path, only_look=True), path)
        if other and not reset_optimizer:
            raise UserError(f"{other}: give the folder of its binarised text.")
        if other:
            logger.warning("%s: its embeddings begin with the vectors of other words.", other)
    return original(self, filename, reset_optimizer, *args, **kwargs)


def _load_model_ensemble_and_task(
    original: Original, filenames: list[str], *args: Any, **kwargs: Any
) -> Any:
    loaded = original(filenames, *args, **kwargs)
    task = loaded[2]
    if isinstance(task, TranslationTask):
        for path in filter(Path.is_file, map(Path, filenames)):
            state = checkpoints.read(path, only_look=True)
            _warn_if_reversed(task, state, path)
            if other := _other(task, state, path):
                raise UserError(f"{other}: give the folder of its binarised text.")
    return loaded


def _other(task: TranslationTask, state: Mapping[str, Any], path: Path) -> str | None:
    """Says which dictionary is not that of the checkpoint; None if all are."""
    side = checkpoints.other_dictionary(state, _digests(task))
    if side is None:
        return None
    return f"the {side} dictionary in {task.cfg.data} is not the one that {path} was trained with"


def _warn_if_reversed(task: TranslationTask, state: Mapping[str, Any], path: Path) -> None:
    """Tell of a model that is used in the other direction than it was trained for."""
    stored = state.get("args") or (state.get("cfg") or {}).get("task") or {}
    options: Any = stored if isinstance(stored, Mapping) else vars(stored)
    source, target = options.get("source_lang"), options.get("target_lang")
    if (
        source not in (None, task.cfg.source_lang)
        and language_codes.find(source, [task.cfg.target_lang])
        and language_codes.find(target, [task.cfg.source_lang])
    ):
        logger.warning(
            "%s was trained to translate from %s to %s, and is used the other way round",
            path,
            source,
            target,
        )
