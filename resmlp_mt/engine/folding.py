"""The encoder-decoder with every Affine and LayerScale folded into its neighbours; torch alone.

An affine map in front of or behind a linear layer is part of that layer. The mixing matrix acts
over positions and the affine maps over channels, so the two commute:

    x + post(A pre(x) + b) = x + A (s x) + c,    s = alpha_post alpha_pre,
    c_t = (sum_u A_tu) alpha_post beta_pre + b_t alpha_post + beta_post

In the decoder c is a constant for every position. In the encoder the sum runs over the tokens of
the sentence, so its first term moves in front of A, where pads are zeroed.

In the cross-attention the softmax does not see a bias of the keys, and lets a bias of the values
through unchanged: the first is dropped and the second becomes part of the output projection.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resmlp_mt.padding import Layout

if TYPE_CHECKING:
    from fairseq.models import FairseqEncoderDecoderModel

    from resmlp_mt.fairseq_plugin.decoder import DecoderLayer, ResMLPDecoder
    from resmlp_mt.fairseq_plugin.encoder import EncoderLayer, ResMLPEncoder
    from resmlp_mt.layers import Affine

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_accurate": lambda x: F.gelu(x, approximate="tanh"),
    "tanh": torch.tanh,
    "linear": lambda x: x,
}
"""What fairseq's ``--activation-fn`` offers; its ``gelu_fast`` is ``gelu_accurate``."""

LEAST = {"relu": 0.0, "gelu": -0.17, "gelu_accurate": -0.1701}
"""Below no value of these activations."""


@dataclass(frozen=True)
class FoldedConfig:
    """The sizes of a :class:`FoldedModel`; the names are those of the training options."""

    source_vocabulary: int
    target_vocabulary: int
    share_all_embeddings: bool
    encoder_embed_dim: int
    encoder_ffn_embed_dim: int
    encoder_layers: int
    decoder_embed_dim: int
    decoder_ffn_embed_dim: int
    decoder_layers: int
    decoder_attention_heads: int
    activation_fn: str
    max_source_positions: int
    max_target_positions: int


class Memory(NamedTuple):
    """What the decoder reads of the source.

    Keys and values are (decoder_layers, batch, heads, length, dim / heads). The mask is
    (batch, 1, 1, length): 0 at tokens and minus infinity at pads; None where there are no pads.
    """

    keys: Tensor
    values: Tensor
    mask: Tensor | None


class FoldedEncoderLayer(nn.Module):
    """x + A (s x + h) + c, then x + C activation(B x)."""

    def __init__(self, config: FoldedConfig) -> None:
        super().__init__()
        dim, positions = config.encoder_embed_dim, config.max_source_positions
        self.mixing = nn.Parameter(torch.empty(positions, positions))
        self.scale = nn.Parameter(torch.empty(dim))
        self.shift = nn.Parameter(torch.empty(dim))
        self.constant = nn.Parameter(torch.empty(positions, 1, dim))
        self.activation = ACTIVATIONS[config.activation_fn]
        self.fc1 = nn.Linear(dim, config.encoder_ffn_embed_dim)
        self.fc2 = nn.Linear(config.encoder_ffn_embed_dim, dim)

    def forward(self, x: Tensor, is_pad: Tensor | None, layout: Layout | None) -> Tensor:
        """Transform (length, batch, dim).

        Args:
            x: hidden states.
            is_pad: (length, batch, 1); None without pads.
            layout: where tokens stand, if pads are to be left out of the feed-forward layer.
        """
        length, batch, dim = x.shape
        y = torch.addcmul(self.shift, x, self.scale)
        if is_pad is not None:
            y = y.masked_fill(is_pad, 0.0)
        matrix = self.mixing[:length, :length]
        x = torch.addmm(x.view(length, -1), matrix, y.view(length, -1)).view(length, batch, dim)
        return self.feed_forward(x + self.constant[:length], layout)

    def feed_forward(self, x: Tensor, layout: Layout | None) -> Tensor:
        """The second half of the layer, with zeros at pads if they are left out."""
        if layout is not None:
            x = layout.pack(x)
        x = x + self.fc2(self.activation(self.fc1(x)))
        return x if layout is None else layout.pad(x)


