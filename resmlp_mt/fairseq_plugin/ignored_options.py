"""Options that a command of fairseq takes and never reads: refused, because the user meant them.

fairseq's parsers offer the options of a training to all commands. What a command never reads is
refused when it is known that it has a ResMLP, and fairseq's own models are left alone.
"""

import argparse
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from typing import Any

from fairseq.dataclass.configs import (
    CheckpointConfig,
    CommonConfig,
    DatasetConfig,
    FairseqConfig,
)
from fairseq.models import MODEL_DATACLASS_REGISTRY
from omegaconf import OmegaConf

from resmlp_mt.command_line import flag
from resmlp_mt.errors import UserError
from resmlp_mt.fairseq_plugin.config import ResMLPConfig
from resmlp_mt.fairseq_plugin.model import check_choice
from resmlp_mt.fairseq_plugin.stored_options import is_known, registered, uses_plugin

NEEDED = {
    "lm_path": ["lm_weight"],
    "lm_weight": ["lm_path"],
    "sampling": ["sampling_topk", "sampling_topp"],
    "diverse_beam_groups": ["diverse_beam_strength"],
    "retain_dropout": ["retain_dropout_modules"],
    "save_interval_updates": ["keep_interval_updates"],
    "keep_interval_updates": ["keep_interval_updates_pattern"],
    "eval_bleu": [
        *("eval_bleu_args", "eval_bleu_detok", "eval_bleu_detok_args", "eval_bleu_print_samples"),
        *("eval_bleu_remove_bpe", "eval_tokenized_bleu"),
    ],
    "store_ema": [
        *("ema_decay", "ema_fp32", "ema_seed_model", "ema_start_update", "ema_update_freq"),
    ],
}
"""Options without which others are read and change nothing."""

NEEDED_FOR_RESMLP = {
    "fp16": [
        *("fp16_init_scale", "fp16_no_flatten_grads", "fp16_scale_tolerance"),
        *("fp16_scale_window", "threshold_loss_scale"),
    ],
    "amp": ["amp_batch_retries", "amp_init_scale", "amp_scale_window"],
}
"""The same, for a training of a ResMLP."""

READ = {
    *("all_gather_list_size", "cpu", "empty_cache_freq", "fp16", "log_format", "log_interval"),
    *("memory_efficient_fp16", "no_progress_bar", "seed", "use_plasma_view", "user_dir"),
    *("batch_size", "data_buffer_size", "dataset_impl", "max_tokens", "num_shards", "num_workers"),
    *("required_batch_size_multiple", "required_seq_len_multiple", "shard_id"),
    *("skip_invalid_size_inputs_valid_test", "checkpoint_shard_count", "checkpoint_suffix"),
}
"""What commands that translate or validate read of the options of the groups below."""

UNREAD = {
    *(
        entry.name
        for kind in (CommonConfig, DatasetConfig, CheckpointConfig)
        for entry in fields(kind)
    ),
    *("criterion", "lr_scheduler", "optimizer", "pipeline_model_parallel"),
} - READ
"""What they do not read, except for the sets of sentences that they are for."""

UNREAD_BY_SEARCH = {
    *("beam_mt", "lenpen_mt", "max_len_a_mt", "max_len_b_mt"),  # of speech
    *("iter_decode_eos_penalty", "iter_decode_force_max_iter", "iter_decode_max_iter"),
    *("iter_decode_with_beam", "iter_decode_with_external_reranker", "decoding_format"),
    *("eos_token", "eval_bleu", "load_alignments", "upsample_primary", *NEEDED["eval_bleu"]),
}
"""The same for commands that translate: options of other generators, and of a training's task."""

INSTEAD = {
    "amp": "fp16",
    "batch_size_valid": "batch_size",
    "bf16": "fp16",
    "gen_subset": "valid_subset",
    "max_tokens_valid": "max_tokens",
    "memory_efficient_bf16": "fp16",
    "restore_file": "path",
    "valid_subset": "gen_subset",
}
"""What was probably meant."""

