"""The encoder as fairseq calls it."""

import torch
from fairseq.data import Dictionary
from fairseq.models import FairseqEncoder
from torch import Tensor, nn

from resmlp_mt.model.config import ModelConfig
from resmlp_mt.model.encoder import Encoder, check_length
from resmlp_mt.padding import Layout, left_aligned, realigned


class ResMLPEncoder(Encoder, FairseqEncoder):  # type: ignore[misc]
    """An :class:`Encoder` of sentences that are padded on either side."""

    def __init__(
        self, config: ModelConfig, dictionary: Dictionary, embed_tokens: nn.Embedding
    ) -> None:
        super().__init__(config, embed_tokens)
        self.dictionary = dictionary
        self.padding_idx = dictionary.pad()

    def forward(
        self,
        src_tokens: Tensor,
        src_lengths: Tensor | None = None,
        return_all_hiddens: bool = False,
    ) -> dict[str, list[Tensor]]:
        """Encode sentences padded on either side.

        Args:
            src_tokens: (batch, length).
            src_lengths: unused; the lengths follow from the padding.
            return_all_hiddens: also return the states behind every layer.

        Returns:
            What fairseq's Transformer returns, positions as in ``src_tokens``: ``encoder_out``
            [(length, batch, dim)]; ``encoder_padding_mask`` [(batch, length)], True at pads;
            ``encoder_embedding`` [(batch, length, dim)], scaled; ``encoder_states``, (length,
            batch, dim) each; ``src_lengths`` [(batch, 1)].

        Raises:
            ValueError: if the longest sentence exceeds ``--max-source-positions``.
        """
        padding_mask = src_tokens.eq(self.padding_idx)
        tokens, shift = left_aligned(src_tokens, self.padding_idx)
        tokens = self._without_excess_padding(tokens)
        layout = Layout.of(tokens.t().eq(self.padding_idx))

        def as_given(hidden: Tensor) -> Tensor:
            hidden = layout.pad(hidden)
            missing = src_tokens.size(1) - hidden.size(0)
            if missing:
                hidden = nn.functional.pad(hidden, (0, 0, 0, 0, 0, missing))
            return hidden if shift is None else realigned(hidden, shift)

        states: list[Tensor] = []
        visit = states.append if return_all_hiddens else None
        x = self.encode(tokens, layout, visit)
        lengths = padding_mask.logical_not().sum(dim=1, dtype=torch.int32).unsqueeze(1)
        return {
            "encoder_out": [as_given(x)],
            "encoder_padding_mask": [padding_mask],
            "encoder_embedding": [self.embed(src_tokens)],
            "encoder_states": [as_given(state) for state in states],
            "src_tokens": [],
            "src_lengths": [lengths],
        }

    def _without_excess_padding(self, tokens: Tensor) -> Tensor:
        """A batch may carry more padding than its longest sentence, and than the model takes."""
        if tokens.size(1) <= self.longest or torch.compiler.is_compiling():
            return tokens
        numbered = torch.arange(1, tokens.size(1) + 1, device=tokens.device)
        longest = int((tokens.ne(self.padding_idx) * numbered).max())
        check_length("source", longest, self.longest)
        return tokens[:, :longest]

    def reorder_encoder_out(
        self, encoder_out: dict[str, list[Tensor]], new_order: Tensor
    ) -> dict[str, list[Tensor]]:
        """Select sentences along the batch dimension; see fairseq's ``FairseqEncoder``."""
        batch_dim = {"encoder_out": 1, "encoder_states": 1}
        return {
            name: [t.index_select(batch_dim.get(name, 0), new_order) for t in tensors]
            for name, tensors in encoder_out.items()
        }

    def max_positions(self) -> int:
        """The longest source sentence, in tokens with end-of-sentence."""
        return self.longest
