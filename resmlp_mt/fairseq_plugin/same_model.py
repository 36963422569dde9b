"""A training goes on with the model of its checkpoint, or begins with its weights.

PyTorch refuses weights of other names and shapes. Some options have no part in either: with another
number of heads, all weights fit a model that computes something else.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from resmlp_mt.command_line import flag
from resmlp_mt.errors import UserError
from resmlp_mt.fairseq_plugin.checkpoints import HIDDEN, SHARED, options_of
from resmlp_mt.fairseq_plugin.config import activation
from resmlp_mt.fairseq_plugin.stored_options import is_ours, name_of, registered


def check(options: Any, state: Mapping[str, Any], path: Path) -> None:
    """Refuse weights that would make another model of this plugin of themselves.

    Args:
        options: of the model that gets the weights.
        state: of the checkpoint.

    Raises:
        UserError: naming the option and its value in the checkpoint.
    """
    stored = options_of(state, "model")
    kinds = [registered("model", name_of("model", each)) for each in (stored, options)]
    if not all(map(is_ours, kinds)):
        return
    # its options count where a checkpoint leaves them out
    preset = getattr(kinds[0], "__dataclass", None)

    def values(name: str) -> list[Any]:
        """Of the checkpoint, and of the model now."""
        found = stored.get(name, getattr(preset, name)), getattr(options, name)
        return [activation(value) if name == "activation_fn" else value for value in found]

    for name in HIDDEN:
        before, now = values(name)
        if before != now:
            raise UserError(
                f"{flag(name)} is {now}, but {path} was trained with {before}, and all its weights "
                f"would fit: give {before}."
            )
    of_all, _ = values(SHARED[0])
    for name in SHARED:
        before, now = values(name)
        if now and not (before or of_all):
            raise UserError(f"{flag(name)}: {path} was trained without it: drop it.")
