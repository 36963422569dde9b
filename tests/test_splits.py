"""Text is split into pieces as the training text was, and a model that cannot do so is refused."""

import io
import itertools
import os
import re
import unicodedata
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sentencepiece
import torch
from fairseq.data import Dictionary
from fairseq.data.encoders.byte_utils import BCHAR_TO_BYTE, byte_encode
from fairseq.data.indexed_dataset import MMapIndexedDatasetBuilder
from fairseq.tasks import FairseqTask
from fairseq.tasks.translation import TranslationConfig, TranslationTask

from models import build, translation_model
from resmlp_mt.engine import doubts, model_folder, subwords
from resmlp_mt.engine.folding import fold
from resmlp_mt.engine.lines import decoded
from resmlp_mt.engine.model_folder import TranslationModel
from resmlp_mt.engine.options import SearchOptions
from resmlp_mt.engine.sentences import translate_texts
from resmlp_mt.engine.subword_checks import (
    BYTES,
    check_splits,
    is_of_subwords,
    needs_normalizing,
    splits_alike,
    warn_of_lower_case,
)
from resmlp_mt.engine.subwords import pieces_of, split_words
from resmlp_mt.engine.tags import tags_before, warn_of_tags
from resmlp_mt.engine.translation import Translation
from resmlp_mt.engine.translator import Translator
from resmlp_mt.engine.vocabulary import SPECIAL, UNK, Vocabulary
from resmlp_mt.errors import UserError
from resmlp_mt.fairseq_plugin import text_input
from resmlp_mt.fairseq_plugin.wrapping import mend
from resmlp_mt.model.encoder_decoder import EncoderDecoder
from resmlp_mt.text import normalize

VIETNAMESE = ["những người tiếng việt", "đường phố nhiều người", "một đường của những phố"]
DECOMPOSED = [unicodedata.normalize("NFD", line) for line in VIETNAMESE]
BENGALI = ["\u09b9\u09df \u09ac\u09b2\u09be", "\u09af\u09be\u09df \u09ac\u09b2\u09be \u09b9\u09df"]
"""With U+09DF, which NFC decomposes."""

OPTIONS = SearchOptions()

ENGLISH = ["the dog runs in the grass", "a cat sits on the red mat"]


def model_of(
    lines: list[str], pieces: int = 60, rule: str = "identity", **options: bool
) -> sentencepiece.SentencePieceProcessor:
    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines * 20), model_writer=buffer, vocab_size=pieces,
        model_type="bpe", normalization_rule_name=rule, character_coverage=1.0,
        hard_vocab_limit=False, minloglevel=2, **options,
    )  # fmt: skip
    return sentencepiece.SentencePieceProcessor(model_proto=buffer.getvalue())


def words_of(processor: sentencepiece.SentencePieceProcessor) -> list[str]:
    return [processor.id_to_piece(index) for index in range(3, len(processor))]


def task_of(folder: Path, source: list[str], target: list[str]) -> TranslationTask:
    dictionaries = Dictionary(), Dictionary()
    for dictionary, words in zip(dictionaries, (source, target), strict=True):
        for word in words:
            dictionary.add_symbol(word)
    config = TranslationConfig(data=str(folder), source_lang="en", target_lang="de")
    return TranslationTask(config, *dictionaries)


def binarise(folder: Path, words: Dictionary, sentences: list[list[str]]) -> None:
    builder = MMapIndexedDatasetBuilder(str(folder / "valid.en-de.en.bin"))
    for sentence in sentences:
        builder.add_item(torch.tensor([*map(words.index, sentence), words.eos()]))
    builder.finalize(str(folder / "valid.en-de.en.idx"))


def encoder(processor: sentencepiece.SentencePieceProcessor, path: Path) -> Namespace:
    """The options of fairseq's ``--bpe sentencepiece``."""
    path.write_bytes(processor.serialized_model_proto())
    return Namespace(bpe="sentencepiece", sentencepiece_model=str(path))


