"""Scores and attention of given translations."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from resmlp_mt.engine.vocabulary import EOS, PAD
from resmlp_mt.machine import as_usual
from resmlp_mt.model.encoder_decoder import EncoderDecoder
from resmlp_mt.padding import Layout


class Forced(NamedTuple):
    """A model's scores of a given translation, and its attention.

    Attributes:
        log_probs: natural logarithms of the tokens' probabilities, end-of-sentence included.
        attention: (target length, source length), each with end-of-sentence, on the CPU; row t is
            what token t was predicted from, the mean over the heads of the last layer. Rows sum to
            one.
    """

    log_probs: list[float]
    attention: Tensor


@as_usual()
@torch.inference_mode()
def forced_decoding(
    model: EncoderDecoder, pairs: Sequence[tuple[list[int], list[int]]]
) -> list[Forced]:
    """Score given translations, all positions at once.

    Args:
        pairs: tokens of source and target, each with end-of-sentence.

    Raises:
        ValueError: if a sentence is longer than the model allows.
    """
    hidden, layout, targets, attention = _decoded(model, pairs)
    scores = model.decoder.output_projection(hidden).float().log_softmax(dim=1)
    found = scores.gather(1, layout.pack(targets.t()).unsqueeze(1)).squeeze(1)
    log_probs = layout.pad(found).t()
    return [
        Forced(log_probs[row, : len(target)].tolist(), weights)
        for row, ((_, target), weights) in enumerate(zip(pairs, attention, strict=True))
    ]


@as_usual()
@torch.inference_mode()
def forced_attention(
    model: EncoderDecoder, pairs: Sequence[tuple[list[int], list[int]]]
) -> list[Tensor]:
    """The attention of given translations, without the scores of the whole vocabulary.

    Attention, argument and errors are as in :func:`forced_decoding`.
    """
    return _decoded(model, pairs)[-1]


def _decoded(
    model: EncoderDecoder, pairs: Sequence[tuple[list[int], list[int]]]
) -> tuple[Tensor, Layout, Tensor, list[Tensor]]:
    """The last states, (tokens, dim), with their layout, the targets and the attention."""
    sources, targets = (
        pad_sequence(list(map(torch.tensor, side)), batch_first=True, padding_value=PAD)
        for side in zip(*pairs, strict=True)
    )
    sources, targets = sources.to(model.device), targets.to(model.device)
    read = model.read(sources, sources.eq(PAD))
    inputs = targets.roll(1, dims=1).masked_fill(targets.eq(PAD), PAD)
    inputs[:, 0] = EOS
    layout = Layout.of(targets.t().eq(PAD))
    last = len(model.decoder.layers) - 1
    hidden, weights = model.decoder.decode(inputs, layout, read, weights_of=last)
    assert weights is not None
    attention = weights.float().mean(dim=1).cpu()
    rows = [
        attention[row, : len(target), : len(source)] for row, (source, target) in enumerate(pairs)
    ]
    return hidden, layout, targets, rows
