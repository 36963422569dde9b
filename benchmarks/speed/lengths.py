"""How long sentences are: (source, target) in subwords, end-of-sentence included."""

import random
from pathlib import Path

Lengths = list[tuple[int, int]]

SOURCE = "400 pairs drawn from newstest2013 English-German"

WORDS_PER_TOKEN = 56_089 / (3_000 * 26.14)
"""English words, by white space, for a subword of newstest2013 (end-of-sentence not counted)."""

# Counted in the pieces of a joint sentencepiece unigram model of 32,000 pieces, trained on 13,064
# pairs of news-test2008 and newstest2009-2012; the 400 of 3,000 pairs were drawn with seed 1.
NEWSTEST2013 = """
3-3 3-3 4-5 5-7 6-8 6-8 6-8 7-6 7-7 7-7 7-9 7-9 7-10 7-11 8-6 8-6 8-9 8-11 9-7 9-10 9-10 9-11
9-13 10-7 10-8 10-8 10-8 10-9 10-10 10-11 10-14 11-8 11-8 11-9 11-9 11-10 11-10 11-11 11-17 12-8
12-9 12-9 12-10 12-10 12-11 12-11 12-13 12-13 12-15 12-16 12-18 13-10 13-10 13-10 13-12 13-13
13-14 13-16 13-16 13-17 13-18 13-18 13-19 14-11 14-11 14-14 14-15 14-16 14-17 14-17 14-18 15-11
15-14 15-16 15-16 15-16 15-17 15-17 15-17 15-18 15-19 15-19 15-24 16-12 16-12 16-14 16-14 16-15
16-17 16-17 16-17 16-17 16-18 16-20 16-21 17-13 17-17 17-17 17-17 17-17 17-17 17-18 17-18 17-18
17-19 17-19 17-20 17-20 17-20 17-21 17-21 17-22 17-24 18-15 18-16 18-16 18-16 18-16 18-18 18-19
18-19 18-19 18-20 18-21 18-22 18-22 19-14 19-15 19-15 19-15 19-16 19-16 19-17 19-18 19-18 19-19
19-21 19-22 19-23 19-23 19-25 19-25 19-25 19-26 19-27 20-15 20-20 20-21 20-21 20-21 20-21 20-22
20-22 20-25 21-18 21-21 21-21 21-22 21-23 21-23 21-23 21-24 21-24 21-25 21-25 21-25 21-29 21-30
22-18 22-19 22-19 22-20 22-20 22-21 22-21 22-21 22-22 22-26 22-26 22-26 22-27 22-32 23-20 23-20
23-21 23-22 23-23 23-24 23-24 23-28 23-29 24-22 24-22 24-23 24-23 24-24 24-26 24-28 24-29 24-29
24-29 24-32 24-32 25-23 25-24 25-24 25-24 25-25 25-26 25-28 25-28 25-32 25-33 26-18 26-23 26-25
26-26 26-27 26-27 26-27 26-28 26-31 26-36 27-21 27-23 27-23 27-24 27-26 27-27 27-29 27-30 27-31
27-33 27-34 27-37 28-24 28-24 28-28 28-28 28-30 28-31 28-31 28-31 28-31 28-32 28-33 28-36 28-37
29-25 29-26 29-27 29-28 29-29 29-30 29-30 29-31 29-31 29-32 29-33 29-36 30-27 30-27 30-28 30-31
30-36 30-36 30-36 30-37 30-38 30-38 31-30 31-31 31-31 31-33 31-33 31-34 31-35 32-27 32-31 32-33
32-34 32-34 32-35 33-29 33-30 33-33 33-39 33-41 34-29 34-34 34-40 35-32 35-33 35-34 35-35 35-37
35-38 35-40 35-42 35-43 36-31 36-33 36-34 36-35 36-36 36-37 36-41 36-41 36-41 36-46 36-48 37-38
37-38 37-40 37-41 37-44 37-47 38-31 38-33 38-35 38-41 39-31 39-39 39-39 39-42 39-45 39-45 39-50
40-36 40-37 40-38 40-43 40-44 41-40 41-40 41-42 41-45 41-48 41-51 42-44 42-48 42-50 43-46 43-46
43-51 44-43 44-45 45-34 45-43 45-45 46-36 46-41 46-42 46-53 46-53 46-54 46-55 47-36 47-44 47-48
47-62 48-44 48-46 48-47 48-55 48-58 49-49 49-58 50-51 50-57 51-43 51-53 51-55 52-56 52-57 53-47
53-56 54-45 54-56 55-52 55-59 56-58 56-61 57-65 57-67 58-55 59-60 59-81 61-66 62-59 66-71 67-64
67-74 67-79 68-70 69-71 74-88 75-88 76-85 105-110
"""


def default_lengths() -> Lengths:
    """The lengths of :data:`SOURCE`."""
    pairs = (pair.split("-") for pair in NEWSTEST2013.split())
    return [(int(source), int(target)) for source, target in pairs]


def read_lengths(path: Path) -> Lengths:
    """Count the tokens of a file of subword sentences, ``source<TAB>target`` in each line.

    Raises:
        OSError: if the file cannot be read.
        ValueError: naming the line that is not UTF-8 or does not hold two sentences.
    """
    lengths = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            source, target = (side.split() for side in line.decode().split("\t"))
            if not (source and target):
                raise ValueError
        except ValueError:
            raise ValueError(
                f"{path}, line {number} is not two UTF-8 sentences with a tab between them"
            ) from None
        lengths.append((len(source) + 1, len(target) + 1))
    if not lengths:
        raise ValueError(f"{path} holds no sentences")
    return lengths


def draw(lengths: Lengths, count: int, seed: int) -> Lengths:
    """Draw pairs with replacement."""
    return random.Random(seed).choices(lengths, k=count)


def draw_smoothly(lengths: Lengths, count: int, seed: int) -> Lengths:
    """Draw pairs with replacement and scale both lengths of each, by up to a tenth.

    A large corpus does not repeat the few lengths of a sample: its batches would hold no pads.
    """
    generator = random.Random(seed)

    def near(length: int) -> int:
        return max(2, round(length * generator.uniform(0.9, 1.1)))

    return [(near(source), near(target)) for source, target in generator.choices(lengths, k=count)]
