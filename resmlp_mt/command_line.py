"""What all commands have in common.

Only the standard library is imported here, so that ``--help`` and ``--version`` answer at once,
even if an extra is not installed.
"""

import argparse
import difflib
import errno
import functools
import importlib.util
import inspect
import io
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import MISSING, field, fields
from pathlib import Path
from typing import Any, NoReturn, ParamSpec, TypeVar, get_args

import resmlp_mt
from resmlp_mt.errors import UserError, check_current_folder, is_of_memory, reason
from resmlp_mt.extras import installation, missing
from resmlp_mt.files import expanded
from resmlp_mt.other_programs import answers
from resmlp_mt.signals import discard, forget_lost_terminal, handle, reader_is_gone, restore

P = ParamSpec("P")
T = TypeVar("T")


class Parser(argparse.ArgumentParser):
    """A parser with ``--version``, defaults in ``--help``, and suggestions for unknown options.

    Args:
        module: what ``python -m`` runs; if its console script was used, the help names that.
        description: what the command does.
        needs: packages that the command does nothing without; the end of ``--help``, and an
            error after parsing, name the extra of the first one that is not installed.
        options: of ``argparse.ArgumentParser``; ``prog`` for what is not run by ``python -m``.
    """

    def __init__(
        self, module: str, description: str, needs: Sequence[str] = (), **options: Any
    ) -> None:
        lacking = [name for name in needs if importlib.util.find_spec(name) is None]
        self.missing = f"{lacking[0]} is missing: run {installation(lacking[0])}" if lacking else ""
        script = Path(sys.argv[0]).name
        program = script if script.startswith("resmlp-") else f"python -m {module}"
        options = {"prog": program, "formatter_class": DefaultsFormatter, **options}
        super().__init__(description=description, epilog=self.missing or None, **options)
        self.options: list[str] = []  # the command line, up to --
        # a value, as in --unkpen -1e-3: argparse takes all but plain numbers for options
        self._negative_number_matcher = re.compile(r"-(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$")
        self.add_argument(
            "--version", action="version", version=f"resmlp_mt {resmlp_mt.__version__}"
        )

    def add_options(self, kind: type) -> None:
        """Add the options that a dataclass declares with :func:`option`.

        It is one group of ``--help``, and so is each of its bases, with the first line of its
        docstring as the title.
        """
        for part in reversed(kind.__mro__):
            hints = inspect.get_annotations(part)
            own = [entry for entry in fields(part) if entry.name in hints] if hints else []
            title = (part.__doc__ or "").partition("\n")[0].rstrip(".")
            group = self.add_argument_group(title) if own else self
            for entry in own:
                keywords = dict(entry.metadata["keywords"])
                if entry.default_factory is not MISSING:
                    keywords["default"] = entry.default_factory()
                elif entry.default is not MISSING:
                    keywords["default"] = entry.default
                kinds = {hints[entry.name], *get_args(hints[entry.name])}
                if Path in kinds:
                    keywords.setdefault("type", expanded)
                elif "choices" not in keywords and (names := kinds & METAVARS.keys()):
                    keywords.setdefault("metavar", METAVARS[names.pop()])
                others = entry.metadata["names"]
                if any(not other.startswith("-") for other in others):
                    group.add_argument(*others, **keywords)
                    continue
                keywords |= {"dest": entry.name, "required": "default" not in keywords}
                group.add_argument(*flags(entry.name), *others, **keywords)

    def check_packages(self) -> None:
        """Check that all needed packages are installed.

        Raises:
            UserError: naming the missing extra.
        """
        if self.missing:
            raise UserError(f"{self.prog}: {self.missing}.")

    def refuse(self, origin: str, *tables: str) -> None:
        """Answer options that people know from other commands, and that this one lacks.

        Args:
            origin: the other command.
            tables: of ``other_programs.toml``, with what there is instead of these options.
        """
        for names, instead in (pair for table in tables for pair in answers(table).items()):
            self.add_argument(
                *names.split(),
                action=_Refused,
                nargs="*",
                const=f"an option of {origin}: {instead}",
                default=argparse.SUPPRESS,
                help=argparse.SUPPRESS,
            )

    def _get_option_tuples(self, option_string: str) -> list[Any]:
        """The options that a text may abbreviate.

        Refused options count only if no others match, and a long one has four letters: --k is not
        --keep-init, but -sen is -s.
        """
        found = super()._get_option_tuples(option_string)
        own = [each for each in found if not isinstance(each[0], _Refused)]
        too_short = option_string.startswith("--") and len(option_string.partition("=")[0]) < 6
        return own or ([] if too_short else found)

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """As argparse does it; options may be spelt with underscores, as in other programs.

        Raises:
            UserError: as :meth:`check_packages`.
        """
        return self._all(self.parse_known_args(self.hyphenated(args), namespace))

    def parse_intermixed_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """The same, with positional arguments anywhere among the options."""
        return self._all(self.parse_known_intermixed_args(self.hyphenated(args), namespace))

    def _all(self, parsed: tuple[argparse.Namespace, list[str]]) -> argparse.Namespace:
        found, unknown = parsed
        if unknown:
            self.error(self.unrecognized(unknown))
        check_current_folder()
        self.check_packages()
        return found

    def hyphenated(self, args: Sequence[Any] | None = None) -> list[str]:
        """A command line, by default this process's, with hyphens for underscores in options.

        Words may also be paths and numbers, from a program.

        Raises:
            TypeError: if it is a single text, or has anything else.
        """
        if isinstance(args, str):
            raise TypeError(f"expected a list of words, but got a str: write {shlex.split(args)}.")
        given = sys.argv[1:] if args is None else args
        words = [str(w) if isinstance(w, int | float) else os.fsdecode(w) for w in given]
        end = words.index("--") if "--" in words else len(words)
        self.options = [*map(self._with_hyphens, words[:end])]
        if any("\0" in word for word in words):
            self.error("no argument may have a NUL in it: only a program can give one")
        return [*self.options, *words[end:]]

    def error(self, message: str) -> NoReturn:
        """End with status 2; where an argument is missing, a misspelt option may be the reason."""
        known = self._option_string_actions
        options = (word for word in self.options if word.startswith("--"))
        unknown = [
            word
            for word in options
            if word.partition("=")[0] not in known and not self._get_option_tuples(word)
        ]
        if unknown and "are required: " in message:
            message += f"; {self.unrecognized(unknown)}"
        super().error(message)

    def _with_hyphens(self, word: str) -> str:
        name, equals, value = word.partition("=")
        if name.startswith("--"):
            return name.replace("_", "-") + equals + value
        known = self._option_string_actions
        if name.startswith("-") and len(name) > 2 and name not in known and f"-{name}" in known:
            self.error(f"{name} has one hyphen: did you mean -{name}?")  # not -i with a value
        return word

    def unrecognized(self, words: Sequence[str]) -> str:
        """The message for words that no option takes, with the most similar option.

        A file among them is probably the input.
        """
        message = f"unrecognized arguments: {shlex.join(words)}"
        actions = [action for action in self._actions if not isinstance(action, _Refused)]
        known = [name for action in actions for name in action.option_strings]
        names = {name.strip("-"): name for name in known}  # dashes would make all alike
        for word in words:
            close = difflib.get_close_matches(word.partition("=")[0].strip("-"), names, n=1)
            if word.startswith("-") and close:
                return f"{message}; did you mean {names[close[0]]}?"
            if "--input" in known and not word.startswith("-") and os.path.isfile(word):
                return f"{message}; did you mean --input {shlex.quote(word)}?"
        return message


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A question with the most similar names; empty if there are none."""
    close = difflib.get_close_matches(name, [*dict.fromkeys(known)], n=3, cutoff=0.7)
    return f" (did you mean {' or '.join(close)}?)" if close else ""


def flag(name: str) -> str:
    """The option for a field of a dataclass of options."""
    return "--" + name.replace("_", "-")


SHORT = {"input": ("-i",), "output": ("-o", "--out")}
"""More names of options that many commands have."""


def flags(name: str) -> tuple[str, ...]:
    """All names that an option has in every command."""
    return (flag(name), *SHORT.get(name, ()))


METAVARS: dict[type, str] = {int: "N", float: "X"}  # in --help, if nothing else is said


def option(default: Any, *names: str, **keywords: Any) -> Any:
    """A field of a dataclass of options; see :meth:`Parser.add_options`.

    Args:
        default: of the field and the option; ``...`` if the option must be given.
        names: more names of the option, such as ``-b``; a name without a hyphen makes it a
            positional argument.
        keywords: arguments of ``add_argument``; a bool field gets ``--name`` and ``--no-name``, and
            a field for a path its type if none is given.
    """
    if isinstance(default, bool):
        keywords.setdefault("action", argparse.BooleanOptionalAction)
    metadata = {"names": names, "keywords": keywords}
    if default is ...:
        return field(metadata=metadata)
    if isinstance(default, dict | list):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def switch(text: str, *names: str) -> Any:
    """A field of a dataclass of options that is off unless the option is given, without ``--no-``.

    Args:
        text: its help.
        names: more names of the option.
    """
    return option(False, *names, action="store_true", help=text)


class _Refused(argparse.Action):
    def __call__(
        self, parser: argparse.ArgumentParser, _: object, values: object, option: str | None = None
    ) -> NoReturn:
        parser.error(f"{option} is {self.const}")


class DefaultsFormatter(argparse.HelpFormatter):
    """Shows every default, except those that say nothing or are in the text already."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        silent = action.default in (None, argparse.SUPPRESS, [], {}) or "default" in text
        is_flag = action.nargs == 0 and action.default is False
        return text if silent or is_flag else f"{text} (default: %(default)s)"


