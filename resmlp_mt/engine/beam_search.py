"""Beam search over a folded model, with the rules and scores of fairseq's generator.

Each step takes the 2 * beam best continuations of a sentence. Those among the first ``beam`` that
end the sentence are finished hypotheses; the first ``beam`` others continue. A sentence is done
when it has ``beam`` finished hypotheses, or at its maximum length. It then leaves the batch, and
the last sentence of the batch takes its place.

Nothing is copied when the beam changes: inputs, tokens and scores stay where they were written, and
every hypothesis knows its own entries.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from resmlp_mt.engine.batches import batches
from resmlp_mt.engine.options import Hypothesis, SearchOptions, StepResult
from resmlp_mt.engine.restrictions import restricted, sample
from resmlp_mt.engine.vocabulary import EOS, PAD
from resmlp_mt.machine import as_usual
from resmlp_mt.model.attention import Memory
from resmlp_mt.model.cache import FIRST_ROOM, Cache
from resmlp_mt.model.encoder_decoder import EncoderDecoder

CHUNK = 64  # neighbours in the vocabulary
FEW_SCORES = 2**14  # with fewer, chunks save nothing
ENCODED_TOKENS = 512  # padding included


class WordChoice(NamedTuple):
    """The target words that the sentences of a batch may use; everything is where the model is.

    ``words``, (words,), are ascending and begin with the special symbols. ``allowed``, (batch,
    words), says which of them a sentence may use; None if all. ``output_projection`` maps (...,
    dim) to (..., words).
    """

    words: Tensor
    allowed: Tensor | None
    output_projection: nn.Module


class _Beams:
    """What a batch has decoded so far; row r of every tensor belongs to sentence ``sentences[r]``.

    ``tokens`` and ``scores``, the inputs of the decoder and their cumulative scores, are (rows,
    positions, beam); ``forbidden`` is (rows, 1, words), None if every word is allowed. The room for
    positions doubles when it is full.
    """

    def __init__(
        self,
        cache: Cache,
        limits: list[int],
        choice: WordChoice | None,
    ) -> None:
        rows, beam, device = len(limits), cache.beam, cache.ancestors.device
        room = min(FIRST_ROOM, max(limits) + 2)
        self.cache = cache
        self.limits = limits
        self.sentences = list(range(rows))
        self.tokens = torch.zeros(rows, room, beam, dtype=torch.long, device=device)
        self.scores = torch.zeros(rows, room, beam, device=device)
        self.forbidden: Tensor | None = None
        if choice is not None and choice.allowed is not None:
            self.forbidden = ~choice.allowed.unsqueeze(1)

    def extend(self, position: int, parents: Tensor, tokens: Tensor, scores: Tensor) -> None:
        """Continue each hypothesis ``parents`` by a token; (rows, beam) each."""
        rows = len(self.sentences)
        if position + 1 >= self.tokens.size(1):
            self.tokens = torch.cat([self.tokens, self.tokens], dim=1)
            self.scores = torch.cat([self.scores, self.scores], dim=1)
        self.cache = self.cache.followed(parents)
        self.tokens[:rows, position + 1] = tokens
        self.scores[:rows, position + 1] = scores

    def remove(self, finished: list[int]) -> Tensor:
        """Remove sentences; returns the old row of every remaining row."""
        rows = len(self.sentences)
        left = rows - len(finished)
        holes = [row for row in finished if row < left]
        last = [row for row in range(left, rows) if row not in set(finished)]
        order = list(range(left))
        for hole, row in zip(holes, last, strict=True):
            order[hole] = row
            self.limits[hole] = self.limits[row]
            self.sentences[hole] = self.sentences[row]
        del self.sentences[left:], self.limits[left:]
        if holes:
            for moved in (self.tokens, self.scores, self.forbidden):
                if moved is not None:
                    moved[holes] = moved[last]
        self.cache = self.cache.moved(last, holes, left)
        return torch.tensor(order, device=self.tokens.device)

    def past(self, position: int) -> Tensor:
        """The tokens of every hypothesis, without the start: (rows, beam, position)."""
        rows = len(self.sentences)
        path = self.cache.ancestors[:rows, :, : position + 1].transpose(1, 2)
        return self.tokens[:rows, : position + 1].gather(2, path).transpose(1, 2)[..., 1:]

    def hypotheses(
        self, rows: Tensor, slots: Tensor, position: int, scores: Tensor
    ) -> list[tuple[list[int], list[float]]]:
        """Tokens and scores per token of hypotheses that end at a position."""
        path = self.cache.ancestors[rows, slots]
        tokens = self.tokens[rows, : position + 1].gather(2, path.unsqueeze(2)).squeeze(2)
        cumulative = self.scores[rows, : position + 1].gather(2, path.unsqueeze(2)).squeeze(2)
        cumulative = torch.cat([cumulative, scores.unsqueeze(1)], dim=1)
        ends = tokens.new_full((len(tokens), 1), EOS)
        return list(
            zip(
                torch.cat([tokens[:, 1:], ends], dim=1).tolist(),
                cumulative.diff(dim=1).tolist(),
                strict=True,
            )
        )


@as_usual()
@torch.inference_mode()
def beam_search(
    model: EncoderDecoder,
    source: list[list[int]],
    options: SearchOptions,
    words: WordChoice | None = None,
    prefixes: list[list[int]] | None = None,
    generator: torch.Generator | None = None,
    callback: Callable[[StepResult], bool | None] | None = None,
    is_scored: bool = True,
    check: Callable[[], None] | None = None,
) -> list[list[Hypothesis]]:
    """Translate a batch.

    Args:
        model: a folded model, its linear layers packed or not.
        source: the tokens of each sentence with end-of-sentence.
        words: takes the softmax over some words of the vocabulary.
        prefixes: tokens that the translation of each sentence begins with; not with ``words``.
        generator: draws the samples.
        callback: called with every token of every sentence, if ``beam`` is 1; if it returns True,
            the sentence ends there.
        is_scored: whether to compute log-probabilities. Greedy search (a beam of 1) finds the same
            tokens without them; the scores it returns then only say whether they are finite.
        check: called before every step; it raises to end the search.

    Returns:
        The finished hypotheses of each sentence, best first; none if no score is finite.

    Raises:
        ValueError: if a sentence is longer than ``max_source_positions``.
        UserError: if ``min_len`` or ``beam`` do not fit the model.
    """
    beam, device = options.beam, model.device
    candidates = 2 * beam
    if beam > 1 or options.sampling or callback is not None:
        is_scored = True
    choice = model.config.target_vocabulary
    if words is not None:
        allowed = words.allowed
        choice = len(words.words) if allowed is None else int(allowed.sum(1).min())
    options.check_beam(choice)
    lengths = [len(tokens) for tokens in source]
    limits = [options.max_len(n, model.config.max_target_positions) for n in lengths]
    memory = _encode(model, source)
    beams = _Beams(model.cache(memory, beam), limits, words)
    finished: list[list[Hypothesis]] = [[] for _ in source]
    # all hypotheses are the same at first, so one is enough
    tokens = torch.full((len(source), 1), EOS, device=device)
    scores = torch.zeros(len(source), 1, device=device)

    for position in range(max(limits) + 1):
        if check is not None:
            check()
        rows = len(beams.sentences)
        logits = _step(model, tokens, beams, words)
        at_limit = [row for row, limit in enumerate(beams.limits) if limit == position]
        own = None if prefixes is None else [prefixes[sentence] for sentence in beams.sentences]
        past = beams.past(position) if position and options.need_the_past else None
        if past is not None and words is not None:
            past = torch.searchsorted(words.words, past)
        logits, log_total = restricted(logits, past, position, at_limit, options, own, is_scored)
        before = scores
        if options.sampling:
            scores, parents, tokens = sample(logits - log_total, scores, options, generator)
        else:
            scores, parents, tokens = _best(logits, log_total, scores, candidates)
        if words is not None:
            tokens = words.words[tokens]

        is_eos = tokens == EOS
        if callback is not None:
            _report(callback, beams, position, tokens, scores - before, is_eos)
        if at_limit or bool(is_eos.any()):
            ends = (is_eos & scores.isfinite())[:, :beam].nonzero()
            done = _finish(beams, ends, parents, scores, position, options, finished)
            if len(done) == rows:
                break
            if done:
                order = beams.remove(done)
                is_eos, scores, parents, tokens = (
                    t[order] for t in (is_eos, scores, parents, tokens)
                )
            if options.sampling:
                scores = scores.masked_fill(is_eos, -torch.inf)
            going_on = torch.argsort(is_eos.byte(), dim=1, stable=True)[:, :beam]
            scores, parents, tokens = (t.gather(1, going_on) for t in (scores, parents, tokens))
        else:
            scores, parents, tokens = scores[:, :beam], parents[:, :beam], tokens[:, :beam]
        beams.extend(position, parents, tokens, scores)

    return [sorted(found, key=lambda h: h.score, reverse=True) for found in finished]


def _encode(model: EncoderDecoder, source: list[list[int]]) -> Memory:
    """Encode a batch; on a CPU a few sentences at a time, of about the same length.

    Then there are few pads, and the states of a layer stay in the processor's cache.
    """
    rows = list(batches(dict(enumerate(source)), len(source), ENCODED_TOKENS))
    if len(rows) == 1 or model.device.type != "cpu":
        return _encode_at_once(model, source)
    parts = [_encode_at_once(model, [source[row] for row in some]) for some in rows]
    return Memory.joined(parts, rows)


def _encode_at_once(model: EncoderDecoder, source: list[list[int]]) -> Memory:
    rows = [torch.tensor(row) for row in source]
    tokens = pad_sequence(rows, batch_first=True, padding_value=PAD)
    lengths = torch.tensor([len(row) for row in source])
    same = bool((lengths == lengths[0]).all())
    return model.encode(tokens.to(model.device), None if same else lengths.to(model.device))


def _step(model: EncoderDecoder, tokens: Tensor, beams: _Beams, words: WordChoice | None) -> Tensor:
    """Scores of the words that each sentence may use."""
    if words is None:
        scores, beams.cache = model.advance(tokens, beams.cache)
        return scores
    scores, beams.cache = model.advance(tokens, beams.cache, words.output_projection)
    if beams.forbidden is None:
        return scores
    return scores.masked_fill_(beams.forbidden[: len(beams.sentences)], -torch.inf)


def _best(
    logits: Tensor, log_total: Tensor, scores: Tensor, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The best continuations of each sentence: scores, hypotheses and tokens, (rows, count) each.

    Only these get a log-softmax.
    """
    best, tokens = _top(logits, count)
    totals = best - log_total + scores.unsqueeze(2)
    if totals.size(1) == 1:
        return totals.squeeze(1), torch.zeros_like(tokens).squeeze(1), tokens.squeeze(1)
    scores, index = totals.flatten(1).topk(count, dim=1)
    return scores, index // count, tokens.flatten(1).gather(1, index)


