"""Lexical shortlists: the few target words that a source sentence may be translated with.

The shortlist of a sentence has the likely translations of each of its words and the most frequent
words of the language (Jean et al. 2015, "On using very large target vocabulary for neural machine
translation"). It needs no PyTorch.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from resmlp_mt.engine.vocabulary import SPECIAL
from resmlp_mt.errors import UserError, reason, refused

MOST_PER_WORD = 1000  # target words per source word that a file may have


@dataclass(frozen=True)
class Shortlist:
    """Target words for every source word.

    ``always`` are the words that every sentence may use, ascending, the special symbols included.
    ``by_source`` is (source_vocabulary, words), filled up with the first word of ``always``.
    """

    always: NDArray[np.int64]
    by_source: NDArray[np.int64]

    def words(self, sentences: list[list[int]]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """The target words of a batch of source tokens.

        Returns:
            The words of all sentences, (words,), in the order of the vocabulary, and whether each
            sentence may use them, (batch, words).
        """
        rows = np.repeat(np.arange(len(sentences)), [len(tokens) for tokens in sentences])
        own = self.by_source[[token for tokens in sentences for token in tokens]]
        is_chosen = np.zeros(self._size, dtype=np.bool_)
        is_chosen[self.always] = is_chosen[own] = True
        words, columns = is_chosen.nonzero()[0], is_chosen.cumsum() - 1
        allowed = np.zeros((len(sentences), len(words)), dtype=np.bool_)
        allowed[:, columns[self.always]] = allowed[rows[:, None], columns[own]] = True
        return words, allowed

    @cached_property
    def _size(self) -> int:
        """One more than the largest word."""
        return 1 + max(int(words.max()) for words in (self.always, self.by_source))

    def save(self, path: str | Path) -> None:
        """Write a .safetensors file."""
        tables = {
            "always": self.always.astype(np.int32),
            "by_source": self.by_source.astype(np.int32),
        }
        Path(path).write_bytes(save(tables))

    @classmethod
    def load(cls, path: str | Path, source_vocabulary: int, target_vocabulary: int) -> Self:
        """Read what :meth:`save` wrote.

        Raises:
            UserError: if the file is broken or belongs to other vocabularies.
        """
        damage = OSError, KeyError, TypeError, ValueError, SafetensorError
        with refused(
            lambda error: (
                f"{path} cannot be read as a shortlist ({reason(error)}): export the model again."
            ),
            *damage,
        ):
            with safe_open(path, framework="np") as stored:
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
                fits = fits and words.dtype in (np.int32, np.int64) and int(words.min()) >= 0
                fits = fits and int(words.max()) < target_vocabulary
            fits = fits and bool((np.diff(always) > 0).all())
            fits = fits and always[: len(SPECIAL)].tolist() == [*range(len(SPECIAL))]
        if not fits:
            raise UserError(
                f"{path} does not belong to these vocabularies ({source_vocabulary} and "
                f"{target_vocabulary} words): export the model again."
            )
        return cls(always.astype(np.int64), by_source.astype(np.int64))
