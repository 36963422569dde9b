"""A checkpoint knows the version, the languages and the dictionaries of its training.

Another corpus may have dictionaries of the same size. fairseq would then translate its text into
other words without an error. It also forgets languages that it has found by itself in the data.

A training may begin with the weights of another vocabulary of the same size
(``--finetune-from-model``). Some people want this, so it is only warned of.
"""

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairseq import checkpoint_utils, tasks
from fairseq.tasks.language_modeling import LanguageModelingTask
from fairseq.tasks.translation import TranslationTask
from fairseq.tasks.translation_multi_simple_epoch import TranslationMultiSimpleEpochTask
from fairseq.trainer import Trainer
from torch import Tensor

from resmlp_mt import __version__, language_codes
from resmlp_mt.errors import UserError
from resmlp_mt.fairseq_plugin import (
    checkpoints,
    languages,
    loading,
    many_languages,
    stored_options,
)
from resmlp_mt.fairseq_plugin.checkpoints import DICTIONARIES, VERSION
from resmlp_mt.fairseq_plugin.wrapping import Original, remedy

logger = logging.getLogger(__name__)

TASKS = (TranslationTask, TranslationMultiSimpleEpochTask, LanguageModelingTask)
"""With one dictionary for all source languages, and one for all target languages."""

_loading: list[Path] = []
"""Checkpoints that are compared with the task before a model is built: of another size, its
embeddings would not fit, which looks like a mistake in the options of the model."""


@remedy(Trainer, "state_dict")
def _state_dict(original: Original, self: Any) -> dict[str, Any]:
    state: dict[str, Any] = original(self)
    state[VERSION] = __version__
    if isinstance(self.task, TASKS):
        state[DICTIONARIES] = _digests(self.task)
    if isinstance(self.task, TranslationTask):
        chosen = state["cfg"]["task"]
        if isinstance(chosen, dict):  # not so for tasks that have arguments instead of a config
            chosen["source_lang"] = self.task.cfg.source_lang
            chosen["target_lang"] = self.task.cfg.target_lang
    return state


def _digests(task: Any) -> dict[str, str]:
    sides = {"source": task.source_dictionary, "target": task.target_dictionary}
    return {
        side: hashlib.sha256("\n".join(words.symbols).encode()).hexdigest()
        for side, words in sides.items()
    }


def check_training(task: Any, state: Mapping[str, Any], path: Path, *, is_new: bool) -> None:
    """Refuse to train on with the checkpoint ``path`` of other words or languages than the task's.

    Args:
        is_new: a new training begins with its weights; then other words are only warned of.

    Raises:
        UserError: naming the file.
    """
    if not isinstance(task, TASKS):
        return
    other = _other(task, state, path)
    _check_pairs(task, state, path, is_new=is_new)
    if not is_new:
        _check_words(task, state, path, other_words=other is not None)
    if other and (not is_new or _other_size(task, state, path)):
        raise UserError(f"{other}: give the folder of its binarised text.")
    if other:
        logger.warning("%s: its embeddings begin with the vectors of other words.", other)


@remedy(checkpoint_utils, "load_model_ensemble_and_task")
def _load_model_ensemble_and_task(
    original: Original,
    filenames: list[str],
    arg_overrides: Any = None,
    task: Any = None,
    strict: bool = True,
    suffix: str = "",
    num_shards: int = 1,
    state: Any = None,
) -> Any:
    name = checkpoint_utils.get_maybe_sharded_checkpoint_filename
    paths = [Path(name(file, suffix, 0, num_shards)) for file in filenames]
    if task is None:
        arg_overrides = _with_both_languages(arg_overrides, paths[0])
    elif isinstance(task, TranslationMultiSimpleEpochTask):  # which is only given to translate
        many_languages.check_direction(task)
    _loading[:] = filter(Path.is_file, paths)
    try:
        if task is not None:
            _check(task)
        loaded = original(filenames, arg_overrides, task, strict, suffix, num_shards, state)
    finally:
        _loading.clear()
    if task is None:
        read_last = name(filenames[-1], suffix, num_shards - 1, num_shards)
        loading.build_its_criterion(loaded[2], read_last, state)
    if isinstance(loaded[2], TranslationTask):
        for path in filter(Path.is_file, paths):
            _warn_if_reversed(loaded[2], checkpoints.read(path, only_look=True), path)
    return loaded


@remedy(tasks, "setup_task")
def _setup_task(original: Original, *args: Any, **kwargs: Any) -> Any:
    task = original(*args, **kwargs)
    _check(task)
    return task