class FoldedDecoderLayer(nn.Module):
    """One step of causal mixing, cross-attention and feed-forward.

    The diagonal of A is kept apart, in ``own_scale``: the newest position, which is every
    hypothesis' own, then needs no cache.
    """

    def __init__(self, config: FoldedConfig) -> None:
        super().__init__()
        dim, positions = config.decoder_embed_dim, config.max_target_positions
        self.heads = config.decoder_attention_heads
        self.scale = nn.Parameter(torch.empty(dim))
        self.own_scale = nn.Parameter(torch.empty(positions, dim))
        self.constant = nn.Parameter(torch.empty(positions, dim))
        self.q_proj = nn.Linear(dim, dim)
        self.out_proj = nn.Linear(dim, dim)
        self.activation = ACTIVATIONS[config.activation_fn]
        self.fc1 = nn.Linear(dim, config.decoder_ffn_embed_dim)
        self.fc2 = nn.Linear(config.decoder_ffn_embed_dim, dim)

    def forward(
        self,
        x: Tensor,
        position: int,
        history: Tensor,
        mixing: Tensor,
        keys: Tensor,
        values: Tensor,
        mask: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Transform the newest position of every hypothesis.

        Args:
            x: (batch, beam, dim).
            position: number of earlier positions.
            history: what this layer returned for these, (batch, position * beam, dim).
            mixing: weights of the history, (batch, beam, position * beam).
            keys: (batch, heads, length, dim / heads), as ``values``.
            mask: (batch, 1, 1, length), added to the scores.

        Returns:
            Hidden states and the entry for the history, (batch, beam, dim) each.
        """
        entry = x * self.scale
        x = torch.addcmul(self.constant[position], x, self.own_scale[position])
        x = torch.baddbmm(x, mixing, history)
        queries = self.q_proj(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
        attended = F.scaled_dot_product_attention(queries, keys, values, mask, scale=1.0)
        x = x + self.out_proj(attended.transpose(1, 2).flatten(2))
        x = x + self.fc2(self.activation(self.fc1(x)))
        return x, entry


class FoldedModel(nn.Module):
    """The model that translates: :meth:`encode` once per batch, :meth:`step` once per token.

    Made by :func:`fold`, or with empty parameters to load a ``state_dict`` into.
    """

    def __init__(self, config: FoldedConfig) -> None:
        super().__init__()
        self.config = config
        dim, positions = config.decoder_embed_dim, config.max_target_positions
        self.source_embedding = nn.Embedding(config.source_vocabulary, config.encoder_embed_dim)
        self.target_embedding = (
            self.source_embedding
            if config.share_all_embeddings
            else nn.Embedding(config.target_vocabulary, dim)
        )
        self.encoder_layers = nn.ModuleList(
            [FoldedEncoderLayer(config) for _ in range(config.encoder_layers)]
        )
        # keys and values of all decoder layers: one product
        self.kv_proj = nn.Linear(
            config.encoder_embed_dim, 2 * config.decoder_layers * dim, bias=False
        )
        self.decoder_mixing = nn.Parameter(torch.empty(config.decoder_layers, positions, positions))
        self.decoder_layers = nn.ModuleList(
            [FoldedDecoderLayer(config) for _ in range(config.decoder_layers)]
        )
        self.output_projection = nn.Linear(dim, config.target_vocabulary)

    def encode(self, tokens: Tensor, lengths: Tensor | None = None) -> Memory:
        """Read the source sentences.

        Args:
            tokens: (batch, length), padded behind the sentences.
            lengths: (batch,), the lengths of the sentences; None if all fill the batch.

        Raises:
            ValueError: if ``length`` exceeds ``max_source_positions``.
        """
        config = self.config
        length = tokens.size(1)
        if length > config.max_source_positions:
            raise ValueError(
                f"a source sentence has {length} tokens, but this model was trained for at most "
                f"{config.max_source_positions}."
            )
        is_pad: Tensor | None = None
        mask: Tensor | None = None
        layout: Layout | None = None
        x = self.source_embedding(tokens.t())
        if lengths is not None:
            pads = torch.arange(length, device=tokens.device) >= lengths.unsqueeze(1)
            is_pad = pads.t().unsqueeze(2)
            if not torch.compiler.is_compiling():  # sizes that depend on data make no graph
                layout = Layout.of(pads.t())
            mask = x.new_zeros(pads.shape).masked_fill(pads, -torch.inf)[:, None, None, :]
        for layer in self.encoder_layers:
            x = layer(x, is_pad, layout)
        projected = self.kv_proj(x) if layout is None else layout.pad(self.kv_proj(layout.pack(x)))
        heads = (2, config.decoder_layers, config.decoder_attention_heads, -1)
        keys, values = projected.unflatten(2, heads).permute(2, 3, 1, 4, 0, 5).contiguous()
        return Memory(keys, values, mask)

    def step(
        self, tokens: Tensor, history: Tensor, ancestors: Tensor, memory: Memory
    ) -> tuple[Tensor, Tensor]:
        """Score every next token of every hypothesis: :meth:`decode` and the output projection.

        Returns:
            Scores before the softmax, (batch, beam, target_vocabulary), and the entries of this
            step, (decoder_layers, batch, beam, dim).
        """
        hidden, entries = self.decode(tokens, history, ancestors, memory)
        return self.output_projection(hidden), entries

    def decode(
        self, tokens: Tensor, history: Tensor, ancestors: Tensor, memory: Memory
    ) -> tuple[Tensor, Tensor]:
        """Decode the newest token of every hypothesis.

        The hypotheses of a sentence share its history: entries stay where they were written, and
        ``ancestors`` says which of them a hypothesis goes back to.

        Args:
            tokens: the newest token of every hypothesis, (batch, beam); end-of-sentence at first.
            history: the entries of all earlier steps, (decoder_layers, batch, position, beam,
                dim), where position is the number of these steps; entries without descendants
                must be finite.
            ancestors: the entry that each hypothesis goes back to at every earlier position,
                (batch, beam, position), each from 0 to beam - 1.
            memory: what :meth:`encode` returned.

        Returns:
            What the output projection takes, (batch, beam, dim), and the entries of this step,
            (decoder_layers, batch, beam, dim).

        Raises:
            ValueError: if ``position`` is not below ``max_target_positions``.
        """
        position, beam = history.size(2), tokens.size(1)
        if position >= self.config.max_target_positions:
            raise ValueError(
                f"a target sentence has {position + 1} tokens, but this model was trained for at "
                f"most {self.config.max_target_positions}."
            )
        x = self.target_embedding(tokens)
        rows = self.decoder_mixing[:, position, :position]
        descends = ancestors.unsqueeze(3) == torch.arange(beam, device=tokens.device)
        mixing = (rows[:, None, None, :, None] * descends).flatten(3)
        entries = []
        for index, layer in enumerate(self.decoder_layers):
            x, entry = layer(
                x,
                position,
                history[index].flatten(1, 2),
                mixing[index],
                memory.keys[index],
                memory.values[index],
                memory.mask,
            )
            entries.append(entry)
        return x, torch.stack(entries)


@torch.no_grad()
def fold(model: FairseqEncoderDecoderModel) -> FoldedModel:
    """Fold a trained model; the original is not changed.

    All products are formed in float64 and rounded once, to the type of the model's parameters.

    Args:
        model: a :class:`resmlp_mt.models.resmlp_mt.ResMLPModel`.

    Returns:
        The folded model in evaluation mode, on the CPU.
    """
    encoder: ResMLPEncoder = model.encoder
    decoder: ResMLPDecoder = model.decoder
    config = folded_config(encoder, decoder)
    dtype = decoder.embed_tokens.weight.dtype
    folded = FoldedModel(config).double()

    folded.source_embedding.weight.copy_(encoder.embed_scale * encoder.embed_tokens.weight.double())
    folded.target_embedding.weight.copy_(decoder.embed_scale * decoder.embed_tokens.weight.double())
    for old, new in zip(_encoder_layers(encoder), folded.encoder_layers, strict=True):
        _fold_encoder_layer(old, cast("FoldedEncoderLayer", new))

    keys_and_values = folded.kv_proj.weight.unflatten(0, (2, config.decoder_layers, -1))
    layers = zip(_decoder_layers(decoder), folded.decoder_layers, strict=True)
    for index, (layer, folded_layer) in enumerate(layers):
        folded.decoder_mixing[index].copy_(layer.token_mixing.weight.tril())
        key_weight, _ = _in_front(encoder.final_affine, layer.encoder_attn.k_proj)
        value_weight, value_bias = _in_front(encoder.final_affine, layer.encoder_attn.v_proj)
        keys_and_values[0, index].copy_(key_weight)
        keys_and_values[1, index].copy_(value_weight)
        _fold_decoder_layer(layer, value_bias, cast("FoldedDecoderLayer", folded_layer))

    _set(folded.output_projection, *_in_front(decoder.final_affine, decoder.output_projection))
    return folded.to(dtype).eval().requires_grad_(False)


def folded_config(encoder: ResMLPEncoder, decoder: ResMLPDecoder) -> FoldedConfig:
    """The sizes of a trained model, read off its modules."""
    encoder_layer, decoder_layer = _encoder_layers(encoder)[0], _decoder_layers(decoder)[0]
    return FoldedConfig(
        source_vocabulary=encoder.embed_tokens.num_embeddings,
        target_vocabulary=decoder.embed_tokens.num_embeddings,
        share_all_embeddings=encoder.embed_tokens is decoder.embed_tokens,
        encoder_embed_dim=encoder.embed_tokens.embedding_dim,
        encoder_ffn_embed_dim=encoder_layer.ffn.fc1.out_features,
        encoder_layers=len(encoder.layers),
        decoder_embed_dim=decoder.embed_tokens.embedding_dim,
        decoder_ffn_embed_dim=decoder_layer.ffn.fc1.out_features,
        decoder_layers=len(decoder.layers),
        decoder_attention_heads=decoder_layer.encoder_attn.heads,
        activation_fn=_activation_name(encoder_layer.ffn.activation),
        max_source_positions=encoder.max_source_positions,
        max_target_positions=decoder.max_target_positions,
    )


def _encoder_layers(encoder: ResMLPEncoder) -> list[EncoderLayer]:
    return cast("list[EncoderLayer]", encoder.layers)


def _decoder_layers(decoder: ResMLPDecoder) -> list[DecoderLayer]:
    return cast("list[DecoderLayer]", decoder.layers)


def _activation_name(function: Callable[[Tensor], Tensor]) -> str:
    """The entry of :data:`ACTIVATIONS` with the values of a function, which may be nameless."""
    probe = torch.linspace(-4.0, 4.0, 33, dtype=torch.float64)
    for name, known in ACTIVATIONS.items():
        if torch.allclose(function(probe), known(probe), rtol=0.0, atol=1e-9):
            return name
    raise ValueError(f"the activation {function} is none of {', '.join(ACTIVATIONS)}")


def _in_front(affine: Affine, linear: nn.Linear) -> tuple[Tensor, Tensor]:
    """Weight and bias of linear(affine(x)), in float64."""
    weight = linear.weight.double()
    bias = weight @ _shift(affine)
    if linear.bias is not None:
        bias = bias + linear.bias.double()
    return weight * affine.alpha.double(), bias


def _shift(affine: Affine) -> Tensor:
    return torch.zeros_like(affine.alpha).double() if affine.beta is None else affine.beta.double()


def _behind(linear_weight: Tensor, linear_bias: Tensor, affine: Affine) -> tuple[Tensor, Tensor]:
    """Weight and bias of affine(linear(x)), in float64."""
    alpha = affine.alpha.double()
    return alpha.unsqueeze(1) * linear_weight, alpha * linear_bias + _shift(affine)


def _set(linear: nn.Linear, weight: Tensor, bias: Tensor) -> None:
    linear.weight.copy_(weight)
    linear.bias.copy_(bias)


def _fold_feed_forward(
    layer: EncoderLayer | DecoderLayer, folded: FoldedEncoderLayer | FoldedDecoderLayer
) -> None:
    _set(folded.fc1, *_in_front(layer.ffn_pre, layer.ffn.fc1))
    fc2 = layer.ffn.fc2
    _set(folded.fc2, *_behind(fc2.weight.double(), fc2.bias.double(), layer.ffn_post))


def _fold_encoder_layer(layer: EncoderLayer, folded: FoldedEncoderLayer) -> None:
    pre, post = layer.mixing_pre, layer.mixing_post
    folded.mixing.copy_(layer.token_mixing.weight)
    folded.scale.copy_(post.alpha.double() * pre.alpha.double())
    folded.shift.copy_(post.alpha.double() * _shift(pre))
    bias = layer.token_mixing.bias.double()[:, None, None]
    folded.constant.copy_(bias * post.alpha.double() + _shift(post))
    _fold_feed_forward(layer, folded)


def _fold_decoder_layer(
    layer: DecoderLayer, value_bias: Tensor, folded: FoldedDecoderLayer
) -> None:
    pre, post = layer.mixing_pre, layer.mixing_post
    matrix = layer.token_mixing.weight.double().tril()
    scale = post.alpha.double() * pre.alpha.double()
    folded.scale.copy_(scale)
    folded.own_scale.copy_(1.0 + matrix.diagonal().unsqueeze(1) * scale)
    row_sums = matrix.sum(dim=1, keepdim=True)
    bias = layer.token_mixing.bias.double().unsqueeze(1)
    folded.constant.copy_(
        row_sums * (post.alpha.double() * _shift(pre)) + bias * post.alpha.double() + _shift(post)
    )
    attention = layer.encoder_attn
    weight, bias = _in_front(layer.encoder_attn_pre, attention.q_proj)
    width = weight.size(0) // attention.heads
    _set(folded.q_proj, weight * width**-0.5, bias * width**-0.5)
    weight = attention.out_proj.weight.double()
    bias = attention.out_proj.bias.double() + weight @ value_bias
    _set(folded.out_proj, *_behind(weight, bias, layer.encoder_attn_post))
    _fold_feed_forward(layer, folded)
