"""Lets fairseq clean input as in training, and decode output as spm_decode does.

Text is normalised before it is tokenized, as prepare.py does, and its punctuation if
``manifest.json`` beside the data says so. The sentencepiece model must belong to the source
dictionary.
"""

import contextlib
import copy
import functools
import json
import logging
import re
from pathlib import Path
from typing import Any, NoReturn

from fairseq import file_utils, utils
from fairseq.data import data_utils
from fairseq.data.encoders.moses_tokenizer import MosesTokenizer
from fairseq.data.encoders.nltk_tokenizer import NLTKTokenizer
from fairseq.data.encoders.sentencepiece_bpe import SentencepieceBPE
from fairseq.dataclass import FairseqDataclass
from fairseq.dataclass import utils as dataclass_utils
from fairseq.hub_utils import GeneratorHubInterface
from fairseq.tasks import FairseqTask
from fairseq.tasks.translation import TranslationTask
from fairseq.tasks.translation_multi_simple_epoch import TranslationMultiSimpleEpochTask
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from resmlp_mt import language_codes
from resmlp_mt.engine.subword_checks import (
    check_pieces,
    check_splits,
    has_normalized_pieces,
    is_normalized,
    is_untokenized,
    prepared_with,
)
from resmlp_mt.engine.subwords import (
    are_unknown,
    decode_pieces,
    find_sentencepiece,
    normalized,
    read_sentencepiece,
    split_tags,
)
from resmlp_mt.engine.tags import tags_before
from resmlp_mt.engine.vocabulary import Vocabulary
from resmlp_mt.errors import UserError
from resmlp_mt.fairseq_plugin import bleu
from resmlp_mt.fairseq_plugin.binarised import some_sentences
from resmlp_mt.fairseq_plugin.dictionaries import TASKS
from resmlp_mt.fairseq_plugin.languages import TRANSLATING, options_of_task
from resmlp_mt.fairseq_plugin.many_languages import words_of_languages
from resmlp_mt.fairseq_plugin.wrapping import Original, remedy
from resmlp_mt.text import SURROGATE, join_pieces, normalize

logger = logging.getLogger(__name__)


def register_subwords() -> None:
    """Let commands find ``--bpe bytes`` and ``--bpe characters``, which have no dataclass."""
    for name in ("bytes", "characters"):
        node = FairseqDataclass()
        node._name = name
        ConfigStore.instance().store(name=name, group="bpe", node=node, provider="fairseq")


@remedy(MosesTokenizer, "__init__")
def _moses_tokenizer(original: Original, self: Any, cfg: Any) -> None:
    """With the rules that prepare.py has for a language, however its code is spelt."""
    cfg = copy.copy(cfg)
    for name in ("source_lang", "target_lang"):
        if code := getattr(cfg, name, None):
            setattr(cfg, name, language_codes.moses(code))
    original(self, cfg)


@remedy(dataclass_utils, "_override_attr")
def _override_attr(original: Original, node: str, kind: Any, args: Any) -> list[str]:
    """Keep fairseq's default languages of the tokenizer where the task's are not given.

    The two share their options, and a language of the tokenizer cannot be None.
    """
    overrides: list[str] = original(node, kind, args)
    unknown = ("tokenizer.source_lang=null", "tokenizer.target_lang=null")
    return [text for text in overrides if text not in unknown]


@remedy(FairseqTask, "build_tokenizer")
def _build_tokenizer(original: Original, self: Any, args: Any) -> Any:
    self.input_tokenizer = _with_languages(original(self, args), self)
    return self.input_tokenizer


def _with_languages(tokenizer: Any, task: Any) -> Any:
    """``--tokenizer moses`` with the rules of the task's languages; fairseq's are English."""
    if not isinstance(tokenizer, MosesTokenizer) or not _has_languages(task):
        return tokenizer
    cfg, options = copy.copy(tokenizer.cfg), options_of_task(task)
    cfg.source_lang, cfg.target_lang = options.source_lang, options.target_lang
    return MosesTokenizer(cfg)


def _has_languages(task: Any) -> bool:
    """Whether a task translates between two languages; that of many may not know which."""
    return isinstance(task, TRANSLATING) and options_of_task(task).source_lang is not None