@pytest.mark.parametrize("text", [DECOMPOSED, BENGALI], ids=["Vietnamese", "Bengali"])
def test_text_is_not_normalised_for_a_model_of_text_that_was_not(
    tmp_path: Path, text: list[str]
) -> None:
    """Its letters would be unknown: the model has no others."""
    mend(text_input)
    processor = model_of(text)
    sentences = [processor.encode(line, out_type=str) for line in text]
    words = Vocabulary([*SPECIAL, *words_of(processor)])
    assert not check_splits(processor, Path("spm.model"), [words], sentences, tmp_path)

    exported = translation_model(None, words, processor, normalizes=False)
    model_folder.save(exported, tmp_path / "model")
    translator = Translator.load(tmp_path / "model")
    assert [translator.pieces(line) for line in text] == sentences
    assert not any(UNK in translator.encode(line) for line in text)
    assert all(UNK in translator.encode(normalize(line)) for line in text)
    assert translator.pieces(text[0] + " \ud800") == translator.pieces(text[0] + " \ufffd")

    task = task_of(tmp_path, words_of(processor), words_of(processor))
    arguments = encoder(processor, tmp_path / "spm.model")
    binarise(tmp_path, task.source_dictionary, sentences)
    bpe = task.build_bpe(arguments)
    assert [bpe.encode(line).split() for line in text] == sentences


@pytest.mark.parametrize("rule", ["identity", "nmt_nfkc"])
@pytest.mark.parametrize("text", [VIETNAMESE, ENGLISH], ids=["Vietnamese", "English"])
def test_text_is_normalised_for_all_others(rule: str, text: list[str]) -> None:
    processor = model_of(text, rule=rule)
    sentences = [processor.encode(line, out_type=str) for line in text]
    words = [Vocabulary([*SPECIAL, *words_of(processor)])]
    assert check_splits(processor, Path("spm.model"), words, sentences, Path("bin"))
    assert check_splits(processor, Path("spm.model"), words, [], Path("bin"))


@pytest.mark.parametrize("letter", ["a", "\u0e01", "\u0e81", "\u1000", "\u1780"], ids=ascii)
@pytest.mark.parametrize("sign", ["\u200b", "\u200e", "\ufeff", "\xad"], ids=ascii)
@pytest.mark.parametrize("rule", ["identity", "nmt_nfkc"])
def test_words_of_khmer_stay_apart_where_the_model_takes_them_apart(
    rule: str, sign: str, letter: str, tmp_path: Path
) -> None:
    """The usual rules of sentencepiece do so; all other invisible signs are removed."""
    mend(text_input)
    one, two = 2 * letter, 3 * letter
    processor = model_of([f"{one} {two}", f"{one}{two}"], rule=rule)
    words = Vocabulary([*SPECIAL, *words_of(processor)])
    loaded = translation_model(None, words, processor)
    is_space = letter != "a" and sign == "\u200b" and rule == "nmt_nfkc"
    expected = processor.encode(f"{one}{' ' * is_space}{two}", out_type=str)
    line = f"{one}{sign}{two}{sign}"
    assert Translator(loaded, SearchOptions()).pieces(line) == expected
    task = task_of(tmp_path, words_of(processor), words_of(processor))
    bpe = task.build_bpe(encoder(processor, tmp_path / "spm.model"))
    assert bpe.encode(line).split() == expected


@pytest.mark.parametrize("rule", ["identity", "nmt_nfkc"])
def test_white_space_is_a_space_where_the_model_makes_it_one(rule: str) -> None:
    """fairseq-preprocess divides pieces at all white space."""
    lines = ["Bonjour\xa0! \xc7a va\u202f?", "non\u3000oui \xa0 merci \u3000"]
    processor = model_of(lines, rule=rule)
    words = Vocabulary([*SPECIAL, *words_of(processor)])
    for line in lines:
        trained = " ".join(processor.encode(line, out_type=str)).split()
        assert pieces_of(line, words, processor, normalizes=True) == trained
    # a sign that the model does not know is none of its training text
    for has_bytes in (False, True):  # which every sign has
        plain = model_of(["Bonjour ! merci"], 300, rule, byte_fallback=has_bytes)
        for line in ("Bonjour\xa0!", "\u3000Bonjour\u2028!\u3000", "Bonjour\x0b!", "Bonjour\x1f!"):
            found = pieces_of(line, words, plain, normalizes=True)
            assert found == plain.encode("Bonjour !", out_type=str)
    accents = "Bonjour\xa0! \xe7\u200ba \ufeffva  e\u0301"
    assert subwords.normalized(accents, processor) == (
        "Bonjour! \xe7a va \xe9" if rule == "identity" else "Bonjour ! \xe7a va \xe9"
    ).replace("r!", "r\xa0!")


