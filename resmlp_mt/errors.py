"""The exception for mistakes that a user can mend."""


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
    """Whether memory ran out, in Python, PyTorch or ONNX Runtime, which may not be loaded."""
    words = "can't allocate memory", "Failed to allocate memory", "bad_alloc"
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or any(word in str(error) for word in words)
    )


def one_line(message: str) -> str:
    """Escape what cannot be printed, such as line breaks: a message may cite a damaged file."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)
