"""The search of beam_search.py over exported ONNX graphs, in numpy, without PyTorch.

Hypotheses and scores are the same. This search is for small batches or small machines, so arrays
are copied where that is simpler. docs/onnx.md describes the loop for those who write their own.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from resmlp_mt.engine.onnx_model import Floats, Indices, Memory, OnnxModel
from resmlp_mt.engine.options import Hypothesis, SearchOptions, SpecialTokens
from resmlp_mt.errors import UserError

CHUNK = 64  # neighbours in the vocabulary
TINY = float(np.finfo(np.float32).tiny)


class _Beams:
    """What a batch has decoded so far; row r of every array belongs to sentence ``sentences[r]``.

    Attributes:
        memory: the encoded source.
        history: (layers, rows, heads, position, beam, width), entries as they were written.
        ancestors: (rows, beam, position), the entry of each hypothesis at every position.
        tokens: (rows, beam, position + 1), the tokens of each hypothesis, the first one included.
        scores: (rows, beam, position + 1), their cumulative scores.
    """

    def __init__(self, model: OnnxModel, memory: Memory, limits: list[int], beam: int, eos: int):
        rows = len(limits)
        self.model = model
        self.memory = memory
        self.sentences, self.limits = np.arange(rows), np.array(limits)
        self.history = model.empty_history(rows, beam)
        self.ancestors = np.zeros((rows, beam, 0), dtype=np.int64)
        # all hypotheses are the same at first, so one is enough
        self.tokens = np.full((rows, 1, 1), eos)
        self.scores = np.zeros((rows, 1, 1), dtype=np.float32)

    def step(self) -> Floats:
        """Scores of every next token, before the softmax: (rows, beam, vocabulary)."""
        alive = self.tokens.shape[1]
        logits, entries = self.model.step(
            self.tokens[:, :, -1], self.history, self.ancestors[:, :alive], self.memory
        )
        beam = self.history.shape[4]
        newest = np.repeat(entries, beam, axis=3) if entries.shape[3] != beam else entries
        self.history = np.concatenate([self.history, newest[:, :, :, None]], axis=3)
        own = np.broadcast_to(np.arange(beam)[:, None], (len(self.ancestors), beam, 1))
        self.ancestors = np.concatenate([self.ancestors, own], axis=2)
        return logits

    def extend(self, parents: Indices, tokens: Indices, scores: Floats) -> None:
        """Continue each hypothesis ``parents`` by a token; (rows, beam) each."""
        rows = np.arange(len(parents))[:, None]
        self.ancestors = self.ancestors[rows, parents]
        self.tokens = np.concatenate([self.tokens[rows, parents], tokens[:, :, None]], axis=2)
        self.scores = np.concatenate([self.scores[rows, parents], scores[:, :, None]], axis=2)

    def keep(self, rows: NDArray[np.bool_]) -> None:
        """Remove the other sentences."""
        self.sentences, self.limits = self.sentences[rows], self.limits[rows]
        self.memory = self.memory.rows(rows)
        self.history = self.history[:, rows]
        self.ancestors = self.ancestors[rows]
        self.tokens, self.scores = self.tokens[rows], self.scores[rows]


def beam_search(
    model: OnnxModel,
    source: list[list[int]],
    options: SearchOptions,
    special: SpecialTokens,
    is_scored: bool = True,
    check: Callable[[], None] | None = None,
) -> list[list[Hypothesis]]:
    """Translate a batch.

    Args:
        model: the exported graphs.
        source: the tokens of each sentence with end-of-sentence.
        is_scored, check: as in the other search.

    Returns:
        The finished hypotheses of each sentence, best first; none if no score is finite.

    Raises:
        UserError: if ``min_len`` or ``beam`` do not fit the model.
    """
    beam, vocabulary = options.beam, model.config.target_vocabulary
    if 2 * beam > vocabulary - 2:
        raise UserError(f"--beam {beam} is too large for a vocabulary of {vocabulary}.")
    lengths = [len(sentence) for sentence in source]
    limits = [options.max_len(length, model.config.max_target_positions) for length in lengths]
    padded = np.full((len(source), max(lengths)), special.pad)
    for row, sentence in zip(padded, source, strict=True):
        row[: len(sentence)] = sentence
    beams = _Beams(model, model.encode(padded, np.array(lengths)), limits, beam, special.eos)
    finished: list[list[Hypothesis]] = [[] for _ in source]
    for position in range(max(limits) + 1):
        if check is not None:
            check()
        at_limit = beams.limits == position
        logits = beams.step()
        if is_scored or beam > 1:
            _to_log_probabilities(logits, options)
        _restrict(logits, position, at_limit, options, special)
        scores, parents, tokens = _best(logits, beams.scores[:, :, -1], 2 * beam)
        is_eos = tokens == special.eos
        if at_limit.any() or is_eos.any():
            ends = (is_eos & np.isfinite(scores))[:, :beam]
            _finish(beams, ends, parents, scores, position, options, special.eos, finished)
            going = ~at_limit & [len(finished[s]) < beam for s in beams.sentences]
            if not going.any():
                break
            if not going.all():
                beams.keep(going)
                is_eos, scores, parents, tokens = (
                    is_eos[going], scores[going], parents[going], tokens[going]
                )  # fmt: skip
            order = np.argsort(is_eos, axis=1, kind="stable")[:, :beam]
            scores = np.take_along_axis(scores, order, axis=1)
            parents = np.take_along_axis(parents, order, axis=1)
            tokens = np.take_along_axis(tokens, order, axis=1)
        beams.extend(parents[:, :beam], tokens[:, :beam], scores[:, :beam])
    return [sorted(found, key=lambda h: h.score, reverse=True) for found in finished]


def _to_log_probabilities(logits: Floats, options: SearchOptions) -> None:
    """Turn scores into log-probabilities, in place."""
    # infinity - infinity: such a sentence has no translation; a small temperature makes infinities
    with np.errstate(invalid="ignore", over="ignore"):
        logits -= logits.max(axis=2, keepdims=True)
        if options.temperature != 1.0:
            logits /= max(options.temperature, TINY)
        logits -= np.log(np.exp(logits).sum(axis=2, keepdims=True))


def _restrict(
    logits: Floats,
    position: int,
    at_limit: NDArray[np.bool_],
    options: SearchOptions,
    special: SpecialTokens,
) -> None:
    """Apply the options to scores, in place."""
    logits[..., special.pad] = -np.inf
    logits[..., special.unk] -= options.unkpen
    if position < options.min_len:
        logits[..., special.eos] = -np.inf
    if at_limit.any():
        ends = logits[at_limit, :, special.eos]
        logits[at_limit] = -np.inf
        logits[at_limit, :, special.eos] = ends


def _best(logits: Floats, scores: Floats, count: int) -> tuple[Floats, Indices, Indices]:
    """The best continuations: scores, hypotheses and tokens, (rows, count) each."""
    best, tokens = _top(logits, count)
    totals = (best + scores[:, :, None]).reshape(len(best), -1)
    index = np.argsort(-totals, axis=1, kind="stable")[:, :count]
    scores = np.take_along_axis(totals, index, axis=1)
    tokens = np.take_along_axis(tokens.reshape(len(best), -1), index, axis=1)
    return scores, index // count, tokens


def _top(logits: Floats, count: int) -> tuple[Floats, Indices]:
    """The ``count`` best of the last axis and their indices, searched in the best chunks."""
    vocabulary = logits.shape[-1]
    chunks = vocabulary // CHUNK
    if chunks < 4 * count:
        index = np.argpartition(logits, -count, axis=-1)[..., -count:]
        return np.take_along_axis(logits, index, axis=-1), index
    whole = logits[..., : chunks * CHUNK]
    maxima = whole.reshape(*logits.shape[:-1], chunks, CHUNK).max(axis=-1)
    best_chunks = np.argpartition(maxima, -count, axis=-1)[..., -count:]
    index = (best_chunks[..., None] * CHUNK + np.arange(CHUNK)).reshape(*logits.shape[:-1], -1)
    rest = np.arange(chunks * CHUNK, vocabulary)
    index = np.concatenate([index, np.broadcast_to(rest, (*logits.shape[:-1], len(rest)))], axis=-1)
    values = np.take_along_axis(logits, index, axis=-1)
    where = np.argpartition(values, -count, axis=-1)[..., -count:]
    return (
        np.take_along_axis(values, where, axis=-1),
        np.take_along_axis(index, where, axis=-1),
    )


def _finish(
    beams: _Beams,
    ends: NDArray[np.bool_],
    parents: Indices,
    scores: Floats,
    position: int,
    options: SearchOptions,
    eos: int,
    finished: list[list[Hypothesis]],
) -> None:
    """Store the hypotheses that end, until their sentence has enough."""
    norm = 1.0 if options.unnormalized else (position + 1) ** options.lenpen
    for row, column in zip(*ends.nonzero(), strict=True):
        sentence = finished[beams.sentences[row]]
        if len(sentence) < options.beam:
            parent, total = parents[row, column], scores[row, column]
            tokens = [*beams.tokens[row, parent, 1:].tolist(), eos]
            cumulative = np.append(beams.scores[row, parent], total)
            sentence.append(Hypothesis(tokens, float(total / norm), np.diff(cumulative).tolist()))
