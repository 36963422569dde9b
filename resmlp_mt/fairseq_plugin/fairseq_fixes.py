"""Remedies for defects of fairseq on today's Python and PyTorch that affect users of the plugin.

They are applied once, when the plugin is imported, for the version that pyproject.toml pins. Each
wraps a function, and acts only in the broken case.
"""

import atexit
import contextlib
import copy
import functools
import logging
import os
import sys
import time
import weakref
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import fairseq.trainer
import numpy as np
import torch
from fairseq import file_chunker_utils, utils
from fairseq.data import data_utils, indexed_dataset, iterators
from fairseq.models import FairseqEncoder
from fairseq.nan_detector import NanDetector
from fairseq.optim import AMPOptimizer
from fairseq.sequence_scorer import SequenceScorer
from fairseq.tasks import FairseqTask
from fairseq.tasks.translation_multi_simple_epoch import TranslationMultiSimpleEpochTask
from torch import Tensor

from resmlp_mt.engine.lines import waiting_lines
from resmlp_mt.errors import UserError, reason
from resmlp_mt.fairseq_plugin import (
    binarised,
    bleu,
    dictionaries,
    generation_fixes,
    hub,
    languages,
    loading,
    many_languages,
    option_checks,
    resuming,
    saving,
    several_processes,
    stop_signals,
    training_end,
    training_fixes,
)
from resmlp_mt.fairseq_plugin.decoder import ResMLPDecoder
from resmlp_mt.fairseq_plugin.dictionaries import TASKS
from resmlp_mt.fairseq_plugin.wrapping import Original, mend, remedy
from resmlp_mt.standard_input import check_is_not_output
from resmlp_mt.unpacking import open_input

logger = logging.getLogger(__name__)


def apply() -> None:
    """Mend the installed fairseq; a second call does nothing."""
    mend(
        *(sys.modules[__name__], loading, resuming, binarised, languages, many_languages),
        *(dictionaries, several_processes, stop_signals),
        saving,  # also looks at what the two above start and save
        *(generation_fixes, hub, training_fixes, bleu, option_checks, training_end),
    )
    for reader in (file_chunker_utils, indexed_dataset):
        reader.open = binarised.open_text
    # --stop-time-hours would follow a clock that is set forward or back
    fairseq.trainer.time = SimpleNamespace(time=time.monotonic)


# --- a folder or checkpoint whose path has a colon, as a time has, is taken for two ---


@remedy(utils, "split_paths")
def _split_paths(original: Original, paths: str, separator: str = os.pathsep) -> list[str]:
    """The paths between colons; a colon within one that exists does not divide it."""
    parts: list[str] = original(paths, separator)
    found: list[str] = []
    while parts:
        counts = range(len(parts), 1, -1)
        size = next((n for n in counts if os.path.exists(separator.join(parts[:n]))), 1)
        found.append(separator.join(parts[:size]))
        parts = parts[size:]
    return found


# --- the last batch is dropped unless --required-batch-size-multiple divides its size ---


@remedy(data_utils, "batch_by_size")
def _batch_by_size(original: Original, indices: Any, *args: Any, **kwargs: Any) -> list[Any]:
    """Append the sentences that ``batch_by_size`` leaves out (fairseq issues #5036, #5351)."""
    if not isinstance(indices, np.ndarray):
        indices = np.fromiter(indices, dtype=np.int64, count=-1)
    if len(indices) == 0:
        return []
    try:
        batches = list(original(indices, *args, **kwargs))
    except AssertionError as error:
        raise UserError(
            f"--max-tokens {kwargs.get('max_tokens')} (in a validation --max-tokens-valid) is less "
            "than a sentence has: give more."
        ) from error
    # Only the last batch can be missing, and it was within all limits when it was dropped.
    missing = indices[sum(len(batch) for batch in batches) :]
    fixed_shapes = kwargs.get("fixed_shapes")
    return [*batches, missing] if len(missing) and fixed_shapes is None else batches


# --- exit status 134 after a training that --max-update ends inside an epoch ---

_readers: weakref.WeakSet[Any] = weakref.WeakSet()


@remedy(iterators.BufferedIterator, "_create_consumer")
def _create_consumer(original: Original, self: Any) -> None:
    original(self)
    _readers.add(self._consumer)


@atexit.register
def _stop_readers() -> None:
    """Stop the threads that read ahead before the interpreter shuts down."""
    for reader in list(_readers):
        reader._max_len = 0  # the reader leaves its loop after the next item
        while reader.is_alive():
            while not reader._queue.empty():
                reader._queue.get_nowait()  # it may be waiting for room
            reader.join(timeout=0.01)


# --- without a GPU, --amp is ignored ---