def _report(
    callback: Callable[[StepResult], bool | None],
    beams: _Beams,
    position: int,
    tokens: Tensor,
    log_probs: Tensor,
    is_eos: Tensor,
) -> None:
    """Call back with each sentence's token; one that is to stop gets the next step as its limit."""
    columns = tokens[:, 0].tolist(), log_probs[:, 0].tolist(), is_eos[:, 0].tolist()
    for row, (token, log_prob, is_last) in enumerate(zip(*columns, strict=True)):
        found = StepResult(position, beams.sentences[row], token, log_prob, is_last)
        if callback(found) and not is_last:
            beams.limits[row] = min(beams.limits[row], position + 1)


def _top(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """``logits.topk(count)``, searched only in the chunks with the ``count`` largest maxima.

    The maxima take one vectorized pass over the vocabulary. If minus infinity is among the best,
    its index is arbitrary.
    """
    vocabulary = logits.size(-1)
    chunks = vocabulary // CHUNK
    if chunks < 4 * count or logits.numel() < FEW_SCORES:
        return logits.topk(count)
    maxima = logits[..., : chunks * CHUNK].unflatten(-1, (chunks, CHUNK)).amax(-1)
    if chunks * CHUNK < vocabulary:
        rest = logits[..., chunks * CHUNK :].amax(-1, keepdim=True)
        maxima = torch.cat([maxima, rest], dim=-1)
    best_chunks = maxima.topk(count, sorted=False).indices
    index = (best_chunks.unsqueeze(-1) * CHUNK + torch.arange(CHUNK, device=logits.device)).flatten(
        -2
    )
    values = logits.gather(-1, index.clamp_max(vocabulary - 1))
    best, where = values.masked_fill(index >= vocabulary, -torch.inf).topk(count)
    return best, index.gather(-1, where).clamp_max(vocabulary - 1)


def _finish(
    beams: _Beams,
    ends: Tensor,
    parents: Tensor,
    scores: Tensor,
    position: int,
    options: SearchOptions,
    finished: list[list[Hypothesis]],
) -> list[int]:
    """Store hypotheses that end, (row, candidate) each; returns the rows of finished sentences.

    A sentence at its limit is finished, even if none of its hypotheses has a finite score.
    """
    rows, columns = ends.unbind(1)
    totals = scores[rows, columns]
    paths = beams.hypotheses(rows, parents[rows, columns], position, totals)
    norm = options.norm(position + 1)
    found = zip(rows.tolist(), paths, (totals / norm).tolist(), strict=True)
    for row, (tokens, positional_scores), score in found:
        sentence = finished[beams.sentences[row]]
        if len(sentence) < options.beam:
            sentence.append(Hypothesis(tokens, score, positional_scores))
    return [
        row
        for row, (sentence, limit) in enumerate(zip(beams.sentences, beams.limits, strict=True))
        if len(finished[sentence]) == options.beam or limit == position
    ]