@remedy(TranslationTask, "build_model")
def _build_model(original: Original, self: Any, *args: Any, **kwargs: Any) -> Any:
    model = original(self, *args, **kwargs)
    if self.cfg.eval_bleu and "target_lang" not in json.loads(self.cfg.eval_bleu_detok_args):
        self.tokenizer = _with_languages(self.tokenizer, self)
    return model


@remedy(SentencepieceBPE, "__init__")
def _sentencepiece_bpe(_: Original, self: Any, cfg: Any) -> None:
    # fairseq opens the file by a path, which must be UTF-8, and does not say which file is wrong
    self.enable_sampling = cfg.sentencepiece_enable_sampling
    self.alpha = cfg.sentencepiece_alpha
    self.words, self.is_of_raw = None, False
    self.sp = read_sentencepiece(Path(file_utils.cached_path(cfg.sentencepiece_model)))
    _normalise(self, has_normalized_pieces(self.sp))


def _normalise(bpe: Any, normalizes: bool) -> None:
    """Choose whether raw text is normalised before the model splits it."""
    bpe.prepare = functools.partial(normalized, processor=bpe.sp) if normalizes else _without_halves


_without_halves = functools.partial(SURROGATE.sub, "\ufffd")


@remedy(MosesTokenizer, "encode")
def _encode(original: Original, self: Any, x: str) -> str:
    return str(original(self, getattr(self, "prepare", normalize)(x)))


@remedy(SentencepieceBPE, "encode")
def _split(original: Original, self: Any, x: str) -> str:
    """The pieces of a text; tags before it stay whole, as in an exported model."""
    tags: list[str] = []
    text = self.prepare(x)
    if self.words is not None:
        tags, text = split_tags(text, self.words, self.sp, normalizes=False)
    if not text.strip():  # else the model invents a translation of tags, or of spaces that it keeps
        return ""
    return " ".join([*tags, original(self, text)])


def _prepare_alike(tokenizer: Any, bpe: Any, task: Any) -> None:
    """Prepare raw text as ``prepare.py`` did, if a manifest beside the data says how.

    Text that is given without ``--bpe`` has been split already, and so it has been prepared. What
    Moses tokenizes is normalised only if the training text was.
    """
    is_raw = isinstance(bpe, SentencepieceBPE)
    if isinstance(tokenizer, MosesTokenizer):
        if is_raw:
            tokenizer.prepare = bpe.prepare
        elif isinstance(task, TASKS):
            words = task.source_dictionary.symbols
            tokenizer.prepare = normalize if is_normalized(words) else _without_halves
    if not is_raw or not _has_languages(task) or not options_of_task(task).data:
        return
    folder = Path(utils.split_paths(options_of_task(task).data)[0])
    options = prepared_with(folder)
    if bpe.is_of_raw and isinstance(tokenizer, MosesTokenizer | NLTKTokenizer):
        logger.warning(
            "the training text in %s was not tokenized, as text will be now: drop --tokenizer "
            "(tokenizer=... in Python).",
            folder,
        )
    if tokenizer is None and options.get("tokenizer") == "moses":
        # only raw text needs it: fairseq-generate decodes alone
        bpe.prepare = functools.partial(
            _refuse,
            f"the training text in {folder} was prepared with --tokenizer moses: give --tokenizer "
            "moses (tokenizer='moses' in Python), or --tokenizer space for text that Moses has "
            "tokenized already.",
        )
    elif options.get("normalize_punctuation") is True:
        from sacremoses import MosesPunctNormalizer  # slow, and most runs do not need it

        normalizer = MosesPunctNormalizer(language_codes.moses(options_of_task(task).source_lang))
        # of other tokenizers than Moses this changes nothing: their text is tokenized already
        (tokenizer or bpe).prepare = functools.partial(_punctuated, normalizer)


def _punctuated(normalizer: Any, text: str) -> str:
    return normalize(normalizer.normalize(text))


@remedy(SentencepieceBPE, "decode")
def _decode(_: Original, self: Any, x: str) -> str:
    if bleu.are_joined("sentencepiece"):  # to join its words, too, would lose their spaces
        return x
    # fairseq only joins pieces, which prints "<0xE2><0x82><0xAC>" for a euro sign
    return re.sub("[\r\n]", " ", decode_pieces(self.sp, x.split())).strip()


