"""The exception that a user is meant to read."""


class UserError(SystemExit, ValueError):
    """A mistake in the options, the data or the surroundings.

    A ValueError for Python code; for a command one sentence on stderr and exit status 1. The
    message names the file or option, what was expected and what to do.
    """
