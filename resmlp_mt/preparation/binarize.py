"""Turns cleaned text into fairseq's binary files, directly from sentencepiece's ids.

The files equal those of `fairseq-preprocess` on the same pieces, byte for byte. Each process writes
the ids of a block of text into a file of its own. At the end the pieces are counted, fairseq's
dictionary, the most frequent first, gives every piece its number, and the files are joined.
"""

import struct
import tempfile
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import sentencepiece

from resmlp_mt.preparation.parallel import mapped
from resmlp_mt.preparation.steps import atomic_write
from resmlp_mt.preparation.subwords import EOS, FAIRSEQ_SPECIALS, UNK, write_dictionary
from resmlp_mt.preparation.text_blocks import TextBlock, cut

Ids = npt.NDArray[np.unsignedinteger[Any]]

KNOWN_WORDS = 300_000
"""Number of words whose pieces a process remembers; about 250 bytes each."""

INDEX_MAGIC, INDEX_VERSION = b"MMIDIDX\x00\x00", 1

INDEX_BLOCK = 1 << 20
"""Number of sentences whose places are computed at a time."""

DTYPE_CODES: dict[Any, int] = {np.uint16: 8, np.uint32: 9}
"""fairseq's codes for the types of stored tokens."""


@dataclass(frozen=True)
class Sampling:
    """Subwords drawn at random: BPE-dropout, or sampling from a unigram model.

    Samples differ from run to run, because sentencepiece mixes its seed with one of the process.

    Attributes:
        copies: differently sampled training sets; 0 for none.
        alpha: probability of a merge that is left out (bpe), or smoothing (unigram).
    """

    copies: int = 0
    alpha: float = 0.1


@dataclass(frozen=True)
class _Part:
    """A block of text, the file for its ids, and the seed of its sampling."""

    name: str
    text: TextBlock
    path: Path
    seed: int | None


def folder_name(copy: int) -> str:
    """The folder of a copy of the training set: `bin`, `bin2`, `bin3`, ..."""
    return "bin" if copy == 0 else f"bin{copy + 1}"


def token_type(entries: int) -> Any:
    """The smallest type for fairseq's numbers, as fairseq-preprocess chooses it."""
    return np.uint16 if entries < 65500 else np.uint32


def outputs(
    out: Path, languages: tuple[str, str], splits: Sequence[str], copies: int
) -> list[Path]:
    """The files that `binarize` writes."""
    folders = [out / folder_name(copy) for copy in range(max(1, copies))]
    names = [(folders[0], split) for split in splits]
    names += [(folder, "train") for folder in folders[1:]]
    return [
        out / "dict.txt",
        *(folder / f"dict.{lang}.txt" for folder in folders for lang in languages),
        *(
            folder / f"{split}.{'-'.join(languages)}.{lang}.{kind}"
            for folder, split in names
            for lang in languages
            for kind in ("bin", "idx")
        ),
    ]


def binarize(
    out: Path,
    languages: tuple[str, str],
    splits: Sequence[str],
    *,
    subword_type: str,
    sampling: Sampling,
    jobs: int = 1,
) -> dict[str, Any]:
    """Binarises `out/text/SPLIT.LANG` with `out/spm.model` into `out/bin`.

    Also writes the dictionary, as `out/dict.txt` and for each language. With sampling, `out/bin`,
    `out/bin2`, ... have the training set in different pieces; `fairseq-train bin:bin2:...` takes
    one after the other, epoch by epoch.

    Returns:
        what was counted: dictionary "entries", and "tokens": pieces and unknown pieces by file.
    """
    from tqdm import tqdm  # here, because workers need none

    model = out / "spm.model"
    processor = _processor(model)
    with tempfile.TemporaryDirectory(prefix="bin.", dir=out / ".steps") as temporary:
        parts = _parts(out, languages, splits, sampling, Path(temporary))
        size = sum(part.text.end - part.text.start for part in parts)
        training: npt.NDArray[np.int64] = np.zeros(len(processor), dtype=np.int64)
        tokens: dict[str, dict[str, int]] = {}
        arguments = (model, subword_type, sampling.alpha)
        with (
            tqdm(desc="binarize", total=size, unit="B", unit_scale=True) as progress,
            mapped(jobs, _part_encoder, arguments, parts) as counted,
        ):
            for part, counts in zip(parts, counted, strict=True):
                progress.update(part.text.end - part.text.start)
                if Path(part.name).name.startswith("train."):
                    training += counts
                facts = tokens.setdefault(part.name, {"pieces": 0, "unknown": 0})
                facts["pieces"] += int(counts.sum() - counts[EOS])
                facts["unknown"] += int(counts[UNK])
        indices = write_dictionary(processor, training, out / "dict.txt")
        for copy in range(max(1, sampling.copies)):
            for lang in languages:
                path = out / folder_name(copy) / f"dict.{lang}.txt"
                with atomic_write(path) as file:
                    file.write((out / "dict.txt").read_bytes())
        for name in tokens:
            join([part.path for part in parts if part.name == name], indices, out / name)
    return {"entries": len(indices) - len(FAIRSEQ_SPECIALS), "tokens": tokens}


def _processor(model: Path) -> sentencepiece.SentencePieceProcessor:
    # not by its path, which need not be UTF-8
    return sentencepiece.SentencePieceProcessor(model_proto=model.read_bytes())


