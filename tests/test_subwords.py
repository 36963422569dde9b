"""The sentencepiece model is found, and refused where it did not make the subwords."""

import io
import itertools
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from conftest import Corpus
from resmlp_mt import export
from resmlp_mt.engine import model_folder
from resmlp_mt.engine.subword_checks import (
    check_is_raw,
    check_pieces,
    check_splits,
    is_of_characters,
    is_of_subwords,
    splits_alike,
    warn_of_letters,
    warn_of_tokens,
)
from resmlp_mt.engine.subwords import decode_pieces, find_sentencepiece, read_sentencepiece
from resmlp_mt.engine.vocabulary import SPECIAL, Vocabulary
from resmlp_mt.errors import UserError
from resmlp_mt.fairseq_plugin import conversion
from resmlp_mt.fairseq_plugin.conversion import load_trained
from resmlp_mt.models import resmlp_mt  # noqa: F401  registers the architectures


@pytest.fixture(scope="module")
def another(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of another corpus, which shares letters and endings with the right one."""
    folder = tmp_path_factory.mktemp("another")
    words = "Haus Tür Fenster Straße gehen laufen sehen einsam zweifach dritte drei fliegen fünfzig"
    (folder / "text").write_text((" ".join(words.split()[::2]) + "\n" + words + "\n") * 40)
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"), model_prefix=str(folder / "spm"), vocab_size=60,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    return folder / "spm.model"


def test_the_model_beside_the_data_is_taken(corpus: Corpus, trained: Path, tmp_path: Path) -> None:
    loaded = load_trained(trained / "checkpoint_best.pt", corpus.data)
    assert loaded.sentencepiece is not None
    expected = read_sentencepiece(corpus.spm).serialized_model_proto()
    assert loaded.sentencepiece.serialized_model_proto() == expected
    assert find_sentencepiece(corpus.data) == corpus.spm
    (tmp_path / "spm.model").touch()
    assert find_sentencepiece(tmp_path) == tmp_path / "spm.model"  # in the folder itself
    assert find_sentencepiece(tmp_path / "none" / "bin") is None


def test_what_is_beside_the_data_is_found_from_inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin" / "below").mkdir(parents=True)
    (tmp_path / "spm.model").touch()
    manifest = {"options": {"tokenizer": "moses"}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    for folder, data in (("", "bin"), ("bin", "."), ("bin/below", "..")):
        monkeypatch.chdir(tmp_path / folder)
        found = find_sentencepiece(Path(data))
        assert found is not None
        assert found.samefile(tmp_path / "spm.model")
        with pytest.raises(UserError, match="--tokenizer moses"):
            check_is_raw(Path(data))


def test_a_model_that_is_not_there_is_asked_for(
    corpus: Corpus, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If there can be one: fairseq splits into characters without a model."""
    shutil.copytree(corpus.data, tmp_path / "bin")
    with pytest.raises(UserError, match=r"there is no spm.model beside .*give the .* made them.$"):
        load_trained(trained / "checkpoint_best.pt", tmp_path / "bin")
    monkeypatch.setattr(conversion, "is_of_characters", lambda _: True)
    with pytest.raises(UserError, match=r"; if fairseq's --bpe characters or bytes made them, whi"):
        load_trained(trained / "checkpoint_best.pt", tmp_path / "bin")


def test_characters_may_have_tags_beside_them() -> None:
    characters = ["\u2581", *"abcdefghijklmnopqrst", "<2de>", "madeupword0000"]
    assert is_of_characters(Vocabulary([*SPECIAL, *characters]))
    assert not is_of_characters(Vocabulary([*SPECIAL, *characters, "\u2581th", "er", "in"]))


def test_dictionaries_are_looked_at_even_if_there_is_a_model(
    corpus: Corpus, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    monkeypatch.setattr(conversion, "is_of_subwords", lambda words: seen.append(len(words)))
    loaded = load_trained(trained / "checkpoint_best.pt", corpus.data)
    assert seen == [len(loaded.source), len(loaded.target)]


def test_a_model_of_another_corpus_is_refused(
    corpus: Corpus, trained: Path, tmp_path: Path, another: Path
) -> None:
    checkpoint = trained / "checkpoint_best.pt"
    arguments = [str(checkpoint), "--data", str(corpus.data), "--out", str(tmp_path / "model")]
    with pytest.raises(UserError, match=r"is not the sentencepiece model .* \d+% of the words in"):
        export.main([*arguments, "--sentencepiece-model", str(another)])
    assert not (tmp_path / "model").exists()
    export.main(arguments)
    assert model_folder.load(tmp_path / "model").sentencepiece is not None
    shutil.copyfile(another, tmp_path / "model" / "sentencepiece.model")
    with pytest.raises(UserError, match="is not the sentencepiece model"):
        model_folder.load(tmp_path / "model")


def test_dictionaries_may_lack_pieces_and_have_marks_of_their_own(corpus: Corpus) -> None:
    processor = read_sentencepiece(corpus.spm)
    pieces = [processor.id_to_piece(index) for index in range(1, len(processor))]
    for words in (pieces, pieces[::3], [*pieces, "madeupword0000", "madeupword0001"], []):
        check_pieces(processor, corpus.spm, {"dict": Vocabulary([*SPECIAL, *words])})
    for words in (["xyz"], [*pieces, *(f"▁word{index}" for index in range(5))]):
        with pytest.raises(UserError, match=r"in dict.de.txt are its pieces"):
            check_pieces(
                processor,
                corpus.spm,
                {
                    "dict.en.txt": Vocabulary([*SPECIAL, *pieces]),
                    "dict.de.txt": Vocabulary([*SPECIAL, *words]),
                },
            )


def processor_of(pieces: int) -> sentencepiece.SentencePieceProcessor:
    """A model of one corpus, with more or fewer pieces."""
    buffer = io.BytesIO()
    words = ["".join(word) for word in itertools.product("bdfgk", "aeiou", "lmnrst", "aeiou")]
    lines = [" ".join(words[i::7]) for i in range(7)] * 3
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=buffer, vocab_size=pieces, model_type="bpe",
        minloglevel=2,
    )  # fmt: skip
    return sentencepiece.SentencePieceProcessor(model_proto=buffer.getvalue())


def test_a_larger_model_of_the_same_corpus_is_refused() -> None:
    small, large = processor_of(60), processor_of(120)
    words = Vocabulary([*SPECIAL, *(small.id_to_piece(i) for i in range(3, len(small)))])
    halves = {"en": Vocabulary(words.symbols[:40]), "de": Vocabulary(words.symbols[30:])}
    assert check_splits(small, Path("spm.model"), halves.values(), [], Path("bin"))
    check_pieces(large, Path("spm.model"), halves)  # all words are its pieces
    with pytest.raises(UserError, match="only 49% of its pieces are in the dictionaries"):
        check_splits(large, Path("spm.model"), halves.values(), [], Path("bin"))


def changed(path: Path, pieces: list[str], score: float) -> bytes:
    """A model with more pieces."""
    model = sentencepiece_model_pb2.ModelProto.FromString(path.read_bytes())
    there = {piece.piece for piece in model.pieces}
    for piece in dict.fromkeys(pieces):
        if piece not in there:
            model.pieces.add(piece=piece, score=score)
    return bytes(model.SerializeToString())


def test_the_text_decides_whether_a_model_is_right(
    corpus: Corpus, trained: Path, tmp_path: Path
) -> None:
    """That of many languages has pieces that are in no dictionary; another one has, too."""
    checkpoint, path = trained / "checkpoint_best.pt", tmp_path / "spm.model"
    path.write_bytes(changed(corpus.spm, [f"zz{number}" for number in range(300)], -99))
    loaded = load_trained(checkpoint, corpus.data, path)
    assert loaded.sentencepiece is not None
    assert len(loaded.sentencepiece) > 300
    words = " ".join(corpus.sentences("train", "en")[:9]).split()
    pairs = [a + b for word in words for a, b in itertools.pairwise(word)]
    path.write_bytes(changed(corpus.spm, pairs, 9))
    with pytest.raises(UserError, match=r"it splits the text in .* in another way; give the one"):
        load_trained(checkpoint, corpus.data, path)


def test_sentences_tell_how_they_were_split() -> None:
    small, large = processor_of(60), processor_of(120)
    text = ["balebale dulenu", "fitife kolulu gasobalu", "bale"]
    sentences = [small.encode(line, out_type=str) for line in text]
    assert splits_alike(small, sentences)
    assert splits_alike(small, [*sentences, ["<unk>", "e"], ["<2de>", *sentences[0]], []])
    assert splits_alike(large, sentences) is False
    assert splits_alike(small, [["<2de>", *sentences[0]], []])
    assert splits_alike(small, [["<unk>", *sentences[0]], []]) is None


@pytest.mark.parametrize("kind", ["control_symbols", "user_defined_symbols"])
def test_a_tag_before_a_sentence_is_no_other_split(kind: str) -> None:
    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the dog runs in the grass", "a cat sits on the red mat"] * 40),
        model_writer=buffer, vocab_size=60, hard_vocab_limit=False, minloglevel=2,
        **{kind: ["<2de>"]},
    )  # fmt: skip
    processor = sentencepiece.SentencePieceProcessor(model_proto=buffer.getvalue())
    lines = (["<2de>", *processor.encode(text, out_type=str)] for text in ("the dog", "a red cat"))
    assert splits_alike(processor, list(lines))


