"""The one exception that a user is meant to read."""


class DataError(Exception):
    """A mistake in the input, the options or the surroundings.

    The message is one sentence that names the file or option, what was expected and what to do.
    `prepare.py` prints it without a traceback and exits with status 1.
    """
