"""A set of 64-bit hashes in a numpy array, for deduplication that keeps the first of each."""

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]

MAX_LOAD = 0.7
"""Largest share of taken slots; beyond it the table doubles."""


class HashSet:
    """Open addressing with linear probing, one batch at a time.

    A slot has 8 bytes, and the number of slots is a power of two. While the table grows from `s` to
    `2 s` slots, both are in memory, 24 s bytes. 40M entries need 2**26 slots: 512 MiB, 768 MiB
    while growing (a Python set of as many integers takes over 3 GB). Two different pairs share a
    64-bit hash with probability n**2 / 2**65: for 40M pairs, a pair is dropped wrongly with
    probability 4e-5.
    """

    def __init__(self, slots: int = 1 << 16) -> None:
        self._table: Hashes = np.zeros(slots, dtype=np.uint64)
        self._count = 0

    def add(self, hashes: Hashes) -> npt.NDArray[np.bool_]:
        """Adds `hashes`, shape `(n,)`; returns which of them were new, shape `(n,)`.

        Of equal hashes in the batch, only the first one counts as new.
        """
        # Zero marks a free slot.
        hashes = np.where(hashes == 0, np.uint64(1), hashes)
        while self._count + len(hashes) > MAX_LOAD * len(self._table):
            self._grow()
        unique, first = np.unique(hashes, return_index=True)
        inserted = _insert(self._table, unique)
        self._count += int(inserted.sum())
        new = np.zeros(len(hashes), dtype=np.bool_)
        new[first[inserted]] = True
        return new

    def _grow(self) -> None:
        old = self._table
        self._table = np.zeros(2 * len(old), dtype=np.uint64)
        for start in range(0, len(old), 1 << 20):
            block = old[start : start + (1 << 20)]
            _insert(self._table, block[block != 0])


def _insert(table: Hashes, hashes: Hashes) -> npt.NDArray[np.bool_]:
    """Inserts distinct hashes into `table`; returns which were not there."""
    mask = np.uint64(len(table) - 1)
    inserted = np.zeros(len(hashes), dtype=np.bool_)
    waiting = np.arange(len(hashes))
    slots = hashes & mask
    while len(waiting):
        wanted = hashes[waiting]
        found = table[slots]
        free = found == 0
        # Several hashes may want one free slot: the last write wins, and the others probe on.
        table[slots[free]] = wanted[free]
        won = free & (table[slots] == wanted)
        inserted[waiting[won]] = True
        on = ~won & (found != wanted)
        waiting, slots = waiting[on], (slots[on] + np.uint64(1)) & mask
    return inserted
