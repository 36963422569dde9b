"""Gives fairseq's BLEU the tokenizer of the target language, and whole words.

fairseq takes sacreBLEU's default, 13a, which takes a sentence of Chinese for a word: BLEU is 0, the
newest checkpoint is called the best, and ``--patience`` ends the training. Subwords that are not
joined count as words: BLEU is another number, which other subwords do not share.
"""

import argparse
import copy
import functools
import logging
from itertools import compress
from pathlib import Path
from typing import Any
from unittest import mock

import sacrebleu
import torch
from fairseq import scoring, utils
from fairseq.data import Dictionary
from fairseq.scoring.bleu import Scorer
from fairseq.tasks import FairseqTask
from fairseq.tasks.translation import TranslationTask
from fairseq.tasks.translation_multi_simple_epoch import TranslationMultiSimpleEpochTask
from torch import Tensor

from resmlp_mt import language_codes
from resmlp_mt.errors import UserError
from resmlp_mt.extras import installation
from resmlp_mt.fairseq_plugin.binarised import some_sentences
from resmlp_mt.fairseq_plugin.dictionaries import TASKS
from resmlp_mt.fairseq_plugin.generation_fixes import has_no_targets
from resmlp_mt.fairseq_plugin.languages import TRANSLATING, options_of_task
from resmlp_mt.fairseq_plugin.many_languages import numbers_of_languages
from resmlp_mt.fairseq_plugin.wrapping import Original, remedy
from resmlp_mt.scoring.cleaning import remove_subwords
from resmlp_mt.scoring.languages import script_without_spaces

logger = logging.getLogger(__name__)

MOST_CHARACTERS = 4
"""Characters of a word, with the space after it, up to which Chinese was split into words."""

EAST_ASIAN = [f"text in {script} script" for script in ("Han", "Hiragana", "Katakana")]
"""What :func:`unspaced_text` finds where sacreBLEU has tokenizers."""

JOINED_BY = {
    "sentencepiece": ("sentencepiece", "byte_bpe", "bytes", "characters"),
    "subword_nmt": ("subword_nmt", "@@ ", "fastbpe"),
}
"""What joins subwords with the marks of sentencepiece or subword-nmt, as ``--remove-bpe`` or
``--bpe``."""

LEAST_MARKED = 0.01
"""Share of the words with marks of subwords above which a text was split: raw text has hardly any,
and sentencepiece marks the beginning of every sentence."""

_target: str | None = None
"""The code of the language that this process translates to; None if nothing is compared."""

_unspaced: str | None = None
"""What :func:`unspaced_text` finds in its text."""

_subwords: str | None = None
"""What :func:`subwords_of` finds in its dictionary."""

_of_languages: list[int] = []
"""Its words of languages, of a task of many."""

_joined_by: tuple[str | None, str | None, bool] | None = None
"""``--remove-bpe`` and ``--bpe`` of fairseq-generate, and whether its default scorer compares what
``--bpe`` has joined; None in a program without these options."""


@remedy(TranslationTask, "_inference_with_bleu")
def _inference_with_bleu(
    original: Original, self: Any, generator: Any, sample: Any, model: Any
) -> Any:
    target = _target_language(self)
    tokenizer = language_codes.bleu_tokenizer(target) if target else None
    if tokenizer is None or self.cfg.eval_tokenized_bleu:
        return original(self, generator, sample, model)
    score = functools.partial(sacrebleu.corpus_bleu, tokenize=tokenizer)
    with mock.patch.object(sacrebleu, "corpus_bleu", score):
        return original(self, generator, sample, model)


