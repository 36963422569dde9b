"""A training that was interrupted ends as one that was not; its checkpoints can be loaded."""

import inspect
import logging
import re
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fairseq import options
from fairseq.data.iterators import EpochBatchIterator, GroupedIterator
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.tasks.translation import TranslationConfig, TranslationTask
from fairseq.trainer import Trainer
from fairseq_cli import generate, train
from torch.utils.data import Dataset

from conftest import Corpus
from resmlp_mt.errors import UserError
from resmlp_mt.fairseq_plugin import checkpoints, resuming, stop_signals, training_end
from resmlp_mt.models import resmlp_mt  # noqa: F401  applies the remedies

Train = Callable[..., dict[str, Any]]
SAME_SCORE = "--report-accuracy --best-checkpoint-metric total".split()  # the number of words


@pytest.fixture
def train_here(corpus: Corpus) -> Train:
    """``fairseq-train`` in this process, as in a new one; one update is an epoch."""

    def run(folder: Path, *arguments: object) -> dict[str, Any]:
        words = [
            corpus.data, "--arch", "resmlp_mt_tiny", "--cpu", "--save-dir", folder,
            "--encoder-embed-dim", 8, "--decoder-embed-dim", 8, "--decoder-attention-heads", 2,
            "--max-source-positions", 40, "--max-target-positions", 40, "--optimizer", "adam",
            "--lr", 0.001, "--criterion", "label_smoothed_cross_entropy", "--batch-size", 500,
            "--required-batch-size-multiple", 1, "--no-epoch-checkpoints",
            "--distributed-world-size", 1, "--num-workers", 0, "--log-format", "none",
            *arguments,
        ]  # fmt: skip
        parser = options.get_training_parser()
        args = options.parse_args_and_arch(parser, input_args=[str(word) for word in words])
        train.main(convert_namespace_to_omegaconf(args))
        return checkpoints.read(folder / "checkpoint_last.pt")

    return run


def test_counts_of_validations_and_updates_go_on(train_here: Train, tmp_path: Path) -> None:
    """--patience, --lr-patience and --ema-update-freq; the score stays the same."""
    arguments = ["--lr", 1e-5, "--lr-scheduler", "reduce_lr_on_plateau", "--lr-patience", 1,
                 "--lr-threshold", 0.1, "--lr-shrink", 0.5, "--patience", 4, "--store-ema",
                 "--ema-update-freq", 2, *SAME_SCORE]  # fmt: skip
    whole = train_here(tmp_path / "whole", *arguments, "--max-epoch", 9)
    for epoch in (1, 4, 9):
        parts = train_here(tmp_path / "parts", *arguments, "--max-epoch", epoch)
    assert whole["optimizer_history"][-1]["num_updates"] == 5  # the first is the best
    for name in ("early_stop", "best", "ema_updates"):
        assert parts["extra_state"][name] == whole["extra_state"][name]
    schedules = [state["optimizer_history"][-1]["lr_scheduler_state"] for state in (parts, whole)]
    for name in ("best", "num_bad_epochs"):
        assert schedules[0][name] == schedules[1][name]
    rates = [state["last_optimizer_state"]["param_groups"][0]["lr"] for state in (parts, whole)]
    assert rates[0] == rates[1] < 1e-5
    for part, state in (("model", whole["model"]), ("ema", whole["extra_state"]["ema"])):
        found = parts["model"] if part == "model" else parts["extra_state"]["ema"]
        assert all(torch.equal(found[name], value) for name, value in state.items())


def test_a_reset_forgets_the_counts(train_here: Train, tmp_path: Path) -> None:
    arguments = ["--patience", 9, *SAME_SCORE]
    first = train_here(tmp_path, *arguments, "--max-epoch", 3)["extra_state"]["early_stop"]
    assert first["num_runs"] == 2
    second = train_here(tmp_path, *arguments, "--max-epoch", 4, "--reset-meters")["extra_state"]
    assert second["early_stop"] == {"best": second["val_loss"], "num_runs": 0}


