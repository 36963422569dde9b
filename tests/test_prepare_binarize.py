"""Binary files: byte for byte those of fairseq-preprocess, whatever their size."""

from __future__ import annotations

import filecmp
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from fairseq import options
from fairseq.data import Dictionary, indexed_dataset
from fairseq.tasks.translation import TranslationConfig, TranslationTask
from fairseq_cli import preprocess
from hypothesis import given, settings
from hypothesis import strategies as st

from resmlp_mt.preparation import binarize, subwords, text_blocks
from resmlp_mt.preparation.binarize import Encoder, Sampling
from tests import corpus_server

LANGUAGES = ("en", "de")
PAIRS = {"train": 400, "valid": 20, "test": 7}


def sentences(seed: int, count: int) -> list[str]:
    """Also pieces that are spelt like fairseq's special symbols, and unknown characters."""
    draw = random.Random(seed)
    words = ["".join(draw.choices("abcdefghijklmnoäßéø", k=draw.randint(1, 6))) for _ in range(300)]
    extra = ["x<s>y", "<pad>", "<unk>", "</s>", "日本x語", "→"]
    return [" ".join([*draw.choices(words, k=8), draw.choice(extra)]) for _ in range(count)]


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cleaned text and a model; `kind` says of which type."""
    out = tmp_path_factory.mktemp(request.param)
    (out / "text").mkdir()
    (out / ".steps").mkdir()
    for split, count in PAIRS.items():
        for number, lang in enumerate(LANGUAGES):
            text = sentences(number, count)
            text[-1] = "" if split != "train" else text[-1]
            (out / "text" / f"{split}.{lang}").write_bytes(corpus_server.lines(text))
    (out / "kind").write_text(request.param)
    subwords.train(
        (out / "text/train.en", out / "text/train.de"),
        PAIRS["train"],
        out / "spm.model",
        vocab_size=190,
        subword_type=request.param,
        character_coverage=0.995,
        input_sentence_size=1000,
    )
    return out


def run(out: Path, sampling: Sampling = Sampling(), jobs: int = 1) -> dict[str, Any]:  # noqa: B008
    kind = (out / "kind").read_text()
    return binarize.binarize(
        out, LANGUAGES, list(PAIRS), subword_type=kind, sampling=sampling, jobs=jobs
    )


def files(out: Path, copies: int = 0) -> set[Path]:
    return set(binarize.outputs(out, LANGUAGES, list(PAIRS), copies))


def read(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").split("\n")[:-1]


def fairseq_preprocess(out: Path, dictionary: Path, target: Path) -> None:
    """fairseq-preprocess on the pieces that spm_encode makes."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(out / "spm.model"))
    target.mkdir()
    for split in PAIRS:
        for lang in LANGUAGES:
            pieces = processor.encode(read(out / "text" / f"{split}.{lang}"), out_type=str)
            text = corpus_server.lines([" ".join(line) for line in pieces])
            (target / f"{split}.{lang}").write_bytes(text)
    command = ["--source-lang", "en", "--target-lang", "de", "--joined-dictionary"]
    command += ["--srcdict", str(dictionary), "--destdir", str(target / "bin"), "--workers", "1"]
    for split in PAIRS:
        command += [f"--{split}pref", str(target / split)]
    preprocess.main(options.get_preprocessing_parser().parse_args(command))
    for handler in list(preprocess.logger.handlers):
        preprocess.logger.removeHandler(handler)
        handler.close()


def test_the_files_are_those_of_fairseq_preprocess(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_blocks, "BLOCK", 5000)
    monkeypatch.setattr(text_blocks, "PIECE", 900)
    found = run(folder)
    fairseq_preprocess(folder, folder / "dict.txt", tmp_path / "fairseq")
    theirs = sorted(path.name for path in (tmp_path / "fairseq/bin").glob("*.en-de.*"))
    ours = sorted(path.name for path in (folder / "bin").glob("*.en-de.*"))
    assert theirs == ours
    assert len(ours) == 2 * 2 * len(PAIRS)
    for name in theirs:
        assert filecmp.cmp(tmp_path / "fairseq/bin" / name, folder / "bin" / name, shallow=False)
    assert files(folder) == {folder / "dict.txt", *(folder / "bin").iterdir()}
    assert found["tokens"]["bin/train.en-de.en"]["unknown"] > 0
    # The next run, with other blocks and processes, gives the same.
    before = {path.name: path.read_bytes() for path in (folder / "bin").iterdir()}
    monkeypatch.undo()
    run(folder, jobs=2)
    assert {path.name: path.read_bytes() for path in (folder / "bin").iterdir()} == before
    assert not list((folder / ".steps").iterdir())


def test_the_dictionary_has_every_piece_with_its_count(folder: Path) -> None:
    run(folder)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spm.model"))
    counts: Counter[str] = Counter()
    for lang in LANGUAGES:
        for line in processor.encode(read(folder / "text" / f"train.{lang}"), out_type=str):
            counts.update(line)
    dictionary = Dictionary.load(str(folder / "bin/dict.en.txt"))
    pieces = [processor.id_to_piece(index) for index in range(4, len(processor))]
    assert sorted(dictionary.symbols[4:]) == sorted(pieces)
    assert {piece: dictionary.count[dictionary.index(piece)] for piece in pieces} == {
        piece: counts[piece] for piece in pieces
    }
    assert dictionary.count[4:] == sorted(dictionary.count[4:], reverse=True)
    assert filecmp.cmp(folder / "bin/dict.en.txt", folder / "bin/dict.de.txt", shallow=False)


