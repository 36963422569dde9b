"""Subwords: lossless pieces, a fairseq dictionary that fits, no collision with special symbols."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import sentencepiece

from resmlp_mt.errors import UserError
from resmlp_mt.preparation import subwords, text_blocks
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
        UserError, match=r"--vocab-size 30000 is too large .* at most (\d+)"
    ) as error:
        train(texts, tmp_path / "m", 30000)
    train(texts, tmp_path / "m", int(str(error.value).split()[-1]))
    for size in (1, 3, 10):
        with pytest.raises(
            UserError, match=rf"--vocab-size {size} is smaller than the number of characters"
        ):
            train(texts, tmp_path / "n", size)
    assert not (tmp_path / "n").exists()


def test_the_trainer_that_is_killed_needs_a_smaller_sample(
    tmp_path: Path, texts: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is one process: fewer of them would not help."""

    def killed(option: str, *_: object) -> None:
        raise UserError(option)

    monkeypatch.setattr(subwords, "run_in_process", killed)
    with pytest.raises(UserError, match="--input-sentence-size"):
        train(texts, tmp_path / "m", 150)


def test_the_sample_is_spread_evenly(tmp_path: Path) -> None:
    paths = tmp_path / "a", tmp_path / "b"
    for path in paths:
        path.write_bytes(corpus_server.lines([f"{path.name}{n}" for n in range(10)]))
    for take, numbers in ((4, (2, 4, 7, 9)), (10, range(10))):
        subwords._write_sample(tmp_path / "sample", paths, 10, take)
        expected = corpus_server.lines([f"{name}{n}" for name in "ab" for n in numbers])
        assert (tmp_path / "sample").read_bytes() == expected


@pytest.mark.parametrize("sentences", [1_000_000, 300])
def test_bpe_learns_from_word_counts_what_it_learns_from_sentences(
    tmp_path: Path, texts: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, sentences: int
) -> None:
    """Pieces and scores, with all sentences and with a sample, in blocks of any size."""
    monkeypatch.setattr(text_blocks, "BLOCK", 3000)
    monkeypatch.setattr(text_blocks, "PIECE", 700)
    subwords.train(
        texts,
        400,
        tmp_path / "m",
        vocab_size=200,
        subword_type="bpe",
        character_coverage=0.99,
        input_sentence_size=sentences,
    )
    (tmp_path / subwords.RULES).write_text("A0\t20\n")
    subwords._write_sample(tmp_path / subwords.SENTENCES, texts, 400, min(400, sentences // 2))
    options = {"model_type": "bpe", "vocab_size": 200, "character_coverage": 0.99}
    serialized = subwords._train(tmp_path, options)
    models = [
        sentencepiece.SentencePieceProcessor(**source)
        for source in ({"model_file": str(tmp_path / "m")}, {"model_proto": serialized})
    ]
    pieces = [[(m.id_to_piece(i), m.get_score(i)) for i in range(len(m))] for m in models]
    assert pieces[0] == pieces[1]