def batches(corpus: Corpus, *, start: int, **dataset: bool) -> list[list[list[int]]]:
    """The numbers of the sentences in every batch of the epochs until the third."""
    cfg = TranslationConfig(
        data=str(corpus.data), source_lang="en", target_lang="de", train_subset="train",
        dataset_impl=None, required_seq_len_multiple=1,
    )  # fmt: skip
    task = TranslationTask.setup_task(cfg)
    given = {"update_ordered_indices_seed": False, "update_epoch_batch_itr": False, **dataset}
    trainer = SimpleNamespace(
        task=task,
        cfg=SimpleNamespace(
            dataset=SimpleNamespace(
                train_subset="train", max_tokens=None, batch_size=32, num_workers=0,
                required_batch_size_multiple=1, data_buffer_size=0, grouped_shuffling=False,
                **given,
            ),
            common=SimpleNamespace(seed=1),
            optimization=SimpleNamespace(skip_remainder_batch=False, update_freq=[1]),
        ),
        model=SimpleNamespace(max_positions=lambda: (40, 40)),
        tpu=False,
        data_parallel_world_size=1,
        data_parallel_rank=0,
        reset_dummy_batch=lambda batch: None,
    )  # fmt: skip
    seen = []
    for epoch in range(start, 4):
        iterator = Trainer.get_train_iterator(trainer, epoch=epoch, load_dataset=epoch == start)
        assert iterator.next_epoch_idx == epoch
        seen.append([batch["id"].tolist() for batch in iterator.next_epoch_itr()])
    return seen


@pytest.mark.parametrize("new_seeds", [False, True])
@pytest.mark.parametrize("new_batches", [False, True])
@pytest.mark.parametrize("start", [2, 3])
def test_a_resumed_epoch_has_its_batches(
    corpus: Corpus, start: int, new_batches: bool, new_seeds: bool
) -> None:
    changes = {"update_epoch_batch_itr": new_batches, "update_ordered_indices_seed": new_seeds}
    whole = batches(corpus, start=1, **changes)
    assert batches(corpus, start=start, **changes) == whole[start - 1 :]
    contents = [{frozenset(batch) for batch in epoch} for epoch in whole]
    assert (contents[0] == contents[1] == contents[2]) == (not new_batches)


class Numbers(Dataset[int]):
    """The numbers below 24."""

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> int:
        return index


def process(rank: int, processes: int, **options: Any) -> EpochBatchIterator:
    batches = [[number] for number in range(24)]
    return EpochBatchIterator(
        Numbers(), list, batches, num_shards=processes, shard_id=rank, **options
    )


@pytest.mark.parametrize(("before", "taken", "after"), [(2, 3, 3), (3, 4, 1), (1, 8, 2), (2, 5, 2)])
def test_another_number_of_processes_takes_the_rest_of_an_epoch(
    before: int, taken: int, after: int
) -> None:
    seen: list[int] = []
    for rank in range(before):
        iterator = process(rank, before)
        batches = iterator.next_epoch_itr()
        seen += [number for _ in range(taken) for number in next(batches)]
        state = iterator.state_dict()
    for rank in range(after):
        iterator = process(rank, after)
        iterator.load_state_dict(state)
        seen += [number for batch in iterator.next_epoch_itr() for number in batch]
        assert iterator.next_epoch_idx == 2
    assert sorted(seen) == list(range(24))


@pytest.mark.parametrize(
    ("before", "taken", "after", "freq", "repeated"),
    [(2, 1, 3, 1, 2), (3, 3, 2, 1, 1), (2, 3, 1, 4, 2), (1, 10, 1, 4, 2), (4, 2, 2, 2, 0)],
)
def test_processes_go_on_where_an_update_of_theirs_begins(
    caplog: pytest.LogCaptureFixture, before: int, taken: int, after: int, freq: int, repeated: int
) -> None:
    iterator = process(0, before)
    whole = [number for batch in process(0, 1).next_epoch_itr() for number in batch]
    batches = iterator.next_epoch_itr()
    for _ in range(taken):
        next(batches)
    state = iterator.state_dict()
    seen: list[int] = []
    for rank in range(after):
        iterator = process(rank, after)
        iterator.update_freq = [1, freq] if state["epoch"] == 2 else [freq]
        iterator.load_state_dict(state)
        grouped = GroupedIterator(iterator.next_epoch_itr(), freq)
        seen += [number for group in grouped for batch in group for number in batch]
        assert iterator.next_epoch_idx == 2
    assert sorted(seen) == sorted(whole[before * taken - repeated :])
    warned = {entry.getMessage() for entry in caplog.records if entry.levelno == logging.WARNING}
    assert all(told.startswith(f"{repeated} batches of this epoch come twice") for told in warned)
    assert len(warned) == (repeated > 0)


