"""Cleaning of sentence pairs: normalisation, filters, deduplication, in one streaming pass."""

import hashlib
import operator
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from resmlp_mt import language_codes
from resmlp_mt.errors import UserError
from resmlp_mt.preparation import dedup
from resmlp_mt.preparation.corpus import warn
from resmlp_mt.preparation.formats import TextFiles, blocks, decode_lines
from resmlp_mt.preparation.options import CleaningOptions
from resmlp_mt.preparation.parallel import mapped
from resmlp_mt.preparation.steps import atomic_write
from resmlp_mt.text import UNSPACED, normalize

Faults = npt.NDArray[np.int64]

CHUNK = 5_000
"""Number of pairs sent to a worker at a time, or a little less, so that groups stay whole."""

LENGTH_FILTERS = ("empty", "length", "ratio")

FILTERS = ("validation", *LENGTH_FILTERS, "held-out", "duplicate")
"""The filters of the training text, in the order in which they are applied and counted."""

# Scripts without spaces between words. In Han and kana each sign counts as a word (with the
# punctuation beside it). The others have about four signs per word.
_SIGNS = (
    "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
# Their code points: at least the first number, and not between the others.
_FIRST_UNSPACED, _BETWEEN = 0x0E00, (0x1C00, 0x3005)
_UNSPACED = re.compile(f"[{_SIGNS}{UNSPACED}]")
_WORDS = re.compile(rf"[^\w\s]*[{_SIGNS}][^\w\s]*|[{UNSPACED}]{{1,4}}|[^\s{_SIGNS}{UNSPACED}]+")

# Readers in text mode take a lone carriage return for a line end, and `score` a NUL byte for a sign
# that a file is not text.
_UNREADABLE = str.maketrans("\r", " ", "\0")


@dataclass(frozen=True)
class Options(CleaningOptions):
    """How to clean. `words` counts lengths; for `concatenate` see `Joiner`."""

    source: str
    target: str


def words(text: str) -> int:
    """Number of words of a normalised sentence, separated by spaces, as in Moses' clean-corpus-n.

    For scripts without spaces between words it is an estimate: one word for each sign of Chinese
    and Japanese, and for every four signs of Thai, Burmese, Tibetan and others.
    """
    if not text.isascii() and _UNSPACED.search(text):
        return len(_WORDS.findall(text))
    # A normalised sentence has one plain space between words, and only there.
    return text.count(" ") + 1 if text else 0


def faults(sources: Sequence[str], targets: Sequence[str], options: Options) -> Faults:
    """For each normalised pair, the index in `LENGTH_FILTERS` of the first failed one, or -1."""
    counts = np.array([_word_counts(sources), _word_counts(targets)])
    shorter, longer = counts.min(axis=0), counts.max(axis=0)
    failed = [shorter == 0, longer > options.max_length, longer > options.max_ratio * shorter]
    return np.select(failed, range(len(failed)), -1)


def _word_counts(lines: Sequence[str]) -> list[int]:
    codes = np.frombuffer("".join(lines).encode("utf-32-le"), dtype="<u4")
    if np.any((codes >= _FIRST_UNSPACED) & ((codes < _BETWEEN[0]) | (codes >= _BETWEEN[1]))):
        return [words(line) for line in lines]
    # Normalised sentences have one plain space between words, and only there.
    return [line.count(" ") + 1 if line else 0 for line in lines]


@dataclass(frozen=True)
class Chunk:
    """Consecutive pairs of one piece of text.

    `source` and `target` are `pairs` lines with a line feed between them: other processes take text
    in one piece far sooner than in thousands. `first` is the line number of the first pair in its
    file, `offset` its index among all training pairs.
    """

    files: TextFiles
    first: int
    offset: int
    pairs: int
    source: bytes
    target: bytes


@dataclass(frozen=True)
class Cleaned:
    """A worker's output for a chunk.

    Attributes:
        source, target: kept sentences, each followed by a line feed.
        places: index of each kept pair in its file.
        hashes: a 64-bit hash of each kept pair.
        dropped: numbers of other pairs, by filter.
        changed: number of pairs that normalisation changed.
    """

    source: bytes
    target: bytes
    places: npt.NDArray[np.int64]
    hashes: dedup.Hashes
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

    def normalize(self, side: int, lines: Sequence[str]) -> list[str]:
        """Lines of one side (0 or 1) normalised, not yet tokenized."""
        punctuation = self._punctuation[side]
        return [normalize(line) for line in (map(punctuation, lines) if punctuation else lines)]

    def tokenize(self, side: int, lines: Sequence[str]) -> Sequence[str]:
        """Lines of one side, tokenized if the options say so."""
        tokenizer = self._tokenize[side]
        return [tokenizer(line) for line in lines] if tokenizer else lines

    def __call__(self, chunk: Chunk) -> Cleaned:
        raw = (
            decode_lines(chunk.source, chunk.files.source, chunk.first),
            decode_lines(chunk.target, chunk.files.target, chunk.first),
        )
        sources, targets = self.normalize(0, raw[0]), self.normalize(1, raw[1])
        failed = faults(sources, targets, self.options)
        failed[failed >= 0] += FILTERS.index(LENGTH_FILTERS[0])
        if self.held_out:
            held = [a in self.held_out or b in self.held_out for a, b in zip(sources, targets)]  # noqa: B905
            failed[(failed < 0) & np.array(held)] = FILTERS.index("held-out")
        looked_at = np.ones(len(sources), dtype=np.bool_)
        if self.valid_every is not None:
            looked_at = (chunk.offset + np.arange(len(sources)) + 1) % self.valid_every != 0
            failed[~looked_at] = FILTERS.index("validation")
        changed = map(
            operator.or_, map(operator.ne, sources, raw[0]), map(operator.ne, targets, raw[1])
        )
        kept = failed < 0
        sources, targets = list(compress(sources, kept)), list(compress(targets, kept))
        hashes = b"".join(
            hashlib.blake2b(f"{source}\n{target}".encode(), digest_size=8).digest()
            for source, target in zip(sources, targets, strict=True)
        )
        return Cleaned(
            _joined(self.tokenize(0, sources)),
            _joined(self.tokenize(1, targets)),
            np.flatnonzero(kept) + chunk.first - 1,
            np.frombuffer(hashes, dtype="<u8").astype(np.uint64),
            Counter(FILTERS[index] for index in failed[~kept]),
            sum(compress(changed, looked_at)),
        )


def chunks(
    parts: Sequence[TextFiles], max_pairs: int | None = None, group: int = 1
) -> Iterator[Chunk]:
    """All pairs in blocks; at most `max_pairs`, an equal share of each part.

    No block ends within a group of neighbouring pairs of a part.
    """
    size = max(1, CHUNK // group) * group
    offset = 0
    for index, files in enumerate(parts):
        share = None
        if max_pairs is not None:
            share = max_pairs // len(parts) + (index < max_pairs % len(parts))
        first = 1
        for sources, targets in blocks(files, size, share):
            text = b"\n".join(sources), b"\n".join(targets)
            yield Chunk(files, first, offset, len(sources), *text)
            first += len(sources)
            offset += len(sources)


def valid_chunks(
    parts: Sequence[TextFiles], max_pairs: int | None, valid_every: int
) -> Iterator[Chunk]:
    """The training pairs that are held out: the n-th, 2n-th, ... of all."""
    for chunk in chunks(parts, max_pairs):
        sources, targets = chunk.source.split(b"\n"), chunk.target.split(b"\n")
        for place in range(-(chunk.offset + 1) % valid_every, chunk.pairs, valid_every):
            pair = sources[place], targets[place]
            yield Chunk(chunk.files, chunk.first + place, chunk.offset + place, 1, *pair)


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
    from tqdm import tqdm  # here, because workers need none

    seen = dedup.HashSet()
    joiner = Joiner(options)
    dropped: Counter[str] = Counter()
    read = changed = lines = 0
    arguments = (options, held_out, valid_every)
    items = chunks(parts, max_pairs, options.concatenate)
    with (
        atomic_write(outputs[0]) as source_file,
        atomic_write(outputs[1]) as target_file,
        tqdm(desc="clean", unit="pair", unit_scale=True) as progress,
        mapped(jobs, Cleaner, arguments, items) as results,
    ):
        for cleaned in results:
            new = seen.add(cleaned.hashes)
            size = len(new) + cleaned.dropped.total()
            source, target, count = joiner(cleaned, new)
            source_file.write(source)
            target_file.write(target)
            dropped.update(cleaned.dropped)
            dropped["duplicate"] += len(new) - int(new.sum())
            read += size
            lines += count
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
            raise UserError("the training files are empty: expected one sentence per line")
        reasons = ", ".join(f"{name} {count}" for name, count in dropped.items() if count)
        remedy = "look at the input, --max-length and --max-ratio"
        if max(dropped, key=dropped.__getitem__) == "held-out":
            remedy = "valid or test has the same sentences: take others there"
        raise UserError(f"no training pair is left of {read} (dropped: {reasons}): {remedy}")
    if options.concatenate > 1:
        steps.append({"step": "concatenate", "kept": lines, "dropped": 0, "joined": joiner.joined})
    return {"read": read, "pairs": lines, "steps": steps} | left_out(parts)


def left_out(parts: Sequence[TextFiles]) -> dict[str, dict[str, int]]:
    """What the readers of the parts have left out, for the manifest; nothing in most formats."""
    counts = sum((part.left_out for part in parts), Counter[str]())
    return {"left_out": dict(counts)} if counts else {}


class Joiner:
    """Leaves out duplicates, and joins neighbouring pairs if the options say so.

    The pairs of each file are cut into groups of `concatenate`. A share `concatenate_share` of the
    groups, evenly spaced, is joined: each becomes one pair, unless one of its pairs was dropped or
    the whole is longer than `max_length`.
    """

    def __init__(self, options: Options) -> None:
        self.size = options.concatenate
        self.share = options.concatenate_share
        self.max_length = options.max_length
        self.joined = 0

    def __call__(self, cleaned: Cleaned, new: npt.NDArray[np.bool_]) -> tuple[bytes, bytes, int]:
        """Both sides of a chunk as text, and its number of lines.

        Args:
            cleaned: the kept pairs of the chunk, whose groups are whole.
            new: which of them are new.
        """
        count = int(new.sum())
        if count == len(new) and self.size == 1:
            return cleaned.source, cleaned.target, count
        sides = [
            list(compress(side.split(b"\n"), new)) for side in (cleaned.source, cleaned.target)
        ]
        if self.size > 1:
            sides = self._join(sides, cleaned.places[new])
        source, target = (b"".join(line + b"\n" for line in side) for side in sides)
        return source, target, len(sides[0])

    def _join(self, sides: list[list[bytes]], places: npt.NDArray[np.int64]) -> list[list[bytes]]:
        groups, starts, sizes = np.unique(
            places // self.size, return_index=True, return_counts=True
        )
        chosen = np.floor((groups + 1) * self.share) != np.floor(groups * self.share)
        joined: list[list[bytes]] = [[], []]
        for start, size, together in zip(starts, sizes, chosen, strict=True):
            pairs = [side[start : start + size] for side in sides]
            whole = [b" ".join(lines) for lines in pairs]
            if (
                together
                and size == self.size
                and max(words(text.decode()) for text in whole) <= self.max_length
            ):
                pairs = [[text] for text in whole]
                self.joined += 1
            for lines, more in zip(joined, pairs, strict=True):
                lines += more
        return joined


def clean_held_out(
    items: Iterable[Chunk],
    raw: tuple[Path, Path],
    outputs: tuple[Path, Path],
    cleaner: Cleaner,
) -> tuple[int, set[str]]:
    """Writes a validation or test set; nothing is filtered, so its pairs and order stay official.

    `raw` gets the text as published, but without NUL bytes and lone carriage returns, for computing
    scores, and `outputs` gets the text normalised as for training. Returns the number of pairs and
    the normalised sentences.
    """
    count = empty = 0
    sentences: set[str] = set()
    with ExitStack() as stack:
        raw_files = [stack.enter_context(atomic_write(path)) for path in raw]
        files = [stack.enter_context(atomic_write(path)) for path in outputs]
        for chunk in items:
            paths = (chunk.files.source, chunk.files.target)
            blank = np.zeros(chunk.pairs, dtype=np.bool_)
            for side, text in enumerate((chunk.source, chunk.target)):
                lines = decode_lines(text, paths[side], chunk.first)
                raw_files[side].write(_joined([line.translate(_UNREADABLE) for line in lines]))
                normalized = cleaner.normalize(side, lines)
                blank |= [not line for line in normalized]
                sentences.update(normalized)
                files[side].write(_joined(cleaner.tokenize(side, normalized)))
            count += chunk.pairs
            empty += int(blank.sum())
    if empty:
        warn(f"{empty} of the {count} pairs of {paths[0]} and {paths[1]} have an empty side")
    return count, sentences


def _joined(lines: Sequence[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def _punctuation(lang: str, options: Options) -> Callable[[str], str] | None:
    if not options.normalize_punctuation:
        return None
    from sacremoses import MosesPunctNormalizer  # here, because most runs do not need it

    normalizer = MosesPunctNormalizer(language_codes.moses(lang))
    return lambda text: str(normalizer.normalize(text))


def _tokenizer(lang: str, options: Options) -> Callable[[str], str] | None:
    if options.tokenizer != "moses":
        return None
    from sacremoses import MosesTokenizer

    tokenizer = MosesTokenizer(language_codes.moses(lang))
    # The arguments of fairseq's `--tokenizer moses`, so that fairseq-interactive does the same.
    return lambda text: str(
        tokenizer.tokenize(text, aggressive_dash_splits=True, return_str=True, escape=True)
    )