@remedy(data_utils, "post_process")
def _post_process(original: Original, sentence: str, symbol: str) -> str:
    if symbol == "sentencepiece":  # fairseq leaves bytes as they are
        return join_pieces(sentence.split(" ")).strip()
    return str(original(sentence, symbol))


@remedy(FairseqTask, "build_bpe")
def _build_bpe(original: Original, self: Any, args: Any) -> Any:
    _find_model(args, self)
    bpe = original(self, args)
    _check_pieces(bpe, args, self)
    _prepare_alike(getattr(self, "input_tokenizer", None), bpe, self)
    return bpe


@remedy(GeneratorHubInterface, "__init__")
def _hub_interface(original: Original, self: Any, cfg: Any, task: Any, models: Any) -> None:
    _find_model(cfg.bpe, task)
    original(self, cfg, task, models)
    self.tokenizer = _with_languages(self.tokenizer, task)
    _check_pieces(self.bpe, cfg.bpe, task)
    _prepare_alike(self.tokenizer, self.bpe, task)


def _find_model(options: Any, task: Any) -> None:
    """If no sentencepiece model is given, take the one that ``prepare.py`` left beside the data."""
    name = "sentencepiece_model"
    if not (isinstance(options, DictConfig) and OmegaConf.is_missing(options, name)):
        return
    data = options_of_task(task).data if _has_languages(task) else None
    if data and (found := find_sentencepiece(Path(utils.split_paths(data)[0]))):
        options[name] = str(found)


def _check_pieces(bpe: Any, args: Any, task: Any) -> None:
    """Refuse a model that lacks the source's words, and warn of one that splits text otherwise.

    It also decides whether input is normalised, and which words are tags. With a model for each
    language, the target's words are not its pieces.
    """
    if isinstance(bpe, SentencepieceBPE) and _has_languages(task):
        cfg, path = options_of_task(task), Path(args.sentencepiece_model)
        of_languages: frozenset[str] = frozenset()
        if isinstance(task, TranslationMultiSimpleEpochTask):
            of_languages = words_of_languages(task)
        source, target = (
            Vocabulary(word for word in words.symbols if word not in of_languages)
            for words in (task.source_dictionary, task.target_dictionary)
        )
        try:
            check_pieces(bpe.sp, path, {f"the dictionary of {cfg.source_lang}": source})
        except UserError as error:
            with contextlib.suppress(UserError):
                check_pieces(bpe.sp, path, {f"the dictionary of {cfg.target_lang}": target})
                # fairseq-generate only decodes, with a model of the target's own
                bpe.prepare = functools.partial(_refuse, str(error))
                return
            raise
        bpe.words = source
        folder = Path(utils.split_paths(cfg.data)[0])
        codes = cfg.source_lang, cfg.target_lang
        try:
            text = some_sentences(folder, codes, cfg.source_lang, task.source_dictionary)
            if text:
                source.tags = tags_before(text, bpe.sp)
                bpe.is_of_raw = is_untokenized(bpe.sp.decode([*map(list, text)]))
                _normalise(bpe, check_splits(bpe.sp, path, (source, target), text, folder))
        except UserError as error:
            # not refused: fairseq also takes text that was split with a restricted vocabulary or
            # has tags, and needs no text beside the dictionaries
            logger.warning("%s", error)


def _refuse(message: str, _: str) -> NoReturn:
    raise UserError(message)


@remedy(TRANSLATING, "build_dataset_for_inference")
def _build_dataset_for_inference(
    original: Original, self: Any, src_tokens: Any, *args: Any, **kwargs: Any
) -> Any:
    if are_unknown((tokens.tolist() for tokens in src_tokens), self.source_dictionary.indices):
        _warn_of_unknown_words(str(options_of_task(self).data), options_of_task(self).source_lang)
    return original(self, src_tokens, *args, **kwargs)


@functools.cache  # once, and not for every line
def _warn_of_unknown_words(data: str, language: str) -> None:
    logger.warning(
        "most words of the input are not in the %s dictionary of %s: is it text in %s, split as "
        "the training text was (--bpe sentencepiece --sentencepiece-model FILE, --tokenizer moses, "
        "...)?",
        language,
        data,
        language,
    )