def check_training(cfg: Any, task: Any) -> None:
    """Name what is missing for BLEU before the first epoch, and not after it.

    Raises:
        UserError: saying what to install, or that another metric is needed.
    """
    if not isinstance(task, TranslationTask) or not task.cfg.eval_bleu:
        return
    _check_joined(cfg, task)
    if task.cfg.eval_tokenized_bleu:  # which takes words as they are
        return
    target = _target_language(task)
    if target is None:
        return
    if tokenizer := language_codes.bleu_tokenizer(target):
        _check_installed(tokenizer, f"--eval-bleu of {target}")
        return
    text = target if _spaced_by_phrase(target) else unspaced_text(task)
    if text is None:
        return
    if cfg.checkpoint.best_checkpoint_metric == "bleu":
        raise UserError(
            f"--best-checkpoint-metric bleu: sacreBLEU does not find the words of {text}, and "
            "gives the same BLEU to almost all translations: choose another metric, "
            f"{'binarise it under the name zh or ja, ' if text in EAST_ASIAN else ''}"
            "or give --eval-tokenized-bleu if the text was split into words."
        )
    logger.warning(
        "--eval-bleu: sacreBLEU finds the words of %s only if the text was split into words; else "
        "valid_bleu says little",
        text,
    )


def _check_joined(cfg: Any, task: TranslationTask) -> None:
    """Refuse BLEU of subwords that is to choose the best checkpoint; warn of any other."""
    subwords = subwords_of(task.target_dictionary)
    if subwords is None or task.cfg.eval_bleu_remove_bpe in (*JOINED_BY[subwords], "none"):
        return
    told = (
        f"--eval-bleu compares subwords, not words: give --eval-bleu-remove-bpe {subwords}, or "
        "none if that is meant"
    )
    if cfg.checkpoint.best_checkpoint_metric == "bleu":
        raise UserError(f"--best-checkpoint-metric bleu: {told}.")
    logger.warning("%s", told)


def subwords_of(words: Dictionary) -> str | None:
    """The ``--remove-bpe`` that joins the subwords of a dictionary; None if it has whole words."""
    marked = {
        # after words with --treat_whitespace_as_suffix
        "sentencepiece": ("\u2581" in (word[:1], word[-1:]) for word in words.symbols),
        "subword_nmt": (word.endswith("@@") for word in words.symbols),
    }
    least = LEAST_MARKED * sum(words.count)
    return next(
        (name for name, marks in marked.items() if sum(compress(words.count, marks)) > least), None
    )


def unspaced_text(task: Any) -> str | None:
    """Names the target's text by its script, if its language's code may be wrong (``cn``, ``jp``).

    None if spaces separate its words, or no sentence is there to tell.
    """
    cfg, target = options_of_task(task), _target_language(task)
    if not target or language_codes.bleu_tokenizer(target) or _spaced_by_phrase(target):
        return None
    if not cfg.data:  # a task of another program, which has its sentences itself
        return None
    folder = Path(utils.split_paths(cfg.data)[0])
    codes = cfg.source_lang, target
    try:
        sentences = some_sentences(folder, codes, target, task.target_dictionary)
    except UserError:  # a damaged file is named where the text is used
        return None
    text = [" ".join(words) for words in sentences]
    symbol = "sentencepiece" if any("\u2581" in line for line in text) else "subword_nmt"
    lines = [remove_subwords(line, symbol) for line in text]
    script = script_without_spaces([lines]) if lines else None
    characters = sum(len(line) + 1 for line in lines)
    is_split = characters <= MOST_CHARACTERS * sum(len(line.split()) for line in lines)
    return None if script is None or is_split else f"text in {script} script"


def _spaced_by_phrase(language: str) -> bool:
    return language_codes.language(language) in language_codes.SPACED_BY_PHRASE


def _check_installed(tokenizer: str, option: str) -> None:
    try:
        sacrebleu.BLEU(tokenize=tokenizer)
    except RuntimeError as error:
        raise UserError(
            f"{option} needs MeCab and its dictionary: run "
            f"{installation(language_codes.TOKENIZER_PACKAGES[tokenizer])}, or drop it."
        ) from error


