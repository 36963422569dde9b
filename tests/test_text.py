"""Text is prepared in the same way for training and for translation, and comes out whole."""

import io
import random
import sys
import unicodedata
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sentencepiece
from fairseq.data import Dictionary, data_utils
from fairseq.data.encoders.moses_tokenizer import MosesTokenizer, MosesTokenizerConfig
from fairseq.data.encoders.sentencepiece_bpe import SentencepieceBPE, SentencepieceConfig
from fairseq.hub_utils import GeneratorHubInterface
from fairseq.tasks.translation import TranslationConfig, TranslationTask
from hypothesis import example, given, settings
from hypothesis import strategies as st

from resmlp_mt.engine.translator import Translator
from resmlp_mt.engine.vocabulary import BOS, EOS, SPECIAL, Vocabulary
from resmlp_mt.errors import UserError
from resmlp_mt.fairseq_plugin import text_input
from resmlp_mt.fairseq_plugin.wrapping import mend
from resmlp_mt.preparation import normalization, subwords
from resmlp_mt.text import INVISIBLE as INVISIBLE_SIGN
from resmlp_mt.text import REPLACED, normalize
from tests import corpus_server

INVISIBLE = (
    "\x07\x1b\x7f\x80\x9f\xad\u034f\u061c\u180e\u200b\u200e\u202e\u2060\u2061\u2064\u2066\u206a\u206f"
    "\u3164\ufeff\uffa0\ufff9\ufffb"
)
SPACES = " \t\r\x0b\x0c\x1c\x85\xa0\u1680\u2003\u2028\u2029\u202f\u3000\u2800"
SIGNS = "aAe\u0301\u0308\u0323éß한\u1100\u1161\u200d\u2581\u2585\u212b" + INVISIBLE + SPACES
any_text = st.text(
    st.sampled_from(SIGNS) | st.characters(exclude_characters="\n", exclude_categories=["Cs"]),
    max_size=40,
)


@given(any_text)
@example("e\u200b\u0301")
@example("\u2000")
@example("\x00e\x00\u0301")
def test_normalize_is_a_projection_onto_clean_text(text: str) -> None:
    cleaned = normalize(text)
    assert normalize(cleaned) == cleaned
    assert unicodedata.is_normalized("NFC", cleaned)
    assert not set(cleaned) & {*INVISIBLE, *REPLACED, "\x00"}
    assert cleaned.split(" ") == cleaned.split() or cleaned == ""
    assert all(character == " " or not character.isspace() for character in cleaned)


def test_normalize_by_example() -> None:
    assert normalize("\ufeffCafe\u0301\xa0 au\u2028lait\x07 ") == "Café au lait"
    assert normalize("a\tb\x00c") == "a bc"
    assert normalize("a\u2581b \u2585") == "a_b \u2584"
    assert normalize("a\ud800 \udc00b") == "a\ufffd \ufffdb"
    fillers = "\u115f\u1160\u17b4\u17b5\U0001bca0\U0001d173"  # whatever stands beside them
    for sign in INVISIBLE + fillers:
        assert normalize(f"a{sign}b") == "ab", ascii(sign)
        assert normalize(f" {sign} ") == "", ascii(sign)
    assert normalize("a\u2800\u2800b\u2800") == "a b"
    # Tags hide text, except in the flags that are emoji.
    scotland, tags = "\U0001f3f4\U000e0067\U000e0062\U000e007f", "\U000e0001\U000e0067\U000e007f"
    assert normalize(f"a{tags} {scotland}{tags}") == f"a {scotland}"
    assert normalize("\U0001f3f4\U000e0067 \u2764\ufe0f") == "\U0001f3f4 \u2764\ufe0f"
    # The joiners belong to the spelling of some scripts.
    assert normalize("\u0645\u06cc\u200c\u062e\u0648") == "\u0645\u06cc\u200c\u062e\u0648"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    alphabet = "éèêÅäöüñçłßğệốữάϊЙёकक़ดが한국어 — the quick brown dog_▄"
    texts = folder / "en", folder / "de"
    for path in texts:
        path.write_bytes(corpus_server.lines([f"{alphabet} {alphabet[::-1]}"] * 20))
    subwords.train(
        texts,
        20,
        folder / "spm.model",
        vocab_size=120,
        subword_type="bpe",
        character_coverage=1.0,
        input_sentence_size=1000,
    )
    return folder / "spm.model"


@pytest.fixture(scope="module")
def processor(model: Path) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(model))


# Whole letters: a mark or the second half of a syllable may follow anything in a random text.
LETTERS = st.sampled_from("aeoyßłéèåäñçğǻệốữǖṩάΐϊᾷЙёїकक़가힣がパأئ\ufb2a\ufb49") | st.characters(
    categories=["L"], exclude_characters=[chr(code) for code in range(0x1160, 0x1200)]
)
WORDS = st.tuples(
    st.text(LETTERS, min_size=1, max_size=5),
    st.sampled_from(["NFC", "NFD"]),
    st.sampled_from(["", *INVISIBLE, *REPLACED]),
)


