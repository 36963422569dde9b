"""Text files as lists of sentences, read strictly."""

from dataclasses import dataclass
from pathlib import Path

from resmlp_mt.errors import UserError, reason
from resmlp_mt.standard_input import standard_input
from resmlp_mt.unpacking import opened, other_kind


@dataclass(frozen=True)
class Sentences:
    """One side of a corpus, in corpus order, and its origin.

    Attributes:
        lines: one sentence each.
        origin: the file, and the kind of its lines if it has several, for messages.
        unit: how the origin counts: "line" from 1, "sentence" (fairseq's ids) from 0.
    """

    lines: list[str]
    origin: str
    unit: str = "line"

    def place(self, index: int) -> str:
        """The place of the sentence at ``index``, as its file counts."""
        return f"{self.origin}, {self.unit} {index + (self.unit == 'line')}"


def read_lines(path: str) -> list[str]:
    """Read UTF-8 lines; "-" is standard input, ``.gz`` is unpacked.

    Only ``\\n`` ends a line. A byte order mark at the start and carriage returns at line ends are
    removed.

    Raises:
        UserError: naming the file, and the line where there is one, if the file cannot be read,
            is not valid UTF-8 or holds a NUL byte.
    """
    try:
        if path == "-":
            data = standard_input("give -i FILE").read()
        else:
            with opened(Path(path)) as file:
                data = file.read()
    except OSError as error:
        raise UserError(f"{path or repr(path)} cannot be read: {reason(error)}") from error
    name = "<stdin>" if path == "-" else path
    raw = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if not raw[-1]:
        raw.pop()
    if raw and (what := other_kind(raw[0])):
        raise UserError(f"{name} {what}")
    lines = []
    for number, line in enumerate(raw, start=1):
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{name}, line {number} is not valid UTF-8 ({error.reason} at byte "
                f"{error.start + 1}): convert the file to UTF-8"
            ) from error
        if "\0" in text:
            raise UserError(f"{name}, line {number} holds a NUL byte: {name} is not a text file")
        lines.append(text.removesuffix("\r"))
    return lines
