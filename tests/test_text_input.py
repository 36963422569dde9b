"""fairseq's commands and its hub prepare raw text as the training text was prepared."""

import json
import os
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sentencepiece
from fairseq import options
from fairseq.data import Dictionary, encoders
from fairseq.data.encoders.sentencepiece_bpe import SentencepieceBPE, SentencepieceConfig
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.hub_utils import GeneratorHubInterface
from fairseq.tasks import FairseqTask
from fairseq.tasks.translation import TranslationConfig, TranslationTask
from fairseq.tasks.translation_multi_simple_epoch import TranslationMultiSimpleEpochTask

from models import dictionary
from resmlp_mt.errors import UserError
from resmlp_mt.fairseq_plugin import fairseq_fixes, text_input
from resmlp_mt.fairseq_plugin.wrapping import mend
from resmlp_mt.preparation import clean

mend(text_input)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "spm.model"
    lines = ["the dog runs & ; … „l'eau“ «oui» – et", 'ein Hund "läuft" - so... \''] * 20
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=file, vocab_size=60, model_type="bpe",
            hard_vocab_limit=False, minloglevel=2,
        )  # fmt: skip
    return path


def translation_task(model: Path, **given: Any) -> TranslationTask:
    """French to German in the pieces of a model."""
    words = Dictionary()
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    for index in range(3, len(processor)):
        words.add_symbol(processor.id_to_piece(index))
    given = {"data": str(model.parent), **given}
    cfg = TranslationConfig(source_lang="fr_FR", target_lang="de", **given)
    return TranslationTask(cfg, words, words)


def many_languages_task(model: Path, **given: Any) -> Any:
    """The same for a model of many languages, whose dictionary has a word for each."""
    of_two = translation_task(model, **given)
    languages, words = ["fr", "de", *"abcdefgh"], of_two.source_dictionary
    for code in languages:
        words.add_symbol(f"__{code}__")
    task = object.__new__(TranslationMultiSimpleEpochTask)
    task.args = Namespace(
        data=of_two.cfg.data, source_lang="fr", target_lang="de", lang_tok_style="multilingual",
        langtoks_specs=["main"], max_source_positions=8, max_target_positions=8,
    )  # fmt: skip
    task.langs, task.source_langs, task.target_langs = languages, ["fr"], ["de"]
    task.data_manager = SimpleNamespace(
        get_source_dictionary=lambda _: words, get_target_dictionary=lambda _: words
    )
    return task


TASKS = pytest.mark.parametrize("make", [translation_task, many_languages_task])


def tokenizers(task: FairseqTask, model: Path, name: str | None) -> list[tuple[Any, Any]]:
    """``--tokenizer`` and ``--bpe sentencepiece``, as the commands and the hub build them."""
    tokenizer = Namespace(tokenizer=name)
    bpe = Namespace(bpe="sentencepiece", sentencepiece_model=str(model))
    cfg = Namespace(bpe=bpe, tokenizer=tokenizer, generation=Namespace(replace_unk=None))
    hub = GeneratorHubInterface(cfg, task, [])
    return [(task.build_tokenizer(tokenizer), task.build_bpe(bpe)), (hub.tokenizer, hub.bpe)]


