"""Text before and after subwords: normalisation, in training and translation, and byte pieces."""

import codecs
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from itertools import groupby

# C0 and C1 controls but white space, soft hyphen, combining grapheme joiner, direction marks,
# embeddings and isolates, Hangul fillers, inherent vowels of Khmer, the vowel separator of
# Mongolian, zero-width space, word joiner, invisible operators, deprecated format characters, byte
# order mark, interlinear annotation, controls of shorthand and of music. ZWNJ, ZWJ and variation
# selectors stay: some scripts and emoji are spelt with them.
INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b"
    "\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\u3164\ufeff\uffa0\ufff9-\ufffb"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a]"
)

TAGS = re.compile(
    "(\U0001f3f4[\U000e0030-\U000e0039\U000e0061-\U000e007a]+\U000e007f)"
    "|[\U000e0001\U000e0020-\U000e007f]"
)
"""A flag of a region such as Scotland's, which is an emoji followed by tags; or any other tag,
which can only hide text. Flags stay whole."""

SURROGATE = re.compile("[\ud800-\udfff]")
"""Half of a surrogate pair, which UTF-8 cannot hold; it can come from JSON."""

REPLACED = {"\u2581": "_", "\u2585": "\u2584", "\u2800": " "}
"""Signs and their replacements. sentencepiece reserves two: decoding would turn the first into a
space, and its trainer skips every sentence with the second. The third is the space of Braille."""

UNSPACED = (
    "\u0e00-\u109f\u1780-\u17ff\u1950-\u19ff\u1a20-\u1aaf\u1b00-\u1b7f\u1bc0-\u1bff"
    "\ua980-\uaadf\U00011700-\U0001174f"
)
"""Letters, for a class of a regular expression, of scripts without spaces between words: Thai, Lao,
Tibetan, Burmese, Khmer, Tai Le, New Tai Lue, Tai Tham, Balinese, Batak, Javanese, Cham, Tai Viet,
Ahom. Chinese and Japanese are not among them."""

SUBWORD_MARK = re.compile(r"\u2581|@@(?= |$)")
"""What pieces of sentencepiece begin with, and pieces of subword-nmt end with."""

OTHER_MARKS = {
    "subword-nmt": re.compile(r"@@(?!\S)|(?<!\S)@@(?=\w)"),
    "WordPiece": re.compile(r"(?<!\S)##(?=\w)"),
    "OpenNMT's Tokenizer": re.compile("\uffed"),
    "the first byte-pair encoding": re.compile(r"</w>(?!\S)"),
    "GPT-2": re.compile(r"(?<!\S)\u0120(?=\w)"),
    "fairseq's _EOW": re.compile(r"_EOW(?!\S)"),
    "fairseq's wordpiece": re.compile(r"(?<!\S)_(?=[^\W_]+(?!\w))"),
}
"""The marks of subwords that are not sentencepiece's, by the tools that leave them."""

IN_RAW_TEXT = ("GPT-2", "fairseq's wordpiece")
"""Tools whose marks single words of raw text have, too: of Maltese, and in Markdown."""

LEAST_SPLIT = 0.1
"""Share of the lines with marks of subwords above which a text was split; raw text has a few.
A single line may be chance, as in a short text that names ``_config`` and ``_data``."""

MOSES_MARK = re.compile(r"@-@|(?<!\S)&(?:apos;\w*|(?:quot|#91|#93|#124);)(?!\S)")
STOPS = (" .", " \u3002")
# Most Moses-tokenized lines end in a stop of their own, and hardly any raw line does. Moses'
# escapes are tokens; those of HTML, in raw text, touch a word. The thresholds are far from both.
TOKENIZED_PERIODS = 0.5
TOKENIZED_MARKS = 0.01

QUOTED = re.compile(r'"([^"]|"")*"\s*')
"""A field of CSV that has quotes or separators."""

BYTE = re.compile("<0x[0-9A-F]{2}>")
"""A piece of a sentencepiece model with ``--byte_fallback`` for characters without a piece."""


