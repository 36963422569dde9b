"""Remedies for fairseq's loading of checkpoints: nothing in a file is executed or half used."""

import argparse
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fairseq import checkpoint_utils, options

from resmlp_mt.engine.model_folder import check_finite
from resmlp_mt.fairseq_plugin import checkpoints, stored_config
from resmlp_mt.fairseq_plugin.remedies import wrap


def check_checkpoints() -> None:
    """Look through every checkpoint before fairseq builds anything from it; add ``--trust``."""
    wrap(checkpoint_utils, "load_checkpoint_to_cpu", _load_checkpoint_to_cpu)
    wrap(options, "parse_args_and_arch", _parse_args_and_arch)


def _load_checkpoint_to_cpu(
    original: Callable[..., dict[str, Any]],
    path: str,
    arg_overrides: Mapping[str, Any] | None = None,
    load_on_all_ranks: bool = False,
) -> dict[str, Any]:
    local = Path(checkpoint_utils.PathManager.get_local_path(path))
    looked_at = checkpoints.read(local, only_look=True)
    stored_config.check(looked_at, local, arg_overrides)
    if stored_config.uses_plugin(looked_at):
        check_finite(looked_at["model"], local)
    return original(path, arg_overrides, load_on_all_ranks)


def _parse_args_and_arch(
    original: Callable[..., Any], parser: argparse.ArgumentParser, *args: Any, **kwargs: Any
) -> Any:
    if "--trust" not in parser._option_string_actions:
        parser.add_argument(
            "--trust",
            action="store_true",
            help="load checkpoints whose configuration fairseq may evaluate as code",
        )
    parsed = original(parser, *args, **kwargs)
    if getattr(parsed[0] if isinstance(parsed, tuple) else parsed, "trust", False):
        os.environ[stored_config.TRUST] = "1"
    return parsed