def test_the_tokenizer_has_the_languages_of_the_task(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fairseq's are English wherever --source-lang is not given."""
    task = translation_task(model)
    for tokenizer, _ in tokenizers(task, model, "moses"):
        assert tokenizer.encode("L'eau") == "L&apos; eau"
        assert (tokenizer.tok.lang, tokenizer.detok.lang) == ("fr", "de")
    assert [built for built, _ in tokenizers(task, model, None)] == [None, None]
    others = Namespace(tokenizer="moses", moses_no_escape=True)
    assert task.build_tokenizer(others).encode("L'eau") == "L' eau"

    monkeypatch.setattr(FairseqTask, "build_model", lambda *_: None)
    monkeypatch.setattr(FairseqTask, "build_generator", lambda *_: None)
    for given, expected in (("{}", "de"), ('{"target_lang": "fi"}', "fi")):
        told = {"eval_bleu": True, "eval_bleu_detok": "moses", "eval_bleu_detok_args": given}
        task = translation_task(model, **told)
        task.build_model(None)
        assert task.tokenizer.detok.lang == expected


def test_the_tokenizer_needs_no_languages_on_the_command_line() -> None:
    for make in (options.get_interactive_generation_parser, options.get_generation_parser):
        for given, expected in (([], None), (["-s", "fr"], "fr")):
            parser = make()
            words = ["data", "--path", "x", "--tokenizer", "moses", *given]
            cfg = convert_namespace_to_omegaconf(options.parse_args_and_arch(parser, words))
            assert cfg.task.source_lang == expected
            assert cfg.tokenizer.source_lang == (expected or "en")  # until the task is known
            assert cfg.tokenizer.target_lang == "en"


@pytest.mark.parametrize("name", ["bytes", "characters"])
def test_subwords_without_options_are_found(name: str) -> None:
    words = ["data", "--path", "x", "--bpe", name]
    parser = options.get_interactive_generation_parser()
    cfg = convert_namespace_to_omegaconf(options.parse_args_and_arch(parser, words))
    bpe = encoders.build_bpe(cfg.bpe)
    assert bpe.decode(bpe.encode("a dög")) == "a dög"


@TASKS
@pytest.mark.parametrize("tokenizer", ["none", "moses"])
@pytest.mark.parametrize("punctuation", [False, True])
def test_text_is_prepared_as_the_manifest_says(
    model: Path, tmp_path: Path, make: Any, tokenizer: str, punctuation: bool
) -> None:
    prepared: dict[str, Any] = {"tokenizer": tokenizer, "normalize_punctuation": punctuation}
    cleaner = clean.Cleaner(clean.Options("fr", "de", **prepared))
    line = "„L'eau“ \u2013 «\u00a0oui\u00a0» et…"
    (expected,) = cleaner.tokenize(0, cleaner.normalize(0, [line]))
    manifest = {"options": prepared}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    name = None if tokenizer == "none" else tokenizer
    task = make(model, data=f"{tmp_path / 'bin'}{os.pathsep}{tmp_path / 'bin2'}")
    for built, bpe in tokenizers(task, model, name):
        text = built.encode(line) if built else line
        assert bpe.encode(text).split() == bpe.sp.encode(expected, out_type=str)
        assert not built or built.encode(line) == expected
    (tmp_path / "manifest.json").unlink()
    for built, bpe in tokenizers(task, model, name):
        text = built.encode(line) if built else line
        unlike = bpe.encode(text).split() != bpe.sp.encode(expected, out_type=str)
        assert unlike == punctuation


@TASKS
def test_raw_text_for_tokenized_data_is_refused(model: Path, tmp_path: Path, make: Any) -> None:
    """Not text that is tokenized already, nor fairseq-generate, which only decodes."""
    manifest = {"options": {"tokenizer": "moses", "normalize_punctuation": True}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    task = make(model, data=str(tmp_path / "bin"))
    for _, bpe in tokenizers(task, model, None):
        assert bpe.decode("\u2581the \u2581dog") == "the dog"
        with pytest.raises(UserError, match=r"bin was prepared with --tokenizer moses: give --tok"):
            bpe.encode("the dog")
    for built, bpe in tokenizers(task, model, "space"):
        text = built.encode("l&apos; eau …")
        assert bpe.encode(text).split() == bpe.sp.encode("l&apos; eau …", out_type=str)


@TASKS
def test_a_tokenizer_for_raw_training_text_is_warned_of(
    model: Path, make: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It splits words otherwise than in the training, without an error."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    for line, name, is_told in (
        ("the dog runs, et.", "moses", True),
        ("the dog runs, et.", "space", False),
        ("the dog runs, et.", None, False),
        ("the dog runs , et .", "moses", False),
    ):
        caplog.clear()
        text = [processor.encode(line, out_type=str)] * 10
        monkeypatch.setattr(text_input, "some_sentences", lambda *_, found=text: found)
        tokenizers(make(model), model, name)
        assert ("was not tokenized, as text will be now: drop" in caplog.text) is is_told


def test_pieces_of_many_languages_are_those_of_the_dictionary(model: Path) -> None:
    """But for the words of languages, which no model has."""
    task = many_languages_task(model)
    for _, bpe in tokenizers(task, model, None):
        assert bpe.encode("the dog").split() == bpe.sp.encode("the dog", out_type=str)
        assert "__fr__" not in bpe.words.indices
    task.data_manager.get_source_dictionary = task.data_manager.get_target_dictionary = lambda _: (
        dictionary(60)
    )
    with pytest.raises(UserError, match="is not the sentencepiece model of this translation model"):
        tokenizers(task, model, None)
    task.args.source_lang = task.args.target_lang = None  # as it is set up for a training
    tokenizers(task, model, "moses")


def test_half_of_a_pair_becomes_a_sign_without_normalising(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It can come from JSON, and sentencepiece takes UTF-8 alone."""
    monkeypatch.setattr(text_input, "has_normalized_pieces", lambda _: False)
    monkeypatch.setattr(text_input, "is_normalized", lambda _: False)
    monkeypatch.setattr(text_input, "check_splits", lambda *_: False)
    task = translation_task(model)
    for built, bpe in tokenizers(task, model, "moses"):
        bpe.prepare = text_input._without_halves
        assert built.encode("the \ud83d dog") == built.encode("the \ufffd dog")
        assert bpe.encode("the \ud83d dog") == bpe.encode("the \ufffd dog")
    bpe = SentencepieceBPE(SentencepieceConfig(sentencepiece_model=str(model)))
    assert bpe.encode("the \ud83d dog e\u0301") == bpe.encode("the \ufffd dog e\u0301")


def test_text_that_is_joined_keeps_its_spaces(model: Path) -> None:
    """--remove-bpe and --bpe together, as in recipes for mBART: fairseq joins the words, too."""
    fairseq_fixes.apply()
    bpe = SentencepieceBPE(SentencepieceConfig(sentencepiece_model=str(model)))
    assert bpe.decode("the dog") == "thedog"
    words = "data --path x --bpe sentencepiece --sentencepiece-model x --remove-bpe".split()
    for given, text in (("sentencepiece", "the dog"), ("none", "thedog")):
        parser = options.get_interactive_generation_parser()
        options.parse_args_and_arch(parser, [*words, given])
        assert bpe.decode("the dog") == text


def test_a_file_that_is_no_sentencepiece_model_is_named(model: Path, tmp_path: Path) -> None:
    whole = model.read_bytes()
    path = tmp_path / os.fsdecode(b"\xff.model")  # not UTF-8
    path.write_bytes(whole)
    bpe = SentencepieceBPE(SentencepieceConfig(sentencepiece_model=str(path)))
    assert bpe.decode(bpe.encode("the dog")) == "the dog"
    pointer = b"version https://git-lfs.github.com/spec/v1\noid"
    for content, message in (
        (b"\xe2\x96\x81the\t-3.2\n" * 9, "cannot be read as a sentencepiece model"),
        (whole[: len(whole) // 2], "cannot be read as a sentencepiece model"),
        (pointer, "is a pointer of Git LFS"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=message):
            SentencepieceBPE(SentencepieceConfig(sentencepiece_model=str(path)))


@pytest.mark.parametrize("normalizes", [False, True])
def test_a_line_of_spaces_has_no_pieces(tmp_path: Path, normalizes: bool) -> None:
    """Also for a model that keeps spaces, which would translate them."""
    path = tmp_path / "spaces.model"
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["the dog  runs", "a  dog"] * 20), model_writer=file,
            vocab_size=20, model_type="bpe", hard_vocab_limit=False, minloglevel=2,
            remove_extra_whitespaces=False,
        )  # fmt: skip
    bpe = SentencepieceBPE(SentencepieceConfig(sentencepiece_model=str(path)))
    text_input._normalise(bpe, normalizes)
    assert bpe.sp.encode("   ")
    invisible = ["\u200b", " \u200b\u2060 "] if normalizes else []
    for line in ("", "   ", "\t\u3000", *invisible):
        assert bpe.encode(line) == ""
    assert bpe.encode("the dog").split() == bpe.sp.encode("the dog", out_type=str)
