"""Lets fairseq clean input as in training, and decode output as spm_decode does.

Text is normalised before it is tokenized, as prepare.py does.
"""

from collections.abc import Callable
from typing import Any

from fairseq.data.encoders.moses_tokenizer import MosesTokenizer
from fairseq.data.encoders.sentencepiece_bpe import SentencepieceBPE

from resmlp_mt.fairseq_plugin.remedies import wrap
from resmlp_mt.text import normalize


def apply() -> None:
    """Wrap ``--bpe sentencepiece`` and ``--tokenizer moses``, also of the hub."""
    wrap(MosesTokenizer, "encode", _encode)
    wrap(SentencepieceBPE, "encode", _encode)
    wrap(SentencepieceBPE, "decode", _decode)


def _encode(original: Callable[[Any, str], str], self: Any, x: str) -> str:
    return original(self, normalize(x))


def _decode(_: Callable[[Any, str], str], self: Any, x: str) -> str:
    # fairseq only joins pieces, which prints "<0xE2><0x82><0xAC>" for a euro sign
    return str(self.sp.decode(x.split())).replace("\n", " ").strip()
