"""Gives fairseq's BLEU the tokenizer of the target language.

fairseq takes sacreBLEU's default, 13a, which takes a sentence of Chinese for a word: BLEU is 0, the
newest checkpoint is called the best, and ``--patience`` ends the training.
"""

import copy
import functools
import logging
from pathlib import Path
from typing import Any
from unittest import mock

import sacrebleu
from fairseq import scoring, utils
from fairseq.tasks import FairseqTask
from fairseq.tasks.translation import TranslationTask

from resmlp_mt import language_codes
from resmlp_mt.command_line import installation
from resmlp_mt.errors import UserError
from resmlp_mt.fairseq_plugin.binarised import some_sentences
from resmlp_mt.fairseq_plugin.remedies import Original, wrap
from resmlp_mt.scoring.cleaning import remove_subwords
from resmlp_mt.scoring.languages import script_without_spaces

logger = logging.getLogger(__name__)

MOST_CHARACTERS = 4
"""Characters of a word, with the space behind it, up to which Chinese was split into words."""

EAST_ASIAN = [f"text in {script} script" for script in ("Han", "Hiragana", "Katakana")]
"""What :func:`unspaced_text` finds where sacreBLEU has tokenizers."""

_target: str | None = None
"""The code of the language that this process translates to."""

_unspaced: str | None = None
"""What :func:`unspaced_text` finds in its text."""


def apply() -> None:
    """Mend fairseq's BLEU; a second call does nothing."""
    wrap(TranslationTask, "_inference_with_bleu", _inference_with_bleu)
    wrap(FairseqTask, "build_generator", _remember_target, before=True)
    wrap(scoring, "build_scorer", _build_scorer)


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


def unspaced_text(task: TranslationTask) -> str | None:
    """Names the target's text by its script, if its language's code may be wrong (``cn``, ``jp``).

    None if spaces separate its words, or no sentence is there to tell.
    """
    cfg, target = task.cfg, _target_language(task)
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


def _remember_target(task: Any, *_: Any, **__: Any) -> None:
    global _target, _unspaced
    _unspaced = unspaced_text(task) if isinstance(task, TranslationTask) else None
    _target = _target_language(task)


def _target_language(task: Any) -> str | None:
    """The code of the language that a task translates to; None if it has several."""
    cfg = getattr(task, "cfg", None) or getattr(task, "args", None)
    return getattr(cfg, "target_lang", None)


def _build_scorer(original: Original, choice: Any, *args: Any) -> Any:
    tokenizer = language_codes.bleu_tokenizer(_target) if _target else None
    is_13a = getattr(choice, "sacrebleu_tokenizer", None) == "13a"  # the default
    name = getattr(choice, "_name", choice)
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
