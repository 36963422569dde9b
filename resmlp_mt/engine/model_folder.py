"""A folder that translates without fairseq: weights, sizes, dictionaries, sentencepiece model.

config.json          sizes and options (:class:`ModelConfig`), languages, type of the weights
model.safetensors    parameters of the folded :class:`EncoderDecoder`; int8 weights X.weight come
                     with their scales X.scale
dict.LANG.txt        fairseq's dictionaries
sentencepiece.model  optional
shortlist.safetensors  optional (:class:`Shortlist`)
SHA256SUMS           digests of all these files
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sentencepiece
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialized
from torch import Tensor, nn

from resmlp_mt.engine import digests
from resmlp_mt.engine.folding import empty
from resmlp_mt.engine.shortlist import Shortlist
from resmlp_mt.engine.vocabulary import Vocabulary
from resmlp_mt.errors import UserError
from resmlp_mt.machine import computes_in_bfloat16
from resmlp_mt.mixing import VARIANTS, MixingConfig
from resmlp_mt.model.config import ACTIVATIONS, LEAST_VALUES, ModelConfig
from resmlp_mt.model.encoder_decoder import EncoderDecoder
from resmlp_mt.model.sizes import misfit
from resmlp_mt.packed_linear import (
    DTYPES,
    Int8Linear,
    PackedLinear,
    can_pack,
    quantize,
)

if TYPE_CHECKING:
    from resmlp_mt.engine.onnx_model import OnnxModel

CONFIG, WEIGHTS, SENTENCEPIECE = "config.json", "model.safetensors", "sentencepiece.model"
SHORTLIST = "shortlist.safetensors"


@dataclass
class TranslationModel:
    """A folded model with all that stands between it and raw text."""

    model: EncoderDecoder | OnnxModel
    source_lang: str
    target_lang: str
    source: Vocabulary
    target: Vocabulary
    sentencepiece: sentencepiece.SentencePieceProcessor | None
    shortlist: Shortlist | None = None


def read_sentencepiece(path: Path) -> sentencepiece.SentencePieceProcessor:
    """Load a sentencepiece model.

    Raises:
        UserError: if the file is missing or is none.
    """
    try:
        return sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path} cannot be read as a sentencepiece model.") from error


def save(
    translation: TranslationModel,
    folder: Path,
    dtype: str = "float32",
    write_weights: Callable[[EncoderDecoder, Path], None] | None = None,
) -> None:
    """Write a folder; it appears complete or not at all.

    Args:
        translation: a float32 model.
        folder: must not exist or be empty.
        dtype: of the weights in the file: ``float32``, ``bfloat16`` or ``int8``.
        write_weights: writes the model into a folder in another form than ``model.safetensors``.

    Raises:
        UserError: if the folder has files in it or cannot be written.
    """
    check_is_free(folder)
    folder = folder.resolve()
    model = translation.model
    if not isinstance(model, EncoderDecoder):
        raise TypeError("only a folded model can be written")
    outer: Path | None = None
    try:
        if not folder.parent.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
        outer = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        partial = outer / folder.name  # with the usual permissions, unlike the other
        partial.mkdir()
        config = {
            "model_type": "resmlp_mt",
            "dtype": dtype,
            "source_lang": translation.source_lang,
            "target_lang": translation.target_lang,
            **dataclasses.asdict(model.config),
        }
        (partial / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        if write_weights is None:
            (partial / WEIGHTS).write_bytes(serialized(tensors(model, dtype), {"format": "pt"}))
        else:
            write_weights(model, partial)
        for language, vocabulary in (
            (translation.source_lang, translation.source),
            (translation.target_lang, translation.target),
        ):
            vocabulary.write(partial / f"dict.{language}.txt")
        if translation.sentencepiece is not None:
            proto = translation.sentencepiece.serialized_model_proto()
            (partial / SENTENCEPIECE).write_bytes(proto)
        if translation.shortlist is not None:
            translation.shortlist.save(partial / SHORTLIST)
        digests.write(partial)
        if folder.exists():
            folder.rmdir()
        os.replace(partial, folder)
    except OSError as error:
        raise UserError(f"--out {folder} cannot be written: {error.strerror}.") from error
    finally:
        if outer is not None:
            shutil.rmtree(outer, ignore_errors=True)


def check_is_free(folder: Path) -> None:
    """Before any work for a folder is begun.

    Raises:
        UserError: if it has files in it.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--out {folder} exists and is no empty folder: choose another name.")


