"""The normalisation of a line before it is split into subwords, in training and in translation."""

import re
import unicodedata

# C0 and C1 controls but white space, soft hyphen, zero-width space, direction marks and embeddings,
# word joiner, isolates, byte order mark. ZWNJ and ZWJ stay: some scripts are spelt with them.
INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]"
)

SURROGATE = re.compile("[\ud800-\udfff]")
"""Half of a surrogate pair, which UTF-8 cannot hold; it can come from JSON."""

RESERVED = {"\u2581": "_", "\u2585": "\u2584"}
"""Signs that sentencepiece reserves, and their replacements: decoding would turn the first into a
space, and its trainer skips every sentence with the second."""


def normalize(text: str) -> str:
    """NFC, without invisible control characters; any run of white space becomes one plain space.

    White space at the ends is removed. The signs in ``RESERVED`` are replaced, and lone surrogates
    become U+FFFD. Normalising twice changes nothing.
    """
    if not text.isprintable():  # else: no control characters, and no white space but plain spaces
        text = SURROGATE.sub("\ufffd", INVISIBLE.sub("", text))
        if not text.isprintable():
            text = " ".join(text.split())
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
        for sign, other in RESERVED.items():
            text = text.replace(sign, other)
    # Most lines need no change, and splitting takes longer than all the rest.
    if "  " in text or text[:1] == " " or text[-1:] == " ":
        text = " ".join(text.split())
    return text
