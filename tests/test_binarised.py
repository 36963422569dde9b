"""Damaged binarised text and dictionaries are named, whatever the damage is."""

import itertools
import logging
import random
import shutil
import signal
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fairseq.data import Dictionary, data_utils
from fairseq.data import dictionary as fairseq_dictionary
from fairseq.data.indexed_dataset import (
    IndexedRawTextDataset,
    MMapIndexedDataset,
    MMapIndexedDatasetBuilder,
)
from fairseq.file_chunker_utils import Chunker

from conftest import Corpus
from resmlp_mt.errors import UserError
from resmlp_mt.fairseq_plugin import binarised
from resmlp_mt.models import resmlp_mt  # noqa: F401  applies the remedies


@pytest.fixture
def data(corpus: Corpus, tmp_path: Path) -> Path:
    return Path(shutil.copytree(corpus.data, tmp_path / "bin"))


def load(data: Path) -> tuple[list[Any], list[str]]:
    """All sentences, and the symbols."""
    dictionary = Dictionary.load(str(data / "dict.en.txt"))
    prefix = str(data / "train.en-de.en")
    dataset = data_utils.load_indexed_dataset(prefix, dictionary, dataset_impl="mmap")
    return [dataset[index].tolist() for index in range(len(dataset))], dictionary.symbols


def test_what_fairseq_wrote_passes(data: Path) -> None:
    sentences, symbols = load(data)
    assert len(sentences) == 500
    assert max(map(max, sentences)) < len(symbols)


@pytest.mark.parametrize("name", ["train.en-de.en.idx", "train.en-de.en.bin", "dict.en.txt"])
@pytest.mark.parametrize("kind", ["flip", "cut", "empty", "longer", "zeros", "other"])
def test_damage_is_named_or_changes_single_words(data: Path, name: str, kind: str) -> None:
    """Whatever is read is in the dictionary; a word for another one cannot be told from text."""
    path = data / name
    whole, expected = path.read_bytes(), load(data)
    rng = random.Random(f"{name} {kind}")
    for _ in range(30 if kind == "flip" else 1):
        content = bytearray(whole)
        if kind == "flip":
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        content = {
            "flip": content, "cut": content[: len(content) // 2 + 1], "empty": bytearray(),
            "longer": content + b"x" * 100, "zeros": bytearray(len(content)),
            "other": bytearray(rng.randbytes(len(content))),
        }[kind]  # fmt: skip
        path.write_bytes(content)
        try:
            sentences, symbols = load(data)
        except UserError as error:
            found = str(error)
        else:
            found = str(path)
            assert [len(s) for s in sentences] == [len(s) for s in expected[0]]
            assert all(0 <= word < len(symbols) for sentence in sentences for word in sentence)
        assert str(data) in found
        assert "\n" not in found


def test_a_dictionary_that_is_too_short_is_told_by_the_words(data: Path) -> None:
    path = data / "dict.en.txt"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:5]))
    with pytest.raises(UserError, match=r"train\.en-de\.en\.bin is damaged .* dictionary has 9"):
        load(data)


def test_an_index_of_another_size_is_named(data: Path) -> None:
    path = data / "train.en-de.en.idx"
    content = path.read_bytes()
    path.write_bytes(content[:18] + np.uint64(10**12).tobytes() + content[26:])
    with pytest.raises(UserError, match=r"train\.en-de\.en\.idx is damaged or not what"):
        load(data)


LARGE = [2**29] * 3  # words of four bytes: the third sentence begins after 2**32


def large(folder: Path, sizes: list[Any]) -> str:
    """Binarised text of large sentences whose words are not in the file."""
    prefix = str(folder / "large")
    with MMapIndexedDataset.Index.writer(prefix + ".idx", np.int32) as index:
        index.write(sizes)
    Path(prefix + ".bin").touch()
    return prefix


def test_parts_beyond_two_gigabytes_are_put_together(tmp_path: Path) -> None:
    """As fairseq-preprocess does with --workers."""
    prefix = large(tmp_path, LARGE)
    builder = MMapIndexedDatasetBuilder(str(tmp_path / "all.bin"), dtype=np.int32)
    builder.merge_file_(prefix)
    builder.finalize(str(tmp_path / "all.idx"))
    starts = [start for start, _ in MMapIndexedDataset.Index(str(tmp_path / "all.idx"))]
    assert starts == [0, 2**31, 2**32]


def test_starts_that_were_counted_in_32_bits_are_told(tmp_path: Path) -> None:
    with np.errstate(over="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prefix = large(tmp_path, list(np.array(LARGE, np.int32)))
    with pytest.raises(UserError, match=r"large\.idx is damaged .* without --user-dir has counted"):
        binarised.check(prefix, None)


def test_a_look_at_some_sentences_is_not_logged(
    data: Path, corpus: Corpus, caplog: pytest.LogCaptureFixture
) -> None:
    """The log of a command tells how many sentences its own sets have."""
    words = Dictionary.load(str(data / "dict.de.txt"))
    with caplog.at_level(logging.INFO):
        found = binarised.some_sentences(data, ("en", "de"), "de", words)
    lines = (corpus.folder / "valid.spm.de").read_text().splitlines()
    assert [" ".join(sentence) for sentence in found] == lines
    assert not caplog.messages
    (data / "valid.en-de.de.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"valid\.en-de\.de\.bin is damaged"):
        binarised.some_sentences(data, ("en", "de"), "de", words)


TEXT = "a\rdog\n\nruns\r\n\u2028in\x0cthe\x85\n\r\ngrass\r\rand wider\n" * 3


@pytest.mark.parametrize("parts", [1, 2, 3, 7, 100])
def test_fairseq_ends_lines_of_text_at_line_feeds_alone(tmp_path: Path, parts: int) -> None:
    """As prepare.py and all other commands; a carriage return would shift all later sentences."""
    path = tmp_path / "text"
    path.write_bytes(TEXT.encode())
    offsets = fairseq_dictionary.find_offsets(str(path), parts)
    lines: list[str] = []
    for start, end in itertools.pairwise(offsets):
        if start < end:
            with Chunker(str(path), start, end) as part:
                lines += part
    assert "".join(lines) == TEXT
    assert len(lines) == TEXT.count("\n")
    assert len(IndexedRawTextDataset(str(path), Dictionary())) == len(lines)


def test_ctrl_c_does_not_reach_the_processes_of_workers() -> None:
    with fairseq_dictionary.Pool(1) as pool:
        assert pool.apply(signal.getsignal, (signal.SIGINT,)) == signal.SIG_IGN


@pytest.mark.parametrize("workers", [1, 2])
def test_text_that_is_not_utf8_is_named(tmp_path: Path, workers: int) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"a dog\n" * 10 + b"caf\xe9 noir\n" * 10)
    with pytest.raises(UserError, match="text is not valid UTF-8"):
        Dictionary.add_file_to_dictionary(str(path), Dictionary(), str.split, workers)
    with pytest.raises(UserError, match="text is not valid UTF-8"):
        IndexedRawTextDataset(str(path), Dictionary())
