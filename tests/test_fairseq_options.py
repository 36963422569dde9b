"""The table of options is complete, and what it says is what the project promises."""

import argparse
import json
import re
from collections.abc import Iterable

import pytest
from fairseq import options
from fairseq.dataclass.configs import (
    CheckpointConfig,
    CommonConfig,
    DatasetConfig,
    DistributedTrainingConfig,
    EMAConfig,
    GenerationConfig,
    InteractiveConfig,
    OptimizationConfig,
)
from fairseq.dataclass.constants import DDP_BACKEND_CHOICES
from fairseq.models.transformer_align import TransformerAlignModel
from fairseq.registry import REGISTRIES
from fairseq.tasks.translation import TranslationConfig, TranslationTask

from benchmarks.fairseq_options import (
    GENERATE,
    INTERACTIVE,
    PAGE,
    ROWS,
    TRAIN,
    VALIDATE,
    Case,
    Row,
    page,
)
from models import dictionary
from resmlp_mt.errors import UserError
from resmlp_mt.fairseq_plugin import generation_fixes, ignored_options

# What no row can show: where files are, and the weights of embeddings that are frozen elsewhere.
ELSEWHERE = {
    "--source-lang", "--target-lang", "--train-subset", "--input", "--help", "--data",
    "--ema-seed-model", "--eval-bleu-args", "--eval-bleu-detok", "--eval-bleu-detok-args",
    "--eval-bleu-remove-bpe", "--save-dir", "--user-dir",
}  # fmt: skip
# Given to every command of the table.
BASE = {"--cpu", "adam", "fixed", "label_smoothed_cross_entropy"}
# These join processes, which tests/test_several_processes.py runs.
OF_PROCESSES = {"--distributed-init-method"}
# The size of the matrices is part of the model; the others save memory or pad, and change nothing.
BY_DESIGN = {
    "--max-source-positions 60",
    "--max-target-positions 60",
    "--checkpoint-activations",
    "--offload-activations",
    "--required-seq-len-multiple 8",
}


def flags(cases: Iterable[Case]) -> set[str]:
    words = " ".join(f"{case.options} {case.with_options}" for case in cases).split()
    return {word for word in words if word.startswith("--")}


def chosen(cases: Iterable[Case], option: str) -> set[str]:
    """What the cases give to an option."""
    words = " ".join(f"{case.options} {case.with_options}" for case in cases)
    return set(re.findall(f"--{option.replace('_', '-')} ([^ ]+)", words))


def declared(dataclass: type) -> set[str]:
    names = dataclass.__dataclass_fields__  # type: ignore[attr-defined]
    return {"--" + name.replace("_", "-") for name in names if not name.startswith("_")}


def test_every_option_has_a_row() -> None:
    parser = argparse.ArgumentParser()
    TransformerAlignModel.add_args(parser)
    model_options = {flag for action in parser._actions for flag in action.option_strings}
    model_options = {flag for flag in model_options if flag.startswith("--")}
    tried = flags([*TRAIN, *GENERATE, *VALIDATE, *INTERACTIVE])
    # the sizes of the layers are given to every command of the table
    sizes = {
        f"--{side}-{size}"
        for side in ("encoder", "decoder")
        for size in ("embed-dim", "ffn-embed-dim")
    }
    task = declared(TranslationConfig) | declared(EMAConfig)
    assert not (model_options | task) - flags(TRAIN) - sizes - ELSEWHERE
    assert not declared(GenerationConfig) - flags(GENERATE)
    for section in (
        CheckpointConfig, CommonConfig, DatasetConfig, DistributedTrainingConfig, InteractiveConfig,
        OptimizationConfig,
    ):  # fmt: skip
        assert not declared(section) - tried - ELSEWHERE - BASE - OF_PROCESSES


def test_every_choice_has_a_row() -> None:
    """Of what fairseq chooses by name for a training, and of scores."""
    for name, cases in {
        "optimizer": TRAIN, "lr_scheduler": TRAIN, "criterion": TRAIN, "scoring": GENERATE,
    }.items():  # fmt: skip
        assert not set(REGISTRIES[name]["registry"]) - chosen(cases, name) - BASE, name
    assert not set(map(str, DDP_BACKEND_CHOICES)) - chosen(TRAIN, "ddp_backend")


# Parts of what is said later: by fairseq, and of a machine, a file or a model, which
# other tests show.
LATER = (
    "--constraints needs lines", "--cpu-offload requires", "--lm-path", "--retain-dropout-modules",
    "--sampling requires --nbest", "--score-reference needs sentences", "--tpu needs a TPU",
    "Either --max_update", "FusedAdamV1", "Index file doesn't match", "Model file not found",
    "Pass-through schedule", "Size of sample", "lease install", "needs a GPU",
    "requires a raw text dataset",
)  # fmt: skip

ROWS_BY_COMMAND = {
    command: [Row(*row) for row in rows] for command, rows in json.loads(ROWS.read_text()).items()
}


@pytest.mark.parametrize("command", ROWS_BY_COMMAND)
def test_nothing_is_ignored_or_fails_that_the_transformer_honours(command: str) -> None:
    for row in ROWS_BY_COMMAND[command]:
        if row.options not in BY_DESIGN:
            assert row.resmlp[0] in ("refused", "honoured", row.transformer[0]), row
        if row.resmlp[0] == "refused":
            assert row.resmlp[1], row


PARSERS = {
    "train": options.get_training_parser,
    "generate": options.get_generation_parser,
    "validate": options.get_validation_parser,
    "interactive": options.get_interactive_generation_parser,
}


def refusal(command: str, row: Row) -> str | None:
    """What is said of a row's options for a ResMLP before any data is read; None if nothing is."""
    files = dict.fromkeys(("base", "second", "other", "lm", "vectors", "config", "results"), "x")
    given = f"{row.with_options} {row.options}".format(**files).split()
    words = "data --cpu --arch resmlp_mt_tiny --optimizer adam --max-source-positions 40".split()
    words += ["--criterion", "label_smoothed_cross_entropy"]
    if command != "train":
        words = ["data", "--path", "x", "--cpu", "--beam", "4"]
    if command == "validate":
        words = words[:-2]
    try:
        found = options.parse_args_and_arch(PARSERS[command](), [*words, *given])
        ignored_options.check_checkpoint({"cfg": {"model": {"_name": "resmlp_mt_tiny"}}})
        if command in ("generate", "interactive"):
            sides = TranslationConfig(source_lang="a", target_lang="b")
            task = TranslationTask(sides, words := dictionary(20), words)
            generation_fixes._check_generator(task, [], found)
    except UserError as error:
        return str(error)
    except SystemExit:
        return "error: "  # of argparse
    return None


@pytest.mark.parametrize("command", ROWS_BY_COMMAND)
def test_what_is_refused_at_once_is_what_the_table_says(command: str) -> None:
    """All refused rows, and one in five of the others, without the models."""
    rows = ROWS_BY_COMMAND[command]
    refused = [row for row in rows if row.resmlp[0] == "refused"]
    for row in [*refused, *[row for row in rows if row not in refused][::5]]:
        told = refusal(command, row)
        assert told is None or told in row.resmlp[1], row
        if told is None and row in refused:
            assert any(sign in row.resmlp[1] for sign in LATER), row


def test_the_page_is_that_of_the_rows() -> None:
    assert PAGE.read_text() == page(ROWS_BY_COMMAND)