def _parts(
    out: Path,
    languages: tuple[str, str],
    splits: Sequence[str],
    sampling: Sampling,
    temporary: Path,
) -> list[_Part]:
    parts: list[_Part] = []
    for copy in range(max(1, sampling.copies)):
        for split in splits if copy == 0 else ["train"]:
            sampled = split == "train" and sampling.copies > 0
            for lang in languages:
                name = f"{folder_name(copy)}/{split}.{'-'.join(languages)}.{lang}"
                for block in cut(out / "text" / f"{split}.{lang}"):
                    number = len(parts)
                    seed = number + 1 if sampled else None
                    parts.append(_Part(name, block, temporary / f"{number}.ids", seed))
    return parts


def join(parts: Sequence[Path], indices: npt.NDArray[np.int64], name: Path) -> list[Path]:
    """Writes `name.bin` and `name.idx` from files of ids, one sentence after the other.

    Args:
        parts: files with the model's ids, of the type that `token_type` returns.
        indices: fairseq's index of each id.
        name: name of the files, without extension.
    """
    dtype = token_type(len(indices))
    table = indices.astype(dtype)
    paths = [name.with_name(f"{name.name}.{extension}") for extension in ("bin", "idx")]
    ends: list[npt.NDArray[np.int32]] = []
    with atomic_write(paths[0]) as file:
        for part in parts:
            ids = np.fromfile(part, dtype=dtype)
            ends.append(np.diff(np.flatnonzero(ids == EOS), prepend=-1).astype(np.int32))
            file.write(table[ids].tobytes())
    with atomic_write(paths[1]) as file:
        write_index(file, np.concatenate([np.zeros(0, dtype=np.int32), *ends]), dtype)
    return paths


def write_index(file: BinaryIO, sizes: npt.NDArray[np.int32], dtype: Any) -> None:
    """Writes the index of fairseq's memory-mapped data.

    Args:
        file: open for writing.
        sizes: tokens of each sentence with its end-of-sentence, shape `(n,)`.
        dtype: type of the tokens.
    """
    file.write(INDEX_MAGIC)
    file.write(struct.pack("<QBQ", INDEX_VERSION, DTYPE_CODES[dtype], len(sizes)))
    file.write(sizes.astype("<i4", copy=False).data)
    # In 64 bits from the start, because with numpy 2 fairseq's own sums wrap at 2**31 bytes.
    start = 0
    for block in np.split(sizes, range(INDEX_BLOCK, len(sizes), INDEX_BLOCK)):
        ends = start + np.cumsum(block, dtype=np.int64) * np.dtype(dtype).itemsize
        file.write(np.concatenate([[start], ends[:-1]])[: len(block)].astype("<i8").tobytes())
        start = int(ends[-1]) if len(ends) else start


def _part_encoder(
    model: Path, subword_type: str, alpha: float
) -> Callable[[_Part], npt.NDArray[np.int64]]:
    return partial(_encode_part, Encoder(_processor(model), subword_type, alpha))


def _encode_part(encoder: "Encoder", part: _Part) -> npt.NDArray[np.int64]:
    """Writes the ids of a block; returns the count of each id."""
    counts = np.zeros(len(encoder.processor), dtype=np.int64)
    with open(part.path, "wb") as file:
        for number, text in enumerate(part.text.read()):
            ids = encoder(text, None if part.seed is None else part.seed * 1_000_003 + number)
            counts += np.bincount(ids, minlength=len(counts))
            file.write(ids.tobytes())
    return counts


class Encoder:
    """Ids of lines of normalised text.

    With BPE, text is encoded word by word: sentencepiece puts its sign for a space before each
    word, and no piece has one inside, so BPE merges only within words. Most words occur many times.
    A unigram model adds up probabilities over the whole line.

    Args:
        processor: the model.
        subword_type: "bpe" or "unigram".
        alpha: see `Sampling`.
    """

    def __init__(
        self, processor: sentencepiece.SentencePieceProcessor, subword_type: str, alpha: float
    ) -> None:
        self.processor = processor
        self.alpha = alpha
        self.dtype = np.dtype(token_type(len(processor)))
        # Otherwise unknown characters on both sides of a space would be one unknown piece.
        self.by_words = subword_type == "bpe" and processor.piece_to_id("\u2581") != UNK
        self.known: dict[str, bytes] = {}

    def __call__(self, text: str, seed: int | None = None) -> Ids:
        """Ids of lines that end with a line feed, which becomes end-of-sentence; shape `(n,)`.

        Args:
            text: the lines.
            seed: seed of the sampling; None takes the model's best pieces.
        """
        if self.by_words and seed is None:
            return self._word_by_word(text)
        lines = text.split("\n")[:-1]
        options: dict[str, Any] = {}
        if seed is not None:
            # Each call starts with this seed, so each needs a different one.
            sentencepiece.set_random_generator_seed(seed % 2**32)
            options = {"enable_sampling": True, "alpha": self.alpha, "nbest_size": -1}
        encoded = self.processor.encode(lines, out_type=int, num_threads=1, **options)
        return np.fromiter(chain.from_iterable((*line, EOS) for line in encoded), dtype=self.dtype)

    def _word_by_word(self, text: str) -> Ids:
        words = text.replace("\n", " \n ").split(" ")
        new = set(words).difference(self.known)
        if len(self.known) + len(new) > KNOWN_WORDS:
            self.known.clear()
            new = set(words)
        missing = list(new - {"\n", ""})
        encoded = self.processor.encode(missing, out_type=int, num_threads=1)
        for word, ids in zip(missing, encoded, strict=True):
            self.known[word] = array(self.dtype.char, ids).tobytes()
        self.known |= {"": b"", "\n": array(self.dtype.char, [EOS]).tobytes()}
        return np.frombuffer(b"".join(map(self.known.__getitem__, words)), dtype=self.dtype)
