"""The cache of step-by-step decoding: fairseq's, with types."""

from collections.abc import Callable
from typing import Any

from fairseq.incremental_decoding_utils import FairseqIncrementalState
from torch import Tensor

IncrementalState = dict[str, dict[str, Tensor | None]]
"""What every module keeps of the positions decoded so far, by module."""


class WithIncrementalState(FairseqIncrementalState):  # type: ignore[misc]
    """Gives a module its own entries in an :data:`IncrementalState`."""

    get_incremental_state: Callable[[IncrementalState | None, str], dict[str, Any] | None]
    set_incremental_state: Callable[[IncrementalState | None, str, dict[str, Any]], object]
