"""The configuration inside a file of weights or a graph, beside the one in ``config.json``.

No tensor shows some sizes and options in its shape, such as the number of attention heads. Someone
who edits ``config.json`` and its digest would change translations silently.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from resmlp_mt.errors import UserError

KEY = "config"
OFF = (None, False, 0, "none")
"""Values with which an option changes nothing: versions that do not have it compute the same."""


def metadata(config: Mapping[str, Any]) -> dict[str, str]:
    """What to store in the metadata of a file: the fields of ``ModelConfig``, as JSON."""
    return {KEY: json.dumps(config)}


def check(config: Mapping[str, Any], stored: Mapping[str, str], path: Path) -> None:
    """Compare ``config.json`` with the metadata of a file beside it.

    Args:
        config: what ``config.json`` holds.
        stored: the metadata of the file ``path``.

    Raises:
        UserError: naming the first field that differs.
    """
    try:
        exported = json.loads(stored[KEY])
        differing = [(name, value) for name, value in exported.items() if config[name] != value]
    except (KeyError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} does not say which sizes it was exported with, or config.json lacks one of "
            "them: export the model again."
        ) from error
    for name, value in differing:
        raise UserError(
            f"{path} was exported with {name} {value!r:.80}, but config.json beside it has "
            f"{config[name]!r:.80}: export the model again."
        )


def check_known(kind: type[Any], stored: Mapping[str, str], path: Path) -> None:
    """Refuse a model with options that this version does not have, and would leave out.

    Anything that is wrong with the metadata itself is left to :func:`check`.

    Args:
        kind: the dataclass of all options, and of options inside one.
        stored: the metadata of the file ``path``.

    Raises:
        UserError: naming the first such option.
    """
    try:
        exported = json.loads(stored[KEY])
    except (ValueError, RecursionError):
        return
    for name, value in _unknown(kind, exported):
        raise UserError(
            f"{path} was written by a newer version of resmlp_mt, with {name} {value!r:.80}, which "
            "this version does not have: update resmlp_mt, or export the model again."
        )


def _unknown(kind: type[Any], exported: object) -> Iterator[tuple[str, object]]:
    """The options that a dataclass does not have, and that are used."""
    if not isinstance(exported, dict):
        return
    known = {field.name: field.type for field in dataclasses.fields(kind)}
    for name, value in exported.items():
        inner = known.get(name)
        if name not in known and value not in OFF:
            yield name, value
        elif isinstance(inner, type) and dataclasses.is_dataclass(inner):
            yield from _unknown(inner, value)
