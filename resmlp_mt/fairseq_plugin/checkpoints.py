"""Checkpoints: what the safe loader may construct, and averages of several checkpoints."""

import argparse
import hashlib
import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from resmlp_mt import __version__, language_codes, stored_arrays, tensor_files
from resmlp_mt.command_line import flag
from resmlp_mt.engine.weights import check_finite
from resmlp_mt.errors import UserError
from resmlp_mt.files import not_a_checkpoint

logger = logging.getLogger(__name__)

# fairseq saves the options of its older components (adagrad, sgd, criterions without a dataclass)
# as a Namespace, and the sums of --eval-bleu as integer arrays.
SAFE_GLOBALS: list[Any] = [argparse.Namespace, *stored_arrays.GLOBALS]


DICTIONARIES = "dictionaries"
"""The entry of a checkpoint with a digest of the symbols of each side."""

LONGEST = "longest_trained"
"""The buffer of the encoder with the length of the longest training sentence; 0: not known."""

VERSION = "resmlp_mt_version"
"""The entry with the version that trained it; checkpoints before 0.2.0 do not have it."""

HIDDEN = ("decoder_attention_heads", "activation_fn")
"""Options of a model that no weight shows."""

SHARED = ("share_all_embeddings", "share_decoder_input_output_embed")
"""Options with which one weight is loaded from several, the last of which counts. The first
includes the second."""

ALIKE = {"task": ("source_lang", "target_lang"), "model": (*HIDDEN, *SHARED)}
"""Options of checkpoints of one training that the shapes of weights do not show, by section."""


def allow_safe_globals() -> None:
    """Let ``torch.load(weights_only=True)`` construct the types in fairseq's checkpoints.

    Everything else that a checkpoint names is still refused.
    """
    torch.serialization.add_safe_globals(SAFE_GLOBALS)


def read(path: Path, *, only_look: bool = False) -> dict[str, Any]:
    """The contents of a checkpoint of fairseq, read by the safe loader, on the CPU.

    Args:
        only_look: see :func:`resmlp_mt.tensor_files.read`.

    Raises:
        UserError: naming the file, if it is missing, damaged, or asks for other types.
    """
    if path.is_dir():
        raise not_a_checkpoint(path)
    state = tensor_files.read(path, SAFE_GLOBALS, only_look=only_look)
    if not isinstance(state.get("model"), dict):
        raise UserError(f"{path} is not a fairseq checkpoint: it has no entry 'model'.")
    return state


def options_of(state: Mapping[str, Any], section: str) -> Mapping[str, Any]:
    """The options of a section of a checkpoint's configuration.

    In old checkpoints, which have no sections, they are all options.
    """
    cfg = state.get("cfg")
    stored = state.get("args") or (cfg.get(section) if isinstance(cfg, Mapping) else None)
    if isinstance(stored, argparse.Namespace):
        return vars(stored)
    return stored if isinstance(stored, Mapping) else {}


def digest(state: Mapping[str, Any]) -> str | None:
    """The SHA-256 of a checkpoint's parameters and configuration, stored as the entry ``digest``.

    It is None if there are no parameters, not all are tensors, or the configuration has no form in
    JSON.
    """
    parameters = state.get("model")
    if not (isinstance(parameters, Mapping) and parameters):
        return None
    if not all(isinstance(value, Tensor) for value in parameters.values()):
        return None
    configuration = _as_json(state.get("cfg"))
    if configuration is None:
        return None
    total = hashlib.sha256(configuration)
    for name, value in sorted(parameters.items()):
        value = value.detach().cpu().contiguous()
        total.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        total.update(value.reshape(-1).view(torch.uint8).numpy())
    return total.hexdigest()


def _as_json(configuration: Any) -> bytes | None:
    """A configuration as JSON with sorted keys; None if it has no such form."""
    try:
        return json.dumps(configuration, sort_keys=True, default=str).encode()
    except (TypeError, ValueError, RecursionError):  # keys of several types, tuples, cycles
        return None


def check_digest(state: Mapping[str, Any], path: Path) -> None:
    """Compare a checkpoint with the digest in it; warn if there is none.

    Raises:
        UserError: if they differ.
    """
    stored = state.get("digest")
    if stored is None:
        logger.warning(
            "%s has no digest of its weights and options: it was written without the plugin or "
            "by an older version, and changes to it would not be noticed.",
            path,
        )
    elif stored != digest(state):
        raise UserError(
            f"{path} does not have the digest that was written with it: it is damaged or was "
            "changed; use another checkpoint, or remove its entry 'digest' if the change is yours."
        )


def other_dictionary(state: Mapping[str, Any], digests: object) -> str | None:
    """The side, ``source`` or ``target``, whose dictionary differs from a checkpoint's.

    Only what both have is compared: checkpoints without the plugin or of an older version do not
    know their dictionaries.
    """
    stored = state.get(DICTIONARIES)
    if not (isinstance(stored, Mapping) and isinstance(digests, Mapping)):
        return None
    return next((side for side in stored if stored[side] != digests.get(side, stored[side])), None)


