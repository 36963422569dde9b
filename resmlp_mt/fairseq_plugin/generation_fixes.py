"""Remedies for options of fairseq's generation that do nothing or end in a traceback."""

import argparse
import copy
import functools
import itertools
import logging
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairseq import token_generation_constraints
from fairseq.data import LanguagePairDataset
from fairseq.models import FairseqLanguageModel
from fairseq.ngram_repeat_block import NGramRepeatBlock
from fairseq.search import DiverseBeamSearch
from fairseq.sequence_scorer import SequenceScorer
from fairseq.tasks import FairseqTask
from torch import Tensor

from resmlp_mt.command_line import flag
from resmlp_mt.engine import lengths
from resmlp_mt.errors import UserError
from resmlp_mt.fairseq_plugin.languages import TRANSLATING
from resmlp_mt.fairseq_plugin.wrapping import Original, remedy
from resmlp_mt.signals import tell

logger = logging.getLogger(__name__)


# --- --no-repeat-ngram-size does nothing without the CUDA extension: it looks at pads ---


@remedy(NGramRepeatBlock, "_no_repeat_ngram")
def _no_repeat_ngram(
    original: Original,
    self: Any,
    tokens: Tensor,
    lprobs: Tensor,
    bsz: int,
    beam_size: int,
    step: int,
) -> Tensor:
    """Scores of minus infinity for what would complete an n-gram a second time.

    If only such tokens are left, as within the prefixes of ``--prefix-size``, they may be chosen.

    Args:
        tokens: (hypotheses, positions); the first is end-of-sentence, ``step`` were generated.
        lprobs: (hypotheses, vocabulary), changed in place.
    """
    allowed = lprobs.clone()
    if self.no_repeat_ngram_size == 1:  # the original compares the whole row
        lprobs.scatter_(1, tokens[:, 1 : step + 1], -torch.inf)
    else:
        original(self, tokens[:, : step + 1], lprobs, bsz, beam_size, step)
    stuck = lprobs.isneginf().all(dim=1, keepdim=True)
    return lprobs.copy_(torch.where(stuck, allowed, lprobs))


# --- --diverse-beam-groups takes the numbers of sentences for rows of the batch ---


@remedy(DiverseBeamSearch, "step")
def _diverse_step(
    original: Original,
    self: Any,
    step: int,
    lprobs: Tensor,
    scores: Tensor | None,
    prev_output_tokens: Tensor | None = None,
    original_batch_idxs: Tensor | None = None,
) -> Any:
    if original_batch_idxs is not None:
        numbers = original_batch_idxs.tolist()
        if step == 0:
            self.rows = {number: row for row, number in enumerate(numbers)}
        original_batch_idxs = original_batch_idxs.new_tensor([self.rows[n] for n in numbers])
    return original(self, step, lprobs, scores, prev_output_tokens, original_batch_idxs)


# --- options of other generators, or without what they need ---

NEEDS_TRANSLATIONS = (
    "needs sentences with their translations: give fairseq-generate a corpus that "
    "fairseq-preprocess has made of both languages."
)


@remedy(FairseqTask, "build_generator", before=True)
def _check_generator(
    task: Any,
    models: Any,
    args: Any,
    seq_gen_cls: Any = None,
    extra_gen_cls_kwargs: Any = None,
    *_: Any,
    **__: Any,
) -> None:
    language_model = (extra_gen_cls_kwargs or {}).get("lm_model")
    if language_model is not None:
        if not isinstance(language_model, FairseqLanguageModel):
            raise UserError(
                f"--lm-path {getattr(args, 'lm_path', '')} has a {type(language_model).__name__}: "
                "give a model of fairseq-train --task language_modeling."
            )
        found, needed = language_model.decoder.dictionary, task.target_dictionary
        if len(found) != len(needed) or found.symbols != needed.symbols:
            raise UserError(
                "--lm-path needs a language model of the target dictionary, but its own, dict.txt "
                "beside the binarised text, has other words: train one on text that "
                "fairseq-preprocess has binarised with that dictionary (--srcdict)."
            )
    for name in ("beam", "nbest"):
        count = getattr(args, name, None)
        if count is not None and count < 1:
            raise UserError(f"--{name} must be at least 1, but is {count}.")
    if not getattr(args, "score_reference", False):
        _check_search(args)
    for name in ("print_step", "retain_iter_history"):
        if getattr(args, name, False):
            raise UserError(
                f"{flag(name)} needs a model that refines its translations iteratively "
                "(--task translation_lev): drop it."
            )
    if getattr(args, "prefix_size", 0) > 0 and has_no_targets(task):
        raise UserError(f"--prefix-size {args.prefix_size} {NEEDS_TRANSLATIONS}")
    topk, topp = (getattr(args, f"sampling_{name}", 0) for name in ("topk", "topp"))
    if getattr(args, "sampling", False) and topp <= 0 and topk > len(task.target_dictionary):
        raise UserError(
            f"--sampling-topk must be at most {len(task.target_dictionary)}, the number of words "
            f"of the target dictionary, but is {topk}."
        )


