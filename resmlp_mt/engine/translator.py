"""Raw text in, raw text out."""

import logging
from collections.abc import Iterator
from typing import NamedTuple

from resmlp_mt.engine.beam_search import (
    SearchOptions,
    SpecialTokens,
    WordChoice,
    beam_search,
)
from resmlp_mt.engine.model_folder import TranslationModel, placed
from resmlp_mt.engine.vocabulary import EOS, PAD, UNK
from resmlp_mt.errors import UserError
from resmlp_mt.model.encoder_decoder import EncoderDecoder
from resmlp_mt.packed_linear import selector
from resmlp_mt.text import normalize

logger = logging.getLogger(__name__)


class Translation(NamedTuple):
    """One translation of a line.

    ``pieces`` is the text before its subwords are put together. Scores are natural logarithms, as
    in :class:`Hypothesis`; ``score`` is minus infinity for a line that could not be translated.
    """

    text: str
    pieces: str
    score: float
    positional_scores: list[float]


class Translator:
    """Translates lines with a model in batches of similar length.

    Args:
        loaded: a model, as :func:`model_folder.load` returns it.
        options: of the search.
        batch_size: most sentences in a batch.
        max_tokens: most source tokens in a batch, padding included; a longer line is refused.
        use_shortlist: choose among the words of the model's shortlist alone, which is faster.
        device: where to move the model, by default where it is.

    Attributes:
        failed: lines for which the search found no finite score, over all calls.

    Raises:
        UserError: if ``options`` do not fit the model, or it has no shortlist.
    """

    def __init__(
        self,
        loaded: TranslationModel,
        options: SearchOptions,
        batch_size: int = 64,
        max_tokens: int | None = None,
        use_shortlist: bool = False,
        device: str | None = None,
    ) -> None:
        if device is not None and isinstance(loaded.model, EncoderDecoder):
            loaded.model = placed(loaded.model, device)
        self.loaded = loaded
        self.options = options
        self.batch_size = batch_size
        self.max_tokens = max_tokens
        self.failed = 0
        config = loaded.model.config
        self.longest, self.remedy = (
            config.max_source_positions,
            "train with a larger --max-source-positions",
        )
        if max_tokens is not None and max_tokens < self.longest:
            self.longest, self.remedy = max_tokens, "raise --max-tokens"
        options.max_len(1, config.max_target_positions)
        self.shortlist, self.select = None, None
        if use_shortlist:
            if not isinstance(loaded.model, EncoderDecoder):
                raise UserError(
                    "--shortlist: ONNX graphs score the whole vocabulary; export the model "
                    "without --format onnx."
                )
            if loaded.shortlist is None:
                raise UserError(
                    "--shortlist: this model has none; export it with --shortlist DATA-BIN."
                )
            most = (len(loaded.shortlist.always) - 2) // 2
            if options.beam > most:
                raise UserError(
                    f"--beam {options.beam} is too large for this shortlist: choose at most "
                    f"{most}, or leave out --shortlist."
                )
            self.shortlist = loaded.shortlist
            self.select = selector(loaded.model.decoder.output_projection)

    def translate(self, lines: list[str]) -> list[list[Translation]]:
        """Translate lines.

        Returns:
            For each line its translations, best first, at least one and at most ``beam``. An
            empty line has one empty translation of score 0. A line that is too long, or for
            which the model finds no finite score, has an empty one of score minus infinity,
            with its error in the log.
        """
        results: list[list[Translation]] = [[Translation("", "", 0.0, [])] for _ in lines]
        sentences = {}
        for number, line in enumerate(lines):
            tokens = self.encode(line)
            if len(tokens) > self.longest:
                results[number] = _empty(
                    line,
                    f"has {len(tokens)} tokens, but at most {self.longest} are allowed: its "
                    f"translation is left empty; shorten it, or {self.remedy}",
                )
            elif len(tokens) > 1:
                sentences[number] = tokens
        special = SpecialTokens(PAD, EOS, UNK)
        for numbers in self._batches(sentences):
            batch = [sentences[number] for number in numbers]
            words = self._words(batch)
            found = beam_search(self.loaded.model, batch, self.options, special, words)
            for number, hypotheses in zip(numbers, found, strict=True):
                results[number] = [
                    Translation(*self.decode(h.tokens), h.score, h.positional_scores)
                    for h in hypotheses
                ]
                if not hypotheses:
                    self.failed += 1
                    results[number] = _empty(
                        lines[number],
                        "has no translation of a finite score: it is left empty; look at the "
                        "model and the options of the search",
                    )
        return results

    def encode(self, line: str) -> list[int]:
        """The source tokens of a line, with end-of-sentence."""
        pieces = line.split()
        if self.loaded.sentencepiece is not None:
            # pieces may hold characters that fairseq takes for spaces
            encoded = self.loaded.sentencepiece.encode(normalize(line), out_type=str)
            pieces = " ".join(encoded).split()
        return self.loaded.source.encode(pieces)

    def decode(self, tokens: list[int]) -> tuple[str, str]:
        """The text of target tokens, and the same as pieces."""
        pieces = self.loaded.target.decode(tokens)
        if self.loaded.sentencepiece is None:
            return pieces, pieces
        text = self.loaded.sentencepiece.decode(pieces.split(" ")) if pieces else ""
        return text.replace("\n", " "), pieces  # a line stays one, whatever bytes a model emits

    def _words(self, batch: list[list[int]]) -> WordChoice | None:
        if self.shortlist is None or self.select is None:
            return None
        words, allowed = self.shortlist.words(batch)
        return WordChoice(words, allowed, self.select(words))

    def _batches(self, sentences: dict[int, list[int]]) -> Iterator[list[int]]:
        """Numbers of sentences, longest first."""
        batch: list[int] = []
        longest = 0
        for number in sorted(sentences, key=lambda n: len(sentences[n]), reverse=True):
            length = len(sentences[number])
            tokens = (len(batch) + 1) * max(longest, length)
            too_many = self.max_tokens is not None and tokens > self.max_tokens
            if batch and (too_many or len(batch) == self.batch_size):
                yield batch
                batch, longest = [], 0
            batch.append(number)
            longest = max(longest, length)
        if batch:
            yield batch


def _empty(line: str, reason: str) -> list[Translation]:
    """The one translation of a line that cannot be translated; the reason is logged."""
    logger.error("the line that begins with '%s' %s", line[:40], reason)
    return [Translation("", "", -float("inf"), [])]