@pytest.mark.parametrize("kind", ["bpe", "unigram", "char", "word"])
def test_rare_characters_are_words_of_the_dictionary(kind: str) -> None:
    """sentencepiece leaves them as they are; those of a large text are more than its pieces."""
    plain = ["the dog runs in the grass", "a cat sits on the red mat", "two red cats run"] * 40
    rare = [f"the {chr(0x4E00 + number)} dog" for number in range(90)]
    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(plain), model_writer=buffer, vocab_size=60, model_type=kind,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    processor = sentencepiece.SentencePieceProcessor(model_proto=buffer.getvalue())
    pieces = [piece for line in [*plain, *rare] for piece in processor.encode(line, out_type=str)]
    words = Vocabulary([*SPECIAL, *dict.fromkeys(pieces)])
    check_pieces(processor, Path("spm.model"), {"en": words})
    if kind != "word":  # which does not know any word of another text
        other = Vocabulary([*SPECIAL, *(f"\u2581tread{i}" for i in range(9)), *words.symbols[4:]])
        with pytest.raises(UserError, match=r"\d+% of the words in en are its pieces"):
            check_pieces(processor, Path("spm.model"), {"en": other})


def test_two_models_are_not_taken_for_a_wrong_one(corpus: Corpus) -> None:
    processor = read_sentencepiece(corpus.spm)
    own = Vocabulary([*SPECIAL, *(processor.id_to_piece(i) for i in range(1, len(processor)))])
    other = Vocabulary([*SPECIAL, "\u2581three", "\u2581thirteen", "\u2581fours"])
    with pytest.raises(UserError, match=r"in de are its pieces; both languages need the same one"):
        check_pieces(processor, corpus.spm, {"en": own, "de": other})