@pytest.mark.parametrize(
    ("batches", "seed", "freq", "after"),
    [(24, 1, 1, None), (24, 2, 1, 9), (8, 1, 1, 3), (8, 1, 2, 2), (48, 1, 1, 18), (1, 1, 1, 0)],
)
def test_an_epoch_of_other_batches_goes_on_at_the_same_share(
    caplog: pytest.LogCaptureFixture, batches: int, seed: int, freq: int, after: int | None
) -> None:
    """Nine of 24 batches were taken; --batch-size, --max-tokens or the seed have changed."""
    iterator = process(0, 1)
    taken = iterator.next_epoch_itr()
    for _ in range(9):
        next(taken)
    state = iterator.state_dict()
    iterator = EpochBatchIterator(
        Numbers(), list, [[number] for number in range(batches)], seed=seed
    )
    iterator.update_freq = [freq]
    iterator.load_state_dict(state)
    rest = list(iterator.next_epoch_itr())
    assert len(rest) == batches - (9 if after is None else after)
    assert iterator.next_epoch_idx == 2
    told = f"goes on with other batches than those before .* after {after} of {batches}: some"
    assert bool(re.search(told, caplog.text)) == (after is not None)


def test_a_position_behind_the_end_of_an_epoch_is_none(caplog: pytest.LogCaptureFixture) -> None:
    """Of a checkpoint that does not know of how many batches its epoch was."""
    iterator = EpochBatchIterator(Numbers(), list, [[number] for number in range(4)])
    iterator.load_state_dict({"epoch": 1, "iterations_in_epoch": 9, "version": 2})
    assert len(list(iterator.next_epoch_itr())) == 1
    assert "6 batches of this epoch come twice" in caplog.text


def test_a_trainer_tells_its_iterator_what_an_update_is() -> None:
    trainer: Any = SimpleNamespace(
        task=None, cfg=SimpleNamespace(optimization=SimpleNamespace(update_freq=[4]))
    )
    iterator = resuming._train_iterator(lambda *_: SimpleNamespace(), trainer, 1)
    assert iterator.update_freq == [4]


def test_a_position_that_other_processes_do_not_have_is_refused() -> None:
    def state(**options: Any) -> dict[str, Any]:
        iterator = process(0, 2, **options)
        next(iterator.next_epoch_itr())
        found: dict[str, Any] = iterator.state_dict()
        return found

    with pytest.raises(
        UserError, match=r"continue with 2, or .*, which starts again at epoch 1\.$"
    ):
        process(0, 1, grouped_shuffling=True).load_state_dict(state(grouped_shuffling=True))
    older = {name: value for name, value in state().items() if name != "num_shards"}
    process(0, 3).load_state_dict(older)


@pytest.mark.parametrize("is_mended", [True, False])
def test_epochs_after_the_curriculum_are_shuffled(
    monkeypatch: pytest.MonkeyPatch, is_mended: bool
) -> None:
    name = "_get_iterator_for_epoch"
    if not is_mended:
        stock = inspect.unwrap(getattr(EpochBatchIterator, name))
        monkeypatch.setattr(EpochBatchIterator, name, stock)
    iterator = process(0, 1, reuse_dataloader=True)
    epochs = [
        [number for batch in iterator.next_epoch_itr(shuffle=epoch > 2) for number in batch]
        for epoch in range(1, 5)
    ]
    assert epochs[0] == epochs[1] == sorted(epochs[2]) == sorted(epochs[3]) == list(range(24))
    assert (epochs[2] not in (epochs[0], epochs[3])) == is_mended


Stop = Callable[[int, str], None]