def tensors(model: EncoderDecoder, dtype: str) -> dict[str, Tensor]:
    """The parameters of a float32 model in the type of a file, by name; shared ones once."""
    linear = {
        f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)
    }
    saved = {}
    for name, parameter in model.named_parameters():
        value = parameter.detach()
        if dtype == "int8" and name in linear:
            value, saved[name.removesuffix("weight") + "scale"] = quantize(value)
        elif dtype == "bfloat16":
            value = value.bfloat16()
        saved[name] = value.contiguous()
    return saved


def load(folder: Path, dtype: str | None = None, device: str = "cpu") -> TranslationModel:
    """Read a folder and make its model ready to translate on this machine.

    Args:
        dtype: type to compute in; by default that of the weights.
        device: where to compute.

    Raises:
        UserError: if the folder is incomplete or broken, or cannot be used with ``dtype``.
    """
    try:
        config: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        is_onnx = any(folder.glob("*.onnx")) and not (folder / WEIGHTS).exists()
        stored = {} if is_onnx else load_file(folder / WEIGHTS)
        if "encoder_layers" in config and "encoder_mixing" not in config:
            raise ValueError("it was written by resmlp_mt 0.1.0, which had another format")
        sizes = _checked(ModelConfig, config)
        stored_dtype = str(config["dtype"])
        if stored_dtype not in DTYPES:
            raise ValueError(f"unknown dtype {stored_dtype}")
        languages = str(config["source_lang"]), str(config["target_lang"])
        for language in languages:
            if not re.fullmatch(r"[\w.@-]{1,64}", language):
                raise ValueError(f"{language!r:.80} is no name of a language")
    except RecursionError as error:
        raise UserError(
            f"{folder / CONFIG} is nested too deeply: write it with python -m resmlp_mt.export."
        ) from error
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(
            f"{folder} cannot be read as an exported model ({error}): "
            f"write it with python -m resmlp_mt.export."
        ) from error
    dtype = dtype or stored_dtype
    if stored_dtype == "int8" and dtype != "int8":
        raise UserError(
            f"--dtype {dtype}: {folder} holds int8 weights; export it with --dtype {dtype}."
        )
    if is_onnx and dtype != stored_dtype:
        raise UserError(f"--dtype {dtype}: {folder} holds ONNX graphs of {stored_dtype}.")
    if is_onnx and device != "cpu":
        raise UserError(f"--device {device}: {folder} holds ONNX graphs, which run on the CPU.")
    model: EncoderDecoder | OnnxModel
    if is_onnx:
        # not before it is needed: PyTorch's exporter takes its time to load
        from resmlp_mt.engine.onnx_model import OnnxModel

        model = OnnxModel(sizes, folder)
    else:
        model = prepared(build(sizes, stored, folder), dtype, device)
    source, target = (Vocabulary.read(folder / f"dict.{language}.txt") for language in languages)
    for language, words, size in (
        (languages[0], source, sizes.source_vocabulary),
        (languages[1], target, sizes.target_vocabulary),
    ):
        if len(words) != size:
            raise UserError(
                f"{folder / f'dict.{language}.txt'} has {len(words)} words, but the model has "
                f"{size}: export it again."
            )
    piece_model, shortlist = folder / SENTENCEPIECE, folder / SHORTLIST
    loaded = TranslationModel(
        model,
        *languages,
        source=source,
        target=target,
        sentencepiece=read_sentencepiece(piece_model) if piece_model.exists() else None,
        shortlist=(
            Shortlist.load(shortlist, len(source), len(target)) if shortlist.exists() else None
        ),
    )
    # in the end: the checks above say more about what is wrong
    dictionaries = [f"dict.{language}.txt" for language in languages]
    graphs = [path.name for path in sorted(folder.glob("*.onnx*"))] if is_onnx else [WEIGHTS]
    digests.check(folder, [CONFIG, *graphs, *dictionaries, SENTENCEPIECE, SHORTLIST])
    return loaded


