"""Lets fairseq's sentencepiece clean input as in training, and decode output as spm_decode does."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from fairseq.data.encoders.sentencepiece_bpe import SentencepieceBPE

from resmlp_mt.text import normalize


def apply() -> None:
    """Wrap ``--bpe sentencepiece``, for fairseq-interactive and the hub; idempotent."""
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
