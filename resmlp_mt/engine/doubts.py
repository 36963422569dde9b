"""Lines whose translations may be poor."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from resmlp_mt.engine import lengths
from resmlp_mt.engine.subwords import are_unknown, is_unknown

if TYPE_CHECKING:
    from resmlp_mt.engine.model_folder import TranslationModel

logger = logging.getLogger(__name__)


@dataclass
class _Lines:
    """How many lines of a run are doubtful in one way, and of how many a warning has said so."""

    warn: Callable[[], None]
    count: int = 0
    told: int = 0

    def tell(self) -> None:
        """Warn, if there are more than the last warning said."""
        if self.count > self.told:
            self.told = self.count
            self.warn()


class Doubts:
    """Warns of the first doubtful lines of a run at once, and of all of them at its end.

    A run may be many calls of a translator, also by several threads.

    Args:
        model: what translates the lines.
    """

    def __init__(self, model: TranslationModel) -> None:
        self._model = model
        self._trained = model.model.config.longest_trained_source
        self._lock = threading.Lock()
        self._longer = _Lines(
            lambda: lengths.warn(self._longer.count, self._longest, self._trained)
        )
        self._unknown = _Lines(self._warn_of_unknown)
        self._longest = 0
        self._first = ""

    def add(self, sentences: Sequence[tuple[str, Sequence[int]]]) -> None:
        """Count the doubtful ones among some lines and their tokens."""
        model = self._model
        longer = lengths.longer((len(tokens) for _, tokens in sentences), self._trained)
        unknown = [line for line, tokens in sentences if is_unknown(line, tokens, model)]
        with self._lock:
            self._longer.count += len(longer)
            self._longest = max(self._longest, *longer, 0)
            self._unknown.count += len(unknown)
            self._first = self._first or next(iter(unknown), "")
            for lines in (self._longer, self._unknown):
                if not lines.told:
                    lines.tell()
        if are_unknown((tokens for _, tokens in sentences), model.source.indices):
            _warn_once(model.source_lang, is_split=model.sentencepiece is not None)

    def end(self) -> None:
        """Warn of the whole run, where it had more such lines than the warning at once said."""
        with self._lock:
            self._longer.tell()
            self._unknown.tell()

    def _warn_of_unknown(self) -> None:
        count = self._unknown.count
        logger.warning(
            "the model knows no word of %d line%s, the first of which begins with '%s': their "
            "translations are made up",
            count, "" if count == 1 else "s", self._first[:40],
        )  # fmt: skip


@functools.cache
def _warn_once(language: str, is_split: bool) -> None:
    remedy = f"text in {language}" if is_split else "text that is split as the training text was"
    logger.warning(
        "most words of the input are not in the dictionary of %s: give %s", language, remedy
    )