def test_pieces_of_another_model_are_joined() -> None:
    """sentencepiece would print ``▁Hund▁e`` for what the other language's model made."""
    processor = processor_of(60)
    assert (
        decode_pieces(processor, ["\u2581Hund", "e", "\u2581<0xC3><0xA4>"]) == "Hunde <0xC3><0xA4>"
    )
    assert decode_pieces(processor, ["\u2581Hund", "<0xC3>", "<0xA4>"]) == "Hund\u00e4"
    for pieces in (["\u2581", "b", "<unk>"], ["\u2581", "\u2603", "<s>"], []):
        assert decode_pieces(processor, pieces) == processor.decode(pieces)


@pytest.mark.parametrize(
    ("word", "tool"),
    [
        ("{}ha@@", "subword-nmt"),
        ("##ing{}", "WordPiece"),
        ("\uffed{}", "OpenNMT's Tokenizer"),
        ("{}\uffed", "OpenNMT's Tokenizer"),
        ("{}low</w>", "the first byte-pair encoding"),
        ("\u0120the{}", "GPT-2"),
        ("@@ing{}", "subword-nmt"),
        ("the{}_EOW", "fairseq's _EOW"),
        ("_the{}", "fairseq's wordpiece"),
    ],
)
def test_subwords_of_other_tools_are_refused(word: str, tool: str) -> None:
    plain = [f"word{number}" for number in range(50)]
    assert not is_of_subwords(Vocabulary([*SPECIAL, *plain, word.format("")]))
    several = [word.format("x" * number) for number in range(20)]
    with pytest.raises(UserError, match=f"the dictionary has subwords of {tool} \\('"):
        is_of_subwords(Vocabulary([*SPECIAL, *plain, *several]))


def test_letters_and_an_end_of_words_are_told(caplog: pytest.LogCaptureFixture) -> None:
    letters = list("etaoinshrdlu")
    for words in (["e", "_EOW", *letters[1:]], ["th", "_EOW", "ing"]):
        with pytest.raises(UserError, match=r"has subwords with '_EOW' between words, but"):
            is_of_subwords(Vocabulary([*SPECIAL, *words]))
    plain = Vocabulary([*SPECIAL, *letters])
    for words in (letters, [*letters, "|"], ["|", "name", "Alice", "age"]):  # cells of tables
        warn_of_letters(Path("bin"), [plain, Vocabulary([*SPECIAL, *words])])
    assert not caplog.records
    bars = Vocabulary([*SPECIAL, *"()|pq&>"])  # logic, or spelt words
    assert not is_of_subwords(bars)
    warn_of_letters(Path("bin"), [plain, bars])
    (told,) = caplog.messages
    assert told.startswith("the dictionaries in bin have characters and '|': if '|' stands betwe")