@pytest.mark.parametrize(("before", "after"), [("2", "\u1780"), ("\u1780", ")"), ("a", "\ua984")])
def test_signs_of_other_scripts_beside_khmer_stay_apart(before: str, after: str) -> None:
    processor = model_of([f"{before} {after}"], rule="nmt_nfkc")
    found = subwords.normalized(f"{before}\u200b{after}", processor)
    assert found == f"{before} {after}"


def test_pieces_tell_whether_text_was_normalised_if_no_sentence_does(tmp_path: Path) -> None:
    """Also for fairseq's other tasks."""
    mend(text_input)
    processor = model_of(BENGALI)
    words = Vocabulary([*SPECIAL, *words_of(processor)])
    assert not check_splits(processor, Path("spm.model"), [words], [], tmp_path)
    bpe = FairseqTask.build_bpe(
        object.__new__(FairseqTask), encoder(processor, tmp_path / "spm.model")
    )
    assert [bpe.encode(line).split() for line in BENGALI] == [
        processor.encode(line, out_type=str) for line in BENGALI
    ]


@pytest.mark.parametrize("text", [BENGALI, VIETNAMESE], ids=["Bengali", "Vietnamese"])
def test_moses_gets_text_as_the_dictionary_has_it(text: list[str], tmp_path: Path) -> None:
    mend(text_input)
    task = task_of(tmp_path, [word for line in text for word in line.split()], ["Hund"])
    tokenizer = task.build_tokenizer(Namespace(tokenizer="moses"))
    task.build_bpe(Namespace(bpe=None))
    for line in text:
        other = unicodedata.normalize("NFD" if text is VIETNAMESE else "NFC", line)
        assert tokenizer.encode(line) == line
        assert tokenizer.encode(other) == (line if text is VIETNAMESE else other)
    bengali = model_of(BENGALI)
    task = task_of(tmp_path, words_of(bengali), words_of(bengali))
    tokenizer = task.build_tokenizer(Namespace(tokenizer="moses"))
    task.build_bpe(encoder(bengali, tmp_path / "spm.model"))
    assert [tokenizer.encode(line) for line in BENGALI] == BENGALI


def test_each_language_is_normalised_as_its_own_text_was(tmp_path: Path) -> None:
    processor = model_of([*ENGLISH, *BENGALI])
    words = Vocabulary([*SPECIAL, *words_of(processor)])
    texts = [[processor.encode(line, out_type=str) for line in side] for side in (ENGLISH, BENGALI)]
    assert needs_normalizing(processor, texts[0], None) is True
    assert needs_normalizing(processor, texts[1], True) is False
    loaded = TranslationModel(
        fold(build(vocabulary=len(words)).float()), "en", "bn", words, words, processor,
        normalizes_target=False,
    )  # fmt: skip
    model_folder.save(loaded, tmp_path / "model")
    translator = Translator.load(tmp_path / "model")
    (scored,) = translator.score_batch([f"{ENGLISH[0]}\u200b"], BENGALI[:1])
    assert scored.tokens == [*texts[1][0], "</s>"]
    assert translator.pieces(f"{ENGLISH[0]}\u200b") == texts[0][0]


def test_tags_before_the_pieces_stay_whole(caplog: pytest.LogCaptureFixture) -> None:
    """As of data in which ``sed 's/^/<2de> /'`` put them after ``spm_encode``."""
    processor = model_of(ENGLISH)
    words = Vocabulary([*SPECIAL, *words_of(processor), "<2de>", "<polite>", "😀"])
    loaded = translation_model(None, words, processor)
    translator = Translator(loaded, SearchOptions())
    pieces = processor.encode(ENGLISH[0], out_type=str)
    for tags in ("<2de>", "<2de> <polite>"):
        assert translator.pieces(f"{tags} {ENGLISH[0]}") == [*tags.split(), *pieces]
    for alone in ("<2de>", "  <2de> <polite> "):  # from which a model invents a translation
        assert translator.pieces(alone) == []
        assert translator.pieces(alone, words) == alone.split()  # a prefix of a translation
        assert translator.translate([alone]) == translator.translate([""])
        assert translate_texts(translator, [alone.strip()])[0] == [""]
    # what a text can have is split as before
    for line in (f"😀 {ENGLISH[0]}", f"<2fr> {ENGLISH[0]}", f"{ENGLISH[0]} <2de>", "<unk> a", ""):
        assert translator.pieces(line) == processor.encode(line, out_type=str)
    tagged = [["<2de>", *pieces], ["<2fr>", *pieces], pieces]
    assert splits_alike(processor, tagged)
    warn_of_tags(Path("bin"), tagged, words, processor)
    assert not caplog.records  # <2fr> is unknown: half have none
    warn_of_tags(Path("bin"), tagged[:1], words, processor)
    assert "the sentences in bin begin with <2de>: begin every line to translate" in caplog.text