def join_pieces(pieces: Iterable[str]) -> str:
    """The text of pieces, as sentencepiece decodes them, but with the space at its beginning.

    Only whole pieces are bytes: other pieces may spell the same.
    """
    return "".join(
        _characters("".join(run)) if is_bytes else "".join(run).replace("\u2581", " ")
        for is_bytes, run in groupby(pieces, lambda piece: BYTE.fullmatch(piece) is not None)
    )


def _characters(pieces: str) -> str:
    text = bytes.fromhex(re.sub("<0x|>", "", pieces)).decode(errors="one sign for each byte")
    return re.sub("[\r\n]", " ", text)  # a line stays one line


def _replaced(error: UnicodeError) -> tuple[str, int]:
    """As sentencepiece does; Python's own handler has one sign for several bytes."""
    assert isinstance(error, UnicodeDecodeError)
    return "\ufffd" * (error.end - error.start), error.end


codecs.register_error("one sign for each byte", _replaced)


def normalize(text: str) -> str:
    """NFC, without invisible control characters; any run of white space becomes one plain space.

    White space at the ends is removed. The signs in ``REPLACED`` are replaced, and lone surrogates
    become U+FFFD. Normalising twice changes nothing.
    """
    if not text.isprintable():  # else: no control characters, and no white space but plain spaces
        text = SURROGATE.sub("\ufffd", TAGS.sub(r"\1", INVISIBLE.sub("", text)))
        if not text.isprintable():
            text = " ".join(text.split())
    if not text.isascii():
        # some invisible characters count as letters or marks, and so as printable
        text = unicodedata.normalize("NFC", INVISIBLE.sub("", text))
        for sign, other in REPLACED.items():
            text = text.replace(sign, other)
    # Most lines need no change, and splitting takes longer than all the rest.
    if "  " in text or text[:1] == " " or text[-1:] == " ":
        text = " ".join(text.split())
    return text


def looks_split(lines: Iterable[str]) -> str | None:
    """What shows that a text was split into subwords; None if nothing does."""
    text = [line for line in lines if line.strip()]
    marks = [mark for line in text if (mark := _subword_mark(line))]
    if len(marks) > max(1, LEAST_SPLIT * len(text)):
        return f"{len(marks)} of {len(text)} lines have the marks of subwords, '{marks[0]}'"
    return None


def _subword_mark(line: str) -> str | None:
    """The first mark of subwords in a line; None for what raw lines have, too."""
    if mark := SUBWORD_MARK.search(line):
        return mark.group()
    for tool, pattern in OTHER_MARKS.items():
        marks = pattern.findall(line, 1)  # lines of Markdown begin with ##
        if len(marks) > (tool in IN_RAW_TEXT):
            return str(marks[0])
    words = line.split()
    # letters with a bar between words; the cells of a table have as many bars as letters
    is_spelt = 0 < 2 * words.count("|") < len(words) - 1 and max(map(len, words)) == 1
    return "|" if is_spelt else None


def looks_quoted(lines: Iterable[str]) -> str | None:
    """A line that is quoted as in CSV, with its quotes doubled; None if some quotes are not."""
    quoted = [line for line in lines if '"' in line]
    doubled = [line for line in quoted if '""' in line[1:-1]]
    return doubled[0] if doubled and all(map(QUOTED.fullmatch, quoted)) else None


def looks_tokenized(lines: Iterable[str]) -> str | None:
    """What shows that Moses has tokenized a text; None if nothing does."""
    text = [line for line in lines if line.strip()]
    ends = Counter(line.rstrip()[-2:] for line in text)
    stop = max(STOPS, key=ends.__getitem__)
    periods = ends[stop]
    marks = sum(MOSES_MARK.search(line) is not None for line in text)
    if periods > TOKENIZED_PERIODS * len(text) or marks > TOKENIZED_MARKS * len(text):
        return (
            f"{periods} of {len(text)} sentences end in '{stop}', {marks} hold Moses escapes such "
            "as &apos; or @-@"
        )
    return None
