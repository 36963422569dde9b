"""The encoder as fairseq calls it."""

from typing import Any

import torch
from fairseq.data import Dictionary
from fairseq.models import FairseqEncoder
from torch import Tensor, nn

from resmlp_mt.engine import lengths
from resmlp_mt.fairseq_plugin import checkpoints
from resmlp_mt.graphs import is_recording
from resmlp_mt.model.config import ModelConfig
from resmlp_mt.model.encoder import Encoder
from resmlp_mt.model.stack import scaled
from resmlp_mt.padding import Aligned


class ResMLPEncoder(Encoder, FairseqEncoder):  # type: ignore[misc]
    """An :class:`Encoder` for sentences that are padded on either side.

    Its buffer ``longest_trained`` is the length of the longest sentence that it was trained on,
    with end-of-sentence; 0 if the checkpoint does not have it.
    """

    longest_trained: Tensor

    def __init__(
        self, config: ModelConfig, dictionary: Dictionary, embed_tokens: nn.Embedding
    ) -> None:
        super().__init__(config, embed_tokens, dictionary)
        self.padding_idx = dictionary.pad()
        self.num_layers = len(self.layers)
        self.max_source_positions = self.longest
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
        token_embeddings: Tensor | None = None,
    ) -> dict[str, list[Any]]:
        """Encode sentences; returns what fairseq's Transformer does, of the same shapes.

        Args:
            src_tokens: (batch, length), padded on either side.
            src_lengths: unused; the lengths follow from the padding.
            return_all_hiddens: also return the states before the first and after every layer.
            token_embeddings: (batch, length, dim), instead of the rows of ``embed_tokens``.

        Raises:
            ValueError: if the longest sentence exceeds ``--max-source-positions``.
        """
        padding_mask = src_tokens.eq(self.padding_idx)
        batch = Aligned.of(src_tokens, self.padding_idx, self.longest)
        states: list[Tensor] = []
        if token_embeddings is None:
            embedding, embedded = self.embed(src_tokens), None
        else:
            embedding = scaled(token_embeddings, self.embed_scale)
            embedded = batch.packed(embedding)
        visit = states.append if return_all_hiddens else None
        x = self.encode(batch.tokens, batch.layout, visit, embedded)
        counts = padding_mask.logical_not().sum(dim=1, dtype=torch.int32).unsqueeze(1)
        if is_recording() or not torch._C._are_functorch_transforms_active():
            self._compare(counts)
        return {
            "encoder_out": [batch.as_given(x)],  # (length, batch, dim)
            "encoder_padding_mask": [padding_mask],  # (batch, length), True at pads
            "encoder_embedding": [embedding],  # (batch, length, dim), scaled
            "encoder_states": [batch.as_given(state) for state in states],  # (length, batch, dim)
            "fc_results": [None for _ in states[1:]],
            "src_tokens": [],
            "src_lengths": [counts],  # (batch, 1)
        }

    def _compare(self, counts: Tensor) -> None:
        """In training, remember the longest sentence; afterwards, warn once about longer ones."""
        if self.training:
            self._may_warn = False  # of validation sets
            self.longest_trained.copy_(torch.maximum(self.longest_trained, counts.max()))
        elif self._may_warn and not is_recording():
            longer = lengths.longer(counts.flatten().tolist(), self.longest_trained_source)
            if longer:
                lengths.warn(len(longer), max(longer), self.longest_trained_source)
                self._may_warn = False

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        checkpoints.complete(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def reorder_encoder_out(
        self, encoder_out: dict[str, list[Tensor]], new_order: Tensor
    ) -> dict[str, list[Tensor]]:
        """Select sentences along the batch dimension; see fairseq's ``FairseqEncoder``."""
        batch_dim = {"encoder_out": 1, "encoder_states": 1}
        return {
            name: [t.index_select(batch_dim.get(name, 0), new_order) for t in tensors]
            for name, tensors in encoder_out.items()
            if name != "fc_results"
        }

    def max_positions(self) -> int:
        """The longest source sentence, in tokens with end-of-sentence."""
        return self.max_source_positions
