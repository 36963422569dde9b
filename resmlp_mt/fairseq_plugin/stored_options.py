"""Whose the options in a checkpoint are, and which of them this version does not have."""

import re
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairseq import models, tasks
from fairseq.registry import REGISTRIES

from resmlp_mt.command_line import flag
from resmlp_mt.engine.exported_config import OFF
from resmlp_mt.fairseq_plugin import checkpoints


def name_of(section: str, stored: Any) -> Any:
    """The registered name of a section of a configuration, as fairseq finds it."""
    if isinstance(stored, Namespace):
        stored = vars(stored)
    if not isinstance(stored, Mapping):
        return stored
    if section == "model":
        name = stored.get("_name") or stored.get("arch")
    elif isinstance(stored.get(section), str):
        name = stored[section]
    else:
        name = stored.get("_name")
    if name is None and section == "model" and len(stored) == 1:
        (name,) = stored  # fairseq takes a lone key for the name
    return name


def registered(section: str, name: Any) -> type | None:
    """The class of a part of fairseq or a plugin; None if nothing is registered under the name."""
    if not isinstance(name, str):
        return None
    return registry(section).get(name)


def registry(section: str) -> Mapping[str, type]:
    """The classes of a part of fairseq and its plugins by name; empty for other sections."""
    if section == "model":
        return {**models.MODEL_REGISTRY, **models.ARCH_MODEL_REGISTRY}
    if section == "task":
        return dict(tasks.TASK_REGISTRY)
    return dict(REGISTRIES[section]["registry"]) if section in REGISTRIES else {}


def is_ours(kind: type | None) -> bool:
    """Whether a class is a part of this plugin."""
    return kind is not None and kind.__module__.startswith("resmlp_mt.")


def is_known(kind: type | None) -> bool:
    """Whether a class is a part of this plugin or of fairseq, and not of a user."""
    return is_ours(kind) or (kind is not None and kind.__module__.startswith("fairseq."))


def uses_plugin(state: Mapping[str, Any]) -> bool:
    """Whether the configuration of a checkpoint names a model of this plugin."""
    return is_ours(registered("model", _architecture(state)))


def _architecture(state: Mapping[str, Any]) -> Any:
    """What a checkpoint has in the place of the name of its model; None if it has nothing there."""
    stored = state.get("cfg") if state.get("args") is None else state["args"]
    config = vars(stored) if isinstance(stored, Namespace) else stored
    if not isinstance(config, Mapping):
        return None
    return name_of("model", config.get("model", config)) or config.get("arch")


def check_architecture(state: Mapping[str, Any], path: Path) -> None:
    """Refuse a model of the plugin that this version does not have.

    Raises:
        UserError: naming the file and the architecture.
    """
    name = _architecture(state)
    if not isinstance(name, str) or registered("model", name) is not None:
        return
    if re.fullmatch(r"resmlp_mt_\w{1,80}", name):
        raise checkpoints.of_another_version(state, path, f"--arch {name}")


def check_options(state: Mapping[str, Any], section: str, path: Path) -> None:
    """Refuse options of a part of the plugin that this version does not have, unless they are off.

    fairseq drops unknown options when it loads a model, and the model could compute something else.

    Args:
        section: "model" or a registry of fairseq, such as "criterion".

    Raises:
        UserError: naming the file and the options.
    """
    cfg = state.get("cfg")
    stored = cfg.get(section) if isinstance(cfg, Mapping) else None
    kind = registered(section, name_of(section, stored))
    if not (isinstance(stored, Mapping) and is_ours(kind)):
        return
    declared: Any = getattr(kind, "__dataclass", None)
    known = {*declared.__dataclass_fields__, "arch"}
    unknown = [name for name, value in stored.items() if not (name in known or value in OFF)]
    if unknown:
        what = ", ".join(sorted(flag(str(name)) for name in unknown))
        raise checkpoints.of_another_version(state, path, what)
