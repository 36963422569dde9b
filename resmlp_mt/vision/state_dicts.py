"""Finds the state dict of a model in the files of many trainers.

It may lie under any key, with the prefixes of wrappers (``module.``, ``_orig_mod.``, Lightning's
``model.``, ...), beside optimizers and averages. If several fit, a moving average is preferred, as
in timm, and the model is preferred to a teacher; the log says which was taken. The classifier may
lie beside the model, as in Lightning's modules and mmpretrain.

A file is of safetensors, or anything that PyTorch's safe loader reads. It may be in parts, as the
Hugging Face hub stores large ones, with an index beside them.
"""

import argparse
import datetime
import json
import logging
import pathlib
import re
import sys
import types
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from resmlp_mt import stored_arrays
from resmlp_mt.errors import UserError, refused
from resmlp_mt.files import is_hidden
from resmlp_mt.tensor_files import read, unwrapped

logger = logging.getLogger(__name__)

# our name, timm's (MlpMixer with ResBlock), the authors' (resmlp_models.py)
NAMES = (
    ("patch_embed.proj.", "stem.proj.", "patch_embed.proj."),
    (".mixing_pre.", ".norm1.", ".norm1."),
    (".token_mixing.", ".linear_tokens.", ".attn."),
    (".mixing_post.alpha", ".ls1", ".gamma_1"),
    (".ffn_pre.", ".norm2.", ".norm2."),
    (".ffn.", ".mlp_channels.", ".mlp."),
    (".ffn_post.alpha", ".ls2", ".gamma_2"),
)
#: module, name and parameter of the last layer of a classifier; it may be one of a Sequential
LAST_LAYER = re.compile(
    r"(.*?\.)??(?:(?:\w+_)?heads?|fc|classifier|linear|logits)(?:\.\w+)?\.(weight|bias)"
)
#: keys of what optimizers keep, also under the names of parameters
OPTIMIZERS = re.compile(r"optimi[sz]er|(^|_)optim(_|$)", re.I)
#: words in the places of averaged weights, besides those that end in "ema"
AVERAGES = {"averaged", "average", "avg", "swa", "shadow", "polyak"}
#: words in the places of teachers, and of tensors that are no trained weights
TEACHERS = {"teacher", "target", "momentum", "k", "t"}
NO_WEIGHTS = {"exp", "grad", "grads", "gradient", "gradients", "init", "initial"}
#: buffers that thop and similar profilers leave in every module
PROFILING = {"total_ops", "total_params"}
#: errors of reading JSON that holds something else
OF_JSON = (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError)


class Unread:
    """Objects that trainers store beside weights, such as settings; their content is forgotten."""

    def __new__(cls, *_: object) -> Self:
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        """Keep nothing."""


