"""Remedies for fairseq's training: averages of parameters, and options that lack what they need."""

import inspect
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import fairseq.trainer
import pytest
import torch
from fairseq import tasks
from fairseq.criterions.cross_entropy import CrossEntropyCriterion
from fairseq.data import Dictionary
from fairseq.dataclass.configs import CheckpointConfig, EMAConfig
from fairseq.logging import progress_bar
from fairseq.models.ema import EMA
from fairseq.models.lightconv import LightConvModel
from fairseq.models.transformer import TransformerModel
from fairseq.models.transformer_align import TransformerAlignModel
from fairseq.tasks.translation import TranslationConfig, TranslationTask
from fairseq.trainer import Trainer

from models import build, config
from resmlp_mt.command_line import flag
from resmlp_mt.errors import UserError
from resmlp_mt.fairseq_plugin import option_checks, saving, training_fixes
from resmlp_mt.fairseq_plugin.criterion import ChunkedLabelSmoothedCrossEntropy
from resmlp_mt.fairseq_plugin.model import ResMLPModel, of_other_models


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("in_float32", [False, True])
def test_averages_are_of_floating_point_and_whole_numbers_are_the_newest(
    in_float32: bool, share: bool, half: bool
) -> None:
    """With the decay 0.75, parameters 1 after 0 give 0.25; the longest length stays whole.

    An embedding with three names is averaged once, also where its copies in float32 are three.
    """
    model = build(share_all_embeddings=share)
    if half:
        model.half()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    average = EMA(model, EMAConfig(store_ema=True, ema_fp32=in_float32, ema_decay=0.75))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    model.encoder.longest_trained.fill_(7)
    average.step(model, updates=1)
    found = average.get_model()
    assert all(bool((parameter == 0.25).all()) for parameter in found.parameters())
    assert found.encoder.longest_trained.dtype is torch.int64
    assert int(found.encoder.longest_trained) == 7


def test_a_log_file_has_every_line_once(tmp_path: Path) -> None:
    """fairseq opens it again at every epoch."""
    for fixed, expected in ((False, "one two two "), (True, "one two ")):
        log = tmp_path / f"{fixed}.log"
        make = progress_bar.progress_bar if fixed else inspect.unwrap(progress_bar.progress_bar)
        for word in ("one", "two"):
            bar = make([], log_format="simple", log_file=str(log))
            progress_bar.logger.warning(word)
            assert isinstance(bar, progress_bar.SimpleProgressBar)
        training_fixes.close_log_files("fairseq.logging.progress_bar")
        assert log.read_text().replace("\n", " ") == expected


def test_averages_begin_with_those_of_a_file(tmp_path: Path) -> None:
    model, other = build(), build(seed=1)
    seed = tmp_path / "seed.pt"
    options = EMAConfig(store_ema=True, ema_seed_model=str(seed))
    with pytest.raises(UserError, match=r"seed\.pt cannot be read"):
        EMA(model, options)
    torch.save({"model": other.state_dict(), "extra_state": {}}, seed)
    with pytest.raises(UserError, match=r"--ema-seed-model .*seed\.pt has no averages: give a"):
        EMA(model, options)
    torch.save({"model": {}, "extra_state": {"ema": other.state_dict()}}, seed)
    for name, value in EMA(model, options).get_model().state_dict().items():
        assert torch.equal(value, other.state_dict()[name])


@pytest.mark.parametrize(
    ("metric", "measures", "option"),
    [
        ("bleu", False, "--eval-bleu"),
        ("bleu", True, None),
        ("accuracy", False, "--report-accuracy"),
        ("accuracy", True, None),
        ("loss", False, None),
    ],
)
def test_the_metric_of_the_best_checkpoint_is_computed(
    metric: str, measures: bool, option: str | None
) -> None:
    cfg = SimpleNamespace(
        checkpoint=SimpleNamespace(best_checkpoint_metric=metric),
        task=SimpleNamespace(eval_bleu=measures),
        criterion=SimpleNamespace(report_accuracy=measures),
    )
    message = f"metric {metric} needs {option}, which computes"
    with pytest.raises(UserError, match=message) if option else nullcontext():
        option_checks.check_metric(cfg)