NOT_READ = "has no effect in fairseq-train: drop it."

REFUSED: dict[str, tuple[object, str]] = {
    "checkpoint_shard_count": (1, NOT_READ),
    "gen_subset": ("test", NOT_READ),
    "pipeline_model_parallel": (False, "is for pipeline_parallel_transformer alone: drop it."),
    "plasma_path": (CommonConfig.plasma_path, NOT_READ),
    "quantization_config_path": (
        None,
        "trains a ResMLP that nothing can load: drop it, and give python -m resmlp_mt.export "
        "--dtype int8.",
    ),
}
"""Options of a training that a ResMLP cannot have, with their defaults."""

UNREAD_SECTIONS = ("common_eval", "eval_lm", "interactive", "scoring")
"""Sections of a configuration of ``fairseq-hydra-train`` for other commands.

The hub takes ``generation`` from the checkpoint.
"""

WITH_ALIGNMENT = "label_smoothed_cross_entropy_with_alignment"

_unread: list[str] = []
"""Sentences for the options of this process that its command does not read, or for the command."""


def is_resmlp(arch: str | None) -> bool:
    """Whether an architecture is one of this plugin."""
    return issubclass(MODEL_DATACLASS_REGISTRY.get(arch, object), ResMLPConfig)


def check_training(values: Mapping[str, Any]) -> None:
    """Refuse for a ResMLP what trains other models, or changes nothing.

    Args:
        values: options of a training by their names.

    Raises:
        UserError: naming the option.
    """
    criterions = [values.get("criterion"), values.get("underlying_criterion")]
    check_choice("task", registered("task", values.get("task")))
    for name in criterions:
        check_choice("criterion", registered("criterion", name))
    for name, (default, why) in REFUSED.items():
        if values.get(name, default) != default:
            raise UserError(f"{flag(name)} {why}")
    if values.get("lr_scheduler") == "manual" and all(
        values.get(name, "{}") in ("{}", {}) for name in ("epoch2lr", "update2lr")
    ):
        raise UserError("--lr-scheduler manual needs --epoch2lr or --update2lr: give one of them.")
    uses, loads = WITH_ALIGNMENT in criterions, values.get("load_alignments")
    if uses and not loads and values.get("task") == "translation":
        raise UserError(
            f"--criterion {WITH_ALIGNMENT} changes nothing without --load-alignments: add it."
        )


def check_line(
    parser: argparse.ArgumentParser, found: argparse.Namespace, words: Sequence[str]
) -> None:
    """Check what a command line has, and remember what its command never reads.

    Raises:
        UserError: for an option that changes nothing without another one.
    """
    actions = [parser._option_string_actions.get(word.partition("=")[0]) for word in words]
    given = {action.dest for action in actions if action is not None}

    def differs(name: str) -> bool:
        default = parser.get_default(name)
        return bool(getattr(found, name, default) != default)

    _unread.clear()
    if (command := _command(found)) is not None:
        unread, instead = UNREAD - {"gen_subset"}, INSTEAD
        if command == "fairseq-validate":
            # the criterion brings options of its own, which change that of the checkpoint
            unread = UNREAD - {"valid_subset", "criterion"} | {"post_process", "results_path"}
        elif is_known(registered("task", found.task)):  # a user's may have a generator of its own
            unread |= UNREAD_BY_SEARCH
        if command == "fairseq-interactive":
            instead = {name: other for name, other in INSTEAD.items() if other != "gen_subset"}
        for name in sorted(unread & given):
            if name in instead:  # with its default too, as --valid-subset valid
                advice = f"give {flag(instead[name])}, or drop it"
            elif differs(name):
                advice = "drop it"
            else:
                continue
            _unread.append(f"{flag(name)} has no effect in {command}: {advice}.")
    elif hasattr(found, "context_window"):
        _unread.append(
            "fairseq-eval-lm is for language models, but this one translates: give "
            "fairseq-validate, or fairseq-generate --score-reference."
        )
    ours = is_resmlp(getattr(found, "arch", None))
    if ours and found.suppress_crashes:
        raise UserError("--suppress-crashes is for fairseq-hydra-train: drop it.")
    # fairseq-validate changes the options of the checkpoint
    skipped = None if command is None else "eval_bleu"
    different = set(filter(differs, vars(found)))
    _check_needed(ours, given | different, different, vars(found), skipped)


