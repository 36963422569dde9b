"""The decoder for rows of words: of a batch in training, or of the hypotheses of a search."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from resmlp_mt.graphs import is_recording
from resmlp_mt.model.attention import Source
from resmlp_mt.model.cache import Cache
from resmlp_mt.model.decoder import Decoder
from resmlp_mt.padding import Aligned


class Decoded(NamedTuple):
    """What the decoder has computed for some positions of every row.

    Attributes:
        features: the input of the output projection, (rows, length, dim), zeros at pads.
        weights: the attention of one layer, the mean of its first heads, (rows, length, source
            length); None if the decoder has no such layer.
        states: before the first layer and after every layer, (length, rows, dim) each; none in
            training with ``--offload-activations``, which frees them on the device.
    """

    features: Tensor
    weights: Tensor | None
    states: Sequence[Tensor]


class _StatesAsGiven(Sequence[Tensor]):
    """States of a batch, (length, rows, dim) each, which get their pads when they are read.

    Few read them, and with pads they would be copies, which training would keep beside its own.
    """

    def __init__(self, batch: Aligned, states: Sequence[Tensor]) -> None:
        self._batch = batch
        self._states = states

    def __len__(self) -> int:
        return len(self._states)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self._batch.as_given(state) for state in self._states[index]]
        return self._batch.as_given(self._states[index])


def decode(
    decoder: Decoder, tokens: Tensor, source: Source, layer: int, heads: int | None
) -> Decoded:
    """Transform all positions at once.

    Args:
        decoder: the decoder.
        tokens: (rows, length), padded on either side.
        source: the encoded sentence of every row.
        layer: whose attention weights are returned.
        heads: the number of heads that these are the mean of; None for all.

    Raises:
        ValueError: if a row is longer than the model allows.
    """
    batch = Aligned.of(tokens, decoder.config.padding_idx, decoder.longest)
    kept: list[Tensor] = []
    visit = _visit(decoder, kept)
    hidden, weights = decoder.decode(batch.tokens, batch.layout, source, layer, visit)
    if weights is not None:
        weights = weights[:, :heads].mean(1).transpose(0, 1)
        weights = batch.moved_back(weights).transpose(0, 1).type_as(hidden)
        weights = weights.contiguous()  # the loss of guided alignments looks at it as one matrix
    states: Sequence[Tensor] = _StatesAsGiven(batch, kept)
    if is_recording() or torch._C._are_functorch_transforms_active():
        states = list(states)  # these know lists and no other sequences
    return Decoded(batch.as_given(hidden).transpose(0, 1), weights, states)


def begin(decoder: Decoder, states: Tensor, is_pad: Tensor | None, beam: int) -> Cache:
    """The cache before the first step.

    Args:
        decoder: the decoder.
        states: of the source of every row, (source length, rows, dim).
        is_pad: (rows, source length), True at pads; None if there are no pads.
        beam: how many neighbouring rows are hypotheses of one sentence. They share keys and values;
            if their sources differ, every row is taken by itself.
    """
    if not torch.equal(states, states[:, ::beam].repeat_interleave(beam, dim=1)):
        beam = 1
    source = Source.of(states[:, ::beam], None if is_pad is None else is_pad[::beam])
    return decoder.cache(decoder.memory(source), beam)


def advance(
    decoder: Decoder, tokens: Tensor, cache: Cache, layer: int, heads: int | None
) -> tuple[Decoded, Cache]:
    """Transform one position more, the ``tokens`` of which are (rows,); see :func:`decode`."""
    kept: list[Tensor] = []
    visit = _visit(decoder, kept)
    x, cache, weights = decoder.advance(tokens.view(-1, cache.beam), cache, layer, visit)
    if weights is not None:
        weights = weights[:, :heads].mean(1).view(-1, 1, weights.size(3)).type_as(x)
    states = [state.view(1, -1, state.size(2)) for state in kept]
    return Decoded(x.view(-1, 1, x.size(2)), weights, states), cache


def _visit(decoder: Decoder, kept: list[Tensor]) -> Callable[[Tensor], None] | None:
    """What keeps the states of the layers, if they are kept."""
    return None if decoder.training and decoder.config.offload_activations else kept.append
