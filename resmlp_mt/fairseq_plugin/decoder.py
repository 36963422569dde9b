"""The decoder as fairseq calls it."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from fairseq.data import Dictionary
from fairseq.models import FairseqIncrementalDecoder
from torch import Tensor, nn

from resmlp_mt.graphs import is_recording
from resmlp_mt.model.attention import Source
from resmlp_mt.model.cache import Cache
from resmlp_mt.model.config import ModelConfig
from resmlp_mt.model.decoder import Decoder
from resmlp_mt.padding import Aligned, Layout

IncrementalState = dict[str, dict[str, Any]]
"""fairseq's cache of step-by-step decoding, by module; ours is one :class:`Cache` in it."""


class StatesAsGiven(Sequence[Tensor]):
    """States of a batch, (length, batch, dim) each, which get their pads when they are read.

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


class ResMLPDecoder(Decoder, FairseqIncrementalDecoder):  # type: ignore[misc]
    """A :class:`Decoder` for sentences that are padded on either side."""

    init_incremental_state: Callable[[], None]
    get_incremental_state: Callable[[IncrementalState, str], dict[str, Any] | None]
    set_incremental_state: Callable[[IncrementalState, str, dict[str, Any]], object]

    def __init__(
        self, config: ModelConfig, dictionary: Dictionary, embed_tokens: nn.Embedding
    ) -> None:
        super().__init__(config, embed_tokens)
        self.dictionary = dictionary
        self.padding_idx = dictionary.pad()
        self.init_incremental_state()  # its own place in fairseq's cache
        self.onnx_trace = False
        self.adaptive_softmax = None
        self.beam_size = 1
        self.num_layers = len(self.layers)
        self.embed_dim = self.output_embed_dim = config.decoder_embed_dim
        self.max_target_positions = self.longest
        self.alignment_layer = self.num_layers - 1
        self.alignment_heads: int | None = None

    def set_beam_size(self, beam_size: int) -> None:
        """Expect ``beam_size`` neighbouring rows of a batch to be hypotheses of one sentence.

        In decoding, these share keys and values. Other batches are decoded row by row.
        """
        self.beam_size = beam_size

    def forward(
        self,
        prev_output_tokens: Tensor,
        encoder_out: dict[str, list[Tensor]] | None = None,
        incremental_state: IncrementalState | None = None,
        features_only: bool = False,
        full_context_alignment: bool = False,
        alignment_layer: int | None = None,
        alignment_heads: int | None = None,
        src_lengths: Tensor | None = None,
        return_all_hiddens: bool = False,
    ) -> tuple[Tensor, dict[str, Sequence[Any]]]:
        """Predict every next token; the arguments are those of fairseq's Transformer decoder.

        Args:
            features_only: leave out the output projection.
            src_lengths: unused, as ``return_all_hiddens``.
            All others: those of :meth:`extract_features`.

        Returns:
            (batch, length, vocabulary) scores before the softmax, zeros at pads, and the second
            output of :meth:`extract_features`.
        """
        x, extra = self.extract_features(
            prev_output_tokens,
            encoder_out,
            incremental_state,
            full_context_alignment,
            alignment_layer,
            alignment_heads,
        )
        if features_only:
            return x, extra
        # The product includes the pads, whose scores are zeros, like their states. Leaving them out
        # would mean copying all scores, which takes as long as the products of a fifth of the rows.
        return self.output_layer(x), extra

    def extract_features(
        self,
        prev_output_tokens: Tensor,
        encoder_out: dict[str, list[Tensor]] | None = None,
        incremental_state: IncrementalState | None = None,
        full_context_alignment: bool = False,
        alignment_layer: int | None = None,
        alignment_heads: int | None = None,
    ) -> tuple[Tensor, dict[str, Sequence[Any]]]:
        """Hidden states before the output projection, and what else fairseq's Transformer returns.

        Args:
            prev_output_tokens: (batch, length).
            encoder_out: the output of the encoder.
            incremental_state: cache of step-by-step decoding; only the last position is computed.
            full_context_alignment: not supported.
            alignment_layer: layer of ``attn``; by default ``--alignment-layer``, or the last.
            alignment_heads: the first heads, whose mean is ``attn``; by default
                ``--alignment-heads``, or all.

        Returns:
            (batch, length, dim), and ``{"attn": [weights], "inner_states": [states, ...]}``: the
            weights of the cross-attention, (batch, length, source length), and the states before
            the first layer and after every layer, (length, batch, dim) each; no states in training
            with ``--offload-activations``.

        Raises:
            ValueError: if a sentence exceeds ``--max-target-positions``.
        """
        if full_context_alignment:
            raise ValueError("the mixing matrices of a ResMLP decoder are causal by construction")
        if encoder_out is None:
            raise ValueError("the ResMLP decoder needs the output of an encoder")
        heads = self.alignment_heads if alignment_heads is None else alignment_heads
        wanted = self.alignment_layer if alignment_layer is None else alignment_layer
        inner: list[Tensor] = []
        # --offload-activations frees the states of the layers on the device
        visit = None if self.training and self.config.offload_activations else inner.append
        if incremental_state is not None:
            cache = self._cache(incremental_state, encoder_out)
            newest = prev_output_tokens[:, -1].view(-1, cache.beam)
            x, cache, weights = self.advance(newest, cache, wanted, visit)
            self.set_incremental_state(incremental_state, "decoding", {"cache": cache})
            if weights is not None:
                weights = weights[:, :heads].mean(1).view(-1, 1, weights.size(3)).type_as(x)
            return x.view(-1, 1, x.size(2)), {
                "attn": [weights],
                "inner_states": [state.view(1, -1, state.size(2)) for state in inner],
            }
        batch = Aligned.of(prev_output_tokens, self.padding_idx, self.longest)
        source = source_of(encoder_out)
        hidden, weights = self.decode(batch.tokens, batch.layout, source, wanted, visit)
        if weights is not None:
            weights = weights[:, :heads].mean(1).transpose(0, 1)
            weights = batch.moved_back(weights).transpose(0, 1).type_as(hidden)
        states: Sequence[Tensor] = StatesAsGiven(batch, inner)
        if is_recording() or torch._C._are_functorch_transforms_active():
            states = list(states)  # these know lists and no other sequences
        return batch.as_given(hidden).transpose(0, 1), {"attn": [weights], "inner_states": states}

    def _cache(
        self, incremental_state: IncrementalState, encoder_out: dict[str, list[Tensor]]
    ) -> Cache:
        state = self.get_incremental_state(incremental_state, "decoding")
        if state is not None:
            cache: Cache = state["cache"]
            return cache
        (states,), (mask,) = encoder_out["encoder_out"], encoder_out["encoder_padding_mask"]
        beam = self.beam_size
        if states.size(1) % beam != 0:
            beam = 1
        grouped = states.unflatten(1, (-1, beam))
        if not torch.equal(grouped, grouped[:, :, :1].expand_as(grouped)):
            beam = 1
        once = {"encoder_out": [states[:, ::beam]], "encoder_padding_mask": [mask[::beam]]}
        return self.cache(self.memory(source_of(once)), beam)

    def reorder_incremental_state(
        self, incremental_state: IncrementalState, new_order: Tensor
    ) -> None:
        """Reorder the hypotheses; ``new_order`` has (sentences * beam,) indices."""
        state = self.get_incremental_state(incremental_state, "decoding")
        if state is not None:
            cache = state["cache"].reordered(new_order)
            self.set_incremental_state(incremental_state, "decoding", {"cache": cache})

    def output_layer(self, features: Tensor) -> Tensor:
        """Project to the vocabulary: (..., dim) -> (..., vocabulary)."""
        scores: Tensor = self.output_projection(features)
        return scores

    def max_positions(self) -> int:
        """The longest target sentence, in tokens with end-of-sentence."""
        return self.max_target_positions


def source_of(encoder_out: dict[str, list[Tensor]]) -> Source:
    """The encoder's states without pads."""
    (states,) = encoder_out["encoder_out"]
    mask = next(iter(encoder_out["encoder_padding_mask"]), None)
    if mask is None or not (is_recording() or bool(mask.any())):
        return Source(states.flatten(0, 1), Layout(states.size(0), states.size(1)), None)
    layout = Layout.of(mask.t())
    return Source(layout.pack(states), layout, mask)
