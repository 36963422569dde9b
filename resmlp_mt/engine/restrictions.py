"""Options that restrict a step of the search: forbidden, forced and sampled tokens."""

from collections.abc import Sequence

import torch
from torch import Tensor

from resmlp_mt.engine.options import SearchOptions
from resmlp_mt.engine.vocabulary import UNK

CACHED_SCORES = 2**19


def restricted(
    logits: Tensor,
    past: Tensor | None,
    position: int,
    at_limit: list[int],
    options: SearchOptions,
    prefixes: Sequence[list[int]] | None,
    is_scored: bool = True,
) -> tuple[Tensor, Tensor]:
    """The scores of a step, after the options have forbidden or forced tokens.

    Args:
        logits: the model's scores, (rows, hypotheses, words).
        past: the tokens of each hypothesis, (rows, hypotheses, positions), if needed.
        position: position of the tokens that are chosen.
        at_limit: rows that end here, even inside of their prefix.
        prefixes: tokens that each row begins with, whatever the options forbid.
        is_scored: whether the softmax's denominator is wanted.

    Returns:
        The scores that may be chosen, and the logarithm of the softmax's denominator, (rows,
        hypotheses, words) and (rows, hypotheses, 1); a zero where it is not wanted.
    """
    logits = logits.float()
    forced = {
        row: prefix[position]
        for row, prefix in enumerate(prefixes or ())
        if position < len(prefix) and row not in at_limit
    }
    if past is not None and options.repetition_penalty != 1.0:
        # tokens that came before become less likely (Keskar et al. 2019, section 4.1)
        seen, penalty = logits.gather(2, past), options.repetition_penalty
        logits.scatter_(2, past, torch.where(seen < 0, seen * penalty, seen / penalty))
    if options.disable_unk:
        rows = [row for row in range(len(logits)) if forced.get(row) != UNK]
        logits[rows, :, UNK] = -torch.inf
    if options.temperature != 1.0:
        # the best score becomes 0, so that a small temperature does not make it infinite
        least = torch.finfo(logits.dtype).tiny
        logits = (logits - logits.amax(2, keepdim=True)) / max(options.temperature, least)
    log_total = _log_total(logits) if is_scored else logits.new_zeros(1, 1, 1)
    given = {row: logits[row, :, token].clone() for row, token in forced.items()}
    options.restrict(logits, position, at_limit)
    if past is not None and options.no_repeat_ngram_size:
        forbid_repeated_ngrams(logits, past, options.no_repeat_ngram_size)
    for row, token in forced.items():
        logits[row] = -torch.inf
        logits[row, :, token] = given[row]
    return logits, log_total


def _log_total(logits: Tensor) -> Tensor:
    """``logits.logsumexp(2, keepdim=True)``; on a CPU a few rows at a time.

    From PyTorch's log-softmax, which takes a third less time for the same. With a few rows, the
    scores are still in the processor's cache when they are read again.
    """
    rows = len(logits)
    if logits.is_cpu:
        rows = max(1, CACHED_SCORES * rows // logits.numel())
    return torch.cat(
        [
            some.amax(2, keepdim=True) - some.log_softmax(2).amax(2, keepdim=True)
            for some in logits.split(rows)
        ]
    )


def forbid_repeated_ngrams(logits: Tensor, past: Tensor, size: int) -> None:
    """Forbid n-grams of this size to occur twice (Paulus et al. 2018, section 2.5), in place.

    Args:
        logits: (rows, beam, words).
        past: the tokens of each hypothesis, (rows, beam, positions).
    """
    if past.size(2) < size:
        return
    ngrams = past.unfold(2, size, 1)
    recent = past[:, :, past.size(2) - size + 1 :]
    is_begun = (ngrams[..., :-1] == recent.unsqueeze(2)).all(dim=3)
    rows, hypotheses, _ = is_begun.nonzero().unbind(1)
    logits[rows, hypotheses, ngrams[..., -1][is_begun]] = -torch.inf


def sample(
    log_probs: Tensor,
    scores: Tensor,
    options: SearchOptions,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw the next token of every hypothesis; ended ones continue with a score of -inf.

    Args:
        log_probs: (rows, beam, words), or (rows, 1, words) if all are the same.
        scores: of the hypotheses, (rows, beam) or (rows, 1).

    Returns:
        Scores, continued hypotheses and tokens, (rows, beam) each.
    """
    rows, hypotheses, words = log_probs.shape
    parents = torch.arange(options.beam, device=log_probs.device).clamp_max(hypotheses - 1)
    log_probs = log_probs[:, parents]
    most = words if options.sampling_topk == -1 else min(options.sampling_topk, words)
    chosen, tokens = log_probs.topk(most)
    probs = chosen.softmax(dim=2)
    if options.sampling_topp != -1:
        # the best that together reach the probability, the one that crosses it included
        probs = probs.masked_fill(probs.cumsum(2) - probs >= options.sampling_topp, 0.0)
    probs = probs.nan_to_num(1.0)  # if nothing is possible, the score will be -inf
    drawn = torch.multinomial(probs.flatten(0, 1), 1, generator=generator).view(rows, -1, 1)
    scores = scores[:, parents] + chosen.gather(2, drawn).squeeze(2)
    return scores, parents.expand(rows, -1), tokens.gather(2, drawn).squeeze(2)
