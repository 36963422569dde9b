"""From the parameters in a file to a model that is ready to compute, and back."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialized
from torch import Tensor, nn

from resmlp_mt.engine.earlier_folders import is_earlier, renamed
from resmlp_mt.engine.folding import empty
from resmlp_mt.engine.model_folder import CONFIG, WEIGHTS, from_json, unreadable
from resmlp_mt.engine.shortlist import Shortlist
from resmlp_mt.errors import UserError
from resmlp_mt.machine import computes_in_bfloat16
from resmlp_mt.mixing import VARIANTS
from resmlp_mt.model.config import ACTIVATIONS, LEAST_VALUES, ModelConfig
from resmlp_mt.model.encoder_decoder import EncoderDecoder
from resmlp_mt.model.sizes import misfit
from resmlp_mt.packed_linear import Int8Embedding, Int8Linear, PackedLinear, can_pack, quantize

PROJECTION = "decoder.output_projection"


def write(model: EncoderDecoder, path: Path, dtype: str) -> None:
    """Write the parameters of a float32 model, in the type of :data:`DTYPES`.

    Raises:
        OSError: if the file cannot be written.
    """
    path.write_bytes(serialized(tensors(model, dtype), {"format": "pt"}))


def load(
    folder: Path, config: dict[str, Any], dtype: str, device: str, threads: int | None
) -> EncoderDecoder:
    """The model of a folder, ready to compute; see :func:`model_folder.load`.

    Args:
        config: what ``config.json`` holds.

    Raises:
        UserError: if a file is missing or broken, or does not fit the others or the machine.
    """
    earlier = is_earlier(config)
    try:
        sizes: ModelConfig = from_json(ModelConfig, config, defaults=earlier)
        if sizes.activation_fn not in ACTIVATIONS:
            raise ValueError(f"unknown activation_fn {sizes.activation_fn}")
        for mixing in (sizes.encoder_mixing, sizes.decoder_mixing):
            if mixing.relative not in VARIANTS:
                raise ValueError(f"unknown relative {mixing.relative}")
        stored = load_file(folder / WEIGHTS)
        if earlier:
            stored = renamed(stored)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        file = WEIGHTS if isinstance(error, OSError | SafetensorError) else CONFIG
        raise unreadable(folder, file, error) from error
    return prepared(build(sizes, stored, folder), dtype, device, threads)


def load_shortlist(path: Path, config: ModelConfig) -> Shortlist | None:
    """The shortlist of a folder, if there is one.

    Raises:
        UserError: if it is broken or of another model.
    """
    if not path.exists():
        return None
    return Shortlist.load(path, config.source_vocabulary, config.target_vocabulary)


def tensors(model: EncoderDecoder, dtype: str) -> dict[str, Tensor]:
    """The parameters of a float32 model in the type of a file, by name; shared ones once."""
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
    elif dtype == "bfloat16":
        saved = {name: value.bfloat16() for name, value in saved.items()}
    return {name: value.contiguous() for name, value in saved.items()}


def _columns(model: EncoderDecoder) -> Tensor | None:
    """What makes of a shared embedding the weights of the output projection; None if not shared.

    Folding has multiplied the columns of the embedding E by the scale of an affine map, the
    weights are W = E diag(r). Least squares give r, also where both were rounded since.
    """
    config = model.config
    if not (config.share_all_embeddings or config.share_decoder_input_output_embed):
        return None
    embedding = model.decoder.embed_tokens.weight.detach().double()
    weight = model.decoder.output_projection.weight.detach().double()
    squares = (embedding * embedding).sum(0).clamp_min(1e-30)
    return ((embedding * weight).sum(0) / squares).float()


def build(config: ModelConfig, stored: dict[str, Tensor], folder: Path) -> EncoderDecoder:
    """A model with the stored parameters.

    Raises:
        UserError: if names or shapes do not fit the sizes, or a number is not finite.
    """
    check_finite(stored, folder / WEIGHTS)
    wrong = misfit(
        dataclasses.asdict(config), {name: value.shape for name, value in stored.items()}
    )
    if wrong is not None:
        raise UserError(f"{folder / WEIGHTS} does not fit {CONFIG}: {wrong}.")
    try:
        model = empty(config)
    except (ArithmeticError, AssertionError, RuntimeError, TypeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{folder / CONFIG} describes no model: {reason}.") from error
    try:
        return _filled(model, stored)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())  # of several lines
        raise UserError(f"{folder / WEIGHTS} does not fit {CONFIG}: {reason}") from error


def _filled(model: EncoderDecoder, stored: dict[str, Tensor]) -> EncoderDecoder:
    """Give an empty model its parameters; those in int8 become layers that compute with them.

    Raises:
        RuntimeError: if names or shapes do not fit, as ``load_state_dict`` raises it.
        ValueError: if the parts of a layer in int8 do not fit, or a type is wrong.
    """
    config = model.config
    for name, layer in list(model.named_modules()):
        if not isinstance(layer, nn.Linear | nn.Embedding) or f"{name}.scale" not in stored:
            continue
        weight, scale, bias = _int8(stored, name, layer)
        if isinstance(layer, nn.Linear):
            model.set_submodule(name, Int8Linear(weight, scale, bias, _least_input(config, name)))
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
    shared = "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"
    if config.share_all_embeddings and shared[0] in stored:
        stored[shared[1]] = stored[shared[0]]
    model.load_state_dict(stored, assign=True)
    return model.eval().requires_grad_(False)


def _int8(
    stored: dict[str, Tensor], name: str, layer: nn.Linear | nn.Embedding
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Weight, scale and bias in the place of a layer's, taken out of ``stored``.

    Raises:
        ValueError: if they are of other types or shapes.
    """
    shape = layer.weight.shape
    weight = _taken(stored, f"{name}.weight", torch.int8, shape)
    scale = _taken(stored, f"{name}.scale", torch.float32, shape[:1])
    if getattr(layer, "bias", None) is None:
        return weight, scale, None
    return weight, scale, _taken(stored, f"{name}.bias", torch.float32, shape[:1])


