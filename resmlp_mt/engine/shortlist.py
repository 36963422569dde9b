"""Lexical shortlists: the few target words that a source sentence may be translated with.

The shortlist of a sentence has the likely translations of each of its words and the most frequent
words of the language (Jean et al. 2015, "On using very large target vocabulary for neural machine
translation"). A word t is a likely translation of s if it occurs more often than by chance in the
translations of sentences with s. The words with the largest log-likelihood ratio G2 come first
(Dunning 1993, "Accurate methods for the statistics of surprise and coincidence").
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from resmlp_mt.engine.vocabulary import SPECIAL
from resmlp_mt.errors import UserError

FREQUENT, PER_WORD = 1000, 50
MOST_PER_WORD = 1000  # target words per source word that a file may have
SENTENCES = 100_000  # sentences whose pairs of words are counted at once
MOST_PAIRS = 20_000_000  # pairs of words kept between counts, in some gigabytes


@dataclass(frozen=True)
class Shortlist:
    """Target words for every source word.

    ``always`` are the words that every sentence may use, including the special symbols.
    ``by_source`` is (source_vocabulary, words), filled up with the first word of ``always``.
    """

    always: Tensor
    by_source: Tensor

    def words(self, sentences: list[list[int]]) -> tuple[Tensor, Tensor]:
        """The target words of a batch.

        Args:
            sentences: source tokens.

        Returns:
            The words of all sentences, (words,), in the order of the vocabulary, and whether each
            sentence may use them, (batch, words).
        """
        lengths = torch.tensor([len(tokens) for tokens in sentences])
        rows = torch.arange(len(sentences)).repeat_interleave(lengths).unsqueeze(1)
        own = self.by_source[torch.tensor([token for tokens in sentences for token in tokens])]
        is_chosen = torch.zeros(self._size, dtype=torch.bool)
        is_chosen[self.always] = is_chosen[own] = True
        words, columns = is_chosen.nonzero().squeeze(1), is_chosen.cumsum(0) - 1
        allowed = torch.zeros(len(sentences), len(words), dtype=torch.bool)
        allowed[:, columns[self.always]] = allowed[rows, columns[own]] = True
        return words, allowed

    @cached_property
    def _size(self) -> int:
        """One more than the largest word."""
        return 1 + max(int(words.max()) for words in (self.always, self.by_source))

    def save(self, path: str | Path) -> None:
        """Write a .safetensors file."""
        tables = {"always": self.always.int(), "by_source": self.by_source.int()}
        Path(path).write_bytes(save(tables))

    @classmethod
    def load(cls, path: str | Path, source_vocabulary: int, target_vocabulary: int) -> Shortlist:
        """Read what :meth:`save` wrote.

        Raises:
            UserError: if the file is broken or belongs to other vocabularies.
        """
        try:
            with safe_open(path, framework="pt") as stored:
                shape = stored.get_slice("by_source").get_shape()
                fits = len(stored.get_slice("always").get_shape()) == 1
                # the words of a sentence are looked up one by one, so their number is limited
                fits = fits and shape[:1] == [source_vocabulary] and len(shape) == 2
                if not fits or shape[1] > MOST_PER_WORD:
                    raise UserError(
                        f"{path} has a table of {shape}, but one of [{source_vocabulary}, at most "
                        f"{MOST_PER_WORD}] is needed: export the model again."
                    )
                always, by_source = stored.get_tensor("always"), stored.get_tensor("by_source")
            for words in (always, by_source):
                # in long, as they were written before
                fits = fits and words.dtype in (torch.int, torch.long) and int(words.min()) >= 0
                fits = fits and int(words.max()) < target_vocabulary
            fits = fits and bool(torch.isin(torch.arange(len(SPECIAL)), always).all())
        except (OSError, KeyError, RuntimeError, SafetensorError) as error:
            raise UserError(
                f"{path} cannot be read as a shortlist ({error}): export the model again."
            ) from error
        if not fits:
            raise UserError(
                f"{path} does not belong to these vocabularies ({source_vocabulary} and "
                f"{target_vocabulary} words): export the model again."
            )
        return cls(always.long(), by_source.long())


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
        source: tokens of the training sentences.
        target: tokens of their translations.
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
    return Shortlist(always.unique(), by_source)


def log_likelihood_ratio(both: Tensor, first: Tensor, second: Tensor, total: int) -> Tensor:
    """G2 of two events in ``total`` trials: 2 sum_ij O_ij log(O_ij / E_ij).

    Args:
        both: number of trials with both events.
        first: number of trials with the first event.
        second: number of trials with the second event.
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
