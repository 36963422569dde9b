"""Sentencepiece: a joint model, its fairseq dictionary, and text in pieces."""

from __future__ import annotations

import contextlib
import io
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import sentencepiece
from tqdm import tqdm

import normalization
from errors import DataError
from formats import MAX_LINE_BYTES
from parallel import ordered_map, run_in_process
from steps import atomic_write

CHUNK = 5_000
"""Sentences sent to a worker at a time."""

THREADS = 16
"""Threads of the trainer: fixed, because unigram training sums in an order that depends on it."""

RULES = "normalization.tsv"
"""File of the normalisation map; the model holds the map itself."""

SPECIALS = {name: f"\u2060{name}" for name in ("unk", "bos", "eos", "pad")}
"""Names of the special pieces. Cleaning removes U+2060, so text can never be taken for one; with
the usual names a "<s>" in the text would become the symbol. Four, so that the model has as many
pieces as fairseq's dictionary, which has four of its own."""


def train(
    texts: tuple[Path, Path],
    pairs: int,
    model: Path,
    *,
    vocab_size: int,
    subword_type: str,
    character_coverage: float,
    input_sentence_size: int,
) -> None:
    """Trains a joint model on evenly spaced pairs and writes it to `model`.

    Args:
        texts: source and target training text, one sentence a line.
        pairs: number of lines in each.
        model: where the model goes.
        vocab_size: number of pieces, the four special ones included.
        subword_type: "bpe" or "unigram".
        character_coverage: share of the characters that get a piece; the rarest become unknown.
        input_sentence_size: most sentences used, both languages together.

    Raises:
        DataError: the text is too small for so many pieces.
    """
    take = min(pairs, max(1, input_sentence_size // 2))
    texts = texts[0].resolve(), texts[1].resolve()
    serialized = run_in_process(
        _train, texts, pairs, take, vocab_size, subword_type, character_coverage
    )
    with atomic_write(model) as file:
        file.write(serialized)


def _train(
    texts: tuple[Path, Path],
    pairs: int,
    take: int,
    vocab_size: int,
    subword_type: str,
    character_coverage: float,
) -> bytes:
    buffer = io.BytesIO()
    specials: dict[str, Any] = {f"{name}_piece": piece for name, piece in SPECIALS.items()}
    specials |= {f"{name}_id": index for index, name in enumerate(SPECIALS)}
    try:
        # In a folder of its own, because the model records the name of this file.
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            Path(RULES).write_text(normalization.tsv(normalization.rules()), encoding="utf-8")
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=_sample(texts, pairs, take),
                model_writer=buffer,
                model_type=subword_type,
                vocab_size=vocab_size,
                character_coverage=character_coverage,
                # Training text is normalised already; this is for the text that is translated.
                normalization_rule_tsv=RULES,
                # Longer lines would be left out without a word.
                max_sentence_length=MAX_LINE_BYTES,
                num_threads=THREADS,
                minloglevel=2,
                **specials,
            )
    except (RuntimeError, OSError) as error:
        raise DataError(_explain(error, vocab_size)) from None
    return buffer.getvalue()


def _explain(error: Exception, vocab_size: int) -> str:
    message = str(error)
    too_high = re.search(r"Vocabulary size too high.*<= (\d+)", message)
    if too_high:
        return f"--vocab-size {vocab_size} is too large for this text: use at most {too_high[1]}"
    if vocab_size <= len(SPECIALS) or re.search(
        r"[Vv]ocabulary size is smaller than required_chars", message
    ):
        return (
            f"--vocab-size {vocab_size} is smaller than the number of characters: use a larger one"
        )
    return f"sentencepiece could not train a model of --vocab-size {vocab_size}: {message.strip()}"


def _sample(texts: tuple[Path, Path], pairs: int, take: int) -> Iterator[str]:
    """`take` of the `pairs` pairs, evenly spaced: source sentences first, then target ones."""
    for text in texts:
        for index, line in enumerate(_lines(text)):
            if (index + 1) * take // pairs != index * take // pairs:
                yield line


def encode(
    model: Path,
    texts: Sequence[Path],
    outputs: Sequence[Path],
    *,
    start: int = 0,
    count: int | None = None,
    jobs: int = 1,
) -> Counter[str]:
    """Writes lines `start` to `start + count` of each text in pieces; returns counts of pieces."""
    stop = None if count is None else start + count
    counts: Counter[str] = Counter()
    with (
        ExitStack() as stack,
        tqdm(desc=f"encode {outputs[0].stem}", unit="line", unit_scale=True) as progress,
    ):
        files = [stack.enter_context(atomic_write(output)) for output in outputs]
        for index, encoded, size, pieces in ordered_map(
            _encode, _blocks(texts, start, stop), jobs=jobs, setup=_setup, setup_args=(model,)
        ):
            files[index].write(encoded)
            counts.update(pieces)
            progress.update(size)
    return counts


def _blocks(texts: Sequence[Path], start: int, stop: int | None) -> Iterator[tuple[int, list[str]]]:
    """Blocks of lines, each with the index of its text."""
    for index, text in enumerate(texts):
        lines = islice(_lines(text), start, stop)
        while block := list(islice(lines, CHUNK)):
            yield index, block


def write_dictionary(model: Path, counts: dict[str, int], path: Path) -> int:
    """Writes the fairseq dictionary: every piece that the model can emit, the most frequent first.

    fairseq adds its four special symbols itself. Returns the number of entries.
    """
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    pieces = [
        processor.id_to_piece(index)
        for index in range(processor.get_piece_size())
        if not processor.is_control(index) and not processor.is_unknown(index)
    ]
    pieces.sort(key=lambda piece: -counts.get(piece, 0))
    with atomic_write(path) as file:
        file.write("".join(f"{piece} {counts.get(piece, 0)}\n" for piece in pieces).encode())
    return len(pieces)


_processor: sentencepiece.SentencePieceProcessor


def _setup(model: Path) -> None:
    global _processor
    _processor = sentencepiece.SentencePieceProcessor(model_file=str(model))


def _encode(item: tuple[int, list[str]]) -> tuple[int, bytes, int, Counter[str]]:
    index, lines = item
    counts: Counter[str] = Counter()
    encoded: list[str] = []
    for pieces in _processor.encode(lines, out_type=str, num_threads=1):
        counts.update(pieces)
        encoded.append(" ".join(pieces) + "\n")
    return index, "".join(encoded).encode(), len(lines), counts


def _lines(path: Path) -> Iterator[str]:
    """Lines of a text that this project wrote: only "\\n" ends one."""
    with open(path, encoding="utf-8", newline="\n") as file:
        for line in file:
            yield line.removesuffix("\n")
