"""Subwords: lossless pieces, a fairseq dictionary that fits, no collision with special symbols."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
import sentencepiece
from fairseq.data import Dictionary

import subwords
from errors import DataError
from tests import corpus_server


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("text")
    paths = folder / "train.en", folder / "train.de"
    draw = random.Random(1)
    words = ["".join(draw.choices("abcdefghijklmnoäßéø", k=draw.randint(1, 6))) for _ in range(300)]
    for path in paths:
        # Text full of what looks like special symbols must not make pieces of these names.
        sentences = [
            f"{' '.join(draw.choices(words, k=8))} <pad> <s>x</s> <unk><pad>" for _ in range(400)
        ]
        path.write_bytes(corpus_server.lines(sentences))
    return paths


def train(texts: tuple[Path, Path], model: Path, vocab_size: int, kind: str = "bpe") -> None:
    subwords.train(
        texts,
        400,
        model,
        vocab_size=vocab_size,
        subword_type=kind,
        character_coverage=1.0,
        input_sentence_size=1_000_000,
    )


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_pieces_dictionary_and_fairseq_agree(
    tmp_path: Path, texts: tuple[Path, Path], kind: str
) -> None:
    model = tmp_path / "spm.model"
    train(texts, model, 180, kind)
    outputs = tmp_path / "train.en", tmp_path / "train.de"
    counts = subwords.encode(model, texts, outputs)
    entries = subwords.write_dictionary(model, counts, tmp_path / "dict.txt")
    assert entries == 180 - 4
    # fairseq refuses a dictionary with a piece twice, or with one named like a special symbol.
    dictionary = Dictionary.load(str(tmp_path / "dict.txt"))
    assert len(dictionary) == 180
    encoded = [output.read_text(encoding="utf-8").splitlines() for output in outputs]
    pieces = Counter(piece for side in encoded for line in side for piece in line.split(" "))
    assert counts == pieces
    assert {symbol: dictionary.count[dictionary.index(symbol)] for symbol in pieces} == pieces
    assert dictionary.count[4:] == sorted(dictionary.count[4:], reverse=True)
    for text, lines in zip(texts, encoded, strict=True):
        for sentence, line in zip(
            text.read_text(encoding="utf-8").splitlines(), lines, strict=True
        ):
            ids = dictionary.encode_line(line, add_if_not_exist=False, append_eos=False)
            assert dictionary.unk() not in ids
            # fairseq's --remove-bpe sentencepiece gives the text back, unchanged.
            assert dictionary.string(ids, bpe_symbol="sentencepiece") == sentence


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_the_model_is_the_same_each_time(
    tmp_path: Path, texts: tuple[Path, Path], kind: str
) -> None:
    for name in ("a", "b"):
        train(texts, tmp_path / name, 150, kind)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_nothing_is_normalised_on_the_way(tmp_path: Path, texts: tuple[Path, Path]) -> None:
    train(texts, tmp_path / "m", 150)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "m"))
    assert "".join(processor.encode("½ ﬁ…", out_type=str)) == "▁½▁ﬁ…"


def test_a_vocabulary_too_large_for_the_text_says_how_large_it_may_be(
    tmp_path: Path, texts: tuple[Path, Path]
) -> None:
    with pytest.raises(
        DataError, match=r"--vocab-size 30000 is too large .* at most (\d+)"
    ) as error:
        train(texts, tmp_path / "m", 30000)
    train(texts, tmp_path / "m", int(str(error.value).split()[-1]))
    for size in (1, 3, 10):
        with pytest.raises(
            DataError, match=rf"--vocab-size {size} is smaller than the number of characters"
        ):
            train(texts, tmp_path / "n", size)
    assert not (tmp_path / "n").exists()


def test_the_sample_is_spread_evenly(tmp_path: Path) -> None:
    paths = tmp_path / "a", tmp_path / "b"
    for path in paths:
        path.write_bytes(corpus_server.lines([f"{path.name}{n}" for n in range(10)]))
    assert list(subwords._sample(paths, 10, 4)) == [
        f"{name}{n}" for name in "ab" for n in (2, 4, 7, 9)
    ]
    assert len(list(subwords._sample(paths, 10, 10))) == 20


def test_shards_together_are_the_whole(tmp_path: Path, texts: tuple[Path, Path]) -> None:
    model = tmp_path / "m"
    train(texts, model, 150)
    whole = tmp_path / "whole.en", tmp_path / "whole.de"
    total = subwords.encode(model, texts, whole)
    parts: Counter[str] = Counter()
    content = [b"", b""]
    for start in range(0, 400, 150):
        shard = tmp_path / f"{start}.en", tmp_path / f"{start}.de"
        parts += subwords.encode(model, texts, shard, start=start, count=150)
        content = [old + path.read_bytes() for old, path in zip(content, shard, strict=True)]
    assert content == [path.read_bytes() for path in whole]
    assert parts == total
