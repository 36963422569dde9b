"""Every command reads what a program has put in the place of standard input."""

import ast
import codecs
import gzip
import io
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import chain, product
from pathlib import Path
from threading import Timer
from types import SimpleNamespace
from typing import Any

import pytest
from fairseq_cli import interactive
from sacrebleu.metrics import BLEU

from models import translation_model
from resmlp_mt import translate
from resmlp_mt.engine.lines import waiting_lines
from resmlp_mt.errors import UserError
from resmlp_mt.fairseq_plugin import fairseq_fixes
from resmlp_mt.fairseq_plugin.wrapping import mend
from resmlp_mt.standard_input import standard_input
from translations import score, write

LINES = ["w1 w2", "zwölf", "", "w3"]
TEXT = "\n".join(LINES)


class Lines:
    """The least that stock fairseq, which reads it with ``fileinput``, needs."""

    def __init__(self, text: str) -> None:
        self.readline = io.StringIO(text).readline


class Notebook(io.StringIO):
    """Text with an encoding, as in a notebook."""

    encoding = "utf-8"  # type: ignore[assignment]

    def isatty(self) -> bool:
        return False


def begun(stream: Any) -> Any:
    """A program has read the first line, and with it decoded all others."""
    assert stream.readline().strip() == "header"
    return stream


KINDS: dict[str, Callable[[str], Any]] = {
    "StringIO": io.StringIO,
    "BytesIO": lambda text: io.BytesIO(text.encode()),
    "file": lambda text: io.TextIOWrapper(io.BytesIO(text.encode()), encoding="utf-8"),
    "file in Latin-1": lambda text: io.TextIOWrapper(
        io.BytesIO(text.encode("latin-1")), encoding="latin-1"
    ),
    "file with a mark": lambda text: io.TextIOWrapper(
        io.BytesIO(text.encode("utf-8-sig")), encoding="utf-8-sig"
    ),
    "codec": lambda text: codecs.getreader("utf-8")(io.BytesIO(text.encode())),
    "codec in UTF-16": lambda text: codecs.getreader("utf-16")(io.BytesIO(text.encode("utf-16"))),
    "readline": Lines,
    "notebook": Notebook,
    "buffer": lambda text: SimpleNamespace(buffer=io.BytesIO(text.encode())),
    "StringIO, begun": lambda text: begun(io.StringIO("header\n" + text)),
    "file, begun": lambda text: begun(
        io.TextIOWrapper(io.BytesIO(b"header\n" + text.encode()), encoding="utf-8")
    ),
}


