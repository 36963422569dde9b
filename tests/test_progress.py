"""How far the translation of a file is, for those who wait at a terminal."""

import gzip
import io
import logging
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import BinaryIO, cast

import pytest

from resmlp_mt import translate
from resmlp_mt.engine import progress


@pytest.mark.parametrize(
    ("content", "lines"), [(b"", 0), (b"a\n", 1), (b"a\n\nb", 3), (b"skipped\na\nb\n", 2)]
)
def test_it_counts_the_lines_of_a_file_without_reading_on(
    content: bytes, lines: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "text").write_bytes(content)
    with (tmp_path / "text").open("rb") as stream, caplog.at_level(logging.INFO):
        if content.startswith(b"skipped"):
            stream.readline()
        place = stream.tell()
        shown = progress.Progress(stream)
        shown.end()
        assert stream.tell() == place
        assert caplog.messages == [f"0 of {lines} lines are translated"]


def test_it_is_told_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    path = tmp_path / "text.gz"
    path.write_bytes(gzip.compress(b"a\n" * 9))
    with gzip.open(path) as packed, caplog.at_level(logging.INFO):
        shown = progress.Progress(cast(BinaryIO, packed))
        for now in (1.0, 2.0, 7.0, 8.0):  # noqa: B007  the clock reads it
            shown.add(500)
        shown.reach(2048)
        shown.end()
    assert caplog.messages == ["1,500 lines are translated", "2,048 lines are translated"]


def test_it_is_of_files_alone(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        assert not progress.is_file(pipe)
    assert not progress.is_file(io.BytesIO(b"a\n"))
    (tmp_path / "text").touch()
    with (tmp_path / "text").open("rb") as stream:
        assert progress.is_file(stream)


@pytest.mark.parametrize("options", [(), ("--split-sentences",)], ids=str)
@pytest.mark.parametrize("how", ["--input", "<", "not at a terminal"])
def test_a_terminal_shows_it_after_each_batch(
    how: str, options: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    path = tmp_path / "text.en"
    path.write_text("Hello.\n\nWhere is it?\nI am here.\n")
    monkeypatch.setattr(progress, "PAUSE", 0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: how != "not at a terminal", raising=False)
    with path.open("rb") as stream:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=stream))
        given = ["--input", str(path)] if how == "--input" else []
        translate.main([*given, *options, "--batch-size", "2", "--beam", "1"])
    if how == "not at a terminal":
        told = []
    elif options:
        told = [f"{number} sentences are translated" for number in (2, 3, 3, 3)]
    else:
        told = [f"{number} of 4 lines are translated" for number in (2, 3, 4, 4)]
    assert caplog.messages == told
