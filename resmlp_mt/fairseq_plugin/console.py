"""What the fairseq commands print that is for none of their users.

fairseq calls its libraries in ways of years ago, and each says so at every start; and one of its
modules has the root logger show everything, so that each library that is loaded later tells what
it does. Other warnings and messages are shown as ever.
"""

import logging
import os
import warnings

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
