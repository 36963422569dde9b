"""What the fairseq commands print.

fairseq calls its libraries in outdated ways, and the libraries warn of it at every start. One of
its modules sets the root logger to DEBUG, so that other libraries report what they do. Neither is
shown; all other warnings and messages are.

A missing file or option, and what fairseq asserts of the options, is shown as one sentence, without
a traceback. Ctrl-C and a closed pipe end a command in silence.
"""

import io
import json
import logging
import os
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue

from resmlp_mt.command_line import flag
from resmlp_mt.errors import UserError, is_of_memory, one_line, reason
from resmlp_mt.fairseq_plugin.continue_command import command, is_of_hydra
from resmlp_mt.fairseq_plugin.wrapping import Original, is_command, remedy
from resmlp_mt.signals import reader_is_gone

KNOWN: tuple[tuple[str, type[Warning]], ...] = (
    # hydra, about the calls in fairseq.dataclass.initialize and .utils
    (r"hydra\.experimental\.(initialize|compose)\(\) is no longer experimental", UserWarning),
    (r"\s*The version_base parameter is not specified", UserWarning),
    (r"In '.*': Usage of deprecated keyword in package header", UserWarning),
    (r"\s*'config' is validated against ConfigStore schema", UserWarning),
    (r"\s*The strict flag in the compose API is deprecated", UserWarning),
    # PyTorch, about the calls in fairseq.tasks and .optim, and batches on a machine without a GPU
    (r"`torch\.cuda\.amp\.\w+\(args\.\.\.\)` is deprecated", FutureWarning),
    (r"'pin_memory' argument is set as true but no accelerator is found", UserWarning),
)
"""Beginnings of the warnings that are not shown, as regular expressions."""


def quieten() -> None:
    """Show no more than fairseq's own messages.

    ``LOGLEVEL``, fairseq's variable, still chooses their level.
    """
    for message, category in KNOWN:
        warnings.filterwarnings("ignore", message, category)
    root = logging.getLogger()
    formats = [getattr(handler.formatter, "_fmt", None) for handler in root.handlers]
    # as fairseq.models.wav2vec.wav2vec2_classification leaves it
    if root.level == logging.DEBUG and formats == [logging.BASIC_FORMAT]:
        chosen = os.environ.get("LOGLEVEL", "INFO").upper()
        root.setLevel(logging.getLevelNamesMapping().get(chosen, logging.INFO))


def write_utf8() -> None:
    """Read and write translations in UTF-8, whatever the locale, as all other commands do."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        # not in a notebook, or where another program has put its own streams
        if isinstance(stream, io.TextIOWrapper) and stream.encoding.lower() != "utf-8":
            errors = "backslashreplace" if stream is sys.stderr else "surrogateescape"
            with suppress(io.UnsupportedOperation):  # somebody has read from it already
                stream.reconfigure(encoding="utf-8", errors=errors)


FOR_USERS = re.compile(r"\bplease\b|--[a-z]", re.IGNORECASE)
"""What fairseq says of its options, and not of its own state."""

WITHOUT_BATCHES = ("preprocess", "score")
"""fairseq's commands that have no options for the size of a batch."""

READERS = ("resmlp_mt.tensor_files", "fairseq.checkpoint_utils")
"""Modules that read checkpoints, for which the size of a batch does not matter."""


