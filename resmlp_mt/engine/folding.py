"""The same model with its affine maps merged into their neighbours, for translation.

An affine map before or after a linear layer becomes part of that layer
(:func:`resmlp_mt.layers.merged_before`, :func:`resmlp_mt.layers.merged_after`). For affine maps
around a mixing, see :func:`resmlp_mt.materialised_mixing.merged`. In the cross-attention, a bias of
the keys does not change the softmax and is dropped. A bias of the values passes through unchanged
and becomes part of the output projection.
"""

from dataclasses import replace
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from resmlp_mt.layers import Affine, FeedForward, merged_after, merged_before
from resmlp_mt.materialised_mixing import check_leading_parts, merged
from resmlp_mt.mixing import TokenMixing
from resmlp_mt.model.config import ModelConfig
from resmlp_mt.model.decoder import Decoder, DecoderLayer
from resmlp_mt.model.encoder import Encoder, EncoderLayer
from resmlp_mt.model.encoder_decoder import EncoderDecoder
from resmlp_mt.model.stack import Stack, longest


class TrainedModel(Protocol):
    """An :class:`EncoderDecoder`, or fairseq's model that is made of the same two halves."""

    encoder: Encoder
    decoder: Decoder

    def state_dict(self) -> dict[str, Tensor]: ...


class _WithoutValues(TorchFunctionMode):
    """Skips the initialization of parameters, whose values come from elsewhere."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if getattr(func, "__module__", None) == nn.init.__name__:
            return args[0] if args else (kwargs or {})["tensor"]
        if func in (Tensor.normal_, Tensor.uniform_):
            return args[0].zero_()  # some functions of nn.init draw until all values are in range
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def fold(model: TrainedModel) -> EncoderDecoder:
    """Fold a trained model; the original is not changed.

    All products are formed in float64 and rounded once, to the type of the model's parameters.

    Returns:
        The folded model in evaluation mode, on the device of the original.

    Raises:
        TypeError: if a mixing cannot be stored as one matrix, and its class does not say so.
    """
    dtype = model.decoder.embed_tokens.weight.dtype
    longest_trained = model.encoder.longest_trained_source
    with torch.device("meta"), _WithoutValues():
        folded = EncoderDecoder(
            replace(model.encoder.config, longest_trained_source=longest_trained)
        )
    parameters = {
        name: value.detach().clone().double()
        for name, value in model.state_dict().items()
        if value.is_floating_point()
    }
    folded.load_state_dict(parameters, assign=True)
    for module in folded.modules():  # here, and not each time that a stored model is loaded
        if isinstance(module, TokenMixing):
            check_leading_parts(module)
    merge_affines(folded)
    return folded.to(dtype).eval().requires_grad_(False)


def empty(config: ModelConfig) -> EncoderDecoder:
    """A folded model without values, to load a state dict into with ``assign=True``.

    It is not on the meta device, because products there import ``torch._dynamo``, which takes half
    of the time that ``translate`` needs to start.
    """
    with _WithoutValues():
        model = EncoderDecoder(config)
        merge_affines(model)
    return model.eval().requires_grad_(False)


@torch.no_grad()
def merge_affines(model: EncoderDecoder) -> None:
    """Merge the affine maps of a model into their neighbours, in place."""
    encoder, decoder = model.encoder, model.decoder
    _merge_scale(encoder)
    if decoder.embed_tokens is not encoder.embed_tokens:
        _merge_scale(decoder)
    decoder.embed_scale = 1.0
    for encoder_layer in cast("list[EncoderLayer]", encoder.layers):
        _merge_mixing(encoder_layer)
        _merge_feed_forward(encoder_layer)
    keys, values = [], []
    assert encoder.final_affine is not None
    for layer in cast("list[DecoderLayer]", decoder.layers):
        _merge_mixing(layer)
        key, value = _merge_attention(layer, encoder.final_affine)
        keys.append(key)
        values.append(value)
        _merge_feed_forward(layer)
    weight = torch.cat(keys + values)
    decoder.kv_proj = nn.Linear(weight.size(1), weight.size(0), bias=False, device="meta")
    decoder.kv_proj.weight = nn.Parameter(weight)
    encoder.final_affine = None
    encoder.longest, decoder.longest = longest(encoder.layers), longest(decoder.layers)
    assert decoder.final_affine is not None
    decoder.output_projection = merged_before(decoder.final_affine, decoder.output_projection)
    decoder.final_affine = None


def _merge_scale(side: Stack) -> None:
    # not in place: the output projection may share these weights
    scaled = side.embed_tokens.weight * side.embed_scale
    side.embed_tokens.weight = nn.Parameter(scaled)
    side.embed_scale = 1.0


def _merge_mixing(layer: EncoderLayer | DecoderLayer) -> None:
    assert layer.mixing_pre is not None
    assert layer.mixing_post is not None
    layer.mixing_pre, layer.token_mixing, layer.mixing_post = merged(
        layer.mixing_pre, layer.token_mixing, layer.mixing_post
    )


def _merge_feed_forward(layer: EncoderLayer | DecoderLayer) -> None:
    ffn: FeedForward = layer.ffn
    assert layer.ffn_pre is not None
    assert layer.ffn_post is not None
    ffn.fc1 = merged_before(layer.ffn_pre, ffn.fc1)
    ffn.fc2 = merged_after(ffn.fc2, layer.ffn_post)
    layer.ffn_pre = layer.ffn_post = None


def _merge_attention(layer: DecoderLayer, final_affine: Affine) -> tuple[Tensor, Tensor]:
    """Returns the weights of keys and values, which read the encoder's states."""
    attention = layer.encoder_attn
    assert layer.encoder_attn_pre is not None
    assert layer.encoder_attn_post is not None
    assert attention.k_proj is not None
    assert attention.v_proj is not None
    keys = merged_before(final_affine, attention.k_proj)
    values = merged_before(final_affine, attention.v_proj)
    queries = merged_before(layer.encoder_attn_pre, attention.q_proj)
    queries.weight.mul_(attention.scale)
    queries.bias.mul_(attention.scale)
    out_proj = attention.out_proj
    after_values = Affine(out_proj.in_features, device=out_proj.weight.device).to(
        out_proj.weight.dtype
    )
    after_values.beta = values.bias
    out_proj = merged_before(after_values, out_proj)
    attention.q_proj, attention.scale = queries, 1.0
    attention.out_proj = merged_after(out_proj, layer.encoder_attn_post)
    attention.k_proj = attention.v_proj = None
    layer.encoder_attn_pre = layer.encoder_attn_post = None
    return keys.weight, values.weight