@remedy(FairseqTask, "build_generator", before=True)
def _remember_target(task: Any, *_: Any, **__: Any) -> None:
    global _target, _unspaced, _subwords, _of_languages
    _target = _unspaced = _subwords = None
    _of_languages = []
    if has_no_targets(task):  # nothing is compared
        return
    _target = _target_language(task)
    if isinstance(task, TRANSLATING):
        _unspaced = unspaced_text(task)
    if isinstance(task, TranslationMultiSimpleEpochTask):
        _of_languages = numbers_of_languages(task, task.target_dictionary)
    if isinstance(task, TASKS):
        _subwords = subwords_of(task.target_dictionary)


@remedy(scoring, "build_scorer")
def _scorer_of_languages(original: Original, *args: Any) -> Any:
    scorer = original(*args)
    if isinstance(scorer, Scorer):
        scorer.of_languages = _of_languages
    return scorer


@remedy(Scorer, "add")
def _add(original: Original, self: Any, ref: Tensor, pred: Tensor) -> None:
    """Leave out the words of languages: before both, they would count as translated."""
    words = ref.new_tensor(getattr(self, "of_languages", []))
    original(self, *(side[torch.isin(side, words, invert=True)] for side in (ref, pred)))


def remember_joining(found: argparse.Namespace) -> None:
    """Take from a command line of fairseq-generate what joins subwords before they are scored."""
    global _joined_by
    if hasattr(found, "score_reference"):
        removed = getattr(found, "post_process", None)
        reads_text = removed is not None or getattr(found, "replace_unk", None) is not None
        _joined_by = removed, getattr(found, "bpe", None), reads_text


def are_joined(subwords: str) -> bool:
    """Whether ``--remove-bpe`` joins these subwords before ``--bpe`` does."""
    return _joined_by is not None and _joined_by[0] == subwords


def _target_language(task: Any) -> str | None:
    """The code of the language that a task translates to; None if it has several."""
    return getattr(options_of_task(task), "target_lang", None)


def _compared(name: str) -> str | None:
    """What a scorer compares in place of words, and what to give; None if it compares words.

    fairseq's own BLEU compares the pieces, and not the text that ``--bpe`` makes of them, unless
    ``--remove-bpe`` or ``--replace-unk`` is given.
    """
    if _subwords is None or _joined_by is None:
        return None
    removed, bpe, reads_text = _joined_by
    joining = JOINED_BY[_subwords]
    if removed == _subwords == "sentencepiece" and bpe in joining and bpe != removed:
        return "sentences without spaces, because --bpe joins the words too: drop --bpe"
    read = {removed, bpe if reads_text or name != "bleu" else None}
    if not read.isdisjoint((*joining, "none")):
        return None
    place = "" if bpe is None else ", in place of --bpe"
    return f"subwords, not words: give --remove-bpe {_subwords}, or none if that is meant{place}"


@remedy(scoring, "build_scorer")
def _build_scorer(original: Original, choice: Any, *args: Any) -> Any:
    tokenizer = language_codes.bleu_tokenizer(_target) if _target else None
    is_13a = getattr(choice, "sacrebleu_tokenizer", None) == "13a"  # the default
    name = getattr(choice, "_name", choice)
    if found := _compared(name):
        logger.warning("--scoring %s compares %s", name, found)
    text = _target if _target and (tokenizer or _spaced_by_phrase(_target)) else _unspaced
    if tokenizer and is_13a:
        _check_installed(tokenizer, f"--scoring sacrebleu of {_target}")
        choice = copy.deepcopy(choice)
        choice.sacrebleu_tokenizer = tokenizer
        return original(choice, *args)
    option = "--sacrebleu-char-level"
    if text in EAST_ASIAN:
        option = "--sacrebleu-tokenizer zh or ja-mecab"
    if text is not None and (name == "bleu" or (is_13a and not choice.sacrebleu_char_level)):
        logger.warning(
            "--scoring %s finds the words of %s only if the text was split into words; else give "
            "--scoring sacrebleu%s",
            *(name, text, "" if tokenizer else f" {option}"),
        )
    return original(choice, *args)