@remedy(FairseqTask, "train_step")
def _train_step(
    original: Original,
    self: Any,
    sample: Any,
    model: Any,
    criterion: Any,
    optimizer: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Give ``--amp`` a meaning on CPU: bfloat16 autocast."""
    if isinstance(optimizer, AMPOptimizer) and not next(model.parameters()).is_cuda:
        criterion = functools.partial(_in_bfloat16, criterion)
    return original(self, sample, model, criterion, optimizer, *args, **kwargs)


def _in_bfloat16(criterion: Any, model: Any, sample: Any) -> Any:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return criterion(model, sample)


# --- an empty line is translated; one that is too long has no output line ---


@remedy((FairseqTask, TranslationMultiSimpleEpochTask), "inference_step")
def _inference_step(
    original: Original,
    self: Any,
    generator: Any,
    models: Any,
    sample: Any,
    prefix_tokens: Tensor | None = None,
    constraints: Tensor | None = None,
) -> list[Any]:
    generation_fixes.check_inference(generator, sample, constraints)
    counts = sample["net_input"].get("src_lengths")
    if counts is None:
        return list(original(self, generator, models, sample, prefix_tokens, constraints))
    empty = _without_words(self, generator, sample["net_input"], counts)
    answered = counts.gt(0) & ~empty
    decoders = (getattr(model, "decoder", None) for model in models or ())
    limits = [each.max_positions() for each in decoders if isinstance(each, ResMLPDecoder)]
    if getattr(generator, "match_source_len", False) and limits:
        answered = answered & _leaves_room(counts, min(limits))
    if prefix_tokens is not None and prefix_tokens.size(1):  # of --prefix-size; may end at once
        answered = answered & prefix_tokens[:, 0].ne(self.target_dictionary.eos())
    if bool(answered.all()):
        return list(original(self, generator, models, sample, prefix_tokens, constraints))
    kept = answered.nonzero().squeeze(1)

    def select(value: Any) -> Any:
        """The rows that are kept of anything with a row for each sentence."""
        if isinstance(value, dict):
            return {name: select(part) for name, part in value.items()}
        has_rows = isinstance(value, Tensor) and value.shape[:1] == answered.shape
        return value.index_select(0, kept) if has_rows else value

    translated: Iterator[Any] = iter(())
    if len(kept):
        parts = (select(part) for part in (sample, prefix_tokens, constraints))
        translated = iter(original(self, generator, models, *parts))
    scores = torch.where(empty, 0.0, -torch.inf).cpu()  # as the engine has them
    return [
        next(translated)
        if is_answered
        else [
            {
                "tokens": torch.tensor([self.target_dictionary.eos()]),
                "score": score,
                "positional_scores": score.reshape(1).clone(),
                "attention": torch.empty(0),
                "alignment": torch.empty(0),
            }
        ]
        for is_answered, score in zip(answered.tolist(), scores, strict=True)
    ]


def _without_words(task: Any, generator: Any, net_input: Any, counts: Tensor) -> Tensor:
    """Which sources have no words, as those of empty lines: a model invents a translation.

    To score given translations, they are sources as all others.
    """
    source = net_input.get("src_tokens")
    if source is None or isinstance(generator, SequenceScorer) or not isinstance(task, TASKS):
        return torch.zeros_like(counts, dtype=torch.bool)
    words = task.source_dictionary
    marks = [words.eos(), words.pad()]
    if isinstance(task, TranslationMultiSimpleEpochTask):
        marks += many_languages.numbers_of_languages(task, words)
    return counts.gt(0) & torch.isin(source, source.new_tensor(marks)).all(dim=1)


def _leaves_room(counts: Tensor, limit: int) -> Tensor:
    """Which sources leave room for a translation as long, which ``--match-source-len`` wants."""
    fits = counts.lt(limit)
    for count in counts[~fits].tolist():
        logger.error(
            "a sentence of %d tokens has no translation: with --match-source-len it would be as "
            "long, and the model's longest has %d.",
            count,
            limit - 1,
        )
    return fits


# --- interactive stops at a line that is not UTF-8 ---


@remedy("interactive", "buffered_read")
def _buffered_read(_: Original, input: str, buffer_size: int) -> Iterator[list[str]]:
    """Read any bytes; only a line feed ends a line."""
    source, errors = open_input(input), list[OSError]()
    with contextlib.nullcontext(source) if input == "-" else source:
        check_is_not_output(source, input)
        yield from waiting_lines(source, buffer_size, errors)
    if errors:
        raise UserError(f"--input {input} cannot be read: {reason(errors[0])}.") from errors[0]


# --- --replace-unk: taken for a file named "@@ ", without an alignment, or with one of pairs ---


@remedy(utils, "load_align_dict")
def _load_align_dict(original: Original, replace_unk: str | None) -> Any:
    """Let a bare ``--replace-unk`` copy the aligned source word; read a file of words as UTF-8."""
    if replace_unk == "@@ ":
        return {}
    if not replace_unk:
        return original(replace_unk)
    with open(replace_unk, encoding="utf-8-sig") as file:
        pairs = [line.split() for line in file if line.strip()]
    for pair in pairs:
        if len(pair) < 2:
            raise UserError(f"--replace-unk {replace_unk}: {pair[0]} has no word in its place.")
    return {pair[0]: pair[1] for pair in pairs}


@remedy(FairseqTask, "build_generator")
def _build_generator(
    original: Original, self: Any, models: Any, args: Any, *rest: Any, **kwargs: Any
) -> Any:
    replaces = getattr(args, "replace_unk", None) is not None
    if replaces and not getattr(args, "print_alignment", None):
        args = copy.copy(args)
        args.print_alignment = "hard"  # computed, but printed only if the user asks for it
    return original(self, models, args, *rest, **kwargs)


@remedy(utils, "replace_unk")
def _replace_unk(original: Original, hypo: str, src: str, alignment: Any, *rest: Any) -> str:
    """Convert the generator's pairs (source, target) to the list of sources by target."""
    source_of = {int(target): int(source) for source, target in alignment}
    words = len(hypo.split())
    end = len(src.split())  # where the original puts its "<eos>"
    result: str = original(hypo, src, [source_of.get(i, end) for i in range(words)], *rest)
    return result


# --- NaN in training ends in a StopIteration instead of naming the module ---


@remedy(NanDetector, "add_hooks")
def _add_hooks(original: Original, self: Any, module: Any) -> None:
    """Leave out the one hook that PyTorch cannot attach: backward, for a dict of lists."""
    if isinstance(module, FairseqEncoder):
        if self.forward:
            self.fhooks.append(module.register_forward_hook(self.fhook_fn))
    else:
        original(self, module)
