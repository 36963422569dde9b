"""Remedies for fairseq's loading of checkpoints: nothing in a file is executed."""

import argparse
import functools
import inspect
import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from fairseq import checkpoint_utils
from omegaconf import DictConfig, OmegaConf

from resmlp_mt.engine.weights import check_finite
from resmlp_mt.errors import UserError, is_of_memory, reason
from resmlp_mt.fairseq_plugin import (
    checkpoints,
    ignored_options,
    pruning,
    stored_config,
    stored_options,
)
from resmlp_mt.fairseq_plugin.model import check_choice
from resmlp_mt.fairseq_plugin.wrapping import Original, remedy
from resmlp_mt.model.config import ModelConfig
from resmlp_mt.model.sizes import misfit
from resmlp_mt.tensor_files import check_archive, unwrapped


@remedy(checkpoint_utils, "load_checkpoint_to_cpu")
def _load_checkpoint_to_cpu(
    original: Original,
    path: str,
    arg_overrides: Mapping[str, Any] | None = None,
    load_on_all_ranks: bool = False,
) -> Any:
    local = Path(checkpoint_utils.PathManager.get_local_path(path))
    looked_at = checkpoints.read(local, only_look=True)
    ignored_options.check_checkpoint(looked_at)
    stored_config.check(looked_at, local, arg_overrides)
    kept = ("args", "cfg", checkpoints.VERSION)
    _trained[path] = {name: looked_at.get(name) for name in kept}
    check_archive(local)
    is_ours = stored_options.uses_plugin(looked_at)
    if is_ours:
        checkpoints.check_parameters(looked_at, local)
        check_finite(looked_at["model"], local)
        stored_options.check_options(looked_at, "model", local)
        stored = checkpoints.options_of(looked_at, "model")
        parameters = _unwrapped(looked_at["model"])
        pruning.check_overrides(arg_overrides or {}, stored, parameters, local)
        _check_sizes(stored, parameters, local)
        checkpoints.check_digest(looked_at, local)
    try:
        state = original(path, arg_overrides, load_on_all_ranks)
    except RuntimeError as error:  # a size that is not the tensor's
        if is_of_memory(error):
            raise
        raise UserError(
            f"{local} cannot be read as a fairseq checkpoint: {reason(error)}."
        ) from error
    return {**state, "model": _unwrapped(state["model"])} if is_ours else state


def _unwrapped(parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {unwrapped(name, "module"): value for name, value in parameters.items()}


@remedy(checkpoint_utils, "_upgrade_state_dict")
def _upgrade_state_dict(original: Original, state: dict[str, Any]) -> Any:
    """Read a checkpoint that was reduced to its weights and options; fairseq ends in a KeyError."""
    if "best_loss" not in state:  # of fairseq's oldest checkpoints
        history: Any = {"optimizer_name": None, "lr_scheduler_state": {}, "num_updates": 0}
        state = {"optimizer_history": [history], "extra_state": {}, **state}
    return original(state)


def _check_sizes(config: Mapping[str, Any], parameters: Mapping[str, Any], path: Path) -> None:
    """Refuse sizes that do not fit the parameters, before a model is built."""
    names = {field.name for field in fields(ModelConfig)}
    sizes = {name: value for name, value in config.items() if name in names}
    wrong = misfit(sizes, {name: value.shape for name, value in parameters.items()})
    if wrong is not None:
        raise UserError(f"{path}: the parameters do not fit its configuration: {wrong}.")


_trained: dict[str, dict[str, Any]] = {}
"""What the checkpoints that were read say of their trainings, by path: their files may be gone."""


def build_its_criterion(task: Any, path: str, state: Any) -> None:
    """Let the task of a checkpoint build its criterion, as fairseq-validate does.

    fairseq leaves out unknown options of the task and of the model, but not of the criterion.

    Args:
        path: of the checkpoint.
        state: its contents, if a program has read them itself.
    """
    trained = _trained.get(path) if state is None else state
    if trained is not None:
        build = functools.partial(_build_criterion, task.build_criterion, trained, Path(path))
        task.build_criterion = build


def _build_criterion(
    original: Original,
    trained: Mapping[str, Any],
    path: Path,
    cfg: Any,
    from_checkpoint: bool = True,
) -> Any:
    """Build the criterion of a checkpoint, or another one, of ``--model-overrides`` or a program.

    Raises:
        UserError: if it is unknown, or if this version lacks an option with which it was trained.
    """
    stored = OmegaConf.to_container(cfg) if isinstance(cfg, DictConfig) else cfg
    name = stored_options.name_of("criterion", stored)
    before = trained.get("args") or (trained.get("cfg") or {}).get("criterion")
    is_its_own = name == stored_options.name_of("criterion", before)
    if name is not None and stored_options.registered("criterion", name) is None:
        what = f"--criterion {name}"
        if not is_its_own:
            raise UserError(f"{what} is unknown: give its --user-dir.")
        if stored_options.uses_plugin(trained):
            raise checkpoints.of_another_version(trained, path, what)
        raise UserError(f"{path} was trained with {what}, which is unknown: give its --user-dir.")
    if stored_options.uses_plugin(trained):
        check_choice("criterion", stored_options.registered("criterion", name))
    if is_its_own:
        state = {**trained, "cfg": {"criterion": stored}}
        stored_options.check_options(state, "criterion", path)
    takes_old = "from_checkpoint" in inspect.signature(original).parameters
    return original(cfg, from_checkpoint=from_checkpoint) if takes_old else original(cfg)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--trust`` to a command, and let fairseq-validate do without ``--task``."""
    if "--trust" not in parser._option_string_actions:
        parser.add_argument(
            "--trust",
            action="store_true",
            help="load checkpoints whose configuration fairseq may evaluate as code",
        )
    if parser.get_default("task") is None:  # fairseq-validate's
        parser.set_defaults(task="translation")


def heed_options(given: argparse.Namespace) -> None:
    """Trust checkpoints if the user does."""
    if getattr(given, "trust", False):
        os.environ[stored_config.TRUST] = "1"
