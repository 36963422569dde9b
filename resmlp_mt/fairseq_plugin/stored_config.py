"""Checks the configuration inside a checkpoint before fairseq acts on it.

A checkpoint has the options of its training, and fairseq builds the task, the model and their
parts from them. It passes some strings to ``eval`` (the convolutions of wav2vec, the betas of
Adam), resolves ``${...}``, and follows names of classes. So a file of plain values could run any
code. A configuration passes if

* it has only plain values: text, numbers and collections, without ``${...}`` and ``_target_``;
* no string, evaluated as Python, would do more than name or add up constants, and none has an
  address (paths may be anything, because fairseq only opens them);
* its model, task and other parts are registered, and every field has the type that their
  dataclasses declare.

``--trust``, or ``RESMLP_MT_TRUST=1`` for programs without options, skips the checks. The project's
own commands have no such option, because they only load this plugin's models.
"""

import ast
import enum
import os
import re
import types
import typing
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import MISSING, is_dataclass
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Any

from fairseq.dataclass.configs import FairseqConfig
from fairseq.registry import REGISTRIES

from resmlp_mt.errors import UserError
from resmlp_mt.fairseq_plugin.stored_options import (
    check_architecture,
    is_ours,
    name_of,
    registered,
)

TRUST = "RESMLP_MT_TRUST"  # child processes of a command with --trust inherit it
PATHS = {"data", "path", "save_dir", "restore_file", "finetune_from_model", "continue_once"}
PATHS |= {"user_dir", "log_file", "tensorboard_logdir", "results_path", "distributed_init_method"}
PATHS |= {"aim_repo"}
# fairseq never evaluates these either, but fetches some of them from an address
NAMES = {"sentencepiece_model", "bpe_codes", "encoder_embed_path", "decoder_embed_path"}
NAMES |= {"wandb_project", "quantization_config_path", "plasma_path", "ema_seed_model"}
MOST_DEPTH, MOST_TEXT, MOST_INTEGER = 20, 100_000, 2**63

# Nodes that an expression may have. Calls and indices can run code; products and powers can fill
# the memory.
HARMLESS = (
    ast.Expression, ast.Constant, ast.Name, ast.Load, ast.Attribute, ast.Tuple, ast.List, ast.Dict,
    ast.Set, ast.UnaryOp, ast.unaryop, ast.BinOp, ast.Add, ast.Sub, ast.Div, ast.FloorDiv,
    ast.BitOr, ast.BitAnd, ast.BoolOp, ast.boolop, ast.Compare, ast.cmpop, ast.IfExp,
)  # fmt: skip


class StoredConfigError(Exception):
    """The message says where in a configuration the fault is, and what it is."""


class UnknownNameError(StoredConfigError):
    """A model or a task that no loaded code defines."""


def check(
    state: Mapping[str, Any],
    path: Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    plugin_only: bool = False,
) -> None:
    """Refuse a checkpoint without a configuration, or with one that could run code.

    Args:
        state: the output of the safe loader, before fairseq uses it.
        path: the file, for the message.
        overrides: the user's values for fields, for example from ``--model-overrides``.
        plugin_only: refuse models of other plugins and all tasks except translation, and ignore
            --trust.

    Raises:
        UserError: naming the file, the field and the remedy.
    """
    check_architecture(state, path)
    if os.environ.get(TRUST) == "1" and not plugin_only:
        return
    try:
        if state.get("cfg") is None and state.get("args") is None:
            raise StoredConfigError("there is no configuration of a training")
        if state.get("cfg") is not None:
            _check_sections(state["cfg"], overrides or {}, plugin_only)
        if state.get("args") is not None:
            _check_legacy(state["args"], overrides or {}, plugin_only)
    except StoredConfigError as reason:
        if plugin_only:
            remedy = "this command loads ResMLP translation models only, without any of this"
        elif isinstance(reason, UnknownNameError):
            remedy = "give the --user-dir of the code that defines it"
        else:
            remedy = f"if you trust its source, give --trust or set {TRUST}=1"
        raise UserError(f"{path} was not loaded: {reason}; {remedy}.") from None


def check_training(cfg: Mapping[str, Any]) -> None:
    """Refuse a training whose checkpoints :func:`check` would refuse.

    Args:
        cfg: the configuration as checkpoints have it, of plain values.

    Raises:
        UserError: naming the option.
    """
    if os.environ.get(TRUST) != "1":
        try:
            _check_sections(cfg, {}, plugin_only=False)
        except StoredConfigError as reason:
            raise UserError(
                f"checkpoints of this training would not be loaded: {reason}; choose another "
                f"value, or give --trust or set {TRUST}=1."
            ) from None