@settings(deadline=None)
@given(st.lists(st.tuples(WORDS, st.text(SPACES, max_size=2)), max_size=6))
def test_the_model_itself_prepares_what_people_write(
    processor: sentencepiece.SentencePieceProcessor,
    words: list[tuple[tuple[str, str, str], str]],
) -> None:
    """So spm_encode and every other tool does, too."""
    line = "".join(
        sign + unicodedata.normalize(form, text) + space for (text, form, sign), space in words
    )
    assert processor.normalize(line) == processor.normalize(normalize(line))
    assert processor.encode(line, out_type=str) == processor.encode(normalize(line), out_type=str)


def test_the_map_holds_every_composition() -> None:
    """Composed characters and what is canonically equal to one, by Unicode's own tables."""
    rules = normalization.rules()
    for character in map(chr, range(1, sys.maxunicode + 1)):
        decomposed = unicodedata.normalize("NFD", character)
        if decomposed != character or character.isspace() or INVISIBLE_SIGN.match(character):
            for text in (character, decomposed):
                mapped = normalization.apply(rules, text)
                assert f"q{mapped}q" == normalize(f"q{text}q"), ascii(text)
    latin = [
        "o\u0302\u0301",
        "ô\u0301",
        "a\u0302\u0323",
        "ạ\u0302",
        "â\u0323",
        "a\u0301\u0323",
        "e\u0331\u0301",
    ]
    for text in (*latin, "\u0651\u064e", "\u05bc\u05b7\u05c1"):
        assert normalization.apply(rules, text) == unicodedata.normalize("NFC", text), ascii(text)


def translator(processor: sentencepiece.SentencePieceProcessor) -> Translator:
    """The ways in and out of a translator, without a model."""
    pieces = [processor.id_to_piece(index) for index in range(len(processor))]
    words = Vocabulary([*SPECIAL, *(piece for piece in pieces if piece not in SPECIAL)])
    engine = Translator.__new__(Translator)
    loaded: Any = SimpleNamespace(
        sentencepiece=processor, normalizes=True, source=words, target=words
    )
    engine.loaded = loaded
    return engine


@settings(deadline=None)
@given(any_text)
@example("Two dogs run\xa0in the grass.")
@example("e\u200b\u0301\u0323\u00ad\u0302")
@example("half \ud83d of an emoji")
def test_the_engine_and_fairseq_prepare_any_text(model: Path, text: str) -> None:
    mend(text_input)
    mend(text_input)
    bpe = SentencepieceBPE(SentencepieceConfig(sentencepiece_model=str(model)))
    assert bpe.encode(text) == bpe.encode(normalize(text))
    assert bpe.encode(text).split() == bpe.sp.encode(normalize(text), out_type=str)
    engine = translator(bpe.sp)
    assert engine.encode(text) == engine.encode(normalize(text))


def test_fairseq_refuses_a_model_that_did_not_make_the_words(model: Path, tmp_path: Path) -> None:
    mend(text_input)
    own = sentencepiece.SentencePieceProcessor(model_file=str(model))
    words = Dictionary()
    for index in range(3, len(own)):
        words.add_symbol(own.id_to_piece(index))
    config = TranslationConfig(data=str(tmp_path), source_lang="en", target_lang="de")
    task = TranslationTask(config, words, words)
    arguments = Namespace(bpe="sentencepiece", sentencepiece_model=str(model))
    bpe = task.build_bpe(arguments)
    assert bpe.decode(bpe.encode("a word")) == "a word"

    other = tmp_path / "other.model"
    with other.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["零 一 二 三 四", "五 六 七 八 九"] * 20),
            model_writer=file,
            vocab_size=16,
            hard_vocab_limit=False,
            minloglevel=2,
        )
    arguments.sentencepiece_model = str(other)
    with pytest.raises(UserError, match=f"{other} is not the sentencepiece model .* of en are"):
        task.build_bpe(arguments)
    interface = Namespace(bpe=arguments, tokenizer=None, generation=Namespace(replace_unk=None))
    with pytest.raises(UserError, match=f"{other} is not the sentencepiece model"):
        GeneratorHubInterface(interface, task, [])