def test_a_metric_that_no_update_has_is_named() -> None:
    """Before the first epoch ends; its validation would end in a KeyError."""
    task = TranslationTask(TranslationConfig(), Dictionary(), Dictionary())
    options = SimpleNamespace(best_checkpoint_metric="nll_loss")
    trainer = SimpleNamespace(
        cfg=SimpleNamespace(checkpoint=options, model=None),
        is_fsdp=False,
        task=task,
        get_criterion=lambda: CrossEntropyCriterion(task, sentence_avg=False),
    )

    def step(found: dict[str, float] | None) -> Any:
        return training_fixes._train_step(lambda *_: found, trainer, [{}])

    assert step({"nll_loss": 1.0}) == {"nll_loss": 1.0}
    assert step(None) is None  # an overflow of --fp16
    with pytest.raises(UserError, match=r"metric nll_loss is not computed .*: it has loss, ppl\.$"):
        step({"loss": 1.0, "sample_size": 3})
    for options.best_checkpoint_metric in ("bleu", "ppl", "loss"):
        assert step({"loss": 1.0})
    options.best_checkpoint_metric = "own"
    trainer.task = SimpleNamespace()
    assert step({"loss": 1.0})


def test_a_file_to_restore_that_is_missing_does_not_start_a_new_training(tmp_path: Path) -> None:
    (tmp_path / "checkpoint_best.pt").touch()
    trainer = SimpleNamespace(
        checkpoint_suffix="", data_parallel_rank=0, data_parallel_world_size=1
    )
    for name, message in (
        (str(tmp_path / "missing.pt"), r" does not exist\.$"),
        ("checkpoint_best.pt", rf" does not exist: did you mean {tmp_path}/checkpoint_best.pt\?$"),
    ):
        cfg = SimpleNamespace(no_save=True, restore_file=name, save_dir=str(tmp_path))
        with pytest.raises(UserError, match=rf"--restore-file {name}{message}"):
            saving._load_checkpoint(lambda *_: "from the beginning", cfg, trainer)
    cfg = SimpleNamespace(no_save=True, restore_file="checkpoint_last.pt", save_dir=str(tmp_path))
    assert saving._load_checkpoint(lambda *_: "from the beginning", cfg, trainer)
    cfg.continue_once = str(tmp_path / "missing.pt")
    with pytest.raises(UserError, match=r"--continue-once .*/missing\.pt does not exist\.$"):
        saving._load_checkpoint(lambda *_: "from the beginning", cfg, trainer)
    cfg.continue_once = str(tmp_path / "checkpoint_best.pt")
    assert saving._load_checkpoint(lambda *_: "from the beginning", cfg, trainer)


@pytest.mark.parametrize("option", ["restore_file", "continue_once", "finetune_from_model"])
def test_a_folder_of_checkpoints_does_not_start_a_new_training(tmp_path: Path, option: str) -> None:
    """fairseq takes it for a checkpoint that is there, and then finds no file."""
    trainer = SimpleNamespace(
        checkpoint_suffix="", data_parallel_rank=0, data_parallel_world_size=1
    )
    folder = tmp_path / "pretrained"
    folder.mkdir()
    cfg = CheckpointConfig(no_save=True, save_dir=str(tmp_path), **{option: str(folder)})

    def load() -> Any:
        return saving._load_checkpoint(lambda *_: "from the beginning", cfg, trainer)

    said = rf"^{flag(option)} {folder} is not a file: give one checkpoint of fairseq-train"
    with pytest.raises(UserError, match=rf"{said}\.$"):
        load()
    (folder / "checkpoint_best.pt").touch()
    with pytest.raises(UserError, match=rf"{said}, such as {folder}/checkpoint_best\.pt\.$"):
        load()
    setattr(cfg, option, str(tmp_path / "missing.pt"))
    with pytest.raises(UserError, match=rf"^{flag(option)} .*/missing\.pt does not exist\.$"):
        load()
    setattr(cfg, option, str(folder / "checkpoint_best.pt"))
    assert load()
    if option != "restore_file":  # the training goes on from its own
        setattr(cfg, option, str(folder))
        torch.save({"model": {}}, tmp_path / "checkpoint_last.pt")
        assert load()


def test_a_file_to_restore_has_the_suffix_of_all_checkpoints(tmp_path: Path) -> None:
    trainer = SimpleNamespace(checkpoint_suffix="_a")
    (tmp_path / "there.pt").touch()
    cfg = SimpleNamespace(
        no_save=True, restore_file=str(tmp_path / "there.pt"), save_dir=str(tmp_path)
    )
    with pytest.raises(UserError, match=r"--restore-file .*/there_a\.pt does not exist\.$"):
        saving._load_checkpoint(lambda *_: "from the beginning", cfg, trainer)
    (tmp_path / "there_a.pt").touch()
    assert saving._load_checkpoint(lambda *_: "there", cfg, trainer) == "there"
    cfg = SimpleNamespace(
        no_save=True,
        restore_file="checkpoint_last.pt",
        save_dir=str(tmp_path),
        continue_once="missing.pt",
    )
    with pytest.raises(UserError, match=r"--continue-once missing\.pt does"):
        saving._load_checkpoint(lambda *_: "from the beginning", cfg, trainer)
    (tmp_path / "checkpoint_last_a.pt").touch()
    assert saving._load_checkpoint(lambda *_: "there", cfg, trainer) == "there"