def check_configuration(sections: Mapping[str, Any], given: Collection[str]) -> None:
    """Check what a configuration of ``fairseq-hydra-train`` has, as :func:`check_line` does.

    Args:
        sections: of the configuration.
        given: names of the options that the command line and the user's files have. What a recipe
            takes from one of ours is not refused: it has turned the other option off.

    Raises:
        UserError: for an option that changes nothing, or nothing without another one.
    """
    ours = is_resmlp((sections["model"] or {}).get("_name"))
    usual: Any = OmegaConf.to_container(OmegaConf.structured(FairseqConfig), resolve=False)
    different, found = set(), dict[str, Any]()
    for section, values in sections.items():
        if not isinstance(values, dict):
            continue
        found |= {**values, section: values.get("_name")}
        declared = getattr(registered(section, values.get("_name")), "__dataclass", None)
        defaults = usual.get(section) or {}
        if declared is not None:
            defaults = OmegaConf.to_container(OmegaConf.structured(declared), resolve=False)
        names = {
            name
            for name, value in values.items()
            if defaults.get(name, value) != value
            and not str(defaults[name]).startswith("${")  # what another option says
        }
        if ours and names & set(given) and section in UNREAD_SECTIONS:
            name = min(names & set(given))
            raise UserError(f"{section}.{name} has no effect in a training: drop it.")
        different |= names
    _check_needed(ours, given, different, found)


def _check_needed(
    ours: bool,
    given: Collection[str],
    different: Collection[str],
    values: Mapping[str, Any],
    skipped: str | None = None,
) -> None:
    """Refuse options that the user has given for nothing, because another one is missing.

    Args:
        ours: whether a ResMLP is trained.
        given: options that the user has given.
        different: options that have another value than their default.
        values: of all options.
        skipped: an option that may be missing.
    """
    in_vain = set(given) & set(different)
    for needed, names in (NEEDED | (NEEDED_FOR_RESMLP if ours else {})).items():
        # also with its default, as in a sweep
        if needed == skipped or needed in given or needed in different:
            continue
        for name in filter(in_vain.__contains__, names):
            raise UserError(
                f"{flag(name)} changes nothing without {flag(needed)}: add it, or drop "
                f"{flag(name)}."
            )
    for name in ("patience", "keep_best_checkpoints"):
        if values.get("disable_validation") and name in in_vain and values[name] > 0:
            raise UserError(
                f"{flag(name)} needs the scores of validations: drop --disable-validation."
            )
    criterions = [values.get("criterion"), values.get("underlying_criterion")]
    readers = [("task", values.get("task")), *(("criterion", name) for name in criterions if name)]
    if (
        ours
        and "load_alignments" in in_vain
        and WITH_ALIGNMENT not in criterions
        and all(is_known(registered(*reader)) for reader in readers)
    ):
        raise UserError(
            f"--load-alignments changes nothing without --criterion {WITH_ALIGNMENT}: add it, or "
            "drop --load-alignments."
        )


def _command(found: argparse.Namespace) -> str | None:
    """The command that translates or validates with these options; None for others."""
    if hasattr(found, "score_reference"):
        return f"fairseq-{'interactive' if hasattr(found, 'buffer_size') else 'generate'}"
    is_validate = hasattr(found, "results_path") and not hasattr(found, "context_window")
    return "fairseq-validate" if is_validate else None


def check_checkpoint(state: Mapping[str, Any]) -> None:
    """Refuse what the command line has for nothing, if a checkpoint to load is of a ResMLP.

    Raises:
        UserError: naming the first of these options.
    """
    if _unread and uses_plugin(state):
        raise UserError(_unread[0])