def test_raw_text_for_a_dictionary_of_pieces_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """fairseq-interactive without --bpe would translate nothing but unknown words."""
    mend(text_input)
    text_input._warn_of_unknown_words.cache_clear()
    words = Dictionary()
    for piece in ("\u2581the", "\u2581dog", "s", "\u2581"):
        words.add_symbol(piece)
    config = TranslationConfig(data="bin", source_lang="en", target_lang="de")
    task = TranslationTask(config, words, words)

    def given(*lines: str) -> str:
        tokens = [words.encode_line(line, add_if_not_exist=False).long() for line in lines]
        assert len(task.build_dataset_for_inference(tokens, [len(t) for t in tokens])) == len(lines)
        return caplog.text

    assert given("", "\u2581the \u2581dog s", "\u2581the cat") == ""
    message = "most words of the input are not in the en dictionary of bin: is it text in en"
    assert message in given("the dogs", "\u2581the", "a cat runs")
    assert given("the dogs run in the grass").count(message) == 1
    text_input._warn_of_unknown_words.cache_clear()
    assert given("\u2581 \u043c\u0438\u0440").count(message) == 1  # a name may be unknown
    assert given("\u2581 \u043c\u0438\u0440 " * 5).count(message) == 2  # as sentencepiece splits it


def test_text_is_normalised_before_it_is_tokenized() -> None:
    """As prepare.py does; the tokenizer splits at invisible characters."""
    mend(text_input)
    moses = MosesTokenizer(MosesTokenizerConfig(source_lang="en", target_lang="de"))
    for text in ("wo\u200brd \u2060it\u2060's", "Cafe\u0301-bar\u00ad.", "a\u2581b \ufeffe\u0301."):
        assert moses.encode(text) == moses.encode(normalize(text))
    unwrapped = MosesTokenizer.encode.__wrapped__
    assert moses.encode("wo\u200brd") == "word" != unwrapped(moses, "wo\u200brd")


KINDS: dict[str, dict[str, Any]] = {
    "unigram": {"model_type": "unigram", "vocab_size": 40},
    "bpe": {"model_type": "bpe", "vocab_size": 40},
    "char": {"model_type": "char", "vocab_size": 30},
    "word": {"model_type": "word", "vocab_size": 10},
    "bytes, bpe": {"model_type": "bpe", "byte_fallback": True, "vocab_size": 290},
    "bytes, unigram": {"model_type": "unigram", "byte_fallback": True, "vocab_size": 290},
    "user-defined symbols": {"user_defined_symbols": ["<sep>", "a b", "☃"], "vocab_size": 40},
    "white space at the end": {"treat_whitespace_as_suffix": True, "vocab_size": 40},
    "no dummy prefix": {"add_dummy_prefix": False, "model_type": "bpe", "vocab_size": 40},
    "spaces kept": {"remove_extra_whitespaces": False, "model_type": "bpe", "vocab_size": 40},
}


@pytest.mark.parametrize("kind", KINDS)
def test_text_comes_out_as_spm_decode_has_it(kind: str) -> None:
    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the dog runs in the grass", "ein Hund läuft, a cat sits"] * 50),
        model_writer=buffer,
        minloglevel=2,
        hard_vocab_limit=False,
        **KINDS[kind],
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=buffer.getvalue())
    engine = translator(processor)
    indices = engine.loaded.target.indices
    for line in ("the dog  runs", " läuft <sep> ☃ a b", "5 € 日本 the", ""):
        pieces = [piece for piece in processor.encode(line, out_type=str) if piece in indices]
        tokens = [BOS, *(indices[piece] for piece in pieces), EOS]
        assert engine.decode(tokens) == (processor.decode(pieces), " ".join(pieces))
    if "bytes" in kind:
        assert engine.decode(engine.encode("5 €"))[0] == "5 €"
        # A line of output stays one line.
        for end in ("<0x0A>", "<0x0D>"):
            tokens = [indices[piece] for piece in ("<0x35>", end, "<0x35>")]
            assert engine.decode(tokens)[0] == "5 5"


def test_remove_bpe_decodes_bytes_as_sentencepiece_does() -> None:
    """fairseq-generate and --eval-bleu have no model to decode with."""
    mend(text_input)
    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the dog runs in the grass"] * 50),
        model_writer=buffer,
        minloglevel=2,
        hard_vocab_limit=False,
        **KINDS["bytes, bpe"],
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=buffer.getvalue())

    def decoded(pieces: list[str]) -> str:
        return data_utils.post_process(" ".join(pieces), "sentencepiece")

    for line in ("5 €", "日本 the dog", "é", "x😀"):
        assert decoded(processor.encode(line, out_type=str)) == line
    assert decoded(["a", "<0x0A>", "<0x0D>", "b"]) == "a  b"
    assert decoded(["▁<", "0", "x41", ">", "<0x41>"]) == "<0x41>A"
    draw = random.Random(1)
    bytes_of_utf8 = [0x41, 0x7F, 0x80, 0xBF, 0xC3, 0xE0, 0xE2, 0x82, 0xAC, 0xED, 0xA0, 0xF0, 0x9F]
    for _ in range(500):
        pieces = [f"<0x{draw.choice(bytes_of_utf8):02X}>" for _ in range(draw.randint(1, 6))]
        assert decoded(["▁the", *pieces, "▁dog"]) == processor.decode(["▁the", *pieces, "▁dog"])
    assert data_utils.post_process("<0x41> @@b", "subword_nmt") == "<0x41> @@b"
