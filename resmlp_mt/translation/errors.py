"""Mistakes of the user; a module of its own because translating needs no fairseq."""


class OptionError(SystemExit, ValueError):
    """A wrong option: a ValueError for Python code; one sentence and exit status 1 for commands."""
