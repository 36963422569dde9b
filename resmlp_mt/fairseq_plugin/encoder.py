"""The encoder as fairseq calls it."""

import logging
from typing import Any

import torch
from fairseq.data import Dictionary
from fairseq.models import FairseqEncoder
from torch import Tensor, nn

from resmlp_mt.model.config import ModelConfig
from resmlp_mt.model.encoder import Encoder, check_length
from resmlp_mt.padding import Layout, left_aligned, realigned

logger = logging.getLogger(__name__)


class ResMLPEncoder(Encoder, FairseqEncoder):  # type: ignore[misc]
    """An :class:`Encoder` for sentences that are padded on either side.

    Its buffer ``longest_trained`` is the length of the longest sentence that it was trained on,
    with end-of-sentence; 0 if the checkpoint does not have it.
    """

    longest_trained: Tensor

    def __init__(
        self, config: ModelConfig, dictionary: Dictionary, embed_tokens: nn.Embedding
    ) -> None:
        super().__init__(config, embed_tokens)
        self.dictionary = dictionary
        self.padding_idx = dictionary.pad()
        self.register_buffer("longest_trained", torch.zeros((), dtype=torch.long))
        self._may_warn = True

    @property
    def longest_trained_source(self) -> int:
        """The number in ``longest_trained``."""
        return int(self.longest_trained)

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
            return_all_hiddens: also return the states after every layer.

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
        if torch.compiler.is_compiling() or not torch._C._are_functorch_transforms_active():
            self._compare(lengths)
        return {
            "encoder_out": [as_given(x)],
            "encoder_padding_mask": [padding_mask],
            "encoder_embedding": [self.embed(src_tokens)],
            "encoder_states": [as_given(state) for state in states],
            "src_tokens": [],
            "src_lengths": [lengths],
        }

    def _compare(self, lengths: Tensor) -> None:
        """In training, remember the longest sentence; afterwards, warn once about longer ones."""
        if self.training:
            self._may_warn = False  # of validation sets
            self.longest_trained.copy_(torch.maximum(self.longest_trained, lengths.max()))
        elif self._may_warn and not torch.compiler.is_compiling():
            trained, longest = self.longest_trained_source, int(lengths.max())
            if 0 < trained < longest:
                self._may_warn = False
                logger.warning(
                    "a source sentence has %d tokens, but the longest one of the training had %d: "
                    "translations of such sentences may be poor",
                    longest,
                    trained,
                )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # older checkpoints lack this buffer
        state_dict.setdefault(f"{prefix}longest_trained", torch.zeros((), dtype=torch.long))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _without_excess_padding(self, tokens: Tensor) -> Tensor:
        """Cut padding beyond the longest sentence, which may be more than the model takes."""
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
