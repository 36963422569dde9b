"""The programs that prepare.py measures, each in a process of its own.

    python -m benchmarks.prepare_programs {repeat,encode,arrow,hash_table,trainer} ...

Each imports only what it needs, because its memory is measured too.
"""

import gzip
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path


def repeat(folder: str, place: str, copies: str) -> None:
    """A local folder with the training text several times, in plain files.

    Copy k begins every sentence k words later, and ends it with these words. So there are few
    duplicates, and no word that the text does not have.
    """
    Path(place).mkdir()
    for path in Path(folder).iterdir():
        if not path.name.startswith("train."):
            shutil.copy(path, place)
            continue
        lines = gzip.decompress(path.read_bytes()).splitlines()
        with open(Path(place, path.stem), "wb") as text:
            for copy in range(int(copies)):
                for line in lines:
                    words = line.split()
                    first = copy % max(1, len(words))
                    text.write(b" ".join(words[first:] + words[:first]) + b"\n")


def encode(model: str, *paths: str) -> None:
    """sentencepiece's encoding alone: SOURCE TARGET [SOURCE TARGET ...], written as pieces."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=model)
    for source, target in zip(paths[::2], paths[1::2], strict=True):
        with open(source, newline="\n") as text, open(target, "w") as pieces:
            while lines := text.readlines(1 << 20):
                for line in processor.encode(lines, out_type=str, num_threads=1):
                    pieces.write(" ".join(line) + "\n")


def arrow(source: str, target: str) -> None:
    """A simpler cleaning with pyarrow, on one core; prints how many pairs are kept."""
    import pyarrow as pa
    import pyarrow.compute as pc

    pa.set_cpu_count(1)
    sides = []
    for path in (source, target):
        with pa.input_stream(path) as file:
            text = file.read().decode().split("\n")[:-1]
        side = pc.utf8_normalize(pa.array(text, pa.large_string()), form="NFC")
        side = pc.replace_substring_regex(side, r"[\s\p{Z}\p{Cc}]+", " ")
        sides.append(pc.utf8_trim_whitespace(side))
    table = pa.table({"source": sides[0], "target": sides[1]})
    lengths = [pc.add(pc.count_substring(side, " "), 1) for side in sides]
    longest, shortest = pc.max_element_wise(*lengths), pc.min_element_wise(*lengths)
    good = pc.and_(pc.less_equal(longest, 250), pc.less_equal(longest, pc.multiply(shortest, 3)))
    for side in sides:
        good = pc.and_(good, pc.greater(pc.utf8_length(side), 0))
    table = table.filter(good).group_by(["source", "target"], use_threads=False).aggregate([])
    print(len(table))


def hash_table(entries: str) -> None:
    """The table that finds duplicates, filled with random hashes; prints its bytes."""
    import numpy as np

    from resmlp_mt.preparation import dedup

    draw = np.random.default_rng(1)
    table = dedup.HashSet()
    for _ in range(int(entries) // 5000):
        table.add(draw.integers(0, 2**64, 5000, dtype=np.uint64))
    print(table._table.nbytes)


def trainer(words: str, *paths: str) -> None:
    """The subword trainer on the words of some files, and on invented ones up to a number."""
    from resmlp_mt.preparation import parallel, subwords

    counts: Counter[str] = Counter()
    for path in paths:
        with open(path) as text:
            for line in text:
                counts.update(line.split())
    draw, known = random.Random(1), list(counts)  # nosec B311: a benchmark
    while len(counts) < int(words):
        counts[draw.choice(known)[:6] + draw.choice(known)[-7:]] += 1
    with tempfile.TemporaryDirectory() as folder:
        subwords._write_rules(Path(folder, subwords.RULES))
        subwords._write_words(Path(folder, subwords.WORDS), counts)
        options = {"model_type": "bpe", "vocab_size": 32000, "character_coverage": 1.0}
        parallel.run_in_process("", subwords._train, Path(folder), options)


PROGRAMS: dict[str, Callable[..., None]] = {
    "repeat": repeat,
    "encode": encode,
    "arrow": arrow,
    "hash_table": hash_table,
    "trainer": trainer,
}

if __name__ == "__main__":
    PROGRAMS[sys.argv[1]](*sys.argv[2:])
