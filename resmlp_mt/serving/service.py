"""Translates texts: divides them into sentences, translates these, and joins them again."""

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from resmlp_mt import language_codes
from resmlp_mt.engine.sentences import Segment, joined, segments
from resmlp_mt.serving.metrics import Metrics
from resmlp_mt.serving.scheduler import FailedError, Scheduler
from resmlp_mt.serving.workers import Answer, Languages, Work


class TooLongError(Exception):
    """A text too long for the server or the model; the message is a sentence for the client."""


class Part(NamedTuple):
    """A segment of a text; ``answer`` is None if it is not translated."""

    segment: Segment
    answer: Answer | None

    def translation(self, rank: int = 0) -> str:
        """The translation of a rank, or the best one if there are fewer."""
        if self.answer is None:
            return self.segment.text
        found = self.answer.translations
        return found[rank if rank < len(found) else 0].text


class TranslatedText(NamedTuple):
    """A text with the translations of its sentences.

    ``space`` divides those between which the source has nothing, as Chinese and Japanese have it.
    """

    parts: list[Part]
    space: str = ""

    def joined(self, rank: int = 0) -> str:
        """The whole text, with the translation of a rank for every sentence."""
        found = (part.translation(rank) for part in self.parts if part.answer is not None)
        return joined((part.segment for part in self.parts), found, self.space)

    def alternatives(self, count: int) -> list[str]:
        """At most ``count`` other translations of the text, all different."""
        most = max((len(p.answer.translations) for p in self.parts if p.answer), default=0)
        texts = dict.fromkeys(self.joined(rank) for rank in range(most))
        return list(texts)[1 : count + 1]


async def translate(
    texts: Sequence[str],
    pairs: Sequence[Languages | None],
    scheduler: Scheduler,
    metrics: Metrics,
    explained: bool = False,
) -> list[TranslatedText]:
    """Translate texts, each with the model of its pair; without a pair, it stays as it is.

    Raises:
        TooLongError: if there are more sentences than the queue takes, or a sentence is too long.
        RefusedError: if the server is busy.
        FailedError: if the model has no translation.
    """
    divided = [
        segments(text, pair.source) if pair else [Segment(text, 0, is_sentence=False)]
        for text, pair in zip(texts, pairs, strict=True)
    ]
    lines: dict[Languages, list[str]] = {pair: [] for pair in pairs if pair}
    for pair, parts in zip(pairs, divided, strict=True):
        if pair:
            lines[pair] += [part.text for part in parts if part.is_sentence]
    count = sum(map(len, lines.values()))
    if count > scheduler.queue_size:
        raise TooLongError(
            f"the request has {count} sentences, more than the server's queue of "
            f"{scheduler.queue_size}: send fewer at a time"
        )
    try:
        async with asyncio.TaskGroup() as group:
            tasks = {
                languages: group.create_task(
                    scheduler.translate(Work(languages, explained), wanted)
                )
                for languages, wanted in lines.items()
            }
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    answers = {}
    for languages, wanted in lines.items():
        found = tasks[languages].result()
        for line, answer in zip(wanted, found, strict=True):
            _check(line, answer)
        metrics.sentences.labels("-".join(languages)).inc(len(wanted))
        answers[languages] = iter(found)
    return [
        TranslatedText(
            [
                Part(part, next(answers[pair]) if pair and part.is_sentence else None)
                for part in parts
            ],
            " " if pair and language_codes.has_spaces(pair.target) else "",
        )
        for pair, parts in zip(pairs, divided, strict=True)
    ]


def _check(line: str, answer: Answer) -> None:
    begin = f"the sentence that begins with '{line[:40]}'"
    if answer.tokens > answer.longest:
        limited = "this server" if answer.is_servers else "the model"
        raise TooLongError(
            f"{begin} has {answer.tokens} tokens, but {limited} takes at most {answer.longest}: "
            "divide it"
        )
    if not answer.translations:
        raise FailedError(f"{begin} has no translation with a finite score")