@pytest.mark.parametrize("is_installed", [True, False])
def test_asynchronous_checkpoints_need_their_library(
    monkeypatch: pytest.MonkeyPatch, is_installed: bool
) -> None:
    """Without it, fairseq prints a traceback, trains nothing and ends with status 0."""
    monkeypatch.setattr(option_checks, "find_spec", lambda _: is_installed or None)
    for asynchronous in (False, True):
        refused = asynchronous and not is_installed
        message = "--write-checkpoints-asynchronously needs iopath"
        with pytest.raises(UserError, match=message) if refused else nullcontext():
            option_checks.check({"write_checkpoints_asynchronously": asynchronous})


def test_a_validation_on_the_training_set_has_an_iterator_of_its_own() -> None:
    """fairseq's would move the training to its next epoch."""
    trainer = MagicMock()
    trainer.cfg.dataset.train_subset = "valid"
    trainer.model.max_positions.return_value = trainer.task.max_positions.return_value = 9
    for subset in ("valid", "test"):
        Trainer.get_valid_iterator(trainer, subset)
        given = trainer.task.get_batch_iterator.call_args.kwargs
        assert given["disable_iterator_cache"] == (subset == "valid")


@pytest.mark.parametrize("name", sorted(of_other_models("task").values()))
def test_tasks_of_other_models_are_refused(name: str) -> None:
    kind = tasks.TASK_REGISTRY[name]
    of_a_user = type("TaskOfAUser", (kind,), {})
    for refused in (kind, of_a_user):
        with pytest.raises(UserError, match="is for models of another kind than a ResMLP: use --"):
            ResMLPModel.build_model(config(), object.__new__(refused))
    with pytest.raises(UserError, match=rf"^--task {name} is for models of another kind"):
        option_checks.check({"arch": "resmlp_mt_tiny", "task": name})
    option_checks.check({"arch": "transformer", "task": name})


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("unused", [False, True])
@pytest.mark.parametrize("backend", ["pytorch_ddp", "legacy_ddp"])
def test_unused_parameters_are_not_looked_for_where_they_seem_unused(
    share: bool, unused: bool, backend: str
) -> None:
    options = SimpleNamespace(
        find_unused_parameters=unused, distributed_world_size=2, ddp_backend=backend
    )
    model = build(share_all_embeddings=share)
    task = SimpleNamespace(target_dictionary=model.decoder.dictionary)
    for criterion in (CrossEntropyCriterion(task, False),
                      ChunkedLabelSmoothedCrossEntropy(task, False, 0.1)):  # fmt: skip
        chunked = isinstance(criterion, ChunkedLabelSmoothedCrossEntropy)
        refused = chunked and unused and not share and backend == "pytorch_ddp"
        message = "--find-unused-parameters with an output embedding"
        with pytest.raises(UserError, match=message) if refused else nullcontext():
            option_checks.check_unused_parameters(options, model, criterion)


def test_a_clock_that_is_set_forward_ends_no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """--stop-time-hours counts from the trainer's start."""
    trainer: Any = SimpleNamespace(
        _start_time=fairseq.trainer.time.time(), _previous_training_time=0
    )
    monkeypatch.setattr(time, "time", lambda: 1e12)
    assert Trainer._local_cumulative_training_time(trainer) < 1e9


def test_the_chunked_criterion_needs_one_matrix() -> None:
    """Of fairseq's models, LSTMs and an adaptive softmax have none; they ended in a traceback."""
    model = build()
    task = SimpleNamespace(target_dictionary=model.decoder.dictionary)
    chunked = ChunkedLabelSmoothedCrossEntropy(task, False, 0.1)
    option_checks.check_output_layer(model, chunked)
    product = torch.nn.Linear(2, 3, bias=False)
    for output, forward in (
        (None, TransformerModel.forward),
        (torch.nn.Linear(2, 3), TransformerModel.forward),
        (product, LightConvModel.forward),  # which cannot leave the output layer out
        (product, TransformerAlignModel.forward),
        (product, TransformerModel.forward),
    ):
        decoder = SimpleNamespace(output_projection=output)
        other = SimpleNamespace(decoder=decoder, forward=forward)
        option_checks.check_output_layer(other, CrossEntropyCriterion(task, False))
        works = output is product and forward is TransformerModel.forward
        message = "leave it out, which a SimpleNamespace does not have"
        with nullcontext() if works else pytest.raises(UserError, match=message):
            option_checks.check_output_layer(other, chunked)
