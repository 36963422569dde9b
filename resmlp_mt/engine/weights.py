"""Loads the parameters of a folder into a model that is ready to compute, and writes them."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialized
from torch import Tensor, nn

from resmlp_mt.engine import compact, exported_config
from resmlp_mt.engine.earlier_folders import is_earlier, renamed
from resmlp_mt.engine.folding import empty
from resmlp_mt.engine.model_folder import CONFIG, WEIGHTS, from_json, unreadable
from resmlp_mt.errors import UserError, reason, refused
from resmlp_mt.machine import as_usual, computes_in_bfloat16, set_threads
from resmlp_mt.mixing import VARIANTS
from resmlp_mt.model.config import ACTIVATIONS, ModelConfig
from resmlp_mt.model.encoder_decoder import EncoderDecoder
from resmlp_mt.model.sizes import misfit
from resmlp_mt.packed_linear import Int8Linear, PackedLinear, gains_by_packing


def write(model: EncoderDecoder, path: Path, dtype: str) -> None:
    """Write the parameters of a float32 model, in the type of :data:`DTYPES`.

    Raises:
        OSError: if the file cannot be written.
    """
    metadata = exported_config.metadata(dataclasses.asdict(model.config))
    path.write_bytes(serialized(compact.tensors(model, dtype), {"format": "pt", **metadata}))


@as_usual()
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

    def sentence(error: Exception) -> str:
        file = WEIGHTS if isinstance(error, OSError | SafetensorError) else CONFIG
        return unreadable(folder, file, error)

    with refused(sentence, OSError, ValueError, KeyError, TypeError, SafetensorError):
        sizes: ModelConfig = from_json(ModelConfig, config, defaults=earlier)
        if sizes.activation_fn not in ACTIVATIONS:
            raise ValueError(f"unknown activation_fn {sizes.activation_fn}")
        for mixing in (sizes.encoder_mixing, sizes.decoder_mixing):
            if mixing.relative not in VARIANTS:
                raise ValueError(f"unknown relative {mixing.relative}")
        # read, not mapped: a file that is overwritten in place would change the loaded model
        with safe_open(folder / WEIGHTS, "pt", backend="pread") as opened:
            metadata, stored = opened.metadata() or {}, opened.get_tensors()
        if earlier:
            stored = renamed(stored)
    if exported_config.KEY in metadata:  # not in files of earlier versions
        exported_config.check_known(ModelConfig, metadata, folder / WEIGHTS)
    model = build(sizes, stored, folder)
    if exported_config.KEY in metadata:
        exported_config.check(config, metadata, folder / WEIGHTS)
    return prepared(model, dtype, device, threads)


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
    with refused(
        lambda error: f"{folder / CONFIG} does not describe a model: {reason(error)}.",
        *(ArithmeticError, AssertionError, RuntimeError, TypeError, ValueError),
    ):
        model = empty(config)
    with refused(
        lambda error: f"{folder / WEIGHTS} does not fit {CONFIG}: {' '.join(str(error).split())}",
        *(RuntimeError, ValueError),
    ):
        return compact.fill(model, stored)


def check_finite(stored: Mapping[str, Tensor], path: Path) -> None:
    """Refuse weights that are not finite, or not floats or int8.

    Raises:
        UserError: naming the file and the first such tensor.
    """
    for name, value in stored.items():
        if value.is_complex() or (value.is_floating_point() and value.itemsize < 2):
            raise UserError(f"{path} has {name} of {value.dtype}: expected floats or int8.")
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise UserError(
                f"{path} has NaN or infinity in {name}: it is damaged, or its training diverged; "
                "use an earlier checkpoint or export the model again."
            )


def prepared(
    model: EncoderDecoder, dtype: str, device: str = "cpu", threads: int | None = None
) -> EncoderDecoder:
    """Convert a model to the type to compute in and pack its linear layers for a CPU.

    ``threads`` of one product are set for the whole process; None leaves PyTorch's choice.

    Raises:
        UserError: if there is no such device, or it does not compute in this type.
    """
    check_device(device)
    if threads is not None:
        set_threads(threads)
    on_cpu = torch.device(device).type == "cpu"
    if dtype == "int8" and not on_cpu:
        raise UserError(f"--dtype int8 is for CPUs, not for --device {device}: use bfloat16.")
    if dtype == "bfloat16" and on_cpu and not computes_in_bfloat16():
        raise UserError(
            "--dtype bfloat16 needs a processor with AVX-512 or better: use float32 or int8."
        )
    model = model.to(device, torch.bfloat16 if dtype == "bfloat16" else torch.float32)
    names = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    if dtype == "int8" and names:  # not from a file of int8
        model = compact.fill(empty(model.config), compact.tensors(model, "int8"))
        names = []
    for name in names:  # and nothing keeps a layer whose packed copy takes its place
        layer = model.get_submodule(name)
        if isinstance(layer, nn.Linear) and gains_by_packing(layer.weight):
            model.set_submodule(name, PackedLinear(layer))
    return _found_at_once(model)


def _found_at_once(model: EncoderDecoder) -> EncoderDecoder:
    """The same model, with parameters and submodules where Python looks for attributes first.

    ``nn.Module`` finds them only after that has failed, which takes a fifth of a small model's time
    for a step. An attribute that is set later replaces both.
    """
    for module in model.modules():
        module.__dict__.update(module._modules)
        module.__dict__.update(module._parameters)
    return model


def check_device(device: str) -> None:
    """Check that PyTorch can compute on a device.

    Raises:
        TypeError: if it is not the name of one.
        UserError: if there is no such device.
    """
    if not isinstance(device, str | int | torch.device):
        raise TypeError(f"device must be str, but is {device!r:.80}.")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {device} cannot be used: {reason(error)}") from error


def placed(model: EncoderDecoder, device: str) -> EncoderDecoder:
    """The model on a device; linear layers that were packed for a CPU are unpacked.

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
    return _found_at_once(model.to(device))  # which may replace parameters