def _check_sections(cfg: Any, overrides: Mapping[str, Any], plugin_only: bool) -> None:
    if not isinstance(cfg, Mapping):
        raise StoredConfigError("its entry 'cfg' is not a configuration")
    _check_plain(cfg, "cfg")  # fairseq reads fields before it replaces them
    for section, stored in _changed(cfg, overrides).items():
        _check_plain(stored, str(section))
        known = section in FairseqConfig.__dataclass_fields__ or section in REGISTRIES
        if known and stored is not None:
            _check_section(section, stored)
    if plugin_only:
        _check_plugin(name_of("model", cfg.get("model")), name_of("task", cfg.get("task")))


def _check_section(section: str, stored: Any) -> None:
    declared: Any
    if section in ("model", "task"):
        declared = _dataclass(section, name_of(section, stored))
    elif section in REGISTRIES:  # a part that is not registered is not built either
        name = name_of(section, stored)
        if not isinstance(name, str | None):
            raise StoredConfigError(f"its {section} is {name!r:.80}, which is not a name")
        declared = REGISTRIES[section]["dataclass_registry"].get(name)
    else:
        declared = FairseqConfig.__dataclass_fields__[section].type
    fields = vars(stored) if isinstance(stored, Namespace) else stored
    if isinstance(fields, Mapping) and is_dataclass(declared):
        _check_types(fields, declared, section)


def _check_legacy(args: Any, overrides: Mapping[str, Any], plugin_only: bool) -> None:
    """The flat options of old checkpoints, which fairseq turns into text for hydra to parse."""
    if not isinstance(args, Namespace):
        raise StoredConfigError("its entry 'args' is not a configuration")
    options = {**vars(args), **overrides}
    _check_plain(args, "args")
    _check_plain(options, "args")
    for name, value in options.items():
        if not name.isidentifier() or (isinstance(value, str) and "\\" in value):
            raise StoredConfigError(f"args.{name[:40]} is {value!r:.80}, which hydra could misread")
    model = _dataclass("model", options.get("arch"))
    if is_ours(model):
        # those of fairseq's models may be older than their dataclass
        _check_types(options, model, "args")
    _dataclass("task", options.get("task", "translation"))
    for registry in REGISTRIES:
        if not re.fullmatch(r"\w*", str(options.get(registry))):
            raise StoredConfigError(
                f"args.{registry} is {options[registry]!r:.80}, which is not a name"
            )
    if plugin_only:
        _check_plugin(options.get("arch"), options.get("task", "translation"))


def _check_plugin(model: str | None, task: str | None) -> None:
    cls = registered("model", model)
    if not is_ours(cls):
        held = "no known model" if cls is None else f"a {cls.__name__}"
        raise StoredConfigError(f"it holds {held}, but a ResMLP model is needed")
    if task != "translation":
        raise StoredConfigError(f"its task is {task!r:.80}, not translation")