#: types of plain values that trainers store beside tensors, some with their names in files
PLAIN_TYPES: tuple[Any, ...] = (
    argparse.Namespace,
    types.SimpleNamespace,
    # a dict and a list, because PyTorch's loader does not fill these
    (lambda *_: {}, "collections.defaultdict"),
    (lambda *_: [], "collections.deque"),
    *(list, dict, int, float),  # that make its values
    frozenset,
    torch.torch_version.TorchVersion,  # a str
    *((Unread, name) for name in ("functools.partial", "typing.Any")),
    *(datetime.datetime, datetime.date, datetime.timedelta, datetime.timezone),
    *stored_arrays.GLOBALS,
    *((stored_arrays.number, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    # paths of another system cannot be made here, but pure ones can
    *(
        (getattr(pathlib, f"Pure{name}"), f"{module}.{name}")
        for module in ("pathlib", "pathlib._local")
        for name in ("PosixPath", "WindowsPath")
    ),
)


#: where types are refused that are not named above; those of other modules are Unread
REFUSED = {*sys.stdlib_module_names, "__builtin__", "numpy"}

#: weights in a folder of the Hugging Face hub, the preferred first
HUB_FILES = ("model.safetensors", "pytorch_model.bin")
INDEX = ".index.json"
#: ends of the names of other files of weights
SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".ckpt", ".tar")


def read_weights(path: pathlib.Path) -> dict[str, Any]:
    """The contents of a file of weights, of its parts, or of a folder of the Hugging Face hub.

    A ``pretrained_cfg`` is added if timm's config.json lies beside weights of the hub. The only
    file of weights in a folder may have any name; of the hub's cache, the main snapshot counts.

    Raises:
        UserError: if it cannot be read safely, or a part is missing.
    """
    names = [name + end for end in ("", INDEX) for name in HUB_FILES]
    if path.is_dir():
        snapshots = [*path.glob("snapshots/*")]
        if len(snapshots) > 1 and (main := path / "refs/main").is_file():
            name = main.read_text(encoding="utf-8", errors="replace").strip()
            snapshots = [each for each in snapshots if each.name == name]
        folder = snapshots[0] if len(snapshots) == 1 else path
        files = [file for file in folder.iterdir() if not is_hidden(file.name)]
        others = sorted(file for file in files if file.suffix.lower() in SUFFIXES)
        own = [folder / name for name in names if (folder / name).exists()]
        if not own and len(others) != 1:
            several = f", such as {', '.join(file.name for file in others[:5])}" if others else ""
            raise UserError(
                f"{path} is a folder without {' or '.join(HUB_FILES)}: give a file of weights"
                f"{several}."
            )
        path = (own or others)[0]
    config = _hub_config(path.with_name("config.json")) if path.name in names else {}
    if not path.name.endswith(INDEX):
        return read_file(path) | config
    with refused(
        lambda _: f"{path} is not the index of a file in parts: expected its weight_map.",
        *OF_JSON,
    ):
        parts = set(json.loads(path.read_text(encoding="utf-8-sig"))["weight_map"].values())
        files = [path.with_name(part) for part in sorted(parts)]
        if not parts or "\0" in "".join(parts):
            raise ValueError
    tensors = {key: value for file in files for key, value in read_file(file).items()}
    return tensors | config


def read_file(path: pathlib.Path) -> dict[str, Any]:
    """The contents of a file; objects of other libraries and of the trainer's own are left out.

    Raises:
        UserError: if it cannot be read, or has no tensors then.
    """
    try:
        return read(path, PLAIN_TYPES)
    except UserError as error:
        refusal = error
    with suppress(Exception):  # of a dozen types, if it is damaged or has still others
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        unread = [name for name in names if name.partition(".")[0] not in REFUSED]
        contents = read(path, (*PLAIN_TYPES, *((Unread, name) for name in unread)))
        if next(dictionaries(contents), None):
            logger.info("%s: objects of %s are left out", path, ", ".join(sorted(unread)))
            return contents
    raise refusal


def _hub_config(path: pathlib.Path) -> dict[str, Any]:
    """The ``pretrained_cfg`` of timm's config.json, which has it at the top if it is old."""
    if not path.exists():
        return {}
    with refused(
        lambda _: (
            f"{path} is not JSON with the settings of a model: take another copy, or move it away."
        ),
        *OF_JSON,
    ):
        config = json.loads(path.read_text(encoding="utf-8-sig"))
        inner = config.get("pretrained_cfg") or {}
        return {"pretrained_cfg": {"label_names": config.get("labels"), **inner, **config}}


def state_dict(
    source: Mapping[str, Any],
    expected: Mapping[str, Any],
    name: str,
    classifier: Sequence[str] = ("head.weight", "head.bias"),
) -> dict[str, Tensor]:
    """The state dict inside a checkpoint, without wrappers and prefixes.

    Args:
        source: a state dict, or dictionaries that hold one or several.
        expected: names of the parameters; timm's and the authors' names of a ResMLP also fit.
        name: name of the source in errors.
        classifier: names of the parameters of the last layer.

    Raises:
        UserError: if there are no tensors.
    """
    last = {key.rpartition(".")[2]: (key, expected[key]) for key in classifier if key in expected}
    known = {renamed(key, 0, column) for key in expected for column in range(3)}
    found: list[tuple[int, str, dict[str, Tensor]]] = []  # number of fitting names, place, tensors
    whole: dict[str, Tensor] = {}
    for where, tensors in dictionaries(source):
        whole = whole or tensors
        prefixes: Counter[str] = Counter()
        for key in tensors:
            for cut in (0, *(match.end() for match in re.finditer(r"\.", key))):
                prefixes[key[:cut]] += key[cut:] in known
        large = [prefix for prefix, count in prefixes.items() if 2 * count >= len(expected)]
        for prefix in large or [""]:
            others = tuple(other for other in large if other not in (prefix, ""))
            inside = {
                key.removeprefix(prefix): value
                for key, value in tensors.items()
                if key.startswith(prefix) and not (others and not prefix and key.startswith(others))
            }
            if prefixes[prefix]:
                _take_classifier(inside, tensors, last, known, prefix)
                found.append((prefixes[prefix], f"{where}.{prefix}", inside))
    if not whole:
        raise UserError(f"{name} holds no state dict of tensors.")
    found = found or [(0, "", whole)]
    most = max(count for count, _, _ in found)
    fitting = [f for f in found if 2 * f[0] >= most]
    _, place, best = min(fitting, key=lambda f: (_rank(f[1], f[2], known), -f[0]))
    if len(fitting) > 1:
        places = ", ".join(f[1].strip(".") or "the top" for f in fitting)
        logger.info("%s holds %s: %s is loaded", name, places, place.strip(".") or "the top")
    own = [value for key, value in best.items() if key in known]
    # DeepSpeed's parts hold empty tensors
    if own and (any(v.is_meta for v in own) or not any(v.numel() for v in own)):
        raise UserError(
            f"{name} holds tensors without content: join the parts of the checkpoint, with what "
            "has written them."
        )
    return best


def last_layers(names: Iterable[str], known: Iterable[str], prefix: str = "") -> dict[str, str]:
    """The names of last layers, each with ``weight`` or ``bias``.

    A layer inside a module of the model, as of a block, is not a last one.

    Args:
        names: of parameters.
        known: names of the model's parameters, without their ``prefix`` among ``names``.
    """
    modules = {prefix + name[: dot.end()] for name in known for dot in re.finditer(r"\.", name)}
    matches = ((name, LAST_LAYER.fullmatch(name)) for name in names)
    return {name: match[2] for name, match in matches if match and match[1] not in modules}


def _classifier(names: Iterable[str], known: Iterable[str], prefix: str = "") -> dict[str, str]:
    """The only one of the last layers that is not a projection, as of self-supervised training."""
    layers = last_layers((name for name in names if "proj" not in name), known, prefix)
    return layers if sorted(layers.values()) == ["bias", "weight"] else {}


def _take_classifier(
    inside: dict[str, Tensor],
    tensors: Mapping[str, Tensor],
    last: Mapping[str, tuple[str, Tensor]],
    known: Iterable[str],
    prefix: str,
) -> None:
    """Give a model without its last layer the only one beside it, under the model's names."""
    if last.keys() != {"weight", "bias"} or last["weight"][0] in inside:
        return
    own = {prefix + name for name in known}
    others = [name for name in tensors if name not in own]
    beside = {kind: name for name, kind in _classifier(others, known, prefix).items()}
    if beside and tensors[beside["weight"]].shape[1:] == last["weight"][1].shape[1:]:
        for kind, name in beside.items():
            inside.pop(name.removeprefix(prefix), None)
            inside[last[kind][0]] = tensors[name]


def dictionaries(
    source: Mapping[str, Any], where: str = "", depth: int = 0
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """All dictionaries of named tensors in nested dictionaries, with their places.

    The names are without what wrappers insert.
    """
    named = {key: v for key, v in source.items() if isinstance(key, str)}
    tensors = {
        unwrapped(key): torch.as_tensor(value)
        for key, value in named.items()
        if isinstance(value, Tensor | np.ndarray)
        and (isinstance(value, Tensor) or value.dtype.kind in "biuf")
        and key.rpartition(".")[2] not in PROFILING
    }
    if tensors:
        yield where, tensors
    for key, value in named.items():
        if isinstance(value, Mapping) and depth < 4 and not OPTIMIZERS.search(key):
            yield from dictionaries(value, f"{where}.{key}", depth + 1)


def checkpoint_grid(source: Mapping[str, Any]) -> tuple[int, int] | None:
    """The grid of patches of a checkpoint, if it has one."""
    match source.get("model_args"):
        case {"img_size": int(side), "patch_size": int(patch)} if min(side, patch) > 0:
            return side // patch, side // patch
        case {"img_size": [int(height), int(width)], "patch_size": int(patch)}:
            if min(height, width, patch) > 0:
                return height // patch, width // patch
    return None


def own_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of timm or of the authors under our names; ours is returned unchanged.

    The kernel of the patch embedding and timm's affine maps, (1, 1, dim), are flattened.
    """
    foreign = 1 if "stem.proj.weight" in state else 2
    converted = {}
    for key, value in state.items():
        key = renamed(key, foreign, 0)
        if key == "patch_embed.proj.weight" and value.dim() == 4:
            value = value.flatten(1)
        elif key.endswith((".alpha", ".beta")):
            value = value.flatten()
        converted[key] = value
    return converted


def renamed(key: str, old: int, new: int) -> str:
    """A parameter's name in another column of :data:`NAMES`."""
    for names in NAMES:
        if key.startswith(names[old]) or (names[old].startswith(".") and names[old] in key):
            return key.replace(names[old], names[new])
    return key


def _rank(where: str, names: Iterable[str], known: Iterable[str]) -> int:
    """The rank of a state dict among several: averages, the best, others, teachers, no weights.

    The averages of self-supervised training (BYOL, MoCo) only teach; those of DINO are the model,
    so its student comes last. If the student has a classifier, the file is from a distillation.
    """
    # EMAModel and emaModel are two words, as ema_model is
    words = {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", where)}
    if words & NO_WEIGHTS:  # exp_avg is of an optimizer
        return 5
    if words & AVERAGES or any(word.endswith("ema") for word in words):
        return 0
    if "student" in words and not _classifier(names, known):
        return 4
    if words & TEACHERS:
        return 3
    return 1 if "best" in words else 2