@pytest.fixture(autouse=True)
def mended() -> None:
    """As in a command, where fairseq-interactive is loaded before the plugin."""
    mend(fairseq_fixes)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_read(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for text in (TEXT, TEXT + "\r\n", "x" * 9000 + "\nö\n" * 5000, ""):
        expected = [line.strip() for line in text.splitlines()]
        stdin = KINDS[kind](text)
        monkeypatch.setattr(sys, "stdin", stdin)
        batches = list(interactive.buffered_read("-", 3))
        assert list(chain(*batches)) == expected
        assert all(len(batch) == 3 for batch in batches[:-1])
        assert not getattr(stdin, "closed", False)


def test_a_line_is_not_held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chat gets the answer to a line before it is asked for the next one."""
    answered: list[str] = []
    waiting = ["one\n", "two\n", ""]

    def readline() -> str:
        assert len(waiting) == 3 - len(answered)
        return waiting.pop(0)

    monkeypatch.setattr(sys, "stdin", SimpleNamespace(readline=readline))
    for batch in interactive.buffered_read("-", 1):
        answered += batch
    assert answered == ["one", "two"]


def test_wrong_characters_are_replaced(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\nt\ud800wo\nfi\udcffve\n"))
    lines = [line for (line,) in interactive.buffered_read("-", 1)]
    assert [set(line) - set("onetwfive") for line in lines] == [set(), {"\ufffd"}, {"\ufffd"}]
    assert [message[:6] for message in caplog.messages] == ["line 2", "line 3"]
    # one wrong byte of a file that a program has begun to read
    file = io.TextIOWrapper(io.BytesIO(b"header\nfi\xffve\n"), "ascii", "surrogateescape")
    monkeypatch.setattr(sys, "stdin", begun(file))
    assert list(interactive.buffered_read("-", 1)) == [["fi\ufffdve"]]


def test_what_waits_in_a_pipe_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after a program has begun to read it: its other end may wait for the answer."""
    reading, writing = os.pipe()
    with os.fdopen(reading, encoding="utf-8") as stdin, os.fdopen(writing, "wb") as other:
        other.write(b"header\none\n")
        other.flush()
        monkeypatch.setattr(sys, "stdin", begun(stdin))
        assert standard_input("").fileno() == reading
    monkeypatch.setattr(sys, "stdin", Lines("one\n"))
    with pytest.raises(io.UnsupportedOperation):
        standard_input("").fileno()


def test_a_pause_is_not_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program that started this one may have set its pipe to non-blocking."""
    readers: list[Callable[[Any], list[str]]] = [
        lambda stream: list(chain(*waiting_lines(stream, 10))),
        lambda stream: stream.read().decode().splitlines(),
        lambda stream: [line.decode().strip() for line in stream],
    ]
    for reader, is_begun in product(readers, (False, True)):
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        with os.fdopen(reading, encoding="utf-8") as stdin, os.fdopen(writing, "wb") as other:
            other.write(b"header\n" * is_begun)
            other.flush()
            monkeypatch.setattr(sys, "stdin", begun(stdin) if is_begun else stdin)
            later = Timer(0.2, lambda other=other: (other.write(b"one\ntwo\n"), other.close()))
            later.start()
            assert reader(standard_input("")) == ["one", "two"]
            later.join()


@pytest.mark.parametrize("kind", KINDS)
def test_score_and_translate_read_it_too(
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "stdin", KINDS[kind](TEXT))
    references = ["w1 w2", "zwölf", "x", "w4"]
    report = score("--ref", write(tmp_path / "ref", references), "-m", "bleu", path=tmp_path / "r")
    expected = BLEU().corpus_score(LINES, [references]).score
    assert report["scores"][0]["score"] == pytest.approx(expected)
    monkeypatch.setattr(translate, "load", lambda args: translation_model())
    stdin = KINDS[kind](TEXT)
    monkeypatch.setattr(sys, "stdin", stdin)
    capsys.readouterr()
    translate.main([str(tmp_path), "--print-scores"])
    out = capsys.readouterr().out
    assert [line.split("\t")[0] for line in out.splitlines()] == [f"D-{n}" for n in range(4)]
    assert not getattr(stdin, "closed", False)


def test_closed_input_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    mend(fairseq_fixes)
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UserError, match=r"^standard input is closed: give --input FILE\.$"):
        next(iter(interactive.buffered_read("-", 1)))
    with pytest.raises(UserError, match=r"^standard input is closed: give -i FILE\.$"):
        score("--ref", "x", path=Path("report"))


def test_the_locale_does_not_matter() -> None:
    """Only a program that replaces the stream chooses its encoding."""
    program = "from resmlp_mt.standard_input import *; print(ascii(standard_input('').read()))"
    found = subprocess.run(
        [sys.executable, "-c", program],
        input="zwölf".encode(),
        capture_output=True,
        env={"PYTHONIOENCODING": "latin-1", "PYTHONPATH": str(Path(translate.__file__).parents[1])},
        check=True,
    )
    assert ast.literal_eval(found.stdout.decode()) == "zwölf".encode()


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_input_that_grows_with_the_output_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of ``--input a.txt >> a.txt``, which never ended, and ``< a.txt >> a.txt``."""
    path = tmp_path / name
    content = gzip.compress(b"w1\n") if name.endswith("gz") else b"w1\n"
    path.write_bytes(content)
    monkeypatch.setattr(translate, "load", lambda args: translation_model())
    with path.open("a") as output, path.open() as given:
        monkeypatch.setattr(sys, "stdout", output)
        monkeypatch.setattr(sys, "stdin", given)
        with pytest.raises(UserError, match=rf"^--input .*/{name} is also standard output: choose"):
            translate.main(["--input", str(path)])
        with pytest.raises(UserError, match=r"^standard input is also standard output: choose"):
            translate.main([])
        for read, named in ((str(path), f"--input {path}"), ("-", "standard input")):
            with pytest.raises(UserError, match=rf"^{named} is also standard output"):
                list(fairseq_fixes._buffered_read(print, read, 1))
        translate.main(["--output", str(tmp_path / "b.txt"), "--input", str(path)])
    assert path.read_bytes() == content
    with (tmp_path / "c.txt").open("a") as output:
        monkeypatch.setattr(sys, "stdout", output)
        translate.main(["--input", str(path)])
    assert (tmp_path / "c.txt").read_text() == (tmp_path / "b.txt").read_text() != ""
