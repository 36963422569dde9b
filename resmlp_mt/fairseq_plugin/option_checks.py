"""Refuses options of fairseq that crash, or train something other than the user meant.

A command line is checked when it is read, before data and models are. The options of
``fairseq-hydra-train`` are checked when it begins, and those that are taken from other options when
the trainer is made. All are wrapped here alone, and call what other modules check and add.
"""

import argparse
import inspect
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from itertools import pairwise
from typing import Any, NoReturn

import torch
from fairseq import options
from fairseq.distributed import utils as distributed_utils
from fairseq.trainer import Trainer
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from resmlp_mt.command_line import did_you_mean, flag
from resmlp_mt.errors import UserError
from resmlp_mt.fairseq_plugin import (
    bleu,
    evaluated_options,
    generation_fixes,
    hydra_jobs,
    ignored_options,
    loading,
    pruning,
    several_processes,
    stored_config,
    stored_options,
)
from resmlp_mt.fairseq_plugin.config import ResMLPConfig
from resmlp_mt.fairseq_plugin.criterion import ChunkedLabelSmoothedCrossEntropy
from resmlp_mt.fairseq_plugin.ranking import RISES
from resmlp_mt.fairseq_plugin.wrapping import Original, remedy
from resmlp_mt.machine import computes_in_bfloat16

LEAST = {
    "batch_size": 1,
    "batch_size_valid": 1,
    "checkpoint_shard_count": 1,
    "distributed_world_size": 1,
    "fp16_scale_window": 1,
    "global_sync_iter": 1,
    "log_interval": 1,
    "lr": 0,
    "max_epoch": 0,
    "max_tokens": 1,
    "max_tokens_valid": 1,
    "max_update": 0,
    "max_valid_steps": 0,
    "num_workers": 0,
    "required_batch_size_multiple": 1,
    "required_seq_len_multiple": 1,
    "save_interval": 1,
    "seed": 0,
    "update_freq": 1,
    "validate_interval": 1,
    "warmup_updates": 0,
}
"""The least values of numbers that fairseq divides by, or that make it do nothing."""

MOST_SEED = 2**31 - 1
"""numpy takes twice as many, but fairseq adds numbers of epochs and processes to it."""

LEAST_OF_SCHEDULERS = {
    "inverse_sqrt": {"warmup_updates": 1},
    "polynomial_decay": {"total_num_update": 1},
    "step": {"lr_deacy_period": 1},
    "tri_stage": {"decay_steps": 1},
    "triangular": {"lr_period_updates": 2},
}
"""The same, for one ``--lr-scheduler``."""

UNLIMITED = {"clip_norm", "stop_min_lr", "stop_time_hours", "unkpen"}
"""Options that may be infinite in a training; others, such as ``--lr``, would make it NaN."""

REFUSED: dict[tuple[str, object], str] = {
    ("dataset_impl", "fasta"): "is for sequences of proteins: drop it.",
    ("keep_interval_updates_pattern", 0): "names no update: drop it, or give a number from 1.",
    ("optimizer", "composite"): "needs groups of parameters, which no option gives: use another.",
    ("use_plasma_view", True): "needs a part of pyarrow that was removed: drop it.",
}
"""Why an option may not have a value."""


