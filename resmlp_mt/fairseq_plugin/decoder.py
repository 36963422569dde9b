"""The decoder as fairseq calls it."""

from collections.abc import Callable, Sequence
from typing import Any

from fairseq.data import Dictionary
from fairseq.models import FairseqIncrementalDecoder
from torch import Tensor, nn

from resmlp_mt.model import rows
from resmlp_mt.model.attention import Source
from resmlp_mt.model.config import ModelConfig
from resmlp_mt.model.decoder import Decoder

IncrementalState = dict[str, dict[str, Any]]
"""fairseq's cache of step-by-step decoding, by module; ours is one :class:`Cache` in it."""


class ResMLPDecoder(Decoder, FairseqIncrementalDecoder):  # type: ignore[misc]
    """A :class:`Decoder` with the arguments and outputs of fairseq's Transformer decoder."""

    get_incremental_state: Callable[[IncrementalState, str], dict[str, Any] | None]
    set_incremental_state: Callable[[IncrementalState, str, dict[str, Any]], object]
    _beam_size = 1  # of set_beam_size, which fairseq's generator calls

    def __init__(
        self, config: ModelConfig, dictionary: Dictionary, embed_tokens: nn.Embedding
    ) -> None:
        super().__init__(config, embed_tokens, dictionary)
        self.padding_idx = dictionary.pad()
        self.num_layers = len(self.layers)
        self.embed_dim = self.output_embed_dim = config.decoder_embed_dim
        self.max_target_positions = self.longest
        self.alignment_layer = self.num_layers - 1
        self.alignment_heads: int | None = None

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
        """Score every next token, (batch, length, vocabulary), before the softmax; zeros at pads.

        The other arguments and the second output are as in :meth:`extract_features`.

        Args:
            features_only: leave out the output projection.
            src_lengths: unused, as ``return_all_hiddens``.
        """
        x, extra = self.extract_features(
            prev_output_tokens, encoder_out, incremental_state,
            full_context_alignment, alignment_layer, alignment_heads,
        )  # fmt: skip
        # Pads are among the rows of the product: to leave them out would mean copying all scores,
        # which takes as long as the products of a fifth of the rows.
        return x if features_only else self.output_layer(x), extra

    def extract_features(
        self,
        prev_output_tokens: Tensor,
        encoder_out: dict[str, list[Tensor]] | None = None,
        incremental_state: IncrementalState | None = None,
        full_context_alignment: bool = False,
        alignment_layer: int | None = None,
        alignment_heads: int | None = None,
    ) -> tuple[Tensor, dict[str, Sequence[Any]]]:
        """The input of the output projection, (batch, length, dim), and ``attn, inner_states``.

        These are the attention weights and the states of :class:`resmlp_mt.model.rows.Decoded`.

        Args:
            prev_output_tokens: (batch, length), padded on either side.
            encoder_out: the output of the encoder.
            incremental_state: with it, only the last position is computed.
            full_context_alignment: not supported.
            alignment_layer: layer of ``attn``; by default ``--alignment-layer``, or the last.
            alignment_heads: the first heads, whose mean is ``attn``; by default
                ``--alignment-heads``, or all.

        Raises:
            ValueError: if a sentence exceeds ``--max-target-positions``.
        """
        if full_context_alignment:
            raise ValueError("the mixing matrices of a ResMLP decoder are causal by construction")
        if encoder_out is None:
            raise ValueError("the ResMLP decoder needs the output of an encoder")
        layer = self.alignment_layer if alignment_layer is None else alignment_layer
        heads = self.alignment_heads if alignment_heads is None else alignment_heads
        (states,), masks = encoder_out["encoder_out"], encoder_out["encoder_padding_mask"]
        mask = masks[0] if masks else None
        if incremental_state is None:
            source = Source.of(states, mask)
            decoded = rows.decode(self, prev_output_tokens, source, layer, heads)
        else:
            known = self.get_incremental_state(incremental_state, "decoding")
            cache = known["cache"] if known else rows.begin(self, states, mask, self._beam_size)
            decoded, cache = rows.advance(self, prev_output_tokens[:, -1], cache, layer, heads)
            self.set_incremental_state(incremental_state, "decoding", {"cache": cache})
        return decoded.features, {"attn": [decoded.weights], "inner_states": decoded.states}

    def reorder_incremental_state(
        self, incremental_state: IncrementalState, new_order: Tensor
    ) -> None:
        """Reorder the hypotheses; ``new_order`` has (sentences * beam,) indices."""
        if known := self.get_incremental_state(incremental_state, "decoding"):
            cache = known["cache"].reordered(new_order)
            self.set_incremental_state(incremental_state, "decoding", {"cache": cache})

    def output_layer(self, features: Tensor) -> Tensor:
        """Project to the vocabulary: (..., dim) -> (..., vocabulary)."""
        scores: Tensor = self.output_projection(features)
        return scores

    def max_positions(self) -> int:
        """The longest target sentence, in tokens with end-of-sentence."""
        return self.max_target_positions
