"""`resmlp_mt.text.normalize` as a map of strings, which is stored in the sentencepiece model.

With it, every tool that encodes with the model cleans text as the training text was cleaned.
sentencepiece replaces the longest string of the map at each place, once, from left to right. NFC
cannot be such a map, because any number of marks can follow each other. The map has the strings
that people write: white space, invisible characters, every character and every sequence that
composes to one, Hangul, a letter with two marks if one composes with it, and vowel signs of Hebrew
and Arabic in any order. More would make it four times as large. Lone tags are not in it, because
the flags that are emoji are spelt with tags. `resmlp_mt` normalises text itself
before it encodes, so its own commands miss nothing.
"""

import functools
import itertools
import re
import sys
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator

import numpy as np

from resmlp_mt.text import INVISIBLE, REPLACED

Rules = dict[str, str]

HANGUL = (range(0x1100, 0x1113), range(0x1161, 0x1176), range(0x11A8, 0x11C3))
"""Leading consonants, vowels and final consonants of Hangul, which compose to syllables."""

VOWEL_SIGNS = ((0x0591, 0x05C7), (0x064B, 0x0655), (0x0670, 0x0670))
"""Points of Hebrew and vowel signs of Arabic; a letter may have several, typed in any order."""


@functools.cache
def rules() -> Rules:
    """The map from strings as people type them to their normalised form."""
    found: Rules = {}
    for sequence in itertools.chain(_compositions(), _syllables()):
        _add(found, sequence)
    # sentencepiece's map cannot hold U+0000.
    every = "".join(map(_characters, (1, 0xE000), (0xD800, sys.maxunicode + 1)))
    for decomposable in _decomposable().values():
        for character in decomposable:
            _add(found, character)
    found |= dict.fromkeys(re.findall(r"[^\S ]", every), " ")
    found |= dict.fromkeys(INVISIBLE.findall(every), "")
    found |= REPLACED
    # Short strings first: a longer one is needed only if the shorter ones give another result.
    for sequence in sorted(_marked(), key=len):
        if apply(found, sequence) != _nfc(sequence):
            found[sequence] = _nfc(sequence)
    return found


def apply(found: Rules, text: str) -> str:
    """Applies the map as sentencepiece does: the longest string of the map at each place."""
    longest = 6
    result, place = "", 0
    while place < len(text):
        for end in range(min(place + longest, len(text)), place, -1):
            if (replaced := found.get(text[place:end])) is not None:
                result += replaced
                place = end
                break
        else:
            result += text[place]
            place += 1
    return result


def tsv(found: Rules) -> str:
    """The map as `--normalization_rule_tsv` of sentencepiece reads it: hexadecimal code points."""
    return "".join(
        "\t".join(" ".join(f"{ord(c):X}" for c in side) for side in rule) + "\n"
        for rule in sorted(found.items())
    )


def _characters(start: int, end: int) -> str:
    """All characters in a range without surrogates."""
    return np.arange(start, end, dtype="<u4").tobytes().decode("utf-32-le")


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _add(found: Rules, sequence: str) -> None:
    if sequence != _nfc(sequence):
        found[sequence] = _nfc(sequence)


@functools.cache
def _decomposable() -> dict[str, list[str]]:
    """All characters with the same canonical decomposition, by that decomposition."""
    found: dict[str, list[str]] = defaultdict(list)
    for character in map(chr, range(sys.maxunicode + 1)):
        decomposition = unicodedata.decomposition(character)
        if decomposition and not decomposition.startswith("<"):
            found[unicodedata.normalize("NFD", character)].append(character)
    return found


def _compositions() -> Iterator[str]:
    """Every string that is canonically equivalent to one composed character."""
    for decomposed in _decomposable():
        first, marks = decomposed[0], decomposed[1:]
        for order in set(itertools.permutations(marks)):
            if unicodedata.normalize("NFD", "".join((first, *order))) == decomposed:
                yield from _partly_composed((first, *order))


def _partly_composed(sequence: tuple[str, ...]) -> Iterator[str]:
    """`sequence` with its first characters composed, and with equivalents of its marks."""
    for cut in range(1, len(sequence) + 1):
        start = unicodedata.normalize("NFD", "".join(sequence[:cut]))
        starts = [start] if cut == 1 else []
        alike = ((mark, *_decomposable().get(mark, ())) for mark in sequence[cut:])
        for rest in itertools.product(*alike):
            for head in (*starts, *_decomposable().get(start, ())):
                yield "".join((head, *rest))


def _syllables() -> Iterator[str]:
    lead, vowel, final = ([chr(code) for code in codes] for codes in HANGUL)
    for start in map("".join, itertools.product(lead, vowel)):
        yield start
        for end in final:
            yield start + end
            yield _nfc(start) + end


def _marked() -> Iterator[str]:
    """Letters that compose with one of two marks, and vowel signs by themselves, in any order."""
    letters: dict[str, set[str]] = defaultdict(set)
    marks: dict[str, set[str]] = defaultdict(set)
    for decomposed, characters in _decomposable().items():
        script = _script(decomposed[0])
        following = {mark for mark in decomposed[1:] if unicodedata.combining(mark)}
        if following:
            letters[script] |= {decomposed[0], *map(_nfc, characters)}
            marks[script] |= following
    signs = [
        chr(code)
        for first, last in VOWEL_SIGNS
        for code in range(first, last + 1)
        if unicodedata.combining(chr(code))
    ]
    for sign in signs:
        marks[_script(sign)].add(sign)
    for script in letters:
        own = sorted(marks[script])
        for sequence in map("".join, itertools.product(sorted(letters[script]), own, own)):
            if len(_nfc(sequence)) < len(sequence):
                yield sequence
    for script in ("HEBREW", "ARABIC"):
        own = [sign for sign in signs if _script(sign) == script]
        yield from _unordered(own, 2)
        yield from _unordered([sign for sign in own if unicodedata.combining(sign) < 100], 3)


def _unordered(marks: Iterable[str], count: int) -> Iterator[str]:
    for sequence in map("".join, itertools.permutations(marks, count)):
        if sequence != _nfc(sequence):
            yield sequence


def _script(character: str) -> str:
    """The first word of a character's name, which is its script for letters."""
    name = unicodedata.name(character, "")
    return name.split()[0] if name else ""