@pytest.fixture
def stop(monkeypatch: pytest.MonkeyPatch) -> Stop:
    """Has SIGTERM come within an update, or within its validation; in update 0, never."""
    monkeypatch.setattr(stop_signals._Stop, "requested", 0)
    for name in ("train", "validate_and_save"):
        monkeypatch.setattr(train, name, getattr(train, name))
    stop_signals.stop_after_an_update(train.main)
    originals = {step: getattr(Trainer, step) for step in ("train_step", "valid_step")}

    def at(update: int, step: str) -> None:
        def patched(self: Any, *args: Any, **kwargs: Any) -> Any:
            result = originals[step](self, *args, **kwargs)
            if self.get_num_updates() == update:
                stop_signals._Stop.requested = signal.SIGTERM
            return result

        stop_signals._Stop.requested = 0
        monkeypatch.setattr(Trainer, step, patched)

    return at


def test_a_training_that_stops_has_the_validation_of_its_update(
    train_here: Train, stop: Stop, tmp_path: Path
) -> None:
    """Five updates are an epoch; every second is validated, and every fourth saved."""
    arguments = ["--batch-size", 100, "--validate-interval-updates", 2, "--patience", 50,
                 "--batch-size-valid", 5, "--save-interval-updates", 4, "--max-update", 6,
                 "--report-accuracy", "--best-checkpoint-metric", "n_correct"]  # fmt: skip
    whole = train_here(tmp_path / "whole", *arguments)
    for update, step in (
        (2, "train_step"),
        (2, "valid_step"),
        (3, "train_step"),
        (4, "valid_step"),
        (5, "train_step"),
    ):
        folder = tmp_path / f"{step}{update}"
        stop(update, step)
        with pytest.raises(SystemExit) as end:
            train_here(folder, *arguments)
        assert end.value.code == 128 + signal.SIGTERM
        stopped = checkpoints.read(folder / "checkpoint_last.pt")
        assert stopped["optimizer_history"][-1]["num_updates"] == update
        is_saved_anyway = update in (4, 5)
        assert (stopped["extra_state"]["val_loss"] is not None) == is_saved_anyway
        stop(0, step)
        parts = train_here(folder, *arguments)
        for name in ("early_stop", "best", "val_loss"):
            assert parts["extra_state"][name] == whole["extra_state"][name]
        for name, value in whole["model"].items():
            assert torch.equal(parts["model"][name], value)


@pytest.mark.parametrize("step", ["train_step", "valid_step"])
@pytest.mark.parametrize(
    ("update", "given"),  # fairseq would save nothing in the third
    [(3, "--max-update=3"), (5, "--max-epoch=1"), (5, "--max-epoch=1 --save-interval=2")],
)
def test_a_training_that_ends_with_its_update_is_saved_and_not_stopped(
    train_here: Train, stop: Stop, tmp_path: Path, update: int, given: str, step: str
) -> None:
    """Continued, it would train one more."""
    stop(update, step)
    state = train_here(tmp_path, "--batch-size", 100, *given.split())
    assert state["optimizer_history"][-1]["num_updates"] == update
    assert state["extra_state"]["val_loss"] == state["extra_state"]["best"] is not None


def test_a_stop_after_an_epoch_that_is_not_saved_has_no_best(
    train_here: Train, stop: Stop, tmp_path: Path
) -> None:
    """An unstopped training does not count it; the scheduler needs its score."""
    arguments = ["--batch-size", 100, "--save-interval", 2, "--keep-best-checkpoints", 1]
    stop(5, "train_step")
    with pytest.raises(SystemExit):
        train_here(tmp_path, *arguments, "--max-epoch", 4)
    state = checkpoints.read(tmp_path / "checkpoint_last.pt")["extra_state"]
    assert state["train_iterator"]["epoch"] == 2
    assert state["val_loss"] is not None
    assert "best" not in state
    assert not list(tmp_path.glob("checkpoint*best*"))