def _check_search(args: Any) -> None:
    """Refuse options of several searches, and numbers that do not fit the beam."""
    constraints = getattr(args, "constraints", None)
    groups = getattr(args, "diverse_beam_groups", -1)
    given = {
        "sampling": getattr(args, "sampling", False),
        "diverse_beam_groups": groups > 0,
        "match_source_len": getattr(args, "match_source_len", False),
        # a rate of 0 leaves the others as they are, but not --constraints
        "diversity_rate": getattr(args, "diversity_rate", -1) > (-1 if constraints else 0),
        "constraints": constraints,
    }
    searches = [flag(name) for name, is_given in given.items() if is_given]
    if len(searches) > 1:
        raise UserError(f"{' and '.join(searches)} are different searches: give one of them.")
    beam, count = getattr(args, "beam", 5), getattr(args, "nbest", 1)
    if count > beam:
        raise UserError(f"--nbest {count} is above --beam {beam}: raise --beam.")
    if groups > 0 and beam % groups:
        raise UserError(f"--diverse-beam-groups {groups} must divide --beam, but it is {beam}.")


def has_no_targets(task: Any) -> bool:
    """Whether sentences that a task has loaded are without their translations."""
    return any(
        isinstance(dataset, LanguagePairDataset) and dataset.tgt is None
        for dataset in getattr(task, "datasets", {}).values()
    )


def check_inference(generator: Any, sample: Any, constraints: Tensor | None) -> None:
    """Refuse options that need something else of a batch than it has.

    Raises:
        UserError: saying what to give.
    """
    search = getattr(generator, "search", None)
    if constraints is None and getattr(search, "supports_constraints", False):
        raise UserError(
            "--constraints needs lines of a sentence and, after tabs, the words that its "
            "translation must have: give them to fairseq-interactive."
        )
    if isinstance(generator, SequenceScorer) and sample.get("target") is None:
        raise UserError(f"--score-reference {NEEDS_TRANSLATIONS}")


# --- --constraints ends in an AssertionError at a tab without words after it, or goes wrong ---


@remedy((token_generation_constraints, "interactive"), "pack_constraints")
def _pack_constraints(original: Original, batch_constraints: list[list[Tensor]]) -> Any:
    """Leave out constraints without words: to search for them shifts the ends of the others."""
    return original([[words for words in row if len(words)] for row in batch_constraints])


# --- options that fairseq-interactive ignores, and soft alignments where they are not expected ---

NOT_INTERACTIVE = (
    *("gen_subset", "lm_path", "lm_weight", "prefix_size", "quiet", "results_path", "sacrebleu"),
    "scoring",
)

_shard = (1, 0)  # the number of shards, and this process's own


def choose_scoring(parser: argparse.ArgumentParser, words: Sequence[str] | None) -> None:
    """Let ``--sacrebleu`` choose the score; in fairseq, it only turns off the advice to give it."""
    if "--sacrebleu" in (sys.argv[1:] if words is None else words):
        parser.set_defaults(scoring="sacrebleu")


def check_options(parser: argparse.ArgumentParser, found: argparse.Namespace) -> None:
    """Check a command line of fairseq-generate or fairseq-interactive, and take its shard.

    Raises:
        UserError: for an option that would do nothing.
    """
    global _shard
    is_interactive = hasattr(found, "buffer_size")
    for name in NOT_INTERACTIVE if is_interactive else ():
        if getattr(found, name, None) != parser.get_default(name):
            raise UserError(
                f"{flag(name)} has no effect in fairseq-interactive: give it to fairseq-generate, "
                "or drop it."
            )
    if getattr(found, "sacrebleu", False) and found.scoring != "sacrebleu":
        raise UserError(
            f"--sacrebleu means --scoring sacrebleu, but --scoring is {found.scoring}: drop one."
        )
    if getattr(found, "print_alignment", None) == "soft":
        beside = {
            "fairseq-interactive": is_interactive,
            "--score-reference": found.score_reference,
            "--replace-unk": found.replace_unk is not None,
        }
        for what in (name for name, is_given in beside.items() if is_given):
            raise UserError(
                f"--print-alignment soft is for the search of fairseq-generate: with {what} give "
                "--print-alignment hard."
            )
    count, number = getattr(found, "num_shards", 1), getattr(found, "shard_id", 0)
    if not 0 <= number < count:
        raise UserError(f"--shard-id must be from 0 to {count - 1}, but is {number}.")
    _shard = count, number
    own = f"shard-{number}-of-{count}"  # the processes would write to one file
    results = getattr(found, "results_path", None)
    if results is not None and count > 1 and Path(results).name != own:  # else parsed before
        found.results_path = str(Path(results, own))
        _tell_results(results, found.results_path)