class CommandError(SystemExit, UserError):
    """The end of a command because of a :class:`UserError`, which Python prints, with status 1.

    A program that calls a command's ``main`` may catch it as a ``UserError``.
    """


def command(main: Callable[P, T]) -> Callable[P, T]:
    """Decorates the ``main`` of a command: output is UTF-8, and errors are one sentence.

    If a package is missing, the error names the extra that installs it. Ctrl-C ends the command
    with status 130, SIGTERM with 143 and SIGHUP with 129, and they leave no temporary files.
    """

    @functools.wraps(main)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        if sys.stderr is None:  # closed; messages have nowhere to go, results do
            sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        for stream, errors in ((sys.stdout, "surrogateescape"), (sys.stderr, "backslashreplace")):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(encoding="utf-8", errors=errors)
                with suppress(OSError):  # in memory
                    os.set_blocking(stream.fileno(), True)  # else lines are lost on a full pipe
        before = handle(_terminate, {signal.SIGTERM, signal.SIGHUP})
        try:
            try:
                result = main(*args, **kwargs)
                _flush()
                return result
            except ModuleNotFoundError as error:
                raise missing(error) from error
            except OSError as error:
                if error.filename is not None:
                    raise UserError(f"{error.filename} cannot be used: {reason(error)}.") from error
                if error.errno == errno.ENOENT:  # of os.getcwd, or of tempfile
                    check_current_folder()
                    if "temporary directory" in reason(error):
                        remedy = "set TMPDIR to a folder that can be written"
                        raise UserError(f"{reason(error)}: {remedy}.") from error
                if error.errno in UNWRITABLE:
                    if reader_is_gone(2):  # the results are not at fault
                        _flush()
                        sys.exit(128 + signal.SIGPIPE)
                    _flush("\n")  # raises as well if it was standard output
                raise
            except SystemExit:  # of --help
                _flush()
                raise
            except KeyboardInterrupt:
                forget_lost_terminal(signal.SIGINT)
                sys.exit(128 + signal.SIGINT)
        except CommandError:
            raise
        except UserError as error:
            raise CommandError(str(error)) from error
        except Exception as error:
            if is_of_memory(error):
                raise CommandError(f"there is not enough memory: {reason(error)}.") from error
            raise
        finally:
            if reader_is_gone(2):
                discard(2)  # else Python would fail at its end, with status 120
            restore(before)

    return run


def _terminate(number: int, _: object) -> NoReturn:
    forget_lost_terminal(number)
    # unwinds the stack, so that temporary files are removed and other processes end
    sys.exit(128 + number)


UNWRITABLE = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EPIPE, errno.ECONNRESET, errno.EAGAIN,
    errno.EBADF, errno.ESTALE,
)  # fmt: skip
"""Errors of ``print``, which name no file."""


def _flush(text: str = "") -> None:
    """Write what is left of standard output, and ``text``.

    Raises:
        UserError: if it cannot be written, such as on a full disk.
    """
    try:
        if sys.stdout is not None:
            sys.stdout.write(text)
            sys.stdout.flush()
    except OSError as error:
        discard(sys.stdout.fileno())  # Python would try again
        if isinstance(error, BrokenPipeError):  # `... | head` is not an error
            sys.exit(128 + signal.SIGPIPE)
        raise UserError(f"standard output cannot be written: {error.strerror}.") from error