def test_ids_of_other_tools_are_refused() -> None:
    ids = [str(number) for number in range(11, 50_000, 97)]
    with pytest.raises(UserError, match="the dictionary has numbers for words, such as the ids of"):
        is_of_subwords(Vocabulary([*SPECIAL, *ids, "<mask>", "madeupword0000"]))
    for words in (
        ids[:10],
        [str(n) for n in range(2000)],
        [*ids, *("word" * n for n in range(1, 60))],
    ):
        assert not is_of_subwords(Vocabulary([*SPECIAL, *words]))


def test_spaces_before_and_behind_are_of_sentencepiece() -> None:
    assert is_of_subwords(Vocabulary([*SPECIAL, "\u2581the"]))
    assert is_of_subwords(Vocabulary([*SPECIAL, "the\u2581"]))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"tokenizer": "moses"}, "--tokenizer moses"),
        ({"normalize_punctuation": True}, "--normalize-punctuation"),
        (
            {"tokenizer": "moses", "normalize_punctuation": True},
            "--tokenizer moses and --normalize-punctuation",
        ),
    ],
)
def test_text_that_was_tokenized_is_refused(
    tmp_path: Path, options: dict[str, object], named: str
) -> None:
    manifest = tmp_path / "manifest.json"
    check_is_raw(tmp_path / "bin")
    for text in ("{", "[]", '{"options": 3}', '{"options": {"tokenizer": "none"}}'):
        manifest.write_text(text, encoding="utf-8")
        check_is_raw(tmp_path / "bin")
    manifest.write_text(json.dumps({"options": options}), encoding="utf-8")
    with pytest.raises(UserError, match=f"was prepared with {named}, which an exported model"):
        check_is_raw(tmp_path / "bin")


@pytest.mark.parametrize(
    ("lines", "shown"),
    [
        (["Don &apos;t go , John ."], "20 of 20 sentences end in ' .', 20 hold Moses escapes"),
        (["the dog runs"] * 9 + ["a &quot; well-known &quot; dog"], "0 of 20 .* 2 hold Moses"),
        (["the dog runs ."], "20 of 20 sentences end in ' .'"),
        (["\u72d7 \u5728 \u8dd1 \u3002"], "20 of 20 sentences end in ' \u3002'"),
        (["Don't go, John."], ""),
        (["the dog runs"], ""),
        (["Well, he said &quot; no &quot; ."], ""),  # Moses would split the comma off
        (["It&apos;s &quot;fine&quot;."], ""),
    ],
)
def test_text_that_moses_tokenized_is_warned_of(
    caplog: pytest.LogCaptureFixture, lines: list[str], shown: str
) -> None:
    text = (lines * 20)[:20]
    warn_of_tokens(Path("bin"), text[:9])  # which may be chance
    warn_of_tokens(Path("bin"), [])
    assert not caplog.records
    warn_of_tokens(Path("bin"), [*text, ""])
    assert bool(caplog.records) == bool(shown)
    assert re.search(f"the text in bin was tokenized before \\({shown}", caplog.text) or not shown


def test_tokenized_text_is_exported_with_a_warning(
    corpus: Corpus,
    trained: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """With subwords and with words, and on either side."""
    earlier = Path(__file__).parent / "fixtures" / "resmlp_mt_0_1_0"
    for checkpoint, data, language, stop in (
        (trained / "checkpoint_best.pt", corpus.data, "en", ["\u2581", "."]),
        (trained / "checkpoint_best.pt", corpus.data, "de", ["\u2581", "."]),
        (earlier / "checkpoint.pt", earlier, None, ["."]),
    ):

        def sentences(*given: object, wanted: str | None = language, end: list[str] = stop) -> Any:
            return [["\u2581one", *end]] * 20 if wanted in (None, given[2]) else []

        monkeypatch.setattr(conversion, "some_sentences", sentences)
        caplog.clear()
        load_trained(checkpoint, data)
        assert "was tokenized before (20 of 20 sentences end in ' .'" in caplog.text
        assert ("is lower-cased" in caplog.text) == (language != "de")  # it is the source
    caplog.clear()
    monkeypatch.setattr(conversion, "some_sentences", lambda *_: [["1", "2"]] * 20)
    assert load_trained(earlier / "checkpoint.pt", earlier).sentencepiece is None
    assert "tokenized" not in caplog.text