def test_a_kill_within_a_validation_loses_no_update(
    train_here: Train,
    stop: Stop,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    class KilledError(Exception):
        pass

    def kill(*_: Any) -> None:
        raise KilledError

    monkeypatch.setattr(TranslationTask, "valid_step", kill)
    stop(2, "train_step")
    with pytest.raises(KilledError):
        train_here(tmp_path, "--batch-size", 100, "--validate-interval-updates", 2)
    state = checkpoints.read(tmp_path / "checkpoint_last.pt")
    assert state["optimizer_history"][-1]["num_updates"] == 2


def test_updates_are_counted_on_without_the_state_of_the_optimizer(
    train_here: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    arguments = ["--no-save-optimizer-state", "--lr-scheduler", "inverse_sqrt",
                 "--warmup-updates", 1]  # fmt: skip
    train_here(tmp_path, *arguments, "--max-epoch", 3)
    assert "no state of the optimizer" not in caplog.text
    state = train_here(tmp_path, *arguments, "--max-epoch", 4)
    assert "has no state of the optimizer, which begins again; the training continues at" in (
        caplog.text
    )
    assert state["optimizer_history"][-1]["num_updates"] == 4
    begun = train_here(tmp_path, *arguments, "--max-epoch", 5, "--reset-optimizer")
    assert begun["optimizer_history"][-1]["num_updates"] == 1


def test_averages_begin_with_the_weights_of_a_checkpoint_without_any(
    train_here: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = train_here(tmp_path, "--max-epoch", 1)["model"]
    after = train_here(tmp_path, "--max-epoch", 2, "--store-ema", "--ema-decay", 0.75)
    assert "has no averages of --store-ema: they begin with its weights" in caplog.text
    for name, found in after["extra_state"]["ema"].items():
        if found.is_floating_point():
            torch.testing.assert_close(found, 0.75 * before[name] + 0.25 * after["model"][name])
    caplog.clear()
    train_here(tmp_path, "--max-epoch", 3, "--store-ema", "--ema-decay", 0.75)
    assert "has no averages" not in caplog.text


@pytest.mark.parametrize("restore", [True, False])
def test_a_pruned_training_writes_checkpoints_that_load(
    corpus: Corpus,
    train_here: Train,
    tmp_path: Path,
    restore: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base, folder = tmp_path / "base", tmp_path / "pruned"
    sizes = ["--encoder-layers", 3, "--decoder-layers", 2]
    keep = [*sizes, "--encoder-layers-to-keep", "0,2", "--decoder-layers-to-keep", "1"]
    before: list[object] = []
    if restore:
        train_here(base, *sizes, "--max-update", 1)
        before = ["--restore-file", base / "checkpoint_last.pt", "--reset-optimizer",
                  "--reset-dataloader", "--reset-meters"]  # fmt: skip
    state = train_here(folder, *keep, *before, "--max-update", 1)
    model = state["cfg"]["model"]
    assert (model["encoder_layers"], model["decoder_layers"]) == (2, 1)
    again = train_here(folder, *keep, "--max-update", 2)  # the same command goes on
    assert again["optimizer_history"][-1]["num_updates"] == 2
    path = str(folder / "checkpoint_last.pt")
    words = [str(corpus.data), "--path", path, "--cpu", "--batch-size", "13"]
    parser = options.get_generation_parser()
    capsys.readouterr()
    generate.main(
        convert_namespace_to_omegaconf(options.parse_args_and_arch(parser, input_args=words))
    )
    assert capsys.readouterr().out.count("\nH-") == 13


@pytest.mark.parametrize(
    ("given", "epochs"),
    [
        ("--max-epoch 3", 3),
        ("--max-epoch 3 --disable-validation", 3),
        ("--stop-min-lr 2e-4 --force-anneal 2 --lr-shrink 0.1", 2),
    ],
)
def test_the_last_epoch_is_saved_whatever_the_interval(
    train_here: Train, stop: Stop, tmp_path: Path, given: str, epochs: int
) -> None:
    """fairseq alone ends with status 0 and an empty folder."""
    stop(0, "train_step")
    state = train_here(tmp_path, "--save-interval", 10, *given.split())
    assert state["optimizer_history"][-1]["num_updates"] == epochs
    assert state["extra_state"]["train_iterator"]["epoch"] == epochs + 1
    is_validated = "--disable-validation" not in given
    assert (state["extra_state"].get("best") is not None) == is_validated
    assert (tmp_path / "checkpoint_best.pt").exists() == is_validated


@pytest.mark.parametrize(
    "schedule",
    ["inverse_sqrt", "polynomial_decay --total-num-update 9", "cosine --lr-period-updates 9",
     "reduce_lr_on_plateau"],
)  # fmt: skip
def test_a_warmup_begins_below_the_least_rate(
    train_here: Train, tmp_path: Path, schedule: str
) -> None:
    """fairseq alone trains nothing and ends with status 0."""
    given = ["--stop-min-lr", 1e-9, "--warmup-updates", 4, "--lr-scheduler", *schedule.split()]
    state = train_here(tmp_path, *given, "--max-epoch", 2)
    assert state["optimizer_history"][-1]["num_updates"] == 2


@pytest.mark.parametrize(
    ("option", "end", "updates"),
    [
        ("--max-update", 2, 2),
        ("--patience", 1, 2),
        ("--stop-time-hours", 1e-9, 1),
    ],
)
def test_a_training_that_has_ended_is_not_trained_again(
    train_here: Train,
    stop: Stop,
    tmp_path: Path,
    option: str,
    end: float,
    updates: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    stop(0, "train_step")
    caplog.set_level("INFO")
    written = []
    for _ in range(2):
        state = train_here(tmp_path, *SAME_SCORE, option, end)
        assert state["optimizer_history"][-1]["num_updates"] == updates
        written.append((tmp_path / "checkpoint_last.pt").stat().st_mtime_ns)
    assert written[0] == written[1]
    assert f"{option} {end}: this training has ended before" in caplog.text
    state = train_here(tmp_path, *SAME_SCORE, option, 1000 * end, "--max-epoch", updates + 1)
    expected = updates + (option != "--stop-time-hours")  # a microsecond is over too
    assert state["optimizer_history"][-1]["num_updates"] == expected


@pytest.mark.parametrize(
    ("end", "begin", "updates"),
    [
        ("--stop-time-hours 1e-9", "--finetune-from-model {}", 1),
        ("--stop-time-hours 1e-9", "--restore-file {} --reset-optimizer --reset-dataloader", 1),
        ("--patience 1", "--finetune-from-model {}", 2),
        ("--patience 1", "--restore-file {} --reset-dataloader", 3),
        ("--patience 1", "--restore-file {} --reset-lr-scheduler", 3),
    ],
)
def test_a_training_begins_with_the_weights_of_one_that_has_ended(
    train_here: Train,
    stop: Stop,
    tmp_path: Path,
    end: str,
    begin: str,
    updates: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    stop(0, "train_step")
    caplog.set_level("INFO")
    train_here(tmp_path / "before", *SAME_SCORE, *end.split())
    words = begin.format(tmp_path / "before" / "checkpoint_last.pt").split()
    state = train_here(tmp_path / "after", *SAME_SCORE, *end.split(), *words)
    assert state["optimizer_history"][-1]["num_updates"] == updates
    assert "ended before" not in caplog.text


def test_a_second_training_of_the_process_has_scores_of_its_own(
    train_here: Train, stop: Stop, tmp_path: Path
) -> None:
    """As the jobs of fairseq-hydra-train -m are."""
    stop(0, "train_step")
    first = train_here(tmp_path / "first", "--patience", 9, "--lr", 0.01, "--max-epoch", 4)
    worse = train_here(tmp_path / "worse", "--patience", 9, "--max-epoch", 1)
    score = worse["extra_state"]["val_loss"]
    assert score > first["extra_state"]["best"]
    assert worse["extra_state"]["best"] == score
    assert worse["extra_state"]["early_stop"] == {"best": score, "num_runs": 0}
    assert (tmp_path / "worse" / "checkpoint_best.pt").exists()
    for name in ("a", "b"):
        state = train_here(tmp_path / name, *SAME_SCORE, "--patience", 2)
        assert state["extra_state"]["early_stop"]["num_runs"] == 2
        assert state["optimizer_history"][-1]["num_updates"] == 3


def test_a_smaller_patience_ends_a_training_that_was_stopped_inside_an_epoch(
    train_here: Train,
    stop: Stop,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """There is no validation to make up, and fairseq's loop went round for ever."""
    arguments = [*SAME_SCORE, "--batch-size", 100, "--patience"]  # an epoch has five updates
    stop(17, "train_step")
    with pytest.raises(SystemExit):
        train_here(tmp_path, *arguments, 9)
    written = (tmp_path / "checkpoint_last.pt").stat().st_mtime_ns
    stop(0, "train_step")
    original, epochs = Trainer.lr_step, []

    def lr_step(self: Any, epoch: int, *rest: Any) -> Any:
        epochs.append(epoch)
        assert len(epochs) < 3, "the training does not end"
        return original(self, epoch, *rest)

    monkeypatch.setattr(Trainer, "lr_step", lr_step)
    caplog.set_level("INFO")
    state = train_here(tmp_path, *arguments, 2)
    assert state["optimizer_history"][-1]["num_updates"] == 17
    assert "--patience 2: this training has ended before" in caplog.text
    assert (tmp_path / "checkpoint_last.pt").stat().st_mtime_ns == written


def test_a_remainder_that_is_the_whole_epoch_is_not_left_out(
    train_here: Train, stop: Stop, tmp_path: Path
) -> None:
    """500 sentences are 5 batches of 100; the last is left out."""
    stop(0, "train_step")
    given = ["--batch-size", 100, "--skip-remainder-batch", "--max-epoch", 1, "--update-freq"]
    with pytest.raises(UserError, match=r"--skip-remainder-batch leaves no update .* has 5 batch"):
        train_here(tmp_path, *given, 5)
    state = train_here(tmp_path, *given, 4)
    assert state["optimizer_history"][-1]["num_updates"] == 1


def test_a_last_validation_that_was_killed_is_made_up(
    train_here: Train, stop: Stop, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class KilledError(Exception):
        pass

    def kill(*_: Any) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(TranslationTask, "valid_step", kill)
        stop(2, "train_step")
        with pytest.raises(KilledError):
            train_here(tmp_path, "--batch-size", 100, "--max-update", 2)
    before = checkpoints.read(tmp_path / "checkpoint_last.pt")
    stop(0, "train_step")
    after = train_here(tmp_path, "--batch-size", 100, "--max-update", 2)
    assert before["extra_state"]["val_loss"] is None
    assert after["extra_state"]["val_loss"] == after["extra_state"]["best"] is not None
    for name in ("model", "last_optimizer_state"):
        assert str(before[name]) == str(after[name])
    positions = [state["extra_state"]["train_iterator"] for state in (before, after)]
    assert positions[0] == positions[1]


@pytest.mark.parametrize(
    ("ends", "changes", "named"),
    [
        ("--max-epoch 1", "--dropout 0.3 --seed 2", "--seed, --dropout"),
        ("--max-epoch 1", "--lr 0.5 --label-smoothing 0.2", "--label-smoothing, --lr"),
        ("--max-update 2", "--lr 0.5", "--lr"),
        ("--max-epoch 1 --optimizer adagrad", "--lr 0.5", "--lr"),
        ("--max-epoch 1 --stop-min-lr 1e-5", "--stop-min-lr 0.9 --weight-decay 0.1", "--weight-d"),
        ("--max-epoch 1", "--max-epoch 2 --dropout 0.3 --seed 2", None),
        ("--max-update 2 --lr-scheduler polynomial_decay --power 2", "--max-update 1", None),
        (
            "--max-epoch 1",
            "--save-interval 3 --log-interval 7 --num-workers 1 --no-save --max-update 1000 "
            "--batch-size 100 --update-freq 2 --patience 9 --keep-last-epochs 2",
            None,
        ),
    ],
)
def test_options_that_come_after_the_end_are_named(
    train_here: Train,
    stop: Stop,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    ends: str,
    changes: str,
    named: str | None,
) -> None:
    stop(0, "train_step")
    train_here(tmp_path, *ends.split())
    train_here(tmp_path, *ends.split(), *changes.split())
    text = "checkpoint_last.pt has ended with "
    if named is None:
        assert text not in caplog.text
    else:
        assert caplog.text.count(text) == 1
        assert f"and nothing is trained with another {named}" in caplog.text


def test_a_move_is_no_other_training() -> None:
    old, new = ({"task": {"data": path}, "common": {"seed": 1, "cpu": path}} for path in "ab")
    assert training_end._changed(old, new) == training_end._changed(None, new) == []
    old["model"], new["model"] = {"_name": "a", "dropout": 0}, {"_name": "b", "new": 1}
    assert training_end._changed(old, new) == ["--arch"]