@remedy(options, "parse_args_and_arch")
def _parse_args_and_arch(
    original: Original,
    parser: argparse.ArgumentParser,
    input_args: Sequence[str] | None = None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    loading.add_options(parser)
    generation_fixes.choose_scoring(parser, input_args)
    words = sys.argv[1:] if input_args is None else input_args
    error: Any = parser.error  # a program may have its own
    if getattr(error, "func", None) is _error:  # of an earlier call
        error = error.args[-1]
    parser.error = partial(_error, parser, words, error)  # type: ignore[method-assign]
    parsed = original(parser, input_args, *args, **kwargs)
    found: argparse.Namespace = parsed[0] if isinstance(parsed, tuple) else parsed
    loading.heed_options(found)
    generation_fixes.check_options(parser, found)
    bleu.remember_joining(found)
    if getattr(found, "total_num_update", 0) is None:
        found.total_num_update = found.max_update  # its default, which fairseq loses
    if getattr(found, "bf16", False) and not find_spec("torch_xla"):
        found.tpu = False  # which fairseq sets with --bf16: it would use no GPU
    for name in ("batch_size_valid", "max_tokens_valid"):  # fairseq leaves them as text
        if str(getattr(found, name, None)).isdigit():
            setattr(found, name, int(getattr(found, name)))
    check(vars(found))
    if not kwargs.get("suppress_defaults"):  # it has been parsed with them before
        ignored_options.check_line(parser, found, words)
    if getattr(found, "profile", False) and not torch.cuda.is_available():
        raise UserError("--profile needs a GPU, whose profiler it starts: drop it.")
    return parsed


def _error(
    parser: argparse.ArgumentParser,
    words: Sequence[str],
    original: Callable[[str], NoReturn],
    message: str,
) -> NoReturn:
    """End with status 2, and say what was meant by words that fairseq does not know."""
    known = parser._option_string_actions
    unknown = message.partition("unrecognized arguments: ")[2].split()
    for before, word in pairwise(words):
        if word in unknown and word.lower() in ("true", "false") and before in known:
            message += f"; {before} takes no value, and means {known[before].const}"
    options = (did_you_mean(word, known) for word in unknown if word.startswith("--"))
    message += next(filter(None, options), "")
    original(message)


@remedy("preprocess", "_build_dictionary", before=True)  # the first that read the options
@remedy("preprocess", "_make_all", before=True)
def check_preprocessing(*given: Any, **named: Any) -> None:
    """Refuse options of fairseq-preprocess, ``args``, that change nothing or divide by zero.

    Raises:
        UserError: naming the option.
    """
    args = named.get("args", given[-1])
    for name in ("bpe", "tokenizer"):
        if value := getattr(args, name):
            raise UserError(
                f"--{name} {value} does nothing in fairseq-preprocess: split the text before, as "
                "python -m resmlp_mt.prepare does, and drop it."
            )
    if args.workers < 1:
        raise UserError(f"--workers must be at least 1, but is {args.workers}.")


@remedy(distributed_utils, "call_main", before=True)
def _check_call(cfg: Any, main: Any, **_: Any) -> None:
    """Check the options of ``fairseq-hydra-train`` before its data and model are loaded."""
    if OmegaConf.is_config(cfg) and several_processes.trains(main):
        check_sections(cfg)
        if HydraConfig.initialized():  # else the command line has been checked
            sections: Any = OmegaConf.to_container(cfg)
            given = hydra_jobs.given(HydraConfig.get())
            ignored_options.check_configuration(sections, given)


@remedy(Trainer, "__init__", before=True)
def _check_trainer(
    _: Any, cfg: Any, task: Any, model: Any, criterion: Any, *__: Any, **___: Any
) -> None:
    if OmegaConf.is_config(cfg):
        check_sections(cfg)
    bleu.check_training(cfg, task)
    check_output_layer(model, criterion)
    check_unused_parameters(cfg.distributed_training, model, criterion)
    check_metric(cfg)
    if cfg.dataset.num_shards > 1:
        raise UserError(
            "--num-shards is for translating: several processes train with "
            "--distributed-world-size."
        )
    several_processes.check_joined()
    check_precision(cfg.common)
    if issubclass(OmegaConf.get_type(getattr(cfg, "model", None)) or object, ResMLPConfig):
        # fairseq builds the model from a copy, and its checkpoints would have the old number
        pruning.count_kept(cfg.model)


def check_sections(cfg: Any) -> None:
    """Check the values of a configuration, and that checkpoints with it can be loaded.

    Raises:
        UserError: naming the option.
    """
    sections: Any = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
    values: dict[str, Any] = {}
    for name, section in sections.items():
        if isinstance(section, dict):
            values |= {**section, name: section.get("_name")}
    check(values)
    for name, section in sections.items():
        if isinstance(section, dict):
            _check_section(name, section)
    if values["tpu"] and find_spec("torch_xla") is None:
        raise UserError("--tpu needs a TPU and torch_xla: drop it.")
    stored_config.check_training(sections)


def _check_section(kind: str, section: Mapping[str, Any]) -> None:
    """Refuse names that fairseq looks up late, and ends in a traceback if there are none."""
    known, name = stored_options.registry(kind), section.get("_name")
    if not known or name is None:
        return
    if name not in known:
        raise UserError(f"{kind}._name={name} is unknown{did_you_mean(str(name), known)}.")
    declared = getattr(known[name], "__dataclass", None)
    if declared is None:
        return
    fields = OmegaConf.structured(declared)
    for option, value in section.items():
        if option not in {*fields, "arch"}:
            close = did_you_mean(option, map(str, fields))
            raise UserError(f"{kind}.{option} is no option of {name}{close}.")
        try:
            OmegaConf.merge(fields, {option: value})
        except OmegaConfBaseException as error:
            raise UserError(f"{kind}.{option}={value}: {str(error).splitlines()[0]}.") from error


def check(values: Mapping[str, Any]) -> None:
    """Refuse what ends in a traceback.

    Args:
        values: options by their names, and the chosen criterion, optimizer, model, ...; options
            that a command does not have are missing.

    Raises:
        UserError: if an option has a value that it may not have.
    """
    of_scheduler = LEAST_OF_SCHEDULERS.get(values.get("lr_scheduler", ""), {})
    if values.get("phase_ratio"):  # gives tri_stage the number of its steps
        of_scheduler = {}
    for name, least in (LEAST | of_scheduler).items():
        given = values.get(name)
        for value in given if isinstance(given, list) else [given]:
            # an option whose default comes from another one is still a text
            number: Any = int(str(value)) if str(value).lstrip("-").isdecimal() else value
            if isinstance(number, int | float) and number < least:
                raise UserError(f"{flag(name)} must be at least {least}, but is {value}.")
    for name, given in values.items():
        if given == [] and name in LEAST:
            raise UserError(f"{flag(name)} must be a number, but is empty.")
        for number in given if isinstance(given, list) else [given]:
            is_infinite = isinstance(number, float) and math.isinf(number)
            is_refused = "max_update" in values and name not in UNLIMITED
            if number != number or (is_infinite and is_refused):
                raise UserError(f"{flag(name)} must be a finite number, but is {number}.")
    if (values.get("seed") or 0) > MOST_SEED:
        raise UserError(f"--seed must be at most {MOST_SEED}, but is {values['seed']}.")
    if values.get("store_ema") and not 0 <= values["ema_decay"] < 1:
        raise UserError(
            f"--ema-decay must be at least 0 and below 1, but is {values['ema_decay']}."
        )
    evaluated_options.check(values)
    if (
        values.get("lr_scheduler") == "cosine"
        and values["lr_period_updates"] <= 0
        and values["max_update"] == values["warmup_updates"] > 0
    ):
        raise UserError(
            "--lr-scheduler cosine divides by --max-update less --warmup-updates, which is 0: give "
            "more updates."
        )
    for (name, value), why in REFUSED.items():
        if values.get(name) == value:
            raise UserError(f"{flag(name)} {'' if value is True else f'{value} '}{why}")
    if ignored_options.is_resmlp(values.get("arch", values.get("model"))):
        ignored_options.check_training(values)
    if values.get("write_checkpoints_asynchronously") and find_spec("iopath") is None:
        raise UserError(  # it would end with status 0 and without a training
            "--write-checkpoints-asynchronously needs iopath, which is not installed: install it "
            "or drop the option."
        )
    if "max_update" in values and values.get("sentencepiece_enable_sampling"):
        raise UserError(
            "--sentencepiece-enable-sampling does nothing in a training, whose text is split "
            "already: give python -m resmlp_mt.prepare --samples K, and drop it."
        )
    metric = values.get("best_checkpoint_metric")
    rises = RISES.get(metric) if metric else None
    if rises is not None and rises != values.get("maximize_best_checkpoint_metric", rises):
        raise UserError(
            f"--best-checkpoint-metric {metric} is better if it is "
            + ("larger: give" if rises else "smaller: drop")
            + " --maximize-best-checkpoint-metric."
        )


def check_unused_parameters(options: Any, model: Any, criterion: Any) -> None:
    """Refuse what PyTorch would: gradients of a weight that the forward pass has not used.

    The chunked criterion multiplies by the output embedding itself.
    """
    if (
        isinstance(criterion, ChunkedLabelSmoothedCrossEntropy)
        and options.find_unused_parameters
        and options.distributed_world_size > 1
        and options.ddp_backend in ("c10d", "pytorch_ddp")
        and model.decoder.output_projection.weight is not model.decoder.embed_tokens.weight
    ):
        raise UserError(
            "--find-unused-parameters with an output embedding of its own needs --criterion "
            "label_smoothed_cross_entropy, --ddp-backend legacy_ddp or "
            "--share-decoder-input-output-embed."
        )


def check_output_layer(model: Any, criterion: Any) -> None:
    """Refuse the chunked criterion for a model whose scores are not one product left to it."""
    if not isinstance(criterion, ChunkedLabelSmoothedCrossEntropy):
        return
    output = getattr(getattr(model, "decoder", None), "output_projection", None)
    is_product = hasattr(output, "weight") and getattr(output, "bias", None) is None
    arguments = inspect.signature(model.forward).parameters
    takes = "features_only" in arguments or any(
        each.kind is each.VAR_KEYWORD for each in arguments.values()
    )
    if not (is_product and takes):
        raise UserError(
            "--criterion chunked_label_smoothed_cross_entropy needs a decoder whose output layer "
            "is one matrix, and a model that can leave it out, which a "
            f"{type(model).__name__} does not have: use --criterion label_smoothed_cross_entropy."
        )


def check_metric(cfg: Any) -> None:
    """Refuse a ``--best-checkpoint-metric`` without the option that measures it.

    It ends in a KeyError after the first epoch.
    """
    metric = cfg.checkpoint.best_checkpoint_metric
    for measured, section, option in (
        ("bleu", cfg.task, "eval_bleu"),
        ("accuracy", cfg.criterion, "report_accuracy"),
    ):
        if metric == measured and not getattr(section, option, True):
            raise UserError(
                f"--best-checkpoint-metric {metric} needs {flag(option)}, which computes it in "
                "every validation."
            )


def check_precision(common: Any) -> None:
    """Refuse ``--fp16`` and ``--bf16`` without a GPU: they fail inside CUDA and XLA calls.

    fairseq takes ``--bf16`` without a GPU for a TPU, even with ``--cpu``.
    """
    if common.cpu or not (common.tpu or torch.cuda.is_available()):
        for option in ("fp16", "bf16"):
            if getattr(common, option):
                raise UserError(
                    f"--{option} needs a GPU: on CPU use --amp, which computes in bfloat16."
                )
        if common.amp and not computes_in_bfloat16():
            raise UserError(
                "--amp on CPU needs a processor with AVX-512 or better for bfloat16: drop it."
            )
