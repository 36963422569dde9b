"""The exception for mistakes that a user can mend."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: words of PyTorch, ONNX Runtime and the system, in errors without a type of their own
NO_MEMORY = (
    "can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED",
    "Failed to allocate memory", "bad_alloc", "Cannot allocate memory", "failed to map segment",
)  # fmt: skip


class UserError(ValueError):
    """A mistake in the options, the data or the environment.

    The message is one sentence that names the file or option, what was expected and what to do.
    A command prints it to standard error and exits with status 1.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def reason(error: BaseException) -> str:
    """What an error says: the system's words without the name of the file, or the first line."""
    lines = str(error).strip().splitlines()
    return str(getattr(error, "strerror", None) or next(iter(lines), type(error).__name__))


def is_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, in Python, PyTorch or ONNX Runtime, which may not be loaded.

    A :class:`UserError` never counts: where it is about memory, it has said so and what to do.
    """
    return not isinstance(error, UserError) and (
        isinstance(error, MemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or type(error).__name__ == "OutOfMemoryError"
        or any(text in str(error) for text in NO_MEMORY)
    )


@contextmanager
def refused(sentence: Callable[[Exception], str], *kinds: type[Exception]) -> Iterator[None]:
    """In the block, errors become a :class:`UserError`, except where memory ran out.

    Args:
        sentence: the message for an error.
        kinds: of these errors; a :class:`UserError` is never changed.
    """
    try:
        yield
    except kinds as error:
        if isinstance(error, UserError) or is_of_memory(error):
            raise
        raise UserError(sentence(error)) from error


def check_current_folder() -> None:
    """Refuse a current folder that was removed: libraries of PyTorch would end the process.

    Raises:
        UserError: if it was.
    """
    with refused(lambda _: "the current folder was removed: change to another.", FileNotFoundError):
        os.getcwd()


def one_line(message: str) -> str:
    """Escape what cannot be printed, such as line breaks: a message may cite a damaged file."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)