@pytest.mark.parametrize("entries", [65499, 65500, 70000])
def test_tokens_have_fairseqs_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entries: int
) -> None:
    monkeypatch.setattr(binarize, "INDEX_BLOCK", 2)
    dtype = binarize.token_type(entries)
    assert dtype == indexed_dataset.best_fitting_int_dtype(entries)
    # Ids of a model with so many pieces, in two parts, through a permutation.
    draw = np.random.default_rng(1)
    indices = np.concatenate([[3, 0, 2, 1], 4 + draw.permutation(entries - 4)])
    lines = [draw.integers(4, entries, size).tolist() for size in (5, 1, 0, 300)]
    parts = [tmp_path / "a", tmp_path / "b"]
    for path, some in zip(parts, (lines[:2], lines[2:]), strict=True):
        np.array([i for line in some for i in (*line, subwords.EOS)], dtype=dtype).tofile(path)
    files = binarize.join(parts, indices, tmp_path / "ours")
    builder = indexed_dataset.MMapIndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=dtype)
    import torch

    for line in lines:
        builder.add_item(torch.tensor([*indices[line], 2]))
    builder.finalize(str(tmp_path / "theirs.idx"))
    for path in files:
        assert path.read_bytes() == path.with_name(f"theirs{path.suffix}").read_bytes()


@pytest.mark.parametrize("block", [7, 1 << 20])
def test_more_than_two_gib_of_tokens_are_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    """With a sparse file: only the last sentence has been written."""
    monkeypatch.setattr(binarize, "INDEX_BLOCK", block)
    size, count = 1 << 20, 1100
    sizes = np.full(count, size, dtype=np.int32)
    last = np.arange(size, dtype=np.uint16)
    with open(tmp_path / "x.bin", "wb") as file:
        file.seek(2 * size * (count - 1))
        file.write(last.tobytes())
    assert (tmp_path / "x.bin").stat().st_size > 2**31
    with open(tmp_path / "x.idx", "wb") as file:
        binarize.write_index(file, sizes, np.uint16)
    index = indexed_dataset.MMapIndexedDataset.Index(str(tmp_path / "x.idx"))
    assert index[count - 1] == (2 * size * (count - 1), size)
    with open(tmp_path / "x.bin", "rb") as file:
        file.seek(index[count - 1][0])
        assert file.read() == last.tobytes()


@settings(deadline=None, max_examples=50)
@given(st.lists(st.text("ab cdäß日→<s>", max_size=30).map(lambda x: " ".join(x.split()))))
def test_words_have_the_pieces_that_they_have_in_their_line(
    model: sentencepiece.SentencePieceProcessor, lines: list[str]
) -> None:
    text = "".join(f"{line}\n" for line in lines)
    encoder = Encoder(model, "bpe", 0.1)
    assert encoder.by_words
    expected = [i for line in model.encode(lines) for i in (*line, subwords.EOS)]
    assert encoder(text).tolist() == expected
    # Words that are remembered, and words that were forgotten for want of room.
    assert encoder(text).tolist() == expected


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> sentencepiece.SentencePieceProcessor:
    path = tmp_path_factory.mktemp("model")
    for lang in LANGUAGES:
        (path / lang).write_bytes(corpus_server.lines(sentences(1, 200)))
    subwords.train(
        (path / "en", path / "de"),
        200,
        path / "m",
        vocab_size=150,
        subword_type="bpe",
        character_coverage=0.99,
        input_sentence_size=1000,
    )
    return sentencepiece.SentencePieceProcessor(model_file=str(path / "m"))


def test_forgetting_words_changes_nothing(
    model: sentencepiece.SentencePieceProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = sentences(3, 100)
    expected = [i for line in model.encode(lines) for i in (*line, subwords.EOS)]
    monkeypatch.setattr(binarize, "KNOWN_WORDS", 60)
    encoder = Encoder(model, "bpe", 0.1)
    found = [i for line in lines for i in encoder(f"{line}\n").tolist()]
    assert found == expected
    assert len(encoder.known) <= 60 + 20


def test_samples_are_one_text_in_different_pieces(folder: Path) -> None:
    plain = run(folder)
    found = run(folder, Sampling(3, 0.2))
    assert files(folder, 3) - files(folder) == {
        *(folder / "bin2").iterdir(),
        *(folder / "bin3").iterdir(),
    }
    # fairseq-train takes one folder in each epoch, and valid from the first.
    folders = [folder / "bin", folder / "bin2", folder / "bin3"]
    config = TranslationConfig(
        data=":".join(map(str, folders)),
        source_lang="en",
        target_lang="de",
        dataset_impl=None,
        train_subset="train",
    )
    task = TranslationTask.setup_task(config)
    texts, pieces = [], []
    for epoch in range(1, 5):
        task.load_dataset("train", epoch=epoch)
        lines = [task.datasets["train"][i]["target"] for i in range(PAIRS["train"])]
        texts.append([task.tgt_dict.string(line, "sentencepiece") for line in lines])
        pieces.append([line.tolist() for line in lines])
    task.load_dataset("valid", epoch=2)
    assert len(task.datasets["valid"]) == PAIRS["valid"]
    assert texts[0] == texts[1] == texts[2]
    assert pieces[0] == pieces[3]
    assert pieces[0] != pieces[1] != pieces[2] != pieces[0]
    assert (
        found["tokens"]["bin2/train.en-de.en"]["pieces"]
        > 1.05 * (plain["tokens"]["bin/train.en-de.en"]["pieces"])
    )
    # Valid and test are never sampled.
    assert found["tokens"]["bin/test.en-de.en"] == plain["tokens"]["bin/test.en-de.en"]
