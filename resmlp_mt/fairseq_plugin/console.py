"""What the fairseq commands print.

fairseq calls its libraries in outdated ways, and the libraries warn of it at every start. One of
its modules sets the root logger to DEBUG, so that other libraries report what they do. Neither is
shown; all other warnings and messages are.

What fairseq asserts of the options is shown as one sentence, without a traceback.
"""

import io
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from fairseq.distributed import utils as distributed_utils

from resmlp_mt.errors import UserError
from resmlp_mt.fairseq_plugin.remedies import wrap

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


def tell_in_one_sentence() -> None:
    """Show what a command asserts of its options, such as a missing ``--max-tokens``."""
    wrap(distributed_utils, "call_main", _call_main)


def _call_main(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    try:
        return original(*args, **kwargs)
    except AssertionError as error:
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        spec = frame.f_globals.get("__spec__")  # its name is that of the file with python -m too
        of_command = spec is not None and spec.name.startswith("fairseq_cli.")
        if not of_command or not error.args or not isinstance(error.args[0], str):
            raise
        raise UserError(error.args[0].rstrip(".!") + ".") from error
