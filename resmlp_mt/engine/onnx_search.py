"""The search of beam_search.py over exported ONNX graphs, in numpy, without PyTorch.

Hypotheses and scores are the same. This search is for small batches or small machines, so arrays
are copied where that is simpler. docs/onnx.md describes the loop for those who write their own.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from resmlp_mt.engine.onnx_model import Arrays, ChosenWords, Floats, Indices, OnnxModel
from resmlp_mt.engine.options import Hypothesis, SearchOptions
from resmlp_mt.engine.vocabulary import EOS, PAD

CHUNK = 64  # neighbours in the vocabulary
TINY = float(np.finfo(np.float32).tiny)


class _Beams:
    """What a batch has decoded so far; row r of every array belongs to sentence ``sentences[r]``.

    Attributes:
        memory: the encoded source.
        past: the entries of earlier steps, as they were written.
        positions: the step of each entry, (entries,).
        descends: 1 where a hypothesis goes back to an entry, else 0: (rows, beam, entries).
        tokens: (rows, beam, position + 1), the tokens of each hypothesis, the first one included.
        scores: (rows, beam, position + 1), their cumulative scores.
        forbidden: the words that a sentence may not use, (rows, 1, words); None if there are none.
    """

    def __init__(
        self,
        model: OnnxModel,
        memory: Arrays,
        limits: list[int],
        beam: int,
        choice: ChosenWords | None,
    ) -> None:
        rows = len(limits)
        self.model = model
        self.memory = memory
        self.sentences, self.limits = np.arange(rows), np.array(limits)
        self.past = model.first_past(rows)
        self.positions = np.zeros(0, dtype=np.int64)
        self.descends = np.zeros((rows, beam, 0), dtype=np.float32)
        # all hypotheses are the same at first, so one is enough
        self.tokens = np.full((rows, 1, 1), EOS)
        self.scores = np.zeros((rows, 1, 1), dtype=np.float32)
        self.choice, self.forbidden = choice, _forbidden(choice)

    def step(self, position: int) -> Floats:
        """Scores of every next token, before the softmax: (rows, beam, words)."""
        rows, alive, _ = self.tokens.shape
        beam = self.descends.shape[1]
        states, self.past = self.model.step(
            self.tokens[:, :, -1],
            np.array([position]),
            self.positions,
            self.descends[:, :alive],
            self.memory,
            self.past,
        )
        self.positions = np.append(self.positions, np.full(alive, position))
        own = np.eye(beam, dtype=np.float32) if alive == beam else np.ones((beam, 1), np.float32)
        own = np.broadcast_to(own, (rows, *own.shape))
        self.descends = np.concatenate([self.descends, own], axis=2)
        return _scores(self.model, states, self.choice, self.forbidden)

    def extend(self, parents: Indices, tokens: Indices, scores: Floats) -> None:
        """Continue each hypothesis ``parents`` by a token; (rows, beam) each."""
        rows = np.arange(len(parents))[:, None]
        self.descends = self.descends[rows, parents]
        self.tokens = np.concatenate([self.tokens[rows, parents], tokens[:, :, None]], axis=2)
        self.scores = np.concatenate([self.scores[rows, parents], scores[:, :, None]], axis=2)

    def keep(self, rows: NDArray[np.bool_]) -> None:
        """Remove the other sentences."""
        self.sentences, self.limits = self.sentences[rows], self.limits[rows]
        self.memory = {name: array[rows] for name, array in self.memory.items()}
        self.past = {name: array[rows] for name, array in self.past.items()}
        self.descends = self.descends[rows]
        self.tokens, self.scores = self.tokens[rows], self.scores[rows]
        if self.forbidden is not None:
            self.forbidden = self.forbidden[rows]


# infinity - infinity: such a sentence has no translation; a small temperature makes infinities
@np.errstate(invalid="ignore", over="ignore")
def beam_search(
    model: OnnxModel,
    source: list[list[int]],
    options: SearchOptions,
    choice: ChosenWords | None = None,
    is_scored: bool = True,
    check: Callable[[], None] | None = None,
) -> list[list[Hypothesis]]:
    """Translate a batch.

    Args:
        model: the exported graphs.
        source: the tokens of each sentence with end-of-sentence.
        choice: takes the softmax over some words of the vocabulary.
        is_scored, check: as in the other search.

    Returns:
        The finished hypotheses of each sentence, best first; none if no score is finite.

    Raises:
        UserError: if ``min_len`` or ``beam`` do not fit the model.
    """
    beam, vocabulary = options.beam, model.config.target_vocabulary
    if choice is not None:
        allowed = choice.allowed
        vocabulary = len(choice.words) if allowed is None else int(allowed.sum(axis=1).min())
    options.check_beam(vocabulary)
    lengths = [len(sentence) for sentence in source]
    limits = [options.max_len(length, model.config.max_target_positions) for length in lengths]
    padded = np.full((len(source), max(lengths)), PAD)
    for row, sentence in zip(padded, source, strict=True):
        row[: len(sentence)] = sentence
    memory = model.encode(padded, np.array(lengths))
    if beam == 1:
        return _greedy_search(model, memory, limits, options, choice, is_scored, check)
    beams = _Beams(model, memory, limits, beam, choice)
    finished: list[list[Hypothesis]] = [[] for _ in source]
    for position in range(max(limits) + 1):
        if check is not None:
            check()
        at_limit = beams.limits == position
        logits = beams.step(position)
        _to_log_probabilities(logits, options)
        options.restrict(logits, position, np.flatnonzero(at_limit).tolist())
        scores, parents, tokens = _best(logits, beams.scores[:, :, -1], 2 * beam)
        if choice is not None:
            tokens = choice.words[tokens]
        is_eos = tokens == EOS
        if at_limit.any() or is_eos.any():
            ends = (is_eos & np.isfinite(scores))[:, :beam]
            _finish(beams, ends, parents, scores, position, options, finished)
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


def _greedy_search(
    model: OnnxModel,
    memory: Arrays,
    limits: list[int],
    options: SearchOptions,
    choice: ChosenWords | None,
    is_scored: bool,
    check: Callable[[], None] | None,
) -> list[list[Hypothesis]]:
    """:func:`beam_search` with a beam of 1, with few operations besides the graphs' own."""
    longest, nearest = max(limits) + 1, min(limits)
    steps = np.arange(longest)
    descends = np.ones((len(limits), 1, longest), dtype=np.float32)
    past, forbidden = model.first_past(len(limits)), _forbidden(choice)
    words = None if choice is None else choice.words.tolist()
    # Of each sentence that goes on. They are lists: for one sentence of a small model, operations
    # of numpy on a number take a tenth of the time.
    sentences = list(range(len(limits)))
    tokens: list[list[int]] = [[EOS] for _ in limits]
    scores: list[list[float]] = [[] for _ in limits]
    finished: list[list[Hypothesis]] = [[] for _ in limits]
    for position in range(longest):
        if check is not None:
            check()
        states, past = model.step(
            np.array([found[-1:] for found in tokens]),
            steps[position : position + 1],
            steps[:position],
            descends[: len(tokens), :, :position],
            memory,
            past,
        )
        logits = _scores(model, states, choice, forbidden)
        at_limit = []
        if position >= nearest:
            at_limit = [row for row, limit in enumerate(limits) if limit == position]
        if is_scored or options.temperature != 1.0:  # which divides before unkpen is subtracted
            _to_log_probabilities(logits, options)
        options.restrict(logits, position, at_limit)
        for row, best in enumerate(logits[:, 0].argmax(axis=1).tolist()):
            scores[row].append(logits.item(row, 0, best))
            tokens[row].append(best if words is None else words[best])
        ends = {row for row, found in enumerate(tokens) if found[-1] == EOS}.union(at_limit)
        if not ends:
            continue
        for row in ends:
            if tokens[row][-1] == EOS and np.isfinite(scores[row]).all():
                score = sum(scores[row]) / options.norm(position + 1)
                hypothesis = Hypothesis(tokens[row][1:], score, scores[row])
                finished[sentences[row]].append(hypothesis)
        going = [row for row in range(len(tokens)) if row not in ends]
        if not going:
            break
        memory, past = (
            {name: array[going] for name, array in arrays.items()} for arrays in (memory, past)
        )
        forbidden = None if forbidden is None else forbidden[going]
        sentences, limits = [sentences[row] for row in going], [limits[row] for row in going]
        tokens, scores = [tokens[row] for row in going], [scores[row] for row in going]
    return finished