@pytest.mark.parametrize("suffix", [False, True])
def test_tags_that_are_pieces_of_the_model_are_given_as_in_training(
    suffix: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """User-defined symbols that were put before the pieces, or into the text."""
    mend(text_input)
    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(ENGLISH * 20), model_writer=buffer, vocab_size=60,
        hard_vocab_limit=False, user_defined_symbols=["<2de>", "<2fr>"], minloglevel=2,
        treat_whitespace_as_suffix=suffix,
    )  # fmt: skip
    processor = sentencepiece.SentencePieceProcessor(model_proto=buffer.getvalue())
    plain = [processor.encode(line, out_type=str) for line in ENGLISH]
    tagged = [["<2de>", *plain[0]], ["<2fr>", *plain[1]]]
    found = tags_before(tagged, processor)
    assert found == (frozenset() if suffix else {"<2de>", "<2fr>"})
    inside = [processor.encode(f"<2de> {line}", out_type=str) for line in ENGLISH]
    for others in (plain, inside, [tagged[0], plain[1]], [["<unk>", "<x>"]], []):
        assert not tags_before(others, processor)
    words = Vocabulary([*SPECIAL, *words_of(processor)])
    words.tags = found
    warn_of_tags(Path("bin"), tagged, words, processor)
    assert ("begin with <2de> or <2fr>: begin every line" in caplog.text) != suffix
    exported = TranslationModel(
        fold(build(vocabulary=len(words)).float()), "en", "de", words, words, processor
    )
    model_folder.save(exported, tmp_path / "model")
    translator = Translator.load(tmp_path / "model")
    assert translator.loaded.source.tags == found
    task = task_of(tmp_path, words_of(processor), words_of(processor))
    binarise(tmp_path, task.source_dictionary, tagged)
    bpe = task.build_bpe(encoder(processor, tmp_path / "spm.model"))
    for line, pieces in zip(ENGLISH, plain, strict=True):
        expected = processor.encode(f"<2fr> {line}", out_type=str) if suffix else ["<2fr>", *pieces]
        for given in (f"<2fr> {line}", f"\ufeff <2fr>  {line}"):
            assert translator.pieces(given) == expected
            assert bpe.encode(given).split() == expected
        assert bpe.encode(line).split() == translator.pieces(line) == pieces


def test_fairseq_leaves_tags_whole_that_are_no_pieces(tmp_path: Path) -> None:
    mend(text_input)
    processor = model_of(ENGLISH)
    task = task_of(tmp_path, [*words_of(processor), "<2de>"], words_of(processor))
    bpe = task.build_bpe(encoder(processor, tmp_path / "spm.model"))
    pieces = processor.encode(ENGLISH[0], out_type=str)
    assert bpe.encode(f"\u200e<2de> {ENGLISH[0]}").split() == ["<2de>", *pieces]
    assert bpe.encode("<2de> ") == ""  # nothing to translate
    for line in (f"<2fr> {ENGLISH[0]}", f"{ENGLISH[0]} <2de>", ""):
        assert bpe.encode(line).split() == processor.encode(line, out_type=str)


def test_spaces_before_a_line_are_no_tag_where_the_model_keeps_them() -> None:
    lines = ["    return a", "def f(a):", "        if a:  b", "    a = b"]
    processor = model_of(lines, remove_extra_whitespaces=False)
    sentences = [processor.encode(line, out_type=str) for line in lines]
    assert any(words[0].strip("\u2581") == "" for words in sentences)
    assert needs_normalizing(processor, sentences[:1], None) is False
    assert needs_normalizing(processor, sentences[1:2], None) is True
    words = Vocabulary([*SPECIAL, *words_of(processor)])
    for line, expected in zip(lines, sentences, strict=True):
        given = decoded(f"{line}\r\n".encode(), 2)
        assert pieces_of(given, words, processor, normalizes=False) == expected
    for blank in ("  ", "\t", "\u3000 "):
        for normalizes in (False, True):
            assert pieces_of(blank, words, processor, normalizes) == []


