"""Lets fairseq clean input as in training, and decode output as spm_decode does.

Text is normalised before it is tokenized, as prepare.py does.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

from fairseq.data.encoders.moses_tokenizer import MosesTokenizer
from fairseq.data.encoders.sentencepiece_bpe import SentencepieceBPE

from resmlp_mt.text import normalize


def apply() -> None:
    """Wrap ``--bpe sentencepiece`` and ``--tokenizer moses``, also of the hub; idempotent."""
    if not hasattr(MosesTokenizer.encode, "__wrapped__"):
        MosesTokenizer.encode = _normalized(MosesTokenizer.encode)
    if not hasattr(SentencepieceBPE.encode, "__wrapped__"):
        SentencepieceBPE.encode = _normalized(SentencepieceBPE.encode)
        SentencepieceBPE.decode = _decoded(SentencepieceBPE.decode)


def _normalized(original: Callable[[Any, str], str]) -> Callable[[Any, str], str]:
    @wraps(original)
    def encode(self: Any, x: str) -> str:
        return original(self, normalize(x))

    return encode


def _decoded(original: Callable[[Any, str], str]) -> Callable[[Any, str], str]:
    @wraps(original)
    def decode(self: Any, x: str) -> str:
        # fairseq only joins pieces, which prints "<0xE2><0x82><0xAC>" for a euro sign.
        return str(self.sp.decode(x.split())).replace("\n", " ").strip()

    return decode
