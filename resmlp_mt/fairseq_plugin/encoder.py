"""The encoder: token mixing and feed-forward, each between two affine maps."""

import math

import torch
from fairseq.data import Dictionary
from fairseq.models import FairseqEncoder
from torch import Tensor, nn

from resmlp_mt.fairseq_plugin.branches import feed_forward_branch, mixing_branch
from resmlp_mt.fairseq_plugin.config import ResMLPConfig, activation
from resmlp_mt.layers import Affine, FeedForward, TokenMixing
from resmlp_mt.padding import Layout, left_aligned, realigned


class EncoderLayer(nn.Module):
    """Z = X + Aff(A Aff(X)), Y = Z + Aff(FeedForward(Aff(Z)))."""

    def __init__(self, cfg: ResMLPConfig) -> None:
        super().__init__()
        dim = cfg.encoder_embed_dim
        self.dropout = nn.Dropout(cfg.dropout)
        self.mixing_pre = Affine(dim)
        self.token_mixing = TokenMixing(cfg.max_source_positions)
        self.mixing_post = Affine(dim, cfg.layer_scale_init)
        self.ffn_pre = Affine(dim)
        self.ffn = FeedForward(
            dim,
            cfg.encoder_ffn_embed_dim,
            activation(cfg),
            cfg.activation_dropout,
        )
        self.ffn_post = Affine(dim, cfg.layer_scale_init)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """Transform hidden states of the tokens of a batch, (tokens, dim)."""
        x = mixing_branch(
            x, layout, self.mixing_pre, self.token_mixing, self.mixing_post, self.dropout
        )
        return feed_forward_branch(x, self.ffn_pre, self.ffn, self.ffn_post, self.dropout)


class ResMLPEncoder(FairseqEncoder):
    """Embedding, ``encoder_layers`` layers, final affine map; no positional embedding."""

    def __init__(
        self, cfg: ResMLPConfig, dictionary: Dictionary, embed_tokens: nn.Embedding
    ) -> None:
        super().__init__(dictionary)
        self.embed_tokens = embed_tokens
        self.embed_scale = math.sqrt(cfg.encoder_embed_dim)
        self.padding_idx = dictionary.pad()
        self.max_source_positions = cfg.max_source_positions
        self.dropout = nn.Dropout(cfg.dropout)
        self.layers = nn.ModuleList([EncoderLayer(cfg) for _ in range(cfg.encoder_layers)])
        self.final_affine = Affine(cfg.encoder_embed_dim)

    def forward(
        self,
        src_tokens: Tensor,
        src_lengths: Tensor | None = None,
        return_all_hiddens: bool = False,
        **_: object,
    ) -> dict[str, list[Tensor]]:
        """Encode sentences padded on either side.

        Args:
            src_tokens: (batch, length).
            src_lengths: unused; the lengths follow from the padding.
            return_all_hiddens: also return the states behind every layer.

        Returns:
            fairseq's encoder output, positions as in ``src_tokens``: ``encoder_out``
            [(length, batch, dim)]; ``encoder_padding_mask`` [(batch, length)], True at pads, or
            [] without any; ``encoder_states``, (length, batch, dim) each.

        Raises:
            ValueError: if the longest sentence exceeds ``--max-source-positions``.
        """
        given_mask = src_tokens.eq(self.padding_idx)
        has_pads = bool(given_mask.any())
        tokens, shift = (
            left_aligned(src_tokens, self.padding_idx) if has_pads else (src_tokens, None)
        )
        if tokens.size(1) > self.max_source_positions:
            # A batch may carry more padding than its longest sentence.
            numbered = torch.arange(1, tokens.size(1) + 1, device=tokens.device)
            longest = int((tokens.ne(self.padding_idx) * numbered).max())
            if longest > self.max_source_positions:
                raise ValueError(
                    f"a source sentence has {longest} tokens, but this model was trained for at "
                    f"most {self.max_source_positions}: shorten it, or train with a larger "
                    f"--max-source-positions."
                )
            tokens = tokens[:, :longest]
        layout = Layout.of(tokens.t().eq(self.padding_idx))

        x = self.dropout(self.embed_scale * self.embed_tokens(layout.pack(tokens.t())))
        states = [x] if return_all_hiddens else []
        for layer in self.layers:
            x = layer(x, layout)
            if return_all_hiddens:
                states.append(x)
        x = self.final_affine(x)

        def as_given(hidden: Tensor) -> Tensor:
            hidden = layout.pad(hidden)
            missing = src_tokens.size(1) - hidden.size(0)
            if missing:
                hidden = nn.functional.pad(hidden, (0, 0, 0, 0, 0, missing))
            return hidden if shift is None else realigned(hidden, shift)

        return {
            "encoder_out": [as_given(x)],
            "encoder_padding_mask": [given_mask] if has_pads else [],
            "encoder_embedding": [],
            "encoder_states": [as_given(state) for state in states],
            "src_tokens": [],
            "src_lengths": [],
        }

    def reorder_encoder_out(
        self, encoder_out: dict[str, list[Tensor]], new_order: Tensor
    ) -> dict[str, list[Tensor]]:
        """Select sentences along the batch dimension; see fairseq's ``FairseqEncoder``."""
        batch_dim = {"encoder_out": 1, "encoder_states": 1, "encoder_padding_mask": 0}
        return {
            name: [t.index_select(batch_dim[name], new_order) for t in tensors] if tensors else []
            for name, tensors in encoder_out.items()
        }

    def max_positions(self) -> int:
        """The longest source sentence, in tokens with end-of-sentence."""
        return self.max_source_positions
