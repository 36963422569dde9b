"""The translator: raw text in, raw text out."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from functools import partial
from itertools import chain, islice, repeat
from typing import TYPE_CHECKING, Any, Self, cast

from resmlp_mt.engine import lengths, model_folder, pretrained
from resmlp_mt.engine.batches import Workers, batches, explain
from resmlp_mt.engine.doubts import Doubts
from resmlp_mt.engine.inputs import check_between, check_counts, check_type, prefix_tokens, texts
from resmlp_mt.engine.model_folder import TranslationModel
from resmlp_mt.engine.onnx_model import OnnxModel
from resmlp_mt.engine.options import SHORTEST, SearchOptions
from resmlp_mt.engine.search import Callback, Check, chosen_words, search_of
from resmlp_mt.engine.subwords import decode_pieces, pieces_of
from resmlp_mt.engine.translation import ScoringResult, Translation, by_coverage, no_translation
from resmlp_mt.engine.vocabulary import EOS, Vocabulary
from resmlp_mt.errors import UserError
from resmlp_mt.machine import threads_kept

if TYPE_CHECKING:  # ONNX graphs are searched without PyTorch
    from torch import Tensor

    from resmlp_mt.mixing import TokenMixing
    from resmlp_mt.model.encoder_decoder import EncoderDecoder


class Translator:
    """Translates lines with a model, in batches of similar length.

    Several threads may use one translator at the same time. One that :meth:`load` made can be
    pickled: the other process loads the folder again. In a forked process, PyTorch computes with
    one thread, and ONNX graphs are opened again.

    Args:
        loaded: a model, as :func:`model_folder.load` returns it.
        options: options of the search.
        batch_size: largest number of sentences in a batch.
        max_tokens: largest number of source tokens in a batch, padding included; a longer line is
            refused.
        use_shortlist: score only the words of the model's shortlist, which is faster.
        device: device to move the model to; by default the model stays where it is.
        workers: number of threads that translate batches (CTranslate2's ``inter_threads``).
            Translations do not depend on it.
        threads: threads of one product, for each of several workers (``intra_threads``).

    Attributes:
        failed: number of lines for which the search found no finite score, over all calls.
        memory_remedy: what an error says if memory runs out.
        on_batch: called with the number of lines of each batch that is translated, by any worker.

    Raises:
        TypeError: if an argument is of another type.
        UserError: if a number is below 1, ``options`` do not fit the model, or it has no shortlist.
    """

    memory_remedy = "lower --batch-size, --max-tokens or --workers"

    def __init__(
        self,
        loaded: TranslationModel,
        options: SearchOptions,
        batch_size: int = 64,
        max_tokens: int | None = None,
        use_shortlist: bool = False,
        device: str | None = None,
        workers: int = 1,
        threads: int = 1,
    ) -> None:
        check_type("loaded", loaded, TranslationModel)
        check_type("options", options, SearchOptions)
        check_type("use_shortlist", use_shortlist, bool)
        check_counts("max_tokens", batch_size=batch_size, max_tokens=max_tokens)
        if device is not None:
            loaded.move(device)
        self.loaded = loaded
        self.options = options
        self.batch_size = batch_size
        self.max_tokens = max_tokens
        self.failed = 0
        self.on_batch: Callable[[int], None] = lambda lines: None
        self._load: Callable[[], Self] | None = None
        self._lock = threading.Lock()
        self._workers = Workers(workers, threads)
        config = loaded.model.config
        self.longest, self.remedy = lengths.limit(config.max_source_positions, max_tokens)
        options.max_len(SHORTEST, config.max_target_positions)
        options.check_beam(config.target_vocabulary)
        self._words = chosen_words(loaded, options) if use_shortlist else None

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str] | None = None,
        options: SearchOptions | None = None,
        *,
        dtype: str | None = None,
        device: str = "cpu",
        batch_size: int = 64,
        max_tokens: int | None = None,
        use_shortlist: bool = False,
        workers: int = 1,
        threads: int | None = None,
    ) -> Self:
        """A translator for an exported folder.

        Args:
            folder: from ``python -m resmlp_mt.export``, or the name of a model that comes with
                the package; by default ``en-de``, English to German.
            options: options of the search; by default those of ``python -m resmlp_mt.translate``.
            dtype: type to compute in; by default the type of the weights.
            device: device to compute on.
            batch_size, max_tokens, use_shortlist, workers: see :class:`Translator`.
            threads: threads of one product; by default one per core, or one for each of several
                workers. That of a single worker is PyTorch's number for the whole process.

        Raises:
            TypeError: if an argument is of another type.
            UserError: if the folder or the options cannot be used.
        """
        counts: Any = {"batch_size": batch_size, "max_tokens": max_tokens, "threads": threads}
        check_counts("max_tokens", "threads", workers=workers, **counts)
        if workers > 1:
            threads = threads or 1
        place = pretrained.located(folder)
        with threads_kept() if workers > 1 else nullcontext():  # they set their own
            loaded = model_folder.load(place, dtype, device, threads, use_shortlist)
        options = SearchOptions() if options is None else options
        translator = cls(
            loaded, options, batch_size, max_tokens, use_shortlist, None, workers, threads or 1
        )
        translator._load = partial(
            cls.load, pretrained.portable(place), options, dtype=dtype, device=device,
            use_shortlist=use_shortlist, workers=workers, **counts,
        )  # fmt: skip
        return translator

    def __reduce__(self) -> tuple[Callable[[], Self], tuple[()]]:
        if self._load is None:
            raise TypeError(
                "only a Translator from Translator.load can be copied: load one in each process."
            )
        return self._load, ()

    def translate(
        self,
        lines: Iterable[str],
        *,
        target_prefix: Iterable[str | None] | None = None,
        beam_size: int | None = None,
        num_hypotheses: int | None = None,
        no_repeat_ngram_size: int | None = None,
        repetition_penalty: float | None = None,
        coverage_penalty: float | None = None,
        disable_unk: bool | None = None,
        sampling_topk: int | None = None,
        sampling_topp: float | None = None,
        sampling_temperature: float | None = None,
        return_scores: bool = True,
        return_attention: bool = False,
        callback: Callback | None = None,
        first_line: int = 0,
        doubts: Doubts | None = None,
    ) -> list[list[Translation]]:
        """Translate lines.

        The options have the names of CTranslate2's ``translate_batch``. None means the
        translator's own option.

        Args:
            lines: one sentence each.
            target_prefix: text that the translation of each line begins with, None for no prefix.
                A piece of it that the dictionary lacks becomes ``<unk>``, also with
                ``disable_unk``.
            beam_size: width of the beam; not when sampling.
            num_hypotheses: largest number of translations of a line; by default the whole beam.
                When sampling, the number of draws; by default one if ``sampling_topk`` or
                ``sampling_topp`` is given, else the ``beam`` of the translator's options.
            no_repeat_ngram_size, repetition_penalty, coverage_penalty, disable_unk: see
                :class:`SearchOptions`.
            sampling_topk: draw among this many best tokens, 0 for all; 1 searches, whatever
                ``sampling_topp`` is.
            sampling_topp: draw among the best tokens that together have this probability.
            sampling_temperature: divides the scores before the softmax.
            return_scores: False makes a beam of 1 faster; scores are NaN, and of no tokens.
            return_attention: also return the attention of each token to the source.
            callback: called with every token, if the beam is 1; if it returns True, the line ends
                there, whatever ``min_len`` and the prefix are. Several workers call it one at a
                time.
            first_line: the number of the first of these lines in a longer text. ``callback`` gets
                the numbers, and lines of other numbers are sampled with other draws.
            doubts: of a longer text, whose end tells of all; by default this call is a whole text.

        Returns:
            The translations of each line, best first, at least one and at most ``beam``. A line
            without text has one empty translation with score 0. A line that is too long, or for
            which the model finds no finite score, has one empty translation with score minus
            infinity, and an error in the log.

        Raises:
            TypeError: if ``lines`` is a single text, or has anything but texts.
            UserError: if options do not fit each other or the model.
        """
        lines = list(texts(lines, "lines"))
        asked = {"beam_size": beam_size, "num_hypotheses": num_hypotheses}
        check_counts(*asked, **asked)
        first_line = check_type("first_line", first_line, int)
        check_type("return_scores", return_scores, bool)
        check_type("return_attention", return_attention, bool)
        options = self.options.of_call(
            beam_size,
            num_hypotheses,
            sampling_topk,
            sampling_topp,
            temperature=sampling_temperature,
            no_repeat_ngram_size=no_repeat_ngram_size,
            repetition_penalty=repetition_penalty,
            coverage_penalty=coverage_penalty,
            disable_unk=disable_unk,
        )
        most = options.beam if num_hypotheses is None else num_hypotheses
        if not 1 <= most <= options.beam:
            raise UserError(
                f"num_hypotheses must be between 1 and the beam, {options.beam}, but is {most}: "
                f"raise the beam."
            )
        encoded = [self.encode(line) for line in lines]
        prefixes = None
        if target_prefix is not None:
            model = self._encoder_decoder("translations with a prefix")
            longest = model.config.max_target_positions
            if self._words is not None:
                raise UserError(
                    "target_prefix may need words that a shortlist lacks: use one of the two alone."
                )
            prefixes = prefix_tokens(
                target_prefix,
                [options.max_len(max(len(row), SHORTEST), longest) for row in encoded],
                lambda text: self.loaded.target.encode(self.pieces(text, self.loaded.target))[:-1],
            )
        search = search_of(self.loaded, options, self._words, callback, return_scores)
        results: list[list[Translation]] = [[Translation("", "", 0.0, [])] for _ in lines]
        sentences = {}
        for number, (line, tokens) in enumerate(zip(lines, encoded, strict=True)):
            if len(tokens) > self.longest:
                told = lengths.too_long(len(tokens), self.longest, self.remedy)
                results[number] = no_translation(line, told)
            elif len(tokens) > 1:
                sentences[number] = tokens
        (doubts or Doubts(self.loaded)).add([(lines[n], row) for n, row in sentences.items()])

        def translated(numbers: list[int], check: Check) -> list[list[Translation]]:
            """The hypotheses of each sentence of a batch, best first."""
            batch = [sentences[number] for number in numbers]
            begun = prefixes and [prefixes[n] for n in numbers]
            try:
                found = search(batch, [first_line + n for n in numbers], begun, check)
            except Exception as error:  # those of ONNX Runtime have no common base
                explain(error, [lines[number] for number in numbers], self.memory_remedy)
                raise
            if not options.coverage_penalty:  # which ranks all of them again
                found = [hypotheses[:most] for hypotheses in found]
            attention: Iterator[Tensor | None] = repeat(None)
            if return_attention or options.coverage_penalty:
                model = self._encoder_decoder("attention")
                from resmlp_mt.engine.forced_decoding import forced_attention

                pairs = [(batch[i], h.tokens) for i, hs in enumerate(found) for h in hs]
                attention = iter(forced_attention(model, pairs) if pairs else [])
            decoded = [
                [
                    Translation(*self.decode(h.tokens), *h[1:], attention=next(attention))
                    for h in hypotheses
                ]
                for hypotheses in found
            ]
            self.on_batch(len(numbers))
            return [by_coverage(these, options.coverage_penalty)[:most] for these in decoded]

        planned = list(batches(sentences, self.batch_size, self.max_tokens))
        found = self._workers.results(translated, planned)
        for number, translations in zip(chain(*planned), chain(*found), strict=True):
            results[number] = [t.only(return_scores, return_attention) for t in translations]
            if not translations:
                with self._lock:
                    self.failed += 1
                results[number] = no_translation(lines[number])
        return results

    def translate_iterable(
        self, lines: Iterable[str], buffer_size: int = 2048
    ) -> Iterator[list[Translation]]:
        """The translations of each line; ``buffer_size`` lines are read ahead and sorted.

        Raises:
            TypeError: if ``lines`` is a single text, or has anything but texts.
            UserError: if ``buffer_size`` is below 1.
        """
        check_counts(buffer_size=buffer_size)
        remaining = texts(lines, "lines")
        buffers = iter(lambda: list(islice(remaining, buffer_size)), [])
        doubts = Doubts(self.loaded)
        found = (
            self.translate(buffer, first_line=number * buffer_size, doubts=doubts)
            for number, buffer in enumerate(buffers)
        )
        return chain(chain.from_iterable(found), iter(doubts.end, None))  # which yields nothing

    def score_batch(self, source: Iterable[str], target: Iterable[str]) -> list[ScoringResult]:
        """Score given translations, as ``fairseq-generate --score-reference`` does.

        Raises:
            TypeError: if ``source`` or ``target`` is a single text, or has anything but texts.
            UserError: if there are not as many translations as lines, one is too long, or the
                model is ONNX graphs.
        """
        source, target = list(texts(source, "source")), list(texts(target, "target"))
        if len(source) != len(target):
            raise UserError(
                f"{len(source)} lines have {len(target)} translations: give one for each line."
            )
        model = self._encoder_decoder("scores of given translations")
        from resmlp_mt.engine.forced_decoding import forced_decoding

        rows, pairs = [], []
        for line, translation in zip(source, target, strict=True):
            pieces = self.pieces(translation, self.loaded.target)
            pair = self.encode(line), self.loaded.target.encode(pieces)
            longest = model.config.max_source_positions, model.config.max_target_positions
            for tokens, most, text in zip(pair, longest, (line, translation), strict=True):
                lengths.check(text, len(tokens), most)
            rows.append([*pieces, self.loaded.target.symbols[EOS]])
            pairs.append(pair)
        joined = {number: [*pair[0], *pair[1]] for number, pair in enumerate(pairs)}
        planned = list(batches(joined, self.batch_size, self.max_tokens))
        results = self._workers.results(
            lambda numbers, _: forced_decoding(model, [pairs[n] for n in numbers]), planned
        )
        scored = dict(zip(chain(*planned), chain(*results), strict=True))
        return [ScoringResult(row, scored[number].log_probs) for number, row in enumerate(rows)]

    @property
    def has_attention(self) -> bool:
        """Whether ``return_attention`` can be given."""
        return not isinstance(self.loaded.model, OnnxModel)

    @property
    def encoder_layers(self) -> int:
        """The number of layers for :meth:`mixing_matrix`."""
        return self._encoder_decoder("the mixing matrix").config.encoder_layers

    def mixing_matrix(self, layer: int, length: int) -> Tensor:
        """The mixing matrix of a layer of the encoder, (heads, length, length).

        Raises:
            TypeError: if an argument is not a whole number.
            UserError: if the model is ONNX graphs, or has no such layer or length.
        """
        model = self._encoder_decoder("the mixing matrix")
        check_between("layer", layer, 0, model.config.encoder_layers - 1)
        check_between("length", length, 1, model.config.max_source_positions)
        mixing = model.encoder.layers[layer].token_mixing
        import torch

        with torch.inference_mode():
            return cast("TokenMixing", mixing).matrix(length).float()

    def pieces(self, line: str, words: Vocabulary | None = None) -> list[str]:
        """The subwords of a line; ``words`` is its dictionary, by default that of the source."""
        model = self.loaded
        if words is None:
            return pieces_of(line, model.source, model.sentencepiece, model.normalizes)
        check_type("words", words, Vocabulary)
        return pieces_of(line, words, model.sentencepiece, model.normalizes_target, keeps_tags=True)

    def encode(self, line: str) -> list[int]:
        """The source tokens of a line, with end-of-sentence."""
        return self.loaded.source.encode(self.pieces(line))

    def decode(self, tokens: list[int]) -> tuple[str, str]:
        """The text of target tokens, and their pieces."""
        pieces = self.loaded.target.decode(tokens)
        if self.loaded.sentencepiece is None:
            return pieces, pieces
        text = decode_pieces(self.loaded.sentencepiece, pieces.split(" ")) if pieces else ""
        # always one line, whatever bytes a model emits and however its reader splits lines
        return " ".join(text.splitlines()), pieces

    def _encoder_decoder(self, what: str) -> EncoderDecoder:
        if isinstance(self.loaded.model, OnnxModel):
            raise UserError(
                f"ONNX graphs do not give {what}: export the model without --format onnx."
            )
        return self.loaded.model
