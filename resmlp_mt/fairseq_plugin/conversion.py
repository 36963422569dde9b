"""Turns a checkpoint of fairseq and its dictionaries into a model that needs no fairseq."""

import textwrap
from pathlib import Path
from typing import Any

from fairseq import checkpoint_utils, utils
from fairseq.tasks.translation import TranslationConfig, TranslationTask

from resmlp_mt.engine import shortlist_building
from resmlp_mt.engine.folding import fold
from resmlp_mt.engine.model_folder import TranslationModel
from resmlp_mt.engine.shortlist import Shortlist
from resmlp_mt.engine.subword_checks import (
    check_is_raw,
    check_pieces,
    check_splits,
    is_of_characters,
    is_of_subwords,
    needs_normalizing,
    warn_of_letters,
    warn_of_lower_case,
    warn_of_tokens,
)
from resmlp_mt.engine.subwords import decode_pieces, find_sentencepiece, read_sentencepiece
from resmlp_mt.engine.tags import tags_before, warn_of_tags
from resmlp_mt.engine.vocabulary import Vocabulary
from resmlp_mt.errors import UserError, reason, refused
from resmlp_mt.fairseq_plugin import checkpoints, languages, stored_config
from resmlp_mt.fairseq_plugin.binarised import some_sentences


def load_trained(
    path: str | Path,
    data: str | Path | None = None,
    sentencepiece_model: str | Path | None = None,
) -> TranslationModel:
    """Load and fold a checkpoint; its architecture must have been registered with fairseq.

    Args:
        path: file that fairseq-train wrote.
        data: folder with the dictionaries; by default the folder that the model was trained on.
        sentencepiece_model: the subword model; by default spm.model beside ``data``.

    Raises:
        UserError: if a file is missing or of another kind, the text was tokenized before, or the
            sentencepiece model did not split it.
    """
    path = Path(path)
    pieces = None
    if sentencepiece_model is not None:
        sentencepiece_model = Path(sentencepiece_model)
        pieces = read_sentencepiece(sentencepiece_model)
    stored_config.check(checkpoints.read(path, only_look=True), path, plugin_only=True)
    # the weights are in the file, so their initialization does not matter
    overrides: dict[str, Any] = {"encoder_embed_path": None, "decoder_embed_path": None}
    if data is not None:
        overrides["data"] = str(data)
    broken = f"{path} cannot be read as a fairseq checkpoint: "
    try:
        # torch and fairseq raise a dozen types for broken files
        with refused(
            lambda error: broken + textwrap.shorten(str(error) or reason(error), 200), Exception
        ):
            (model,), _, task = checkpoint_utils.load_model_ensemble_and_task(
                [str(path)], arg_overrides=overrides
            )
    except languages.MissingDictionaryError as error:
        where = "where they were in training" if data is None else f"in {data}"
        raise UserError(
            f"--data: the dictionaries of {path} are not {where}: give the folder that holds them."
        ) from error
    folder = Path(utils.split_paths(task.cfg.data)[0])
    codes = task.cfg.source_lang, task.cfg.target_lang
    dictionaries = task.source_dictionary, task.target_dictionary
    source, target = (Vocabulary(words.symbols) for words in dictionaries)
    has_subwords = [is_of_subwords(source), is_of_subwords(target)]
    if sentencepiece_model is None:
        sentencepiece_model = find_sentencepiece(folder)
        if sentencepiece_model is not None:
            pieces = read_sentencepiece(sentencepiece_model)
        elif any(has_subwords):
            without = ""
            if is_of_characters(source) or is_of_characters(target):
                without = (
                    "; if fairseq's --bpe characters or bytes made them, which has none, translate "
                    "with fairseq-interactive"
                )
            raise UserError(
                f"--sentencepiece-model: {path} translates subwords, and there is no spm.model "
                f"beside {folder}: give the file that made them{without}."
            )
    texts = [
        some_sentences(folder, codes, language, words)
        for language, words in zip(codes, dictionaries, strict=True)
    ]
    normalizes = normalizes_target = True
    if pieces is not None and sentencepiece_model is not None:
        names = (str(folder / f"dict.{language}.txt") for language in codes)
        both = dict(zip(names, (source, target), strict=True))
        check_pieces(pieces, sentencepiece_model, both)
        normalizes = check_splits(pieces, sentencepiece_model, both.values(), texts[0], folder)
        normalizes_target = needs_normalizing(pieces, texts[1], otherwise=normalizes)
        source.tags = tags_before(texts[0], pieces)
        warn_of_tags(folder, texts[0], source, pieces)
    else:
        warn_of_letters(folder, (source, target))
    check_is_raw(folder)
    joined = [
        [" ".join(words) if pieces is None else decode_pieces(pieces, words) for words in text]
        for text in texts
    ]
    for lines in joined:
        warn_of_tokens(folder, lines)
    warn_of_lower_case(folder, joined[0], pieces)
    return TranslationModel(
        fold(model.float()), *codes, source, target, pieces,
        normalizes=normalizes, normalizes_target=normalizes_target,
    )  # fmt: skip


def build_shortlist(
    text: tuple[Any, Any],
    model: TranslationModel,
    frequent: int = shortlist_building.FREQUENT,
    per_word: int = shortlist_building.PER_WORD,
) -> Shortlist:
    """The shortlist of a model; ``text`` is what :func:`read_training_text` returns."""
    return shortlist_building.build(
        *text,
        len(model.source),
        len(model.target),
        frequent=frequent,
        per_word=per_word,
        joint=model.source.symbols == model.target.symbols,
    )


def read_training_text(data: str | Path, model: TranslationModel) -> tuple[Any, Any]:
    """Source and target of the whole training text that fairseq-preprocess wrote.

    Raises:
        UserError: if it is missing or in another format, or its dictionaries are not the model's.
    """
    config = TranslationConfig(
        data=str(data),
        source_lang=model.source_lang,
        target_lang=model.target_lang,
        train_subset="train",
        dataset_impl="mmap",
        required_seq_len_multiple=1,
    )
    task = TranslationTask.setup_task(config)
    for language, words, vocabulary in (
        (config.source_lang, task.source_dictionary, model.source),
        (config.target_lang, task.target_dictionary, model.target),
    ):
        if words.symbols != vocabulary.symbols:
            raise UserError(
                f"--shortlist: {Path(data, f'dict.{language}.txt')} is not the dictionary that the "
                "model was trained with."
            )
    task.load_dataset("train", epoch=1, combine=True)
    pairs = task.dataset("train")
    return pairs.src, pairs.tgt