def test_tokens_and_lines_of_other_types_are_refused() -> None:
    translator = Translator(translation_model(), OPTIONS)
    for line in (["w1"], b"w1", None):
        with pytest.raises(TypeError, match=r"^line must be str, but is"):
            translator.pieces(line)
    for token in (-1, 20, 10**6):
        with pytest.raises(UserError, match=f"token {token} is not in the dictionary: it has 0 to"):
            translator.decode([5, token])
    with pytest.raises(TypeError):
        translator.decode("12")


def test_every_sentence_of_a_text_gets_its_tags(monkeypatch: pytest.MonkeyPatch) -> None:
    processor = model_of(ENGLISH)
    words = Vocabulary([*SPECIAL, *words_of(processor), "<2de>", "<2fr>", "<polite>"])
    model = fold(build(vocabulary=len(words)))

    def given_to_the_model(text: str, pieces: sentencepiece.SentencePieceProcessor | None) -> str:
        loaded = translation_model(model, words, pieces)
        translator = Translator(loaded, OPTIONS)
        monkeypatch.setattr(
            translator,
            "translate",
            lambda lines, **_: [[Translation(line, "", 0.0, [])] for line in lines],
        )
        (found,), _ = translate_texts(translator, [text])
        return found

    text = "The dog. A cat.\n<2de> <polite> The dog. A cat.\n\ufeff<2fr> A dog. It runs."
    expected = (
        "The dog. A cat.\n<2de> <polite> The dog. <2de> <polite> A cat.\n"
        "<2fr> A dog. <2fr> It runs."
    )
    assert given_to_the_model(text, processor) == expected
    assert given_to_the_model(text, None) == text
    halves = "The d\ud800g. A cat."
    assert given_to_the_model(halves, processor) == halves.replace("\ud800", "\ufffd")
    loaded = TranslationModel(model, "en", "de", words, words, processor)
    table: Any = SimpleNamespace(columns=["text"], __iter__=None)
    for wrong in ("A dog.", b"A dog.", table):
        with pytest.raises(TypeError, match="texts: expected a list of str, but got a"):
            translate_texts(Translator(loaded, OPTIONS), wrong)

    class Table(list[str]):
        """As of pandas, whose items are names of columns."""

        columns = ("text",)

    with pytest.raises(TypeError, match="lines: expected a list of str, but got a Table"):
        Translator(loaded, OPTIONS).translate(Table(["text"]))


@pytest.mark.parametrize(
    "line", ["\ufeff<2de> {}", "\u200e<2de>\u200b  {}", "<2de> \u2060<polite> {}", "\u2060{} <2de>"]
)
def test_invisible_signs_are_no_part_of_a_tag(line: str) -> None:
    processor = model_of(ENGLISH)
    words = Vocabulary([*SPECIAL, *words_of(processor), "<2de>", "<polite>"])
    line = line.format(ENGLISH[0])
    found = pieces_of(line, words, processor, normalizes=True)
    assert found == pieces_of(normalize(line), words, processor, normalizes=True)
    assert found[0] == normalize(line).split()[0] or line.endswith("<2de>")


GERMAN = ["„Über süßen Käse“ – größere Tür", "früher hören „Äpfel“ – süße Bäume", "größere Käse"]
HINDI = ["कुत्ता घास पर दौड़ता है", "बिल्ली लाल चटाई पर बैठी है"]
CHINESE = ["狗在草地上跑", "猫坐在红色的垫子上", "两只红猫在草地上"]


@pytest.mark.parametrize("text", [GERMAN, VIETNAMESE, HINDI, CHINESE], ids=lambda text: text[0])
def test_bytes_in_place_of_characters_are_refused(text: list[str]) -> None:
    """Their sentencepiece model splits raw text into characters, and would join no translation."""
    assert BCHAR_TO_BYTE.keys() == BYTES
    own = model_of([byte_encode(line) for line in text], 200)
    with pytest.raises(UserError, match="has the bytes of fairseq's --bpe byte_bpe or bytes"):
        is_of_subwords(Vocabulary([*SPECIAL, *words_of(own)]))
    latin = ["Été à 5 £ où ƒ naît", "größere süße Käse für früher"]
    for lines in (text, latin, [byte_encode(line) for line in ENGLISH]):
        assert is_of_subwords(Vocabulary([*SPECIAL, *words_of(model_of(lines, 200))]))


