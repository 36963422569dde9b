"""Sentencepiece: a joint model for both languages, and fairseq's dictionary of its pieces."""

import contextlib
import io
import re
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import sentencepiece

from resmlp_mt.errors import UserError
from resmlp_mt.preparation import normalization
from resmlp_mt.preparation.formats import MAX_LINE_BYTES
from resmlp_mt.preparation.parallel import mapped, run_in_process
from resmlp_mt.preparation.steps import atomic_write
from resmlp_mt.preparation.text_blocks import TextBlock, cut

THREADS = 16
"""Threads of the trainer; fixed, because the sums of unigram training depend on it."""

RULES, WORDS, SENTENCES = "normalization.tsv", "words.tsv", "sentences.txt"
"""The trainer reads this file; the model stores the normalisation map itself."""

SPECIALS = {name: f"\u2060{name}" for name in ("unk", "bos", "eos", "pad")}
"""Names of the special pieces. Cleaning removes U+2060, so text is never taken for one of them;
with the usual names, a "<s>" in the text would become the symbol. There are four, so that the model
has as many pieces as fairseq's dictionary, which has four special symbols."""

UNK, _, EOS, _ = range(len(SPECIALS))

FAIRSEQ_SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")
"""The first four entries of every fairseq dictionary; they are not in its file."""

OVERWRITE = " #fairseq:overwrite"
"""Follows a piece that is spelt like one of these, so that text encodes to the piece."""

FAIRSEQ_EOS, FAIRSEQ_UNK = FAIRSEQ_SPECIALS.index("</s>"), FAIRSEQ_SPECIALS.index("<unk>")


def train(
    texts: tuple[Path, Path],
    pairs: int,
    model: Path,
    *,
    vocab_size: int,
    subword_type: str,
    character_coverage: float,
    input_sentence_size: int,
    jobs: int = 1,
    folder: Path | None = None,
) -> None:
    """Trains a joint model on evenly spaced pairs and writes it to `model`.

    Args:
        texts: source and target training text, one sentence a line.
        pairs: number of lines in each.
        model: file for the model.
        vocab_size: number of pieces, the four special ones included.
        subword_type: "bpe" or "unigram".
        character_coverage: share of the characters that get a piece; the rarest become unknown.
        input_sentence_size: largest number of sentences used, both languages together.
        jobs: number of processes that count words.
        folder: place of the trainer's input; by default the system's for temporary files.

    Raises:
        UserError: the text is too small for so many pieces.
    """
    take = min(pairs, max(1, input_sentence_size // 2))
    options = {
        "model_type": subword_type,
        "vocab_size": vocab_size,
        "character_coverage": character_coverage,
    }
    # In a new folder, because the model records the names of these files.
    with (
        tempfile.TemporaryDirectory(prefix=".words.", dir=folder) as inputs,
        ThreadPoolExecutor(1) as thread,
    ):
        # While other processes count words, this one would wait.
        rules = thread.submit(_write_rules, Path(inputs, RULES))
        if subword_type == "bpe":
            _write_words(Path(inputs, WORDS), _count_words(texts, pairs, take, jobs))
        else:
            _write_sample(Path(inputs, SENTENCES), texts, pairs, take)
        rules.result()
        serialized = run_in_process("--input-sentence-size", _train, Path(inputs), options)
    with atomic_write(model) as file:
        file.write(serialized)


def _train(folder: Path, options: dict[str, Any]) -> bytes:
    """Trains on the words or the sentences in `folder`."""
    buffer = io.BytesIO()
    specials: dict[str, Any] = {f"{name}_piece": piece for name, piece in SPECIALS.items()}
    specials |= {f"{name}_id": index for index, name in enumerate(SPECIALS)}
    try:
        with contextlib.chdir(folder):
            sentencepiece.SentencePieceTrainer.train(
                input=WORDS if Path(WORDS).exists() else SENTENCES,
                input_format="tsv" if Path(WORDS).exists() else "text",
                model_writer=buffer,
                # Training text is normalised already; this is for text to be translated.
                normalization_rule_tsv=RULES,
                # Longer lines would be left out silently.
                max_sentence_length=MAX_LINE_BYTES,
                num_threads=THREADS,
                minloglevel=2,
                **options,
                **specials,
            )
    except (RuntimeError, OSError) as error:
        raise UserError(_explain(error, options["vocab_size"])) from None
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


def _count_words(texts: tuple[Path, Path], pairs: int, take: int, jobs: int) -> Counter[str]:
    """Words of the sample and their counts.

    BPE merges only within words, so its trainer needs no more than these counts. It would count
    words itself, but more slowly and in one thread. Unigram training needs whole sentences.
    """
    counts: Counter[str] = Counter()
    blocks = (block for text in texts for block in cut(text))
    with mapped(jobs, partial, (_count, pairs, take), blocks) as results:
        for found in results:
            counts.update(found)
    return counts


def _count(pairs: int, take: int, block: TextBlock) -> Counter[str]:
    counts: Counter[str] = Counter()
    first = block.first
    for text in block.read():
        if take == pairs:
            counts.update(text.split())
        else:
            lines = text.split("\n")[:-1]
            for index, line in enumerate(lines, first):
                if _is_sampled(index, pairs, take):
                    counts.update(line.split())
            first += len(lines)
    return counts


def _is_sampled(index: int, pairs: int, take: int) -> bool:
    """Whether pair `index` (from 0) is one of the `take` of `pairs` pairs, evenly spaced."""
    return (index + 1) * take // pairs != index * take // pairs


def _write_rules(path: Path) -> None:
    path.write_text(normalization.tsv(normalization.rules()), encoding="utf-8")


def _write_words(path: Path, counts: Counter[str]) -> None:
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{word}\t{count}\n" for word, count in counts.items())


def _write_sample(path: Path, texts: tuple[Path, Path], pairs: int, take: int) -> None:
    """Writes the sampled sentences: first all source sentences, then all target sentences."""
    with open(path, "wb") as sample:
        for text in texts:
            with open(text, "rb") as file:
                sample.writelines(
                    line for index, line in enumerate(file) if _is_sampled(index, pairs, take)
                )


def write_dictionary(
    processor: sentencepiece.SentencePieceProcessor, counts: npt.NDArray[np.int64], path: Path
) -> npt.NDArray[np.int64]:
    """Writes fairseq's dictionary: every piece that the model can emit, the most frequent first.

    fairseq adds its four special symbols itself.

    Args:
        processor: the model.
        counts: count of each piece in the training text, by the model's ids.
        path: file for the dictionary.

    Returns:
        fairseq's index of each of the model's ids.
    """
    ids = [
        index
        for index in range(len(processor))
        if not processor.is_control(index) and not processor.is_unknown(index)
    ]
    ids.sort(key=lambda index: -counts[index])
    indices = np.full(len(processor), FAIRSEQ_UNK, dtype=np.int64)
    indices[EOS] = FAIRSEQ_EOS
    indices[ids] = np.arange(len(FAIRSEQ_SPECIALS), len(FAIRSEQ_SPECIALS) + len(ids))
    with atomic_write(path) as file:
        for index in ids:
            piece = processor.id_to_piece(index)
            flag = OVERWRITE if piece in FAIRSEQ_SPECIALS else ""
            file.write(f"{piece} {counts[index]}{flag}\n".encode())
    return indices
