"""Raw text in, raw text out."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self, cast

from resmlp_mt.engine import model_folder, onnx_search
from resmlp_mt.engine.model_folder import TranslationModel
from resmlp_mt.engine.onnx_model import OnnxModel
from resmlp_mt.engine.options import Hypothesis, SearchOptions, SpecialTokens
from resmlp_mt.engine.vocabulary import EOS, PAD, UNK
from resmlp_mt.errors import UserError
from resmlp_mt.text import normalize

if TYPE_CHECKING:  # ONNX graphs are searched without PyTorch
    from torch import Tensor

    from resmlp_mt.engine.beam_search import WordChoice
    from resmlp_mt.engine.forced_decoding import Forced
    from resmlp_mt.mixing import TokenMixing
    from resmlp_mt.model.encoder_decoder import EncoderDecoder

SPECIAL = SpecialTokens(PAD, EOS, UNK)

logger = logging.getLogger(__name__)


class Translation(NamedTuple):
    """One translation of a line.

    ``pieces`` is the text before its subwords are put together. Scores are natural logarithms, as
    in :class:`Hypothesis`; ``score`` is minus infinity for a line that could not be translated.
    ``attention``, where it is wanted, is that of :class:`Forced`.
    """

    text: str
    pieces: str
    score: float
    positional_scores: list[float]
    attention: Tensor | None = None


class ScoringResult(NamedTuple):
    """Of a given translation: its pieces and end-of-sentence, and their log-probabilities."""

    tokens: list[str]
    log_probs: list[float]


class Translator:
    """Translates lines with a model in batches of similar length.

    Several threads may use one translator at the same time.

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
        if device is not None and not isinstance(loaded.model, OnnxModel):
            from resmlp_mt.engine.weights import placed

            loaded.model = placed(loaded.model, device)
        self.loaded = loaded
        self.options = options
        self.batch_size = batch_size
        self.max_tokens = max_tokens
        self.failed = 0
        self._lock = threading.Lock()
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
            if isinstance(loaded.model, OnnxModel):
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
            from resmlp_mt.packed_linear import selector

            self.shortlist = loaded.shortlist
            self.select = selector(loaded.model.decoder.output_projection)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        options: SearchOptions | None = None,
        *,
        dtype: str | None = None,
        device: str = "cpu",
        batch_size: int = 64,
        max_tokens: int | None = None,
        use_shortlist: bool = False,
    ) -> Self:
        """A translator of an exported folder.

        Args:
            folder: from ``python -m resmlp_mt.export``.
            options: of the search, by default those of ``python -m resmlp_mt.translate``.
            dtype: type to compute in; by default that of the weights.
            device: where to compute.
            batch_size, max_tokens, use_shortlist: see :class:`Translator`.

        Raises:
            UserError: if the folder or the options cannot be used.
        """
        loaded = model_folder.load(Path(folder), dtype, device)
        return cls(loaded, options or SearchOptions(), batch_size, max_tokens, use_shortlist)

    def translate(
        self,
        lines: Sequence[str],
        *,
        num_hypotheses: int | None = None,
        return_attention: bool = False,
    ) -> list[list[Translation]]:
        """Translate lines.

        Args:
            lines: one sentence each.
            num_hypotheses: most translations of a line; by default, and at most, ``beam``.
            return_attention: also return what each token was translated from.

        Returns:
            For each line its translations, best first, at least one and at most ``beam``. An
            empty line has one empty translation of score 0. A line that is too long, or for
            which the model finds no finite score, has an empty one of score minus infinity,
            with its error in the log.

        Raises:
            TypeError: if ``lines`` is a single text, which would be taken apart.
            UserError: if ``num_hypotheses`` does not fit the beam, or the model has no attention.
        """
        if isinstance(lines, str):
            raise TypeError("expected a list of lines, but got a str: write translate([text])")
        most = self.options.beam if num_hypotheses is None else num_hypotheses
        if not 1 <= most <= self.options.beam:
            raise UserError(
                f"num_hypotheses must be between 1 and the beam, {self.options.beam}, but is "
                f"{most}: raise the beam."
            )
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
        for numbers in self._batches(sentences):
            batch = [sentences[number] for number in numbers]
            found = [hypotheses[:most] for hypotheses in self._search(batch)]
            attention: Iterator[Tensor | None] = itertools.repeat(None)
            if return_attention:
                pairs = [(batch[i], h.tokens) for i, hs in enumerate(found) for h in hs]
                attention = iter([forced.attention for forced in self._forced(pairs)])
            for number, hypotheses in zip(numbers, found, strict=True):
                results[number] = [
                    Translation(
                        *self.decode(h.tokens), h.score, h.positional_scores, next(attention)
                    )
                    for h in hypotheses
                ]
                if not hypotheses:
                    with self._lock:
                        self.failed += 1
                    results[number] = _empty(
                        lines[number],
                        "has no translation of a finite score: it is left empty; look at the "
                        "model and the options of the search",
                    )
        return results

    def translate_iterable(
        self, lines: Iterable[str], buffer_size: int = 2048
    ) -> Iterator[list[Translation]]:
        """Translations of each line in turn; ``buffer_size`` lines are read ahead and sorted.

        Raises:
            TypeError: see :meth:`translate`.
        """
        if isinstance(lines, str):
            raise TypeError("expected lines, but got a str: write translate_iterable([text])")
        remaining = iter(lines)
        while buffer := list(itertools.islice(remaining, buffer_size)):
            yield from self.translate(buffer)

    def score_batch(self, source: Sequence[str], target: Sequence[str]) -> list[ScoringResult]:
        """Score given translations, as ``fairseq-generate --score-reference`` does.

        Raises:
            TypeError: if ``source`` or ``target`` is a single text.
            UserError: if there are not as many translations as lines, one is too long, or the
                model is ONNX graphs.
        """
        if isinstance(source, str) or isinstance(target, str):
            raise TypeError("expected lists of lines, but got a str")
        if len(source) != len(target):
            raise UserError(f"{len(source)} lines have {len(target)} translations: give as many.")
        config = self.loaded.model.config
        rows, pairs = [], []
        for line, translation in zip(source, target, strict=True):
            pieces = self.pieces(translation)
            pair = self.encode(line), self.loaded.target.encode(pieces)
            longest = config.max_source_positions, config.max_target_positions
            for tokens, most, text in zip(pair, longest, (line, translation), strict=True):
                if len(tokens) > most:
                    raise UserError(
                        f"the line that begins with '{text[:40]}' has {len(tokens)} tokens, but "
                        f"at most {most} are allowed: shorten it."
                    )
            rows.append([*pieces, self.loaded.target.symbols[EOS]])
            pairs.append(pair)
        scored: dict[int, Forced] = {}
        lengths = {number: [*pair[0], *pair[1]] for number, pair in enumerate(pairs)}
        for numbers in self._batches(lengths):
            found = self._forced([pairs[number] for number in numbers])
            scored |= dict(zip(numbers, found, strict=True))
        return [
            ScoringResult(tokens, scored[number].log_probs) for number, tokens in enumerate(rows)
        ]

    @property
    def encoder_layers(self) -> int:
        """The number of layers that :meth:`mixing_matrix` knows.

        Raises:
            UserError: if the model is ONNX graphs.
        """
        return self._encoder_decoder("the mixing matrix").config.encoder_layers

    def mixing_matrix(self, layer: int, length: int) -> Tensor:
        """What the encoder's layer mixes positions with, (heads, length, length).

        Raises:
            UserError: if the model is ONNX graphs.
        """
        model = self._encoder_decoder("the mixing matrix")
        mixing = model.encoder.layers[layer].token_mixing
        import torch

        with torch.inference_mode():
            return cast("TokenMixing", mixing).matrix(length).float()

    def pieces(self, line: str) -> list[str]:
        """The subwords of a line, as the model knows them."""
        if self.loaded.sentencepiece is None:
            return line.split()
        # pieces may hold characters that fairseq takes for spaces
        encoded = self.loaded.sentencepiece.encode(normalize(line), out_type=str)
        return " ".join(encoded).split()

    def encode(self, line: str) -> list[int]:
        """The source tokens of a line, with end-of-sentence."""
        return self.loaded.source.encode(self.pieces(line))

    def decode(self, tokens: list[int]) -> tuple[str, str]:
        """The text of target tokens, and the same as pieces."""
        pieces = self.loaded.target.decode(tokens)
        if self.loaded.sentencepiece is None:
            return pieces, pieces
        text = self.loaded.sentencepiece.decode(pieces.split(" ")) if pieces else ""
        return text.replace("\n", " "), pieces  # a line stays one, whatever bytes a model emits

    def _search(self, batch: list[list[int]]) -> list[list[Hypothesis]]:
        model = self.loaded.model
        if isinstance(model, OnnxModel):
            return onnx_search.beam_search(model, batch, self.options, SPECIAL)
        from resmlp_mt.engine.beam_search import beam_search

        return beam_search(model, batch, self.options, SPECIAL, self._words(batch))

    def _forced(self, pairs: list[tuple[list[int], list[int]]]) -> list[Forced]:
        model = self._encoder_decoder("attention or scores of given translations")
        from resmlp_mt.engine.forced_decoding import forced_decoding

        return forced_decoding(model, pairs) if pairs else []

    def _encoder_decoder(self, what: str) -> EncoderDecoder:
        if isinstance(self.loaded.model, OnnxModel):
            raise UserError(
                f"ONNX graphs do not give {what}: export the model without --format onnx."
            )
        return self.loaded.model

    def _words(self, batch: list[list[int]]) -> WordChoice | None:
        if self.shortlist is None or self.select is None:
            return None
        from resmlp_mt.engine.beam_search import WordChoice

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