def _checked(kind: type[Any], values: dict[str, Any]) -> Any:
    """A dataclass from what JSON holds.

    Raises:
        KeyError: if a field is missing.
        ValueError: if a value is of another type, or names something unknown.
    """
    found = {}
    for field in dataclasses.fields(kind):
        value = values[field.name]
        if field.type is MixingConfig:
            found[field.name] = _checked(MixingConfig, value)
            continue
        if type(value) is not field.type:
            expected = getattr(field.type, "__name__", field.type)
            raise ValueError(f"{field.name} is {value!r}, but must be of type {expected}")
        found[field.name] = value
    for name, known in (("activation_fn", ACTIVATIONS), ("relative", VARIANTS)):
        if name in found and found[name] not in known:
            raise ValueError(f"unknown {name} {found[name]}")
    return kind(**found)


def build(config: ModelConfig, stored: dict[str, Tensor], folder: Path) -> EncoderDecoder:
    """A model with the stored parameters; int8 weights become :class:`Int8Linear` layers.

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
    quantized = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and f"{name}.scale" in stored
    ]
    for name in quantized:
        weight, scale, bias = (
            stored.pop(f"{name}.{part}", None) for part in ("weight", "scale", "bias")
        )
        if weight is None or scale is None:
            raise UserError(f"{folder / WEIGHTS} lacks {name}.weight.")
        model.set_submodule(name, Int8Linear(weight, scale, bias, _least_input(config, name)))
    if config.share_all_embeddings:
        shared = "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"
        if shared[0] in stored:
            stored[shared[1]] = stored[shared[0]]
    try:
        model.load_state_dict(stored, assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())  # of several lines
        raise UserError(f"{folder / WEIGHTS} does not fit {CONFIG}: {reason}") from error
    return model.eval().requires_grad_(False)


def check_finite(stored: Mapping[str, Tensor], path: Path) -> None:
    """Refuse weights with which no translation has a score.

    Raises:
        UserError: naming the file and the first tensor with NaN or infinity.
    """
    for name, value in stored.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise UserError(
                f"{path} has NaN or infinity in {name}: it is damaged, or its training diverged; "
                "use an earlier checkpoint or export the model again."
            )


def _least_input(config: ModelConfig, layer: str) -> float | None:
    return LEAST_VALUES.get(config.activation_fn) if layer.endswith(".fc2") else None


def prepared(model: EncoderDecoder, dtype: str, device: str = "cpu") -> EncoderDecoder:
    """Convert a model to the type to compute in and pack its linear layers for a CPU.

    Raises:
        UserError: if there is no such device, or it does not compute in this type.
    """
    check_device(device)
    on_cpu = torch.device(device).type == "cpu"
    if dtype == "int8" and not on_cpu:
        raise UserError(f"--dtype int8 is for CPUs, not for --device {device}: use bfloat16.")
    if dtype == "bfloat16" and on_cpu and not computes_in_bfloat16():
        raise UserError(
            "--dtype bfloat16 needs a processor with AVX-512 or better: use float32 or int8."
        )
    model = model.to(device, torch.bfloat16 if dtype == "bfloat16" else torch.float32)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear):
            packed: nn.Module
            if dtype == "int8":
                least = _least_input(model.config, name)
                packed = Int8Linear(*quantize(module.weight), module.bias, least)
            elif can_pack(module.weight):
                packed = PackedLinear(module)
            else:
                continue
            model.set_submodule(name, packed)
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
