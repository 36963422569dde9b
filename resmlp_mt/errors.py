"""The exception for mistakes that a user can mend."""


class UserError(SystemExit, ValueError):
    """A mistake in the options, the data or the environment.

    The message is one sentence that names the file or option, what was expected and what to do.
    A command that does not catch it prints the message to standard error and exits with status 1;
    Python code can catch it as a ``ValueError``.
    """
