"""The results of a translator."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # ONNX graphs are searched without PyTorch
    from torch import Tensor

logger = logging.getLogger(__name__)

NOT_FINITE = (
    "has no translation with a finite score: it is left empty; look at the model and the options "
    "of the search"
)
"""Why a line has no translation."""


class Translation(NamedTuple):
    """One translation of a line.

    ``pieces`` is the text before its subwords are joined. Scores are natural logarithms, as in
    :class:`Hypothesis`; ``score`` is minus infinity for a line that could not be translated.
    ``attention``, if asked for, is as in :class:`Forced`.
    """

    text: str
    pieces: str
    score: float
    positional_scores: list[float]
    attention: Tensor | None = None

    def only(self, scores: bool, attention: bool) -> Translation:
        """This translation with only the wanted parts.

        A greedy search does not compute scores unless asked.
        """
        kept = self if scores else self._replace(score=float("nan"), positional_scores=[])
        return kept if attention else kept._replace(attention=None)


class ScoringResult(NamedTuple):
    """The pieces of a given translation, with end-of-sentence, and their log-probabilities."""

    tokens: list[str]
    log_probs: list[float]


def by_coverage(translations: list[Translation], penalty: float) -> list[Translation]:
    """The translations; with a penalty, ranked by the score of Wu et al. 2016, equation 14."""
    if not penalty:
        return translations
    scored = []
    for translation in translations:
        assert translation.attention is not None
        covered = translation.attention.sum(dim=0).clamp_max(1.0).log().sum()
        scored.append(translation._replace(score=translation.score + penalty * float(covered)))
    return sorted(scored, key=lambda found: found.score, reverse=True)


def no_translation(line: str, reason: str = NOT_FINITE) -> list[Translation]:
    """The one translation of a line that cannot be translated; the reason is logged."""
    logger.error("the line that begins with '%s' %s", line[:40], reason)
    return [Translation("", "", -float("inf"), [])]
