"""Lines as they come in, and what is written for each."""

import bz2
import gzip
import io
import lzma
import os
import re
import tarfile
import threading
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow
import pyarrow.parquet
import pytest
import torch
from fairseq_cli import interactive
from hypothesis import given
from hypothesis import strategies as st

from resmlp_mt.engine import lines as lines_module
from resmlp_mt.engine.lines import alignment, decoded, waiting_lines
from resmlp_mt.engine.translation import Translation
from resmlp_mt.errors import UserError
from resmlp_mt.fairseq_plugin import fairseq_fixes
from resmlp_mt.fairseq_plugin.wrapping import mend
from resmlp_mt.preparation.formats import TextFiles, pairs
from resmlp_mt.scoring.lines import read_lines


@given(st.lists(st.sampled_from(["", "a", "b c", "é", "x" * 70_000])), st.integers(1, 5))
def test_every_line_comes_once_and_in_order(lines: list[str], most: int) -> None:
    for end in ("", "\n") if lines and lines[-1] else ("\n",):
        text = "\n".join(lines) + end if lines else ""
        found = list(waiting_lines(io.BytesIO(text.encode()), most))
        assert [line for part in found for line in part] == lines
        assert all(0 < len(part) <= most for part in found)


def test_a_line_that_could_fill_the_memory_ends_the_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines_module, "LONGEST_LINE", 200_000)
    errors: list[OSError] = []
    text = b"one\n" + b"x" * 200_000 + b"\ntwo\n" + b"y" * 300_000 + b"\nthree\n"
    found = [line for lines in waiting_lines(io.BytesIO(text), 9, errors) for line in lines]
    assert found == ["one", "x" * 200_000, "two"]
    assert [error.strerror for error in errors] == ["a line is longer than 200000 bytes"]


@pytest.mark.parametrize(
    "encoding",
    [
        *("utf-16", "utf-16-be", "utf-32", "utf-32-be", "gzip"),
        *("utf-16-le, no mark", "utf-16-be, no mark", "utf-32-le, no mark"),
        "utf-16-le, no mark, Cyrillic",
    ],
)
def test_what_is_not_utf8_at_all_is_refused(encoding: str, tmp_path: Path) -> None:
    """Its bytes would be lines, but other ones."""
    text = "\ufeffРаз, два\n" if "Cyrillic" in encoding else "\ufeffone\ntwo\n"
    if encoding == "gzip":
        content, what = gzip.compress(text.encode()), "packed with gzip: unpack it with gunzip"
    else:
        name, comma, _ = encoding.partition(",")
        content = (text if name.endswith("be") and not comma else text[1:]).encode(name)
        what = "UTF-16 or UTF-32: convert it to UTF-8 with iconv"
    errors: list[OSError] = []
    assert list(waiting_lines(io.BytesIO(content), 9, errors)) == []
    assert [error.strerror for error in errors] == [f"it is {what}"]
    path = tmp_path / "input"
    path.write_bytes(content)
    mend(fairseq_fixes)
    with pytest.raises(UserError, match=f"--input {path} cannot be read: it is {what}"):
        list(interactive.buffered_read(str(path), 9))


PACKED = {
    "xz": lzma.compress(b"one"),
    "bzip2": bz2.compress(b"one"),
    "bzip2 -1": bz2.compress(b"one", 1),
    "zip": b"PK\3\4",
    "zstd": bytes.fromhex("28b52ffd04"),
    "lz4": bytes.fromhex("04224d1864"),
    "7z": bytes.fromhex("377abcaf271c"),
    "rar": b"Rar!\x1a\7",
}
DOCUMENTS = {
    "docx": b"PK\3\4" + bytes(26) + b"[Content_Types].xml",
    "odt": b"PK\3\4" + bytes(26) + b"mimetypeapplication/vnd.oasis.opendocument.text",
    "doc": bytes.fromhex("d0cf11e0a1b11ae1") + bytes(500),
    "rtf": b"{\\rtf1\\ansi one\n",
}


