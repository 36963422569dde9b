"""Stores the parameters of a folded model in few bytes, each number once.

In int8, the matrices of embeddings and linear layers have a scale per row. If the output projection
shares the embedding, the table is stored once, with a factor for each column. A Toeplitz mixing
matrix, whose diagonals are constant, is stored as one number per diagonal.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from resmlp_mt.materialised_mixing import MaterialisedMixing
from resmlp_mt.mixing_products import diagonals, is_toeplitz, toeplitz
from resmlp_mt.model.config import LEAST_VALUES
from resmlp_mt.model.encoder_decoder import EncoderDecoder
from resmlp_mt.packed_linear import Int8Embedding, Int8Linear, quantize

PROJECTION = "decoder.output_projection"


def tensors(model: EncoderDecoder, dtype: str) -> dict[str, Tensor]:
    """The parameters of a float32 model by name, in the type of a file; shared ones occur once."""
    saved = {name: value.detach() for name, value in model.named_parameters()}
    if dtype == "int8":
        columns = _columns(model)
        if columns is not None:
            saved[f"{PROJECTION}.columns"] = columns
            del saved[f"{PROJECTION}.weight"]
        for name, module in model.named_modules():
            weight = saved.get(f"{name}.weight")
            if weight is not None and isinstance(module, nn.Linear | nn.Embedding):
                saved[f"{name}.weight"], saved[f"{name}.scale"] = quantize(weight)
    for name, module in model.named_modules():
        if isinstance(module, MaterialisedMixing) and is_toeplitz(module.weight):
            saved[f"{name}.diagonals"] = diagonals(saved.pop(f"{name}.weight"))
    if dtype == "bfloat16":
        saved = {name: value.bfloat16() for name, value in saved.items()}
    return {name: value.contiguous() for name, value in saved.items()}


def _columns(model: EncoderDecoder) -> Tensor | None:
    """The factors that turn a shared embedding into the output projection; None if not shared.

    Folding has multiplied the columns of the embedding E by the scale of an affine map, so the
    weights are W = E diag(r). Least squares give r, even if both have been rounded since.
    """
    config = model.config
    if not (config.share_all_embeddings or config.share_decoder_input_output_embed):
        return None
    embedding = model.decoder.embed_tokens.weight.detach().double()
    weight = model.decoder.output_projection.weight.detach().double()
    squares = (embedding * embedding).sum(0).clamp_min(1e-30)
    return ((embedding * weight).sum(0) / squares).float()


def fill(model: EncoderDecoder, stored: dict[str, Tensor]) -> EncoderDecoder:
    """Give an empty model its parameters; int8 parameters become int8 layers.

    Args:
        stored: the output of :func:`tensors`, which this function empties.

    Raises:
        RuntimeError: if names or shapes do not fit, as ``load_state_dict`` raises it.
        ValueError: if the parts of a layer in int8 do not fit, or a type is wrong.
    """
    config = model.config
    for name, layer in list(model.named_modules()):
        if not isinstance(layer, nn.Linear | nn.Embedding) or f"{name}.scale" not in stored:
            continue
        shape = layer.weight.shape
        weight = _taken(stored, f"{name}.weight", torch.int8, shape)
        scale = _taken(stored, f"{name}.scale", torch.float32, shape[:1])
        if isinstance(layer, nn.Linear):
            has_bias = getattr(layer, "bias", None) is not None
            bias = _taken(stored, f"{name}.bias", torch.float32, shape[:1]) if has_bias else None
            least = LEAST_VALUES.get(config.activation_fn) if name.endswith(".fc2") else None
            model.set_submodule(name, Int8Linear(weight, scale, bias, least))
            continue
        for side in ("encoder", "decoder"):
            if model.get_submodule(f"{side}.embed_tokens") is layer:
                model.set_submodule(f"{side}.embed_tokens", Int8Embedding(weight, scale))
    if f"{PROJECTION}.columns" in stored:
        model.set_submodule(PROJECTION, _shared_projection(model, stored))
    layers = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    if layers and any(isinstance(layer, Int8Linear) for layer in model.modules()):
        raise ValueError(f"{layers[0]}.scale is missing")
    for name, value in stored.items():
        if not value.is_floating_point():
            raise ValueError(f"it has {name} of {value.dtype}: expected floats")
    for name, layer in model.named_modules():
        if isinstance(layer, MaterialisedMixing) and f"{name}.diagonals" in stored:
            heads, length, _ = layer.weight.shape
            weights = stored.pop(f"{name}.diagonals")
            if weights.shape != (heads, 2 * length - 1):
                raise ValueError(
                    f"it has {name}.diagonals of size {[*weights.shape]}: expected "
                    f"{[heads, 2 * length - 1]}"
                )
            stored[f"{name}.weight"] = toeplitz(weights).contiguous()
    shared = "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"
    if config.share_all_embeddings and shared[0] in stored:
        stored[shared[1]] = stored[shared[0]]
    model.load_state_dict(stored, assign=True)
    stored.clear()
    return model.eval().requires_grad_(False)


def _taken(
    stored: dict[str, Tensor], name: str, dtype: torch.dtype, shape: Sequence[int]
) -> Tensor:
    """A tensor, removed from ``stored``.

    Raises:
        ValueError: if it is of another type or shape.
    """
    value = stored.pop(name, None)
    if value is None:
        raise ValueError(f"{name} is missing")
    if value.dtype != dtype:
        expected = "floats" if dtype.is_floating_point else str(dtype)
        raise ValueError(f"it has {name} of {value.dtype}: expected {expected}")
    if value.shape != tuple(shape):
        raise ValueError(f"it has {name} of size {[*value.shape]}: expected {[*shape]}")
    return value


def _shared_projection(model: EncoderDecoder, stored: dict[str, Tensor]) -> Int8Linear:
    """An output projection that computes with the embedding's table.

    Raises:
        ValueError: if the embedding is not in int8, or a part is of another type or shape.
    """
    table = model.get_submodule("decoder.embed_tokens")
    if not isinstance(table, Int8Embedding):
        raise ValueError(f"{PROJECTION}.weight is missing")
    rows, dim = table.weight.shape
    columns = _taken(stored, f"{PROJECTION}.columns", torch.float32, [dim])
    bias = _taken(stored, f"{PROJECTION}.bias", torch.float32, [rows])
    return Int8Linear(table.weight, table.scale, bias, columns=columns)
