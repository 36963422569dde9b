"""Cleaning of sentence pairs: normalisation, filters, deduplication, in one streaming pass."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import compress, groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from sacremoses import MosesPunctNormalizer, MosesTokenizer
from tqdm import tqdm

import dedup
from errors import DataError
from formats import Pair, TextFiles, decode, pairs
from parallel import ordered_map
from resmlp_mt.text import normalize
from steps import atomic_write

NumberedPair = tuple[TextFiles, int, Pair]

CHUNK = 5_000
"""Pairs sent to a worker at a time."""

FILTERS = ("validation", "empty", "length", "ratio", "held-out", "duplicate")
"""The filters of the training text, in the order in which they are applied and counted."""

# Scripts without spaces between words: Han and kana, of which each sign counts as a word (with the
# punctuation beside it), and those of Thai, Lao, Burmese and Khmer, with about four signs a word.
_SIGNS = (
    "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
_LETTERS = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
_UNSPACED = re.compile(f"[{_SIGNS}{_LETTERS}]")
_WORDS = re.compile(rf"[^\w\s]*[{_SIGNS}][^\w\s]*|[{_LETTERS}]{{1,4}}|[^\s{_SIGNS}{_LETTERS}]+")


@dataclass(frozen=True)
class Options:
    """How to clean. Lengths are what `words` counts."""

    source: str
    target: str
    tokenizer: str = "none"
    normalize_punctuation: bool = False
    max_length: int = 250
    max_ratio: float = 3.0


def words(text: str) -> int:
    """Words of a normalised sentence: what stands between spaces, as in Moses' clean-corpus-n.

    Where a script has no spaces between words they are estimated: each sign of Chinese and
    Japanese is a word, and so are four of Thai, Lao, Burmese or Khmer.
    """
    if not text.isascii() and _UNSPACED.search(text):
        return len(_WORDS.findall(text))
    # A normalised sentence has one plain space between words, and only there.
    return text.count(" ") + 1 if text else 0


def fault(source: str, target: str, options: Options) -> str | None:
    """The filter that a normalised pair fails ("empty", "length", "ratio"), or None."""
    lengths = [words(source), words(target)]
    if 0 in lengths:
        return "empty"
    if max(lengths) > options.max_length:
        return "length"
    if max(lengths) > options.max_ratio * min(lengths):
        return "ratio"
    return None


@dataclass(frozen=True)
class Chunk:
    """Consecutive pairs of one piece of text.

    `first` is the line number of the first pair in its file, `offset` its index among all training
    pairs.
    """

    files: TextFiles
    first: int
    offset: int
    pairs: list[Pair]


@dataclass(frozen=True)
class Cleaned:
    """What a worker made of a chunk: kept pairs, a 64-bit hash of each, dropped pairs by filter."""

    source: list[str]
    target: list[str]
    hashes: bytes
    dropped: Counter[str]
    changed: int


class Cleaner:
    """Normalises, filters and (for Moses) tokenizes pairs.

    Args:
        options: how to clean.
        held_out: normalised sentences of valid and test, of both languages.
        valid_every: every n-th pair belongs to the validation set.
    """

    def __init__(
        self,
        options: Options,
        held_out: frozenset[str] = frozenset(),
        valid_every: int | None = None,
    ) -> None:
        self.options = options
        self.held_out = held_out
        self.valid_every = valid_every
        langs = (options.source, options.target)
        self._punctuation = [_punctuation(lang, options) for lang in langs]
        self._tokenize = [_tokenizer(lang, options) for lang in langs]

    def normalize(self, pair: Pair, files: TextFiles, number: int) -> tuple[str, str]:
        """The pair decoded and normalised, not yet tokenized."""
        source = normalize(self._punctuation[0](decode(pair[0], files.source, number)))
        target = normalize(self._punctuation[1](decode(pair[1], files.target, number)))
        return source, target

    def tokenize(self, source: str, target: str) -> tuple[str, str]:
        """The pair tokenized, if that was asked for."""
        return self._tokenize[0](source), self._tokenize[1](target)

    def __call__(self, chunk: Chunk) -> Cleaned:
        kept: tuple[list[str], list[str]] = ([], [])
        hashes: list[bytes] = []
        dropped: Counter[str] = Counter()
        changed = 0
        for index, pair in enumerate(chunk.pairs):
            if is_valid(chunk.offset + index, self.valid_every):
                dropped["validation"] += 1
                continue
            source, target = self.normalize(pair, chunk.files, chunk.first + index)
            changed += source.encode() != pair[0] or target.encode() != pair[1]
            wrong = fault(source, target, self.options)
            if wrong is None and (source in self.held_out or target in self.held_out):
                wrong = "held-out"
            if wrong is not None:
                dropped[wrong] += 1
                continue
            hashes.append(hashlib.blake2b(f"{source}\n{target}".encode(), digest_size=8).digest())
            source, target = self.tokenize(source, target)
            kept[0].append(source)
            kept[1].append(target)
        return Cleaned(*kept, b"".join(hashes), dropped, changed)


def is_valid(index: int, valid_every: int | None) -> bool:
    """Whether training pair `index` (from 0) is held out: the n-th, 2n-th, ... of all pairs."""
    return valid_every is not None and (index + 1) % valid_every == 0


def numbered_pairs(
    parts: Sequence[TextFiles], max_pairs: int | None = None
) -> Iterator[NumberedPair]:
    """All pairs with file and line number; at most `max_pairs`, an equal share of each part."""
    for index, files in enumerate(parts):
        share = None
        if max_pairs is not None:
            share = max_pairs // len(parts) + (index < max_pairs % len(parts))
        reader = islice(pairs(files, checked=share is None), share)
        for number, pair in enumerate(reader, 1):
            yield files, number, pair


def valid_pairs(
    parts: Sequence[TextFiles], max_pairs: int | None, valid_every: int
) -> Iterator[NumberedPair]:
    """The training pairs that `is_valid` holds out."""
    for index, item in enumerate(numbered_pairs(parts, max_pairs)):
        if is_valid(index, valid_every):
            yield item


def clean_train(
    parts: Sequence[TextFiles],
    outputs: tuple[Path, Path],
    options: Options,
    *,
    held_out: frozenset[str],
    valid_every: int | None = None,
    max_pairs: int | None = None,
    jobs: int = 1,
) -> dict[str, Any]:
    """Cleans the training text into `outputs`; returns kept and dropped pairs by step.

    The order of the pairs is kept. Memory: the hash table of `dedup` and a few chunks.
    """
    seen = dedup.HashSet()
    dropped: Counter[str] = Counter()
    read = changed = 0
    with (
        atomic_write(outputs[0]) as source_file,
        atomic_write(outputs[1]) as target_file,
        tqdm(desc="clean", unit="pair", unit_scale=True) as progress,
    ):
        for cleaned in ordered_map(
            _clean,
            _chunks(parts, max_pairs),
            jobs=jobs,
            setup=_setup,
            setup_args=(options, held_out, valid_every),
        ):
            new = seen.add(np.frombuffer(cleaned.hashes, dtype="<u8").astype(np.uint64))
            _write_lines(source_file, compress(cleaned.source, new))
            _write_lines(target_file, compress(cleaned.target, new))
            dropped.update(cleaned.dropped)
            dropped["duplicate"] += len(new) - int(new.sum())
            size = len(cleaned.source) + cleaned.dropped.total()
            read += size
            changed += cleaned.changed
            progress.update(size)
    kept = read
    steps = [{"step": "normalize", "kept": kept, "dropped": 0, "changed": changed}]
    for step in FILTERS:
        if step == "validation" and valid_every is None:
            continue
        kept -= dropped[step]
        steps.append({"step": step, "kept": kept, "dropped": dropped[step]})
    if kept == 0:
        if read == 0:
            raise DataError("the training files are empty: expected a sentence a line in them")
        reasons = ", ".join(f"{name} {count}" for name, count in dropped.items() if count)
        raise DataError(
            f"no training pair is left of {read} (dropped: {reasons}): "
            "look at the input, --max-length and --max-ratio"
        )
    return {"read": read, "pairs": kept, "steps": steps}


def clean_held_out(
    items: Iterable[NumberedPair],
    raw: tuple[Path, Path],
    outputs: tuple[Path, Path],
    cleaner: Cleaner,
) -> tuple[int, set[str]]:
    """Writes a validation or test set; nothing is filtered, so order and number stay official.

    `raw` gets the text as published (what scores are computed against), `outputs` the text
    normalised as for training. Returns the number of pairs and the normalised sentences.
    """
    count = 0
    sentences: set[str] = set()
    with (
        atomic_write(raw[0]) as raw_source,
        atomic_write(raw[1]) as raw_target,
        atomic_write(outputs[0]) as source_file,
        atomic_write(outputs[1]) as target_file,
    ):
        for files, number, pair in items:
            source, target = cleaner.normalize(pair, files, number)
            sentences.update((source, target))
            # Readers in text mode take a lone carriage return for a line end.
            _write_lines(raw_source, [decode(pair[0], files.source, number).replace("\r", " ")])
            _write_lines(raw_target, [decode(pair[1], files.target, number).replace("\r", " ")])
            source, target = cleaner.tokenize(source, target)
            _write_lines(source_file, [source])
            _write_lines(target_file, [target])
            count += 1
    return count, sentences


def _chunks(parts: Sequence[TextFiles], max_pairs: int | None) -> Iterator[Chunk]:
    offset = 0
    for files, items in groupby(numbered_pairs(parts, max_pairs), key=itemgetter(0)):
        first = 1
        while block := [pair for _, _, pair in islice(items, CHUNK)]:
            yield Chunk(files, first, offset, block)
            first += len(block)
            offset += len(block)


_cleaner: Cleaner


def _setup(*arguments: Any) -> None:
    global _cleaner
    _cleaner = Cleaner(*arguments)


def _clean(chunk: Chunk) -> Cleaned:
    return _cleaner(chunk)


def _write_lines(file: BinaryIO, lines: Iterable[str]) -> None:
    file.write("".join(f"{line}\n" for line in lines).encode())


def _punctuation(lang: str, options: Options) -> Callable[[str], str]:
    if not options.normalize_punctuation:
        return _unchanged
    normalizer = MosesPunctNormalizer(lang)
    return lambda text: str(normalizer.normalize(text))


def _tokenizer(lang: str, options: Options) -> Callable[[str], str]:
    if options.tokenizer != "moses":
        return _unchanged
    tokenizer = MosesTokenizer(lang)
    # The arguments of fairseq's `--tokenizer moses`, so that fairseq-interactive does the same.
    return lambda text: str(
        tokenizer.tokenize(text, aggressive_dash_splits=True, return_str=True, escape=True)
    )


def _unchanged(text: str) -> str:
    return text
