"""Damaged inputs: what is done to a good file, and how often."""

import io
import os
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

FEW = 20
"""Inputs of each target in `make test`."""
ALL = int(os.environ.get("FUZZ_INPUTS", 100_000))
"""Inputs of all targets together in `make test-all`; benchmarks/fuzz.py sets the variable."""

KINDS = ("flip", "put", "insert", "drop", "cut", "repeat", "number")
HEAD = 400  # bytes in which a file says what it is


class Edit(NamedTuple):
    """One change of a file's bytes, at a place that is taken modulo its length."""

    kind: str
    place: int
    in_head: bool
    content: bytes
    length: int


EDITS = st.lists(
    st.builds(
        Edit,
        st.sampled_from(KINDS),
        st.integers(0, 2**31),
        st.booleans(),
        st.binary(min_size=1, max_size=8) | st.sampled_from([b"\0" * 8, b"\xff" * 8, b"../", b"["]),
        st.integers(1, 64),
    ),
    min_size=1,
    max_size=4,
)


def damaged(content: bytes, edits: list[Edit]) -> bytes:
    """The bytes after the edits, one after the other."""
    for edit in edits:
        room = min(len(content), HEAD) if edit.in_head else len(content)
        place = edit.place % max(room, 1)
        before, after = content[:place], content[place:]
        if edit.kind == "flip" and after:
            content = before + bytes([after[0] ^ 1 << edit.length % 8]) + after[1:]
        elif edit.kind == "put":
            content = before + edit.content + after[len(edit.content) :]
        elif edit.kind == "insert":
            content = before + edit.content + after
        elif edit.kind == "drop":
            content = before + after[edit.length :]
        elif edit.kind == "cut":
            content = before
        elif edit.kind == "repeat":
            content = before + after[: edit.length] * (edit.length + 1) + after
        elif edit.kind == "number":  # what a text says of a size
            digits = len(after) - len(after.lstrip(b"0123456789"))
            content = before + str(10**edit.length).encode() + after[digits:]
    return content


def damaged_member(archive: bytes, suffix: str, edits: list[Edit]) -> bytes:
    """A zip archive of which one member is damaged, with the right checksum."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(out, "w") as new:
        for info in old.infolist():
            content = old.read(info)
            new.writestr(
                info.filename,
                damaged(content, edits) if info.filename.endswith(suffix) else content,
            )
    return out.getvalue()


def each(check: Callable[..., None], examples: int, *inputs: st.SearchStrategy[Any]) -> int:
    """Call a check with so many inputs, the same in every run; returns how many there were."""
    count = 0

    @settings(
        max_examples=examples, derandomize=True, deadline=None, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.tuples(*inputs))
    def once(drawn: tuple[Any, ...]) -> None:
        nonlocal count
        check(*drawn)
        count += 1

    once()
    return count
