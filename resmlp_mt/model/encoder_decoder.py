"""The whole model, which trains and decodes step by step on the device of its parameters."""

import torch
from torch import Tensor, nn

from resmlp_mt.model.attention import Memory, Source
from resmlp_mt.model.cache import Cache
from resmlp_mt.model.config import ModelConfig
from resmlp_mt.model.decoder import Decoder
from resmlp_mt.model.encoder import Encoder
from resmlp_mt.padding import Layout


class EncoderDecoder(nn.Module):
    """The encoder-decoder of section 3.5 of the paper, and its variants.

    Its parameters have the same names as in a checkpoint of fairseq.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        source = embedding(config.source_vocabulary, config.encoder_embed_dim, config.padding_idx)
        target = source
        if not config.share_all_embeddings:
            target = embedding(
                config.target_vocabulary, config.decoder_embed_dim, config.padding_idx
            )
        self.encoder = Encoder(config, source)
        self.decoder = Decoder(config, target)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Scores of every next token, before the softmax.

        Args:
            source: sentences, (batch, source length), padded at the end.
            target: decoder input, (batch, target length), padded at the end.

        Returns:
            (batch, target length, target_vocabulary), zeros at pads.

        Raises:
            ValueError: if a sentence is longer than the model allows.
        """
        read = self.read(source, source.eq(self.config.padding_idx))
        layout = Layout.of(target.t().eq(self.config.padding_idx))
        hidden, _ = self.decoder.decode(target, layout, read)
        return layout.pad(self.decoder.output_projection(hidden)).transpose(0, 1)

    def read(self, tokens: Tensor, is_pad: Tensor | None) -> Source:
        """Encode sentences, (batch, length), padded at the end."""
        full = Layout(tokens.size(1), tokens.size(0))
        layout = full if is_pad is None else Layout.of(is_pad.t())
        states = self.encoder.encode(tokens, layout)
        return Source(states, layout, is_pad)

    def encode(self, tokens: Tensor, lengths: Tensor | None = None) -> Memory:
        """Encode the source sentences, and compute their keys and values.

        Args:
            tokens: (batch, length), padded at the end.
            lengths: (batch,), the lengths of the sentences; None if there are no pads.

        Raises:
            ValueError: if ``length`` exceeds ``max_source_positions``.
        """
        is_pad = None
        if lengths is not None:
            positions = torch.arange(tokens.size(1), device=tokens.device)
            is_pad = positions >= lengths.unsqueeze(1)
        return self.decoder.memory(self.read(tokens, is_pad))

    def step(
        self, tokens: Tensor, history: Tensor, ancestors: Tensor, memory: Memory
    ) -> tuple[Tensor, Tensor]:
        """Score every next token of every hypothesis; see :meth:`Decoder.step`.

        Returns:
            Scores before the softmax, (batch, beam, target_vocabulary), and the entries of this
            step, (layers, batch, heads, beam, dim / heads).
        """
        hidden, entries, _ = self.decoder.step(tokens, history, ancestors, memory)
        return self.decoder.output_projection(hidden), entries

    def cache(self, memory: Memory, beam: int) -> Cache:
        """A cache for :meth:`advance`, with ``beam`` hypotheses for each sentence."""
        return self.decoder.cache(memory, beam)

    def advance(
        self, tokens: Tensor, cache: Cache, output_projection: nn.Module | None = None
    ) -> tuple[Tensor, Cache]:
        """:meth:`step` with a cache; returns the next cache in place of the entries.

        Args:
            tokens: (batch, beam), or (batch, 1) if all hypotheses are the same.
            cache: the cache after the earlier steps.
            output_projection: a replacement for the model's own.
        """
        hidden, cache, _ = self.decoder.advance(tokens, cache)
        return (output_projection or self.decoder.output_projection)(hidden), cache

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.decoder.embed_tokens.weight.device


def embedding(size: int, dim: int, padding_idx: int) -> nn.Embedding:
    """An embedding, initialized as in fairseq: N(0, 1 / dim), zeros for the pad."""
    embed = nn.Embedding(size, dim, padding_idx)
    nn.init.normal_(embed.weight, std=dim**-0.5)
    with torch.no_grad():
        embed.weight[padding_idx].zero_()
    return embed
