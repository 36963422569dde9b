"""Lines as they come in, and what is written for each."""

import io
import os
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from resmlp_mt.engine import lines as lines_module
from resmlp_mt.engine.lines import alignment, waiting_lines
from resmlp_mt.engine.translation import Translation


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
    assert alignment(found._replace(attention=None)) is None
