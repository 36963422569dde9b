"""Lets fairseq clean input as in training, and decode output as spm_decode does.

Text is normalised before it is tokenized, as prepare.py does. The sentencepiece model must be that
of the source dictionary.
"""

import copy
import functools
import logging
import re
from pathlib import Path
from typing import Any

from fairseq.data import data_utils
from fairseq.data.encoders.moses_tokenizer import MosesTokenizer
from fairseq.data.encoders.sentencepiece_bpe import SentencepieceBPE
from fairseq.hub_utils import GeneratorHubInterface
from fairseq.tasks import FairseqTask
from fairseq.tasks.translation import TranslationTask

from resmlp_mt import language_codes
from resmlp_mt.engine.subwords import check_pieces, decode_pieces
from resmlp_mt.engine.vocabulary import Vocabulary
from resmlp_mt.fairseq_plugin.remedies import Original, wrap
from resmlp_mt.text import join_pieces, normalize

logger = logging.getLogger(__name__)

MOST_UNKNOWN = 0.5
"""Share of unknown words above which the input is hardly split as the training text was."""


def apply() -> None:
    """Wrap ``--bpe sentencepiece``, ``--remove-bpe sentencepiece`` and ``--tokenizer moses``."""
    wrap(MosesTokenizer, "__init__", _moses_tokenizer)
    wrap(MosesTokenizer, "encode", _encode)
    wrap(SentencepieceBPE, "encode", _encode)
    wrap(SentencepieceBPE, "decode", _decode)
    wrap(data_utils, "post_process", _post_process)
    wrap(FairseqTask, "build_bpe", _build_bpe)
    wrap(GeneratorHubInterface, "__init__", _hub_interface)
    wrap(TranslationTask, "build_dataset_for_inference", _build_dataset_for_inference)


def _moses_tokenizer(original: Original, self: Any, cfg: Any) -> None:
    """With the rules that prepare.py has for a language, however its code is spelt."""
    cfg = copy.copy(cfg)
    for name in ("source_lang", "target_lang"):
        if code := getattr(cfg, name, None):
            setattr(cfg, name, language_codes.moses(code))
    original(self, cfg)


def _encode(original: Original, self: Any, x: str) -> str:
    return str(original(self, normalize(x)))


def _decode(_: Original, self: Any, x: str) -> str:
    # fairseq only joins pieces, which prints "<0xE2><0x82><0xAC>" for a euro sign
    return _on_one_line(decode_pieces(self.sp, x.split()))


def _post_process(original: Original, sentence: str, symbol: str) -> str:
    if symbol == "sentencepiece":  # fairseq leaves bytes as they are
        return join_pieces(sentence.split(" ")).strip()
    return str(original(sentence, symbol))


def _on_one_line(text: str) -> str:
    return re.sub("[\r\n]", " ", text).strip()


def _build_bpe(original: Original, self: Any, args: Any) -> Any:
    bpe = original(self, args)
    _check_pieces(bpe, args, self)
    return bpe


def _hub_interface(original: Original, self: Any, cfg: Any, task: Any, models: Any) -> None:
    original(self, cfg, task, models)
    _check_pieces(self.bpe, cfg.bpe, task)


def _check_pieces(bpe: Any, args: Any, task: Any) -> None:
    """Refuse a model that did not make the source's words, which would all be unknown."""
    if isinstance(bpe, SentencepieceBPE) and isinstance(task, TranslationTask):
        name = f"the dictionary of {task.cfg.source_lang}"
        words = {name: Vocabulary(task.source_dictionary.symbols)}
        check_pieces(bpe.sp, Path(args.sentencepiece_model), words)


def _build_dataset_for_inference(
    original: Original, self: Any, src_tokens: Any, *args: Any, **kwargs: Any
) -> Any:
    unknown = self.source_dictionary.unk()
    count = sum(int((tokens == unknown).sum()) for tokens in src_tokens)
    if count > MOST_UNKNOWN * sum(len(tokens) - 1 for tokens in src_tokens):  # without the end
        _warn_of_unknown_words(str(self.cfg.data), self.cfg.source_lang)
    return original(self, src_tokens, *args, **kwargs)


@functools.cache  # once, and not for every line
def _warn_of_unknown_words(data: str, language: str) -> None:
    logger.warning(
        "most words of the input are not in the %s dictionary of %s: is it split as the training "
        "text was (--bpe sentencepiece --sentencepiece-model FILE, --tokenizer moses, ...)?",
        language,
        data,
    )
