"""Makes a shortlist by counting words in pairs of sentences.

A word t is a likely translation of s if it occurs more often than by chance in the translations of
sentences with s. The words with the largest log-likelihood ratio G2 come first (Dunning 1993,
"Accurate methods for the statistics of surprise and coincidence").
"""

import warnings
from collections.abc import Iterable, Sequence
from itertools import islice

import torch
from torch import Tensor

from resmlp_mt.engine.shortlist import Shortlist
from resmlp_mt.engine.vocabulary import SPECIAL

FREQUENT, PER_WORD = 1000, 50
SENTENCES = 100_000  # sentences whose pairs of words are counted at once
MOST_PAIRS = 20_000_000  # pairs of words kept between counts, in some gigabytes


def build(
    source: Iterable[Sequence[int] | Tensor],
    target: Iterable[Sequence[int] | Tensor],
    source_vocabulary: int,
    target_vocabulary: int,
    frequent: int = FREQUENT,
    per_word: int = PER_WORD,
    joint: bool = False,
) -> Shortlist:
    """Make a shortlist by counting words in pairs of sentences.

    If more than MOST_PAIRS pairs of words have occurred together, the rarest are dropped on the
    way; they would hardly be in a shortlist.

    Args:
        source, target: tokens of the training sentences and of their translations.
        frequent: number of target words that every sentence may use: those of the most sentences.
        per_word: number of translations of each source word.
        joint: both sides have the same words, and every source word is a target word too.

    Raises:
        ValueError: if one side has more sentences.
    """
    indices, values = torch.zeros(2, 0, dtype=torch.long), torch.zeros(0).double()
    counts = torch.zeros(source_vocabulary).double(), torch.zeros(target_vocabulary).double()
    sentences = 0
    pairs = zip(source, target, strict=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        while chunk := list(islice(pairs, SENTENCES)):
            sentences += len(chunk)
            sides = [
                _occurrences(side, len(count))
                for side, count in zip(zip(*chunk, strict=True), counts, strict=True)
            ]
            for side, count in zip(sides, counts, strict=True):
                count += side.sum(0).to_dense()
            of_source, of_target = sides
            found = of_source.t().coalesce().to_sparse_csr() @ of_target.to_sparse_csr()
            found = found.to_sparse_coo()
            together = _sparse(
                torch.cat([indices, found.indices()], dim=1),
                torch.cat([values, found.values()]),
                found.shape,
            )
            indices, values = together.indices(), together.values()
            least = 1
            while len(values) > MOST_PAIRS:
                kept = values > least
                indices, values, least = indices[:, kept], values[kept], least + 1
    special = torch.arange(len(SPECIAL))
    always = torch.cat([special, counts[1].argsort(descending=True, stable=True)[:frequent]])
    rows, columns = indices
    ratios = log_likelihood_ratio(values, counts[0][rows], counts[1][columns], sentences)
    ratios[values * sentences <= counts[0][rows] * counts[1][columns]] = -1.0  # not more often
    rows, columns, ratios = (x[ratios >= 0] for x in (rows, columns, ratios))
    order = ratios.argsort(descending=True, stable=True)
    order = order[rows[order].argsort(stable=True)]
    rows, columns = rows[order], columns[order]
    rank = torch.arange(len(rows)) - torch.searchsorted(rows, rows)
    best = rank < per_word
    by_source = torch.zeros(source_vocabulary, per_word, dtype=torch.long)
    by_source[rows[best], rank[best]] = columns[best]
    if joint:
        by_source = torch.cat([by_source, torch.arange(source_vocabulary).unsqueeze(1)], dim=1)
    return Shortlist(always.unique().numpy(), by_source.numpy())


def log_likelihood_ratio(both: Tensor, first: Tensor, second: Tensor, total: int) -> Tensor:
    """G2 of two events in ``total`` trials: 2 sum_ij O_ij log(O_ij / E_ij).

    The numbers of trials are those with both events, with the first one and with the second one.
    """

    def xlogx(count: Tensor) -> Tensor:
        product: Tensor = torch.special.xlogy(count, count)
        return product

    neither = total - first - second + both
    observed = xlogx(both) + xlogx(first - both) + xlogx(second - both) + xlogx(neither)
    margins = xlogx(first) + xlogx(total - first) + xlogx(second) + xlogx(total - second)
    everything = torch.as_tensor(float(total), dtype=both.dtype)
    return 2 * (observed - margins + xlogx(everything))


def _occurrences(sentences: Sequence[Sequence[int] | Tensor], vocabulary: int) -> Tensor:
    """A sparse matrix of which sentence has which word, (sentences, vocabulary)."""
    words = [torch.as_tensor(tokens, dtype=torch.long).unique() for tokens in sentences]
    rows = torch.arange(len(words)).repeat_interleave(torch.tensor([len(w) for w in words]))
    index = torch.stack([rows, torch.cat(words)])
    return _sparse(index, torch.ones(index.size(1)).double(), (len(words), vocabulary))


def _sparse(indices: Tensor, values: Tensor, shape: Sequence[int]) -> Tensor:
    """A sparse matrix; values at the same place are added."""
    matrix = torch.sparse_coo_tensor(indices, values, tuple(shape), check_invariants=False)
    return matrix.coalesce()