def _changed(cfg: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The sections as fairseq will see them: with the user's values in the fields they name."""
    changed: dict[str, Any] = {}
    for section, stored in cfg.items():
        if isinstance(stored, Namespace):
            changed[section] = Namespace(**{**vars(stored), **overrides})
        elif isinstance(stored, Mapping):
            own = overrides.get(section)
            replacing = own if isinstance(own, Mapping) else overrides
            changed[section] = {
                name: replacing.get(name, value)
                for name, value in ({**stored, **own} if own is replacing else stored).items()
            }
        else:
            changed[section] = overrides.get(section, stored)
    return changed


def _check_plain(value: Any, where: str, depth: int = 0, key: str = "") -> None:
    if depth > MOST_DEPTH:
        raise StoredConfigError(f"{where:.200} is nested too deeply")
    if isinstance(value, str):
        _check_text(value, where, key)
    elif isinstance(value, bool) or value is None or type(value) is float:
        pass
    elif type(value) is int:
        if abs(value) > MOST_INTEGER:
            raise StoredConfigError(f"{where:.200} is too large a number")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _check_plain(item, f"{where}[{index}]", depth + 1, key)
    elif isinstance(value, Mapping | Namespace):
        items = value if isinstance(value, Mapping) else vars(value)
        for name, item in items.items():
            if not isinstance(name, str | int):
                raise StoredConfigError(f"{where:.200} has a key of type {type(name).__name__}")
            _check_text(str(name), f"a key of {where}", "")
            if str(name) in ("_target_", "_partial_", "_args_"):
                raise StoredConfigError(f"{where:.200} names code to call ({name})")
            _check_plain(item, f"{where}.{name}", depth + 1, str(name))
    elif not isinstance(value, enum.Enum):
        raise StoredConfigError(f"{where:.200} holds a {type(value).__name__}")


LOG_STREAMS = ("ext://sys.stdout", "ext://sys.stderr")
"""Streams that hydra's log configuration may write to, as logging.config names them."""


def _check_text(text: str, where: str, key: str, depth: int = 0) -> None:
    if len(text) > MOST_TEXT:
        raise StoredConfigError(f"{where:.200} is a text of {len(text)} characters")
    if "${" in text:
        raise StoredConfigError(f"{where:.200} is {text!r:.80}, which stands for something else")
    if key in PATHS:
        return
    if "://" in text and text not in {*LOG_STREAMS, *_default_addresses()}:
        raise StoredConfigError(f"{where:.200} is {text!r:.80}, an address")
    if key in NAMES:
        return
    # eval drops leading blanks and tabs; some callers strip the text on both sides
    for evaluated in {text.lstrip(" \t"), text.strip()}:
        _check_expression(evaluated, where, depth)


def _check_expression(text: str, where: str, depth: int = 0) -> None:
    try:
        expression = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError):
        return  # not an expression: eval fails without doing anything
    except (MemoryError, RecursionError):
        raise StoredConfigError(f"{where:.200} is nested too deeply") from None
    if depth > MOST_DEPTH:
        raise StoredConfigError(f"{where:.200} is nested too deeply")
    for node in ast.walk(expression):
        private = isinstance(node, ast.Attribute) and node.attr.startswith("_")
        if private or not isinstance(node, HARMLESS):
            raise StoredConfigError(
                f"{where:.200} is {text!r:.80}, which fairseq may evaluate as code"
            )
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            # a text in quotes is evaluated again if hydra or literal_eval removes the quotes
            _check_text(node.value, where, "", depth + 1)


def _check_types(stored: Mapping[str, Any], declared: Any, where: str) -> None:
    hints = typing.get_type_hints(declared)
    for field in dataclass_fields(declared):
        if field.name not in stored or field.name.startswith("_"):
            continue
        value, hint = stored[field.name], hints[field.name]
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        if (
            value is not None
            and value != default
            and not _fits(value, hint, f"{where}.{field.name}")
        ):
            expected = hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
            raise StoredConfigError(
                f"{where}.{field.name} is {value!r:.80}, but should be of type {expected}"
            )


def _fits(value: Any, hint: Any, where: str) -> bool:
    """Whether a plain value is of a declared type; whole numbers pass for float."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, argument, where) for argument in arguments)
    if origin in (list, tuple):
        of = [argument for argument in arguments if argument is not Ellipsis]
        if not isinstance(value, list | tuple):
            return False
        if origin is tuple and len(of) == len(arguments) and of:
            return len(value) == len(of) and all(map(_fits, value, of, [where] * len(of)))
        return all(_fits(item, of[0], where) for item in value) if of else True
    if origin is dict:
        return isinstance(value, Mapping)
    if origin is typing.Literal:
        return value in arguments
    if not isinstance(hint, type):
        return True  # Any and others: a plain value is enough
    if is_dataclass(hint):
        if isinstance(value, Mapping):
            _check_types(value, hint, where)
        return isinstance(value, Mapping | Namespace | hint)
    if issubclass(hint, enum.Enum):
        value = value.value if isinstance(value, enum.Enum) else value
        return value in [member.value for member in hint]
    if hint is float:
        return type(value) in (int, float)
    if hint in (int, bool, str, list, dict, types.NoneType):
        return type(value) is hint
    return True


def _dataclass(section: str, name: Any) -> Any:
    """The dataclass of a registered model or task; None if it has none.

    Raises:
        StoredConfigError: if nothing is registered under the name.
    """
    cls = registered(section, name)
    if cls is None:
        raise UnknownNameError(f"its {section} {name!r:.80} is unknown")
    return getattr(cls, "__dataclass", None)


def _default_addresses() -> frozenset[str]:
    """Addresses that fairseq itself puts into configurations, such as those of GPT-2's subwords."""
    found = set()
    for registry in REGISTRIES.values():
        for declared in registry["dataclass_registry"].values():
            found |= {f.default for f in dataclass_fields(declared) if isinstance(f.default, str)}
    return frozenset(found)