def _forbidden(choice: ChosenWords | None) -> NDArray[np.bool_] | None:
    """The words that a sentence may not use, (rows, 1, words); None if there are none."""
    return None if choice is None or choice.allowed is None else ~choice.allowed[:, None]


def _scores(
    model: OnnxModel,
    states: Floats,
    choice: ChosenWords | None,
    forbidden: NDArray[np.bool_] | None,
) -> Floats:
    """Scores of the words that each sentence may use, before the softmax."""
    scores = model.scores(states, None if choice is None else choice.rows)
    if forbidden is not None:
        np.copyto(scores, -np.inf, where=forbidden)
    return scores


def _to_log_probabilities(logits: Floats, options: SearchOptions) -> None:
    """Turn scores into log-probabilities, in place."""
    logits -= logits.max(axis=2, keepdims=True)
    if options.temperature != 1.0:
        logits /= max(options.temperature, TINY)
    logits -= np.log(np.exp(logits).sum(axis=2, keepdims=True))


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
    finished: list[list[Hypothesis]],
) -> None:
    """Store the hypotheses that end, until their sentence has enough."""
    norm = options.norm(position + 1)
    for row, column in zip(*ends.nonzero(), strict=True):
        sentence = finished[beams.sentences[row]]
        if len(sentence) < options.beam:
            parent, total = parents[row, column], scores[row, column]
            tokens = [*beams.tokens[row, parent, 1:].tolist(), EOS]
            cumulative = np.append(beams.scores[row, parent], total)
            sentence.append(Hypothesis(tokens, float(total / norm), np.diff(cumulative).tolist()))