@functools.cache  # a command line may be parsed twice
def _tell_results(given: str, own: str) -> None:
    logger.warning("--results-path %s: with --num-shards, this process writes to %s.", given, own)


# --- --num-shards and --shard-id are ignored: every process translates everything; a set without
# sentences ends in a ZeroDivisionError; a line longer than the model allows stops interactive ---


@remedy(TRANSLATING, "get_batch_iterator")
def _get_batch_iterator(
    original: Original, self: Any, dataset: Any, *args: Any, **kwargs: Any
) -> Any:
    """Let fairseq-generate and fairseq-validate take their share of ``--num-shards``."""
    count, number = _shard
    name = next((name for name, known in self.datasets.items() if known is dataset), None)
    limits = kwargs.get("max_positions")
    if isinstance(getattr(dataset, "src", None), list) and dataset.tgt is None and limits:
        dataset = _without_long_lines(dataset, limits, kwargs.get("max_tokens"))
    iterator = original(self, dataset, *args, **kwargs)
    if name is None and count > 1:
        raise UserError(
            "--num-shards divides a binarised corpus: here, give every process its own lines."
        )
    if name is None or "epoch" in kwargs:  # lines, or a training
        return iterator
    if not iterator.frozen_batches:
        raise UserError(
            f"The set {name} is empty, or all of its sentences are longer than the model's "
            "--max-source-positions or --max-target-positions: give another set."
        )
    if count == 1:
        return iterator
    shard = copy.copy(iterator)
    shard._frozen_batches = _share(iterator.frozen_batches, count, number)
    if not shard._frozen_batches:
        tell(f"--shard-id {number}: nothing to do, the set {name} has fewer sentences than shards.")
        raise NothingToDoError(0)
    return shard


def _without_long_lines(dataset: Any, limits: Any, max_tokens: int | None) -> Any:
    """Answer a line that is too long with a message and an empty translation.

    It is replaced by a single pad, of length 0, so that batches keep their order and limits, and
    ``fairseq_fixes`` inserts the empty hypothesis where the generator would run.
    """
    longest = limits[0] if isinstance(limits, tuple) else limits
    limit, advice = lengths.limit(longest, max_tokens)
    dataset = copy.copy(dataset)
    dataset.src = [_within(tokens, limit, advice, dataset.src_dict) for tokens in dataset.src]
    dataset.sizes = dataset.src_sizes = np.array([len(tokens) for tokens in dataset.src])
    return dataset


def _within(tokens: Tensor, limit: int, advice: str, dictionary: Any) -> Tensor:
    if len(tokens) <= limit:
        return tokens
    told = lengths.too_long(len(tokens), limit, advice)
    logger.error("the line that begins with '%s' %s", dictionary.string(tokens[:8]), told)
    return tokens.new_full((1,), dictionary.pad())


class NothingToDoError(SystemExit):
    """The end of a command whose share of a set has no sentences."""


@remedy("validate", "main")
def _validate(original: Original, cfg: Any, override_args: Any = None) -> None:
    """Go on with the other sets of ``--valid-subset`` if this process has no share of one."""
    if _shard[0] == 1 or isinstance(cfg, argparse.Namespace):
        original(cfg, override_args)
        return
    for subset in cfg.dataset.valid_subset.split(","):
        one = copy.deepcopy(cfg)
        one.dataset.valid_subset = subset
        with suppress(NothingToDoError):
            original(one, override_args)


def _share(batches: Sequence[Any], count: int, number: int) -> tuple[Any, ...]:
    """One batch in ``count``, or of fewer batches one sentence in ``count``; maybe none."""
    if len(batches) >= count:
        return tuple(batches[number::count])
    starts = itertools.accumulate(map(len, batches), initial=0)
    parts = (
        batch[(number - start) % count :: count]
        for batch, start in zip(batches, starts, strict=False)  # one more: the end
    )
    return tuple(part for part in parts if len(part))
