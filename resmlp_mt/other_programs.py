"""What there is instead of options of other programs."""

import tomllib
from functools import cache
from pathlib import Path
from typing import Any


@cache
def answers(table: str) -> dict[str, Any]:
    """A table of ``other_programs.toml``: options, separated by spaces, and what to say to them."""
    file = Path(__file__).with_suffix(".toml")
    found: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))[table]
    return found
