"""Reads and makes binarised text; an error names a damaged file before anything is trained.

fairseq trusts the files of fairseq-preprocess. A damaged one ends in a traceback, kills the
process, or trains on other words. In text, fairseq takes a lone carriage return for the end of a
line, which shifts all sentences after it from their translations.
"""

import os
import signal
import struct
from pathlib import Path
from typing import Any

import numpy as np
from fairseq import binarizer, file_chunker_utils
from fairseq.data import Dictionary, data_utils, dictionary, indexed_dataset

from resmlp_mt import signals
from resmlp_mt.errors import UserError, is_of_memory, reason, refused
from resmlp_mt.fairseq_plugin.wrapping import Original, remedy

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQ")
"""Magic number, version, code of the tokens' type, number of sentences."""

NOT_UTF8 = "{} is not valid UTF-8: convert it with iconv."
MOST_READ = 200  # sentences, which show how a text was split


@remedy(data_utils, "load_indexed_dataset")
def _load_indexed_dataset(
    original: Original, path: str, dictionary: Any = None, *args: Any, **kwargs: Any
) -> Any:
    index = Path(path + ".idx")
    try:
        with index.open("rb") as file:
            is_mapped = file.read(len(MAGIC)) == MAGIC
    except OSError:
        is_mapped = False
    if is_mapped:
        check(path, None if dictionary is None else len(dictionary))
    elif index.exists() and kwargs.get("dataset_impl", *args[:1]) == "mmap":
        raise _damaged(index, "it does not begin as an index does")
    return original(path, dictionary, *args, **kwargs)


def check(prefix: str, vocabulary: int | None) -> None:
    """Check that ``prefix.idx`` and ``prefix.bin`` fit each other and the dictionary.

    Raises:
        UserError: naming the file that does not.
    """
    index, data = Path(prefix + ".idx"), Path(prefix + ".bin")
    try:
        content, size = index.read_bytes(), os.path.getsize(data)
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}.") from error
    if len(content) < HEADER.size:
        raise _damaged(index, "it is too short")
    _, version, code, sentences = HEADER.unpack_from(content)
    kind = indexed_dataset._code_to_dtype.get(code)
    if version != 1 or kind is None or np.dtype(kind).kind not in "iu":
        raise _damaged(index, "its header is wrong")
    dtype = np.dtype(kind)
    if len(content) != HEADER.size + 12 * sentences:
        raise _damaged(index, f"it should have {sentences:,} sentences")
    sizes = np.frombuffer(content, np.int32, sentences, HEADER.size).astype(np.int64)
    starts = np.frombuffer(content, np.int64, sentences, HEADER.size + 4 * sentences)
    ends = np.cumsum(sizes) * dtype.itemsize
    expected = ends - sizes * dtype.itemsize
    if bool((sizes < 0).any()) or not np.array_equal(starts, expected):
        why = "its sentences do not follow one another"
        if np.array_equal(starts, expected.astype(np.int32)):
            why = "fairseq-preprocess --workers without --user-dir has counted its bytes in 32 bits"
        raise _damaged(index, why)
    total = int(ends[-1]) if sentences else 0
    if total != size:
        raise _damaged(data, f"it has {size:,} bytes, but its index is of {total:,}")
    if vocabulary is not None and total:
        tokens = np.memmap(data, dtype, mode="r")
        least, most = int(tokens.min()), int(tokens.max())
        if least < 0 or most >= vocabulary:
            raise _damaged(
                data,
                f"it has a word of number {most if most >= vocabulary else least}, but the "
                f"dictionary has {vocabulary:,} words",
            )


@remedy(indexed_dataset.MMapIndexedDatasetBuilder, "merge_file_")
def _merge_file(original: Original, self: Any, another_file: str) -> None:
    """Take over sizes as Python's whole numbers: fairseq adds them up in 32 bits with numpy 2."""
    before = len(self._sizes)
    original(self, another_file)
    self._sizes[before:] = map(int, self._sizes[before:])


@remedy((file_chunker_utils, binarizer, dictionary), "find_offsets")
def _find_offsets(_: Original, filename: str, num_chunks: int) -> list[int]:
    """Where the parts of a text begin, each with a line, and its size."""
    size = os.path.getsize(filename)
    offsets = [0]
    with open(filename, "rb") as file:
        for part in range(1, num_chunks):
            file.seek(size // num_chunks * part)
            file.readline()
            offsets.append(file.tell())
    return [*offsets, size]


@remedy((binarizer, dictionary), "Pool")
def _pool(original: Original, *args: Any, **kwargs: Any) -> Any:
    """The processes of ``--workers``; at Ctrl-C, they would print tracebacks and start anew."""
    return original(*args, initializer=_begin_worker, **kwargs)


def _begin_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # but not SIGTERM, by which Pool ends it
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # where nobody takes its words any more
    signals.end_with_parent()


@remedy(file_chunker_utils, "_safe_readline")
def _read_line(_: Original, file: Any) -> Any:
    """The first line of a part; fairseq would go back, a byte at a time, for one it can decode."""
    return file.readline()


def open_text(path: str, mode: str, encoding: str | None = None, **options: Any) -> Any:
    """Open a file for a module that reads text and other files, in place of Python's function."""
    newline = "\n" if mode == "r" else None
    return open(path, mode, encoding=encoding, newline=newline, **options)


@remedy(file_chunker_utils.Chunker, "__exit__")
def _close_part(original: Original, self: Any, kind: Any, error: Any, trace: Any) -> None:
    original(self, kind, error, trace)
    if isinstance(error, UnicodeDecodeError):
        raise UserError(NOT_UTF8.format(self.path)) from error


@remedy(indexed_dataset.IndexedRawTextDataset, "read_data")
def _read_raw(original: Original, self: Any, path: str, words: Dictionary) -> None:
    with refused(lambda _: NOT_UTF8.format(path), UnicodeDecodeError):
        original(self, path, words)


@remedy(Dictionary, "add_from_file")
def _add_from_file(original: Original, self: Any, file: Any) -> Any:
    if not isinstance(file, str):
        return original(self, file)
    try:
        return original(self, file)
    except FileNotFoundError:
        raise
    except Exception as error:  # fairseq's plain exceptions, and errors of reading text
        if is_of_memory(error):
            raise
        raise _damaged(Path(file), reason(error).rstrip(".")) from error


def _damaged(path: Path, why: str) -> UserError:
    return UserError(
        f"{path} is damaged or not what fairseq-preprocess writes: {why}; binarise the text again."
    )


def some_sentences(
    folder: Path, codes: tuple[str, str], language: str, words: Dictionary
) -> list[list[str]]:
    """The first sentences of a validation or test set, as words; none without such a set.

    The training text may be split at random.

    Args:
        folder: what fairseq-preprocess wrote.
        codes: source and target language.
        language: one of the two, whose sentences these are.
        words: its dictionary.

    Raises:
        UserError: if a file is damaged.
    """
    for split in ("valid", "test"):
        for pair in ("-".join(codes), "-".join(reversed(codes))):
            prefix = str(folder / f"{split}.{pair}.{language}")
            if indexed_dataset.infer_dataset_impl(prefix) == "mmap":
                check(prefix, len(words))
                # not by fairseq's function, whose log would say that the command uses this set
                text = indexed_dataset.MMapIndexedDataset(prefix)
                return [[words[i] for i in text[k][:-1]] for k in range(min(len(text), MOST_READ))]
    return []