@pytest.mark.parametrize(
    "kind", [*PACKED, *DOCUMENTS, "tar", "tar of GNU", "parquet", "PDF", "one\rtwo\r", "a\rb\rc"]
)
def test_what_is_no_text_is_known_by_its_first_bytes(kind: str, tmp_path: Path) -> None:
    if kind.startswith("tar"):
        form = tarfile.PAX_FORMAT if kind == "tar" else tarfile.GNU_FORMAT
        content, what = tarfile.TarInfo("text").tobuf(form), "a tar archive: unpack it"
    elif kind in DOCUMENTS:
        content, what = DOCUMENTS[kind], "a document: take its text out"
    elif "\r" in kind:  # of Macs before 2001
        content, what = kind.encode(), "of lines that end in carriage returns alone: conver"
    elif kind == "PDF":
        content, what = b"%PDF-1.7\n", "a PDF: take its text out"
    elif kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.table({"text": ["one"]}), file := io.BytesIO())
        content, what = file.getvalue(), "parquet: take its text out, or name it .parquet for"
    else:
        content, what = PACKED[kind], "packed: unpack it"
    errors: list[OSError] = []
    assert list(waiting_lines(io.BytesIO(content), 9, errors)) == []
    assert [error.strerror[: len(what) + 6] for error in errors] == [f"it is {what}"]
    path = tmp_path / "text"
    path.write_bytes(content)
    for read in (read_lines, lambda name: list(pairs(TextFiles(path, path, "plain", "en", "de")))):
        with pytest.raises(UserError, match=re.escape(f"{path} is {what}")):
            read(str(path))


@pytest.mark.parametrize(
    "text",
    [
        "PAR1 is a receptor.",
        "PK",
        "BZh",
        *("7z is a packer.", "one\rtwo", "\r 10%|#|\r 20%|##|\rone"),
        *("a" * 257 + f"ustar{i}" for i in ("", "d", " d")),
    ],
)
def test_text_that_begins_like_another_file_is_text(text: str) -> None:
    assert decoded(text.encode(), 1) == text


@pytest.mark.parametrize("begun", [b"", b"the first half of"])
def test_lines_before_the_end_of_a_cut_file_are_read(begun: bytes) -> None:
    errors: list[OSError] = []
    packed = gzip.compress(b"one\ntwo\n" + begun)
    with gzip.open(io.BytesIO(packed[:-8])) as cut:
        assert list(waiting_lines(cast(BinaryIO, cut), 9, errors)) == [["one", "two"]]
    assert "end-of-stream" in str(errors[0])


def test_a_nul_byte_is_no_sign_of_another_encoding() -> None:
    for text in (b"\0\none\n", b"one\0two\n"):
        (found,) = waiting_lines(io.BytesIO(text), 9)
        assert found == text.decode().splitlines()
    assert decoded(b"\0\r\n", 1) == "\0"
    assert decoded(b"    a\t\r\n", 2) == "    a\t"  # some models keep spaces


def test_a_byte_order_mark_is_none_of_the_text() -> None:
    """A dictionary of words does not know the word with the mark, nor JSON the object."""
    (found,) = waiting_lines(io.BytesIO(b"\xef\xbb\xbf{}\n\xef\xbb\xbftwo\n"), 9)
    assert found == ["{}", "\ufefftwo"]


def test_what_waits_in_a_pipe_comes_together() -> None:
    reading, writing = os.pipe()
    heard = threading.Event()
    with open(reading, "rb") as stream:
        lines = waiting_lines(stream, 100)
        os.write(writing, b"one\ntwo\nthr")
        assert next(lines) == ["one", "two"]
        os.write(writing, b"ee\n")
        assert next(lines) == ["three"]
        last = threading.Thread(target=lambda: (heard.wait(), os.close(writing)))
        last.start()
        os.write(writing, b"four")
        heard.set()
        assert list(lines) == [["four"]]
        last.join()


def test_each_piece_is_aligned_with_what_it_attends_to_most() -> None:
    attention = torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.1, 0.4], [0.0, 0.0, 1.0]])
    found = Translation("a b", "a b", -1.0, [-1.0] * 3, attention)
    assert alignment(found) == [(1, 0), (0, 1)]
    assert alignment(found._replace(attention=torch.ones(1, 1))) == []
    assert alignment(found._replace(attention=None)) == []