def _check(task: Any) -> None:
    """Refuse a task whose dictionaries differ from those of the checkpoints that are loaded."""
    for path in _loading if isinstance(task, TASKS) else ():
        state = checkpoints.read(path, only_look=True)
        kind, name = _stored_task(state)
        if name and kind is None:
            continue  # loading names it; another task may have other words
        other = _other(task, state, path)
        _check_words(task, state, path, other_words=other is not None)
        if other:
            if kind is not None and kind is not type(task):  # which may add words of its own
                raise UserError(
                    f"{path} was trained with --task {name}: give it, with the options of its "
                    "languages."
                )
            raise UserError(f"{other}: give the folder of its binarised text.")


def _stored_task(state: Mapping[str, Any]) -> tuple[type | None, Any]:
    """The task of a checkpoint and its name; None if fairseq does not know it."""
    name = stored_options.name_of("task", checkpoints.options_of(state, "task"))
    return stored_options.registered("task", name), name


def _other(task: Any, state: Mapping[str, Any], path: Path) -> str | None:
    """Says which dictionary differs from the checkpoint's; None if none does."""
    if other := _other_size(task, state, path):
        return other
    side = checkpoints.other_dictionary(state, _digests(task))
    if side is None:
        return None
    return f"the {side} dictionary in {_data(task)} is not the one that {path} was trained with"


def _other_size(task: Any, state: Mapping[str, Any], path: Path) -> str | None:
    """Says which dictionary does not have as many words as the checkpoint has embeddings.

    Only for models of this plugin: those of BART have a row for <mask> that loading cuts off.
    """
    if not stored_options.uses_plugin(state):
        return None
    for side, words, part in (
        ("source", task.source_dictionary, "encoder"),
        ("target", task.target_dictionary, "decoder"),
    ):
        weight = state["model"].get(f"{part}.embed_tokens.weight")
        if isinstance(weight, Tensor) and weight.dim() == 2 and len(weight) != len(words):
            return (
                f"the {side} dictionary in {_data(task)} has {len(words):,} words, but the one "
                f"that {path} was trained with has {len(weight):,}"
            )
    return None


def _data(task: Any) -> str:
    return str(languages.options_of_task(task).data)


def _check_words(task: Any, state: Mapping[str, Any], path: Path, *, other_words: bool) -> None:
    """Refuse a task of many languages whose options add other words than in the training."""
    kind, _ = _stored_task(state)
    if isinstance(task, TranslationMultiSimpleEpochTask) and kind is type(task):
        stored = checkpoints.options_of(state, "task")
        many_languages.check_same(
            vars(languages.options_of_task(task)), stored, path, other_words=other_words
        )


def _check_pairs(task: Any, state: Mapping[str, Any], path: Path, *, is_new: bool) -> None:
    """Refuse to go on with a training that translates between other languages.

    A new training may begin with its weights.
    """
    stored = checkpoints.options_of(state, "task")
    if isinstance(task, TranslationMultiSimpleEpochTask) and not is_new:
        many_languages.check_pairs(vars(task.args), stored, path)
    elif isinstance(task, TranslationTask) and is_new:
        _warn_if_reversed(task, state, path)
    elif isinstance(task, TranslationTask) and (pair := _stored_pair(state)):
        now = task.cfg.source_lang, task.cfg.target_lang
        if not all(language_codes.find(code, [now[side]]) for side, code in enumerate(pair)):
            raise UserError(
                f"{path} was trained to translate from {pair[0]} to {pair[1]}, and not from "
                f"{now[0]} to {now[1]}: give another --save-dir, or --finetune-from-model {path} "
                "to begin with its weights."
            )


def _stored_pair(state: Mapping[str, Any]) -> tuple[str, str] | None:
    """The languages of a checkpoint; None if it does not know them."""
    options = checkpoints.options_of(state, "task")
    source, target = (options.get(name) for name in languages.OPTIONS)
    return (source, target) if isinstance(source, str) and isinstance(target, str) else None


def _warn_if_reversed(task: TranslationTask, state: Mapping[str, Any], path: Path) -> None:
    """Tell of a model that is used in the other direction than it was trained for."""
    pair = _stored_pair(state)
    if pair is None or pair[0] == task.cfg.source_lang:
        return
    if language_codes.find(pair[0], [task.cfg.target_lang]) and language_codes.find(
        pair[1], [task.cfg.source_lang]
    ):
        logger.warning(
            "%s was trained to translate from %s to %s, and is used the other way round",
            path,
            *pair,
        )


def _with_both_languages(overrides: Any, path: Path) -> Any:
    """Turn a checkpoint round if its user names one language, that of the other side.

    fairseq keeps the language of the side that is not named, and would translate from German to
    German.
    """
    given = [name for name in languages.OPTIONS if (overrides or {}).get(name) is not None]
    if len(given) != 1 or not path.is_file():
        return overrides
    pair = _stored_pair(checkpoints.read(path, only_look=True))
    side = languages.OPTIONS.index(given[0])
    if pair is None or not language_codes.find(overrides[given[0]], [pair[1 - side]]):
        return overrides
    return {**overrides, languages.OPTIONS[1 - side]: pair[side]}