@remedy(sys, "excepthook")
def _excepthook(
    original: Original, kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    specs = [getattr(sys.modules.get("__main__"), "__spec__", None), *_specs(trace)]
    of_command = Path(sys.argv[0]).name.startswith("fairseq-") or any(map(is_command, specs))
    if of_command and issubclass(kind, KeyboardInterrupt):
        if any(is_command(spec, "preprocess") for spec in specs):
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # Pool could wait for its processes
            os.kill(os.getpid(), signal.SIGINT)
        return  # Python ends with status 130
    if of_command and issubclass(kind, BrokenPipeError) and reader_is_gone(1):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `... | head` is not an error
        os.kill(os.getpid(), signal.SIGPIPE)
    sentence = mistake(error) if of_command else None
    if sentence is None:
        original(kind, error, trace)
    else:
        print(sentence, file=sys.stderr)


def _specs(trace: TracebackType | None) -> list[Any]:
    """The specifications of the modules where an error was raised and went through."""
    return [frame.f_globals.get("__spec__") for frame, _ in traceback.walk_tb(trace)]


def mistake(error: BaseException) -> str | None:
    """What the user of a command can mend; None for other errors, which need their traceback.

    For fairseq-hydra-train, options are also named as its configuration has them.
    """
    sentence = _mistake(error)
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    configs = (frame.f_locals.get("cfg") for frame in frames)
    config = next((each for each in configs if isinstance(each, DictConfig)), None)
    if sentence is None or config is None or not is_of_hydra(command()):
        return sentence
    groups: Any = OmegaConf.to_container(config)
    options = re.findall(r"(?<![\w-])--([a-z][a-z0-9-]*)(?!\.?\w)", sentence)
    found = (_in_hydra(option.replace("-", "_"), groups) for option in options)
    names = ", ".join(dict.fromkeys(name for name in found if name))
    return f"{sentence.rstrip('.')} (in Hydra: {names})." if names else sentence


def _in_hydra(option: str, groups: Mapping[str, Any]) -> str | None:
    """GROUP.NAME of an option in a configuration of Hydra; None if it is of another command."""
    kind = "model" if option == "arch" else option
    if kind in groups:
        return f"{kind}._name"
    with_it = [name for name, own in groups.items() if isinstance(own, dict) and option in own]
    with_it.sort(key=lambda name: name == "model")  # which takes what the task has from the task
    return f"{with_it[0]}.{option}" if with_it else None


def _mistake(error: BaseException) -> str | None:
    told = error.args[0] if error.args and isinstance(error.args[0], str) else None
    if isinstance(error, UserError):
        return told
    if is_of_memory(error):
        told = f"there is not enough memory ({reason(error)})"
        specs = _specs(error.__traceback__)
        reads = any(spec is not None and spec.name in READERS for spec in specs)
        if reads or any(is_command(spec, name) for spec in specs for name in WITHOUT_BATCHES):
            return f"{told}."
        return (
            f"{told}: lower --max-tokens or --batch-size, or --max-source-positions and "
            "--max-target-positions, the sizes of a ResMLP's matrices."
        )
    if isinstance(error, MissingMandatoryValue):
        return f"{flag(str(error.full_key))} is missing."
    if isinstance(error, SyntaxError) and error.filename in ("<string>", "<unknown>"):
        return f"{str(error.text).strip()} among the options cannot be read: {error.msg}."
    if isinstance(error, json.JSONDecodeError):
        return f"{error.doc} among the options is not JSON: {error.msg}."
    lacking = re.fullmatch(r"([\w-]+) is required!", told or "")  # of fairseq's registries
    if isinstance(error, ValueError) and lacking:
        return f"{flag(lacking[1])} is missing."
    if isinstance(error, OSError):
        if error.filename is not None:
            return f"{error.filename or repr('')} cannot be opened: {error.strerror}."
        if isinstance(error, FileExistsError) and told:  # of fairseq-preprocess
            return f"{told} is there already: remove it, or give another --destdir."
        if isinstance(error, FileNotFoundError) and os.path.isabs(told or ""):  # of --user-dir
            return f"{told} does not exist."
        # fairseq's own, or a library's of what it cannot fetch
        is_known = told is not None and ("not found" in told or "://" in told)
        return f"{one_line(' '.join(str(told).split())).rstrip('.')}." if is_known else None
    if type(error) is LookupError and (
        lacking := re.search(r"nltk\.download\('(\w+)'\)", told or "")
    ):
        return f"NLTK lacks {lacking[1]}: run python -m nltk.downloader {lacking[1]}."
    in_training = re.match("Cannot load model parameters from checkpoint (.*);", told or "")
    if in_training and error.__context__ is not None:  # which fairseq makes of any error
        hidden = error.__context__
        if is_of_memory(hidden):  # before the first batch, whose size does not matter
            return f"there is not enough memory ({reason(hidden)})."
        told = str(hidden) if isinstance(hidden, UserError) else None
        return told or _misfit(hidden, in_training[1])
    if misfit := _misfit(error):
        return misfit
    if type(error) is Exception and told and told.startswith("Size of sample"):
        return f"{told}, or train with a larger --max-source-positions or --max-target-positions."
    if isinstance(error, FloatingPointError) and told:  # fairseq's; some have advice
        advice = (
            "" if "Try" in told else ": lower --lr, or give --clip-norm or more --warmup-updates"
        )
        return f"{one_line(told).rstrip('.')}{advice}."
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    spec = frames[-1].f_globals.get("__spec__") if frames else None
    is_asserted = isinstance(error, AssertionError) and is_command(spec)
    is_fairseq = is_command(spec) or (spec is not None and spec.name.startswith("fairseq."))
    if told and is_fairseq and (is_asserted or type(error) is Exception or FOR_USERS.search(told)):
        return one_line(told.partition(": {")[0].strip().rstrip(".!")) + "."  # a configuration
    if isinstance(error, ModuleNotFoundError) and is_fairseq:
        return f"fairseq needs {error.name} for this, which is not installed: install it."
    for frame in frames if isinstance(error, AssertionError | ValueError) else ():
        module = str(frame.f_globals.get("__name__"))
        if module.startswith("fairseq.optim.") and frame.f_code.co_name == "__init__":
            part = frame.f_locals["self"]  # an optimizer or a schedule, made of options
            line = traceback.extract_tb(error.__traceback__)[-1].line
            told = told or f"{str(line).removeprefix('assert ').replace('self.', '')} does not hold"
            return f"{type(part).__name__}: {one_line(told).rstrip('.')}."
    return None


def _misfit(error: BaseException, file: str | None = None) -> str | None:
    """The sentence for a checkpoint that does not fit the model; None for other errors."""
    told = str(error)
    if not told.startswith("Error(s) in loading state_dict"):
        return None
    inside = [frame.f_locals for frame, _ in traceback.walk_tb(error.__traceback__)]
    names = [variables["filename"] for variables in inside if "filename" in variables]
    file = file or next(iter(names), "the checkpoint")
    first, *others = told.splitlines()[1].strip().rstrip(". ").split('", "')
    more = f'" and {len(others)} more' if others else ""
    return (
        f"{file} does not fit the options of the model ({first}{more}): give the --arch and the "
        "options of its training."
    )