def _taken(
    stored: dict[str, Tensor], name: str, dtype: torch.dtype, shape: Sequence[int]
) -> Tensor:
    """A tensor, taken out of ``stored``.

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


def check_finite(stored: Mapping[str, Tensor], path: Path) -> None:
    """Refuse weights with which no translation has a score.

    Raises:
        UserError: naming the file and the first tensor with NaN or infinity, or of a type that
            no weights have.
    """
    for name, value in stored.items():
        if value.is_complex() or (value.is_floating_point() and value.itemsize < 2):
            raise UserError(f"{path} has {name} of {value.dtype}: expected floats or int8.")
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise UserError(
                f"{path} has NaN or infinity in {name}: it is damaged, or its training diverged; "
                "use an earlier checkpoint or export the model again."
            )


def _least_input(config: ModelConfig, layer: str) -> float | None:
    return LEAST_VALUES.get(config.activation_fn) if layer.endswith(".fc2") else None


def prepared(
    model: EncoderDecoder, dtype: str, device: str = "cpu", threads: int | None = None
) -> EncoderDecoder:
    """Convert a model to the type to compute in and pack its linear layers for a CPU.

    ``threads`` is how many this process computes a product with, where it is not PyTorch's choice.

    Raises:
        UserError: if there is no such device, or it does not compute in this type.
    """
    check_device(device)
    if threads is not None:
        torch.set_num_threads(threads)
    on_cpu = torch.device(device).type == "cpu"
    if dtype == "int8" and not on_cpu:
        raise UserError(f"--dtype int8 is for CPUs, not for --device {device}: use bfloat16.")
    if dtype == "bfloat16" and on_cpu and not computes_in_bfloat16():
        raise UserError(
            "--dtype bfloat16 needs a processor with AVX-512 or better: use float32 or int8."
        )
    model = model.to(device, torch.bfloat16 if dtype == "bfloat16" else torch.float32)
    layers = {n: layer for n, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    if dtype == "int8" and layers:  # not from a file of int8
        return _filled(empty(model.config), tensors(model, "int8"))
    for name, layer in layers.items():
        if can_pack(layer.weight):
            model.set_submodule(name, PackedLinear(layer))
    return model


def check_device(device: str) -> None:
    """Whether PyTorch can compute on a device.

    Raises:
        UserError: if it is not there.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {device} cannot be used: {reason}") from error


def placed(model: EncoderDecoder, device: str) -> EncoderDecoder:
    """The model on a device, its linear layers unpacked where they were packed for a CPU.

    Raises:
        UserError: if there is no such device, or the weights are int8 and it is not a CPU.
    """
    check_device(device)
    if model.device == torch.device(device):
        return model
    for name, module in list(model.named_modules()):
        if isinstance(module, Int8Linear):
            raise UserError(f"--dtype int8 is for CPUs, not for --device {device}: use bfloat16.")
        if isinstance(module, PackedLinear):
            model.set_submodule(name, module.unpacked())
    return model.to(device)
