"""Lines whose translations may be poor."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from resmlp_mt.engine import lengths
from resmlp_mt.engine.subwords import are_unknown, is_unknown

if TYPE_CHECKING:
    from resmlp_mt.engine.model_folder import TranslationModel

logger = logging.getLogger(__name__)


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
        self._longer = self._longest = self._unknown = 0
        self._first = ""
        self._told = {"longer": 0, "unknown": 0}

    def add(self, sentences: Sequence[tuple[str, Sequence[int]]]) -> None:
        """Count the doubtful ones among some lines and their tokens."""
        model = self._model
        longer = lengths.longer((len(tokens) for _, tokens in sentences), self._trained)
        unknown = [line for line, tokens in sentences if is_unknown(line, tokens, model)]
        with self._lock:
            self._longer += len(longer)
            self._longest = max(self._longest, *longer, 0)
            self._unknown += len(unknown)
            self._first = self._first or next(iter(unknown), "")
            self._tell([name for name, told in self._told.items() if not told])
        if are_unknown((tokens for _, tokens in sentences), model.source.indices):
            _warn_once(model.source_lang, is_split=model.sentencepiece is not None)

    def end(self) -> None:
        """Warn of the whole run, where it had more such lines than the warning at once said."""
        with self._lock:
            self._tell([*self._told])

    def _tell(self, names: Sequence[str]) -> None:
        before = self._told
        now = {"longer": self._longer, "unknown": self._unknown}
        self._told = before | {name: now[name] for name in names}
        if self._told["longer"] > before["longer"]:
            lengths.warn(self._longer, self._longest, self._trained)
        if self._told["unknown"] > before["unknown"]:
            logger.warning(
                "the model knows no word of %d line%s, the first of which begins with '%s': their "
                "translations are made up",
                self._unknown, "" if self._unknown == 1 else "s", self._first[:40],
            )  # fmt: skip


@functools.cache
def _warn_once(language: str, is_split: bool) -> None:
    remedy = f"text in {language}" if is_split else "text that is split as the training text was"
    logger.warning(
        "most words of the input are not in the dictionary of %s: give %s", language, remedy
    )