def of_another_version(state: Mapping[str, Any], path: Path, what: str) -> UserError:
    """The error for a checkpoint that needs another version.

    Args:
        what: option with which it was trained, and which this version does not have.
    """
    version = state.get(VERSION)
    known = isinstance(version, str) and re.fullmatch(r"[\w.+]{1,40}", version)
    return UserError(
        f"{path} was trained with {what}, which resmlp_mt {__version__} does not have: use the "
        f"version that trained it{f', {version}' if known else ''}."
    )


def complete(parameters: dict[str, Any], prefix: str = "encoder.") -> None:
    """Give parameters of 0.1.0 the length of the longest training sentence, which is not known."""
    parameters.setdefault(f"{prefix}{LONGEST}", torch.zeros((), dtype=torch.long))


def updates(state: Mapping[str, Any]) -> int:
    """How many updates a checkpoint has seen; -1 if it does not tell."""
    try:
        return int(state["optimizer_history"][-1]["num_updates"])
    except (LookupError, TypeError, ValueError, OverflowError):
        return -1


def average(paths: list[Path]) -> dict[str, Any]:
    """A checkpoint whose parameters are the mean over several checkpoints.

    Everything but the parameters comes from the first file; the digests of the dictionaries from
    the first that has them. Sums are taken in float64 and the mean has the parameter's own type.
    For whole numbers, such as the length of the longest training sentence, it is the largest.

    Raises:
        UserError: if a file is missing, is not a fairseq checkpoint, has NaN or infinity, was
            changed, or has other parameters, dictionaries, languages or options in :data:`ALIKE`.
    """
    if not paths:
        raise UserError("--inputs names no checkpoint.")
    averaged = _read_parameters(paths[0])
    parameters: dict[str, Tensor] = averaged["model"]
    sums = {name: value.double() for name, value in parameters.items()}
    dictionaries = averaged.get(DICTIONARIES)
    known = {averaged.get("digest"): paths[0]}
    for path in paths[1:]:
        state = _read_parameters(path)
        other = state["model"]
        if "digest" in state and state["digest"] in known:  # as checkpoint_last.pt has
            logger.warning("%s is the same as %s: it counts twice.", path, known[state["digest"]])
        known.setdefault(state.get("digest"), path)
        dictionaries = dictionaries or state.get(DICTIONARIES)
        if other_dictionary(state, dictionaries):
            raise UserError(
                f"{path} was trained with other dictionaries than the checkpoints before it: "
                "average checkpoints of one run."
            )
        if option := _other_option(averaged, state):
            raise UserError(
                f"{path} was trained with another {flag(option)} than {paths[0]}: average "
                "checkpoints of one run."
            )
        for lacking, whole in ((parameters, other), (other, parameters)):
            if f"encoder.{LONGEST}" in whole:  # the training went on with a newer version
                complete(lacking)
        if {n: v.shape for n, v in other.items()} != {n: v.shape for n, v in parameters.items()}:
            raise UserError(
                f"{path} has other parameters than {paths[0]}: average checkpoints of one run."
            )
        for name, value in other.items():
            if value.is_floating_point():
                sums[name] += value
            else:
                parameters[name] = torch.maximum(parameters[name], value)
    averaged["model"] = {
        name: (sums[name] / len(paths)).to(value.dtype) if value.is_floating_point() else value
        for name, value in parameters.items()
    }
    if dictionaries:
        averaged[DICTIONARIES] = dictionaries
    averaged["digest"] = digest(averaged)
    return averaged


def _other_option(one: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """An option of :data:`ALIKE` that differs between two checkpoints; only what both have counts.

    A language may be spelt in several ways.
    """
    for section, names in ALIKE.items():
        before, now = (options_of(state, section) for state in (one, other))
        for name in names:
            values = before.get(name), now.get(name)
            if values[0] is None or values[1] is None:
                continue
            old, new = map(str, values)
            if old != new and not (section == "task" and language_codes.find(old, [new])):
                return name
    return None


def _read_parameters(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"--inputs {path} is not a file.")
    state = read(path)
    check_parameters(state, path)
    check_finite(state["model"], path)
    check_digest(state, path)  # the average gets one of its own
    return state


def check_parameters(state: Mapping[str, Any], path: Path) -> None:
    """Refuse a checkpoint without parameters, or whose parameters are not tensors under names, or
    that has no usable options.

    Raises:
        UserError: naming the file.
    """
    if not state["model"]:
        raise UserError(f"{path} holds no parameters: give a checkpoint with its model.")
    for name, value in state["model"].items():
        if not (isinstance(name, str) and isinstance(value, Tensor)):
            raise UserError(
                f"{path} is not a fairseq checkpoint: one of its parameters is not a tensor."
            )
    if _as_json(state.get("cfg")) is None:
        raise UserError(
            f"{path} is not a fairseq checkpoint: its entry 'cfg' has keys that are not text."
        )
