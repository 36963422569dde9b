"""The configuration inside a file of weights or a graph, beside the one in ``config.json``.

No tensor shows some sizes and options in its shape, such as the number of attention heads. Someone
who edits ``config.json`` and its digest would change translations silently.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from resmlp_mt.errors import UserError

KEY = "config"


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