@pytest.mark.parametrize(
    ("lines", "rule", "is_told"),
    [
        (ENGLISH, "nmt_nfkc", True),
        (ENGLISH, None, True),
        (ENGLISH, "nmt_nfkc_cf", False),
        ([*ENGLISH, "I"], None, False),
        (["狗在跑", "12"], None, False),
        (["ძაღლი გარბის"], None, False),  # Georgian has capitals for whole words alone
    ],
)
def test_text_in_lower_case_is_warned_of(
    lines: list[str], rule: str | None, is_told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    processor = None if rule is None else model_of(ENGLISH, rule=rule)
    warn_of_lower_case(Path("bin"), (lines * 5)[:9], processor)  # which may be chance
    assert not caplog.records
    warn_of_lower_case(Path("bin"), lines * 10, processor)
    assert ("the text in bin is lower-cased: give lower-case input" in caplog.text) == is_told


def test_text_that_is_split_otherwise_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    doubts._warn_once.cache_clear()
    translator = Translator(translation_model(), OPTIONS)
    translator.translate(["w1 w2 w3 w4 a b", "w1 c d e"])
    assert not caplog.records
    for _ in range(2):
        translator.translate(["w1 a b c", "d e w1"])
    (told,) = caplog.messages
    assert told.startswith("most words of the input are not in the dictionary of en: give text")


def test_lines_of_which_the_model_knows_no_word_are_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    translator = Translator(translation_model(), OPTIONS)
    translator.translate(["w1", "a b", "a b", ""])
    (told,) = caplog.messages
    assert told.startswith("the model knows no word of 2 lines, the first of which begins with 'a ")


def test_doubtful_lines_of_a_run_are_told_of_at_once_and_at_its_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    loaded = translation_model()
    assert isinstance(loaded.model, EncoderDecoder)
    loaded.model.config = replace(loaded.model.config, longest_trained_source=3)
    lines = ["w1 w2 w3", "a b", "w1", "c", "w1 w2 w3 w4", "d", "w2"]
    for sizes in (2, 7):  # of the parts
        caplog.clear()
        found = list(Translator(loaded, OPTIONS).translate_iterable(lines, sizes))
        assert len(found) == len(lines)
        counts = [re.findall(r"^(a line|\d)|of (\d) line", text) for text in caplog.messages]
        told = [a or b for ((a, b),) in counts]
        assert told == (["a line", "1", "2", "3"] if sizes == 2 else ["2", "3"])
    assert "have up to 5 tokens" in caplog.text
    assert "begins with 'a b'" in caplog.text


def test_another_language_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """sentencepiece puts a space, which is known, before every unknown word."""
    doubts._warn_once.cache_clear()
    processor = model_of(ENGLISH)
    words = Vocabulary([*SPECIAL, *words_of(processor)])
    loaded = translation_model(None, words, processor)
    for text, told in (
        (ENGLISH[0], []),
        (
            f"Привет мир как дела друг мой {ENGLISH[0].split()[0]}",
            ["most words of the input are not in the dictionary of en: give text in en"],
        ),
    ):
        tokens = words.encode(pieces_of(text, words, processor, normalizes=True))
        doubts.Doubts(loaded).add([(text, tokens)])
        assert caplog.messages == told


def test_a_line_with_a_tag_may_be_unknown() -> None:
    processor = model_of(ENGLISH)
    words = Vocabulary([*SPECIAL, *words_of(processor), "<2de>"])
    loaded = translation_model(None, words, processor)
    for text, expected in (
        ("<2de> \u65e5", True),
        ("<2de> " + ENGLISH[0], False),
        ("<2de>", False),
    ):
        tokens = words.encode(pieces_of(text, words, processor, normalizes=True))
        assert subwords.is_unknown(text, tokens, loaded) is expected


def test_earlier_folders_are_normalised_and_wrong_values_are_refused(tmp_path: Path) -> None:
    model_folder.save(translation_model(), tmp_path / "model")
    (tmp_path / "model" / "SHA256SUMS").unlink()
    path = tmp_path / "model" / "config.json"
    written = path.read_text(encoding="utf-8")
    assert '"normalizes": true,' in written
    path.write_text(written.replace('"normalizes": true,', ""), encoding="utf-8")
    assert model_folder.load(tmp_path / "model").normalizes
    path.write_text(written.replace('"tags": []', '"tags": [1]'), encoding="utf-8")
    with pytest.raises(UserError, match=r"tags is \[1\], but must be a list of words"):
        model_folder.load(tmp_path / "model")
    path.write_text(written.replace('"normalizes": true,', '"normalizes": 1,'), encoding="utf-8")
    with pytest.raises(UserError, match=r"normalizes is 1, but must be of type bool"):
        model_folder.load(tmp_path / "model")


def test_fairseq_warns_of_a_larger_model_of_the_same_corpus(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """All words of the dictionary are its pieces, but it would make others, all unknown."""
    mend(text_input)
    syllables = ["".join(word) for word in itertools.product("bdfgk", "aeiou", "lmnrst", "aeiou")]
    lines = [" ".join(syllables[start::7]) for start in range(7)]
    small, large = model_of(lines, 60), model_of(lines, 120)
    right, wrong = (encoder(p, tmp_path / f"{len(p)}.model") for p in (small, large))
    # the target may have a model of its own
    task = task_of(tmp_path, words_of(small), ["\u2581Hund", "\u2581Katze"])
    text = ["balebale dulenu", "fitife kolulu gasobalu", "bale"]
    assert task.build_bpe(right).encode(text[0]).split() == small.encode(text[0], out_type=str)
    task.build_bpe(wrong)  # which may be of many languages
    binarise(tmp_path, task.source_dictionary, [small.encode(x, out_type=str) for x in text])
    task.build_bpe(right)
    assert not caplog.records
    task.build_bpe(wrong)
    assert f"splits the text in {tmp_path} in another way" in caplog.text
    caplog.clear()
    os.truncate(tmp_path / "valid.en-de.en.bin", 2)
    task.build_bpe(right)  # translates without that file
    assert "valid.en-de.en.bin is damaged" in caplog.text


def test_output_may_be_joined_with_the_model_of_the_target(tmp_path: Path) -> None:
    """As fairseq-generate does, which splits nothing."""
    mend(text_input)
    english, bengali = model_of(ENGLISH), model_of(BENGALI)
    task = task_of(tmp_path, words_of(english), words_of(bengali))
    bpe = task.build_bpe(encoder(bengali, tmp_path / "bn.model"))
    assert bpe.decode(" ".join(bengali.encode(BENGALI[0], out_type=str))) == BENGALI[0]
    with pytest.raises(UserError, match=r"bn.model is not the .* words in the dictionary of en"):
        bpe.encode(ENGLISH[0])
    with pytest.raises(UserError, match=r"vi.model is not the sentencepiece model"):
        task.build_bpe(encoder(model_of(VIETNAMESE), tmp_path / "vi.model"))


def test_words_are_looked_up_as_they_are_and_then_normalised() -> None:
    words = Vocabulary([*SPECIAL, "Café", "dogs", "word", "\u2581the", "a\u200b", "two", "words"])
    found = split_words("Cafe\u0301 dogs\u200b \xadword \u2581the a\u200b", words)
    assert found == ["Café", "dogs", "word", "\u2581the", "a\u200b"]
    assert split_words("two\u2800words two\u2800dog \u200b", words) == [
        "two",
        "words",
        "two\u2800dog",
    ]
    assert split_words("cat\u200b", words) == ["cat\u200b"]


def test_a_translator_looks_words_up_in_their_own_language() -> None:
    source, target = (
        Vocabulary([*SPECIAL, *(f"{letter}{number}" for number in range(16))]) for letter in "éà"
    )
    loaded = TranslationModel(fold(build()), "en", "de", source, target, None)
    translator = Translator(loaded, SearchOptions())
    line = unicodedata.normalize("NFD", "é1 à2")
    assert translator.pieces(line) == ["é1", unicodedata.normalize("NFD", "à2")]
    assert translator.pieces(line, target) == [unicodedata.normalize("NFD", "é1"), "à2"]
    (scored,) = translator.score_batch(["é1"], [line.split()[1]])
    assert scored.tokens == ["à2", "</s>"]
