"""The safe loader stays on: fairseq's checkpoints pass, anything else is refused; averages."""

import os
import re
import resource
import subprocess
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import ROOT, Corpus, fairseq, train
from resmlp_mt import average as average_command
from resmlp_mt.command_line import flag
from resmlp_mt.errors import UserError
from resmlp_mt.fairseq_plugin.checkpoints import (
    allow_safe_globals,
    average,
    check_digest,
    digest,
    read,
)
from resmlp_mt.fairseq_plugin.ranking import best_checkpoints, latest_checkpoints
from resmlp_mt.tensor_files import read as read_tensors
from resmlp_mt.tensor_files import write


class Payload:
    """Unpickling this touches a file: a stand-in for any callable in a hostile checkpoint."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_types_of_fairseq_checkpoints_load(tmp_path: Path) -> None:
    allow_safe_globals()
    state = {"args": Namespace(lr=[0.1]), "counts": np.array([1, 2]), "model": torch.ones(2)}
    torch.save(state, tmp_path / "x.pt")
    loaded = torch.load(tmp_path / "x.pt")
    assert loaded["args"] == state["args"]
    assert loaded["counts"].tolist() == [1, 2]


def test_any_other_callable_is_refused_and_not_called(
    tmp_path: Path, trained: Path, corpus: Corpus
) -> None:
    state = torch.load(trained / "checkpoint_best.pt")
    touched = tmp_path / "touched"
    state["extra_state"]["payload"] = Payload(touched)
    torch.save(state, tmp_path / "hostile.pt")
    for command in ("generate", "interactive"):
        refused = fairseq(
            command, corpus.data, "--user-dir", "resmlp_mt", "--path", tmp_path / "hostile.pt",
            "--cpu", "-s", "en", "-t", "de", typed=b"one\n", expect=1,
        )  # fmt: skip
        assert "hostile.pt cannot be read because it asks for" in refused.stdout
    with pytest.raises(UserError, match=r"hostile\.pt cannot be read because it asks for"):
        average([tmp_path / "hostile.pt"])
    assert not touched.exists()
    torch.load(tmp_path / "hostile.pt", weights_only=False)
    assert touched.exists()  # the payload does work: only the safe loader prevented it


def test_average_is_the_mean_of_every_parameter(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    paths, values = [], []
    for index in range(3):
        value = torch.randn(4, 5, generator=generator)
        values.append(value)
        path = tmp_path / f"{index}.pt"
        half = value.bfloat16()
        longest = torch.tensor([7, 9, 8][index])
        torch.save({"model": {"a": value, "half": half, "longest_trained": longest}}, path)
        paths.append(path)
    model = average(paths)["model"]
    expected = sum(value.double() for value in values) / 3
    torch.testing.assert_close(model["a"], expected.float(), rtol=0, atol=0)
    halves = sum(value.bfloat16().double() for value in values) / 3
    torch.testing.assert_close(model["half"], halves.bfloat16(), rtol=0, atol=0)
    assert torch.equal(model["longest_trained"], torch.tensor(9))


def test_a_checkpoint_that_counts_twice_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """``checkpoint*.pt`` also takes the copies that fairseq calls the last and the best."""
    state: dict[str, Any] = {"model": {"a": torch.ones(2)}}
    paths = [tmp_path / "checkpoint5.pt", tmp_path / "checkpoint_last.pt", tmp_path / "x.pt"]
    for path in paths:
        torch.save({**state, "digest": digest(state)} if path.stem != "x" else state, path)
    average([*paths[1:], paths[2]])
    assert "counts twice" not in caplog.text
    average(paths)
    assert f"{paths[1]} is the same as {paths[0]}: it counts twice." in caplog.text


@pytest.mark.parametrize("room", [0, 100, 3000])
def test_a_full_disk_leaves_the_earlier_average(room: int, tmp_path: Path) -> None:
    for name in ("1", "2"):
        torch.save({"model": {"a": torch.ones(1000)}}, tmp_path / f"{name}.pt")
    output = tmp_path / "average.pt"
    output.write_bytes(b"earlier")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    command = ["--inputs", *(str(tmp_path / f"{n}.pt") for n in "12"), "--output", str(output)]
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        with pytest.raises(
            UserError, match=r"--output .*average\.pt cannot be written \("
        ) as error:
            average_command.main(command)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(error.value)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    average_command.main(command)
    assert torch.load(output)["model"]["a"].tolist() == [1.0] * 1000


def test_a_place_without_writing_is_named_before_anything_is_read(tmp_path: Path) -> None:
    folder = Path("/proc")  # where root cannot write either
    if os.geteuid() != 0:
        folder = tmp_path / "mine"
        folder.mkdir(mode=0o500)
    inputs = ["--inputs", str(tmp_path / "missing.pt")]
    with pytest.raises(UserError, match=r"--output .*average\.pt cannot be written \("):
        average_command.main([*inputs, "--output", str(folder / "average.pt")])


def test_no_input_is_overwritten(tmp_path: Path) -> None:
    for name in ("1", "2"):
        torch.save({"model": {"a": torch.ones(2)}}, tmp_path / f"checkpoint{name}.pt")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    output = ["--output", str(tmp_path / "checkpoint2.pt")]
    for inputs in (
        [str(tmp_path / "checkpoint1.pt"), str(tmp_path / "checkpoint2.pt")],
        [str(tmp_path), "--num-epoch-checkpoints", "2"],
    ):
        with pytest.raises(UserError, match=r"checkpoint2\.pt is one of the checkpoints"):
            average_command.main(["--inputs", *inputs, *output])
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_average_has_the_name_of_a_checkpoint(tmp_path: Path) -> None:
    torch.save({"model": {"a": torch.ones(2)}}, tmp_path / "1.pt")
    output = tmp_path / "average.safetensors"
    with pytest.raises(UserError, match=r"average\.safetensors: the file is a checkpoint, so name"):
        average_command.main(["--inputs", str(tmp_path / "1.pt"), "--output", str(output)])
    assert not output.exists()


@pytest.mark.parametrize("option", ["", "no-"])
@pytest.mark.parametrize("kind", [[], ["--num-epoch-checkpoints", "2"]])
def test_the_best_need_to_be_asked_for(tmp_path: Path, option: str, kind: list[str]) -> None:
    argv = ["--inputs", str(tmp_path), *kind, "--output", str(tmp_path / "mean.pt")]
    with pytest.raises(UserError, match="-best-checkpoint-metric needs --num-best-checkpoints"):
        average_command.main([*argv, f"--{option}maximize-best-checkpoint-metric"])


def test_averaging_one_checkpoint_changes_nothing(trained: Path) -> None:
    (path,) = latest_checkpoints(trained, 1, by="epoch")
    ours, theirs = average([path])["model"], torch.load(path)["model"]
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_averaged_checkpoint_translates(corpus: Corpus, trained: Path, tmp_path: Path) -> None:
    output = tmp_path / "average.pt"
    command = [sys.executable, "-m", "resmlp_mt.average", "--inputs", str(trained)]
    done = subprocess.run(
        [*command, "--num-epoch-checkpoints", "3", "--output", str(output)],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "checkpoint40.pt, checkpoint39.pt, checkpoint38.pt" in done.stdout
    translated = fairseq(
        "generate", corpus.data, "--user-dir", "resmlp_mt", "--path", output, "--cpu",
    ).stdout  # fmt: skip
    assert translated.count("\nH-") == 13


@pytest.mark.parametrize(
    ("kind", "option"),
    [
        ("epoch", "longer, without --no-epoch-checkpoints"),
        ("update", "with --save-interval-updates N"),
        ("best", r"with --keep-best-checkpoints N\.$"),
    ],
)
def test_missing_checkpoints_are_told_with_what_writes_them(
    tmp_path: Path, kind: str, option: str
) -> None:
    (tmp_path / "checkpoint_best.pt").touch()
    told = rf"holds 0 {kind} checkpoints, but 3 were asked for: ask for fewer, or train {option}"
    words = ["--inputs", str(tmp_path), f"--num-{kind}-checkpoints", "3", "--output", "average.pt"]
    with pytest.raises(UserError, match=told):
        average_command.main(words)


def test_what_is_no_file_is_not_averaged(tmp_path: Path) -> None:
    (tmp_path / "checkpoint1.pt").mkdir()
    words = ["--inputs", str(tmp_path), "--num-epoch-checkpoints", "1", "--output", "average.pt"]
    with pytest.raises(UserError, match=r"^--inputs .*checkpoint1\.pt is not a file\.$"):
        average_command.main(words)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pth")
    with pytest.raises(UserError, match=r"pipe\.pth cannot be read: it is a pipe, not a file\.$"):
        read_tensors(tmp_path / "pipe.pth")


def test_latest_checkpoints_are_chosen_by_number(tmp_path: Path) -> None:
    for name in ("1", "2", "10", "_1_500", "_2_1000", "_last", "_best"):
        (tmp_path / f"checkpoint{name}.pt").touch()

    def names(*args: Any, **kwargs: Any) -> list[str]:
        return [path.name for path in latest_checkpoints(tmp_path, *args, **kwargs)]

    assert names(2, by="epoch") == ["checkpoint10.pt", "checkpoint2.pt"]
    assert names(2, by="epoch", upper_bound=9) == ["checkpoint2.pt", "checkpoint1.pt"]
    assert names(1, by="update") == ["checkpoint_2_1000.pt"]


# --- what an earlier training has left ---


def write_epochs(
    folder: Path, epochs: Sequence[int], *, start: float, of_epoch: int, best: bool = False
) -> None:
    """Checkpoints as a training writes them from a time on, each minute one."""
    for epoch in epochs:
        state = {
            "model": {"a": torch.ones(1)},
            "optimizer_history": [{"num_updates": of_epoch * epoch}],
            "extra_state": {"previous_training_time": 60.0 * epoch, "val_loss": 9.0 - epoch},
        }
        name = f".best_loss_{9 - epoch}.0000" if best else str(epoch)
        path = folder / f"checkpoint{name}.pt"
        torch.save(state, path)
        os.utime(path, (start + 60 * epoch,) * 2)


@pytest.mark.parametrize(("of_epoch", "is_certain"), [(100, False), (200, True)])
@pytest.mark.parametrize("new", [2, 4])
def test_what_an_earlier_training_has_left_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, new: int, of_epoch: int, is_certain: bool
) -> None:
    """Epochs 1 to 5 were trained, then epochs from 1 on again, and the last two are averaged."""
    write_epochs(tmp_path, range(1, 6), start=1e9, of_epoch=100)
    assert len(latest_checkpoints(tmp_path, 2, by="epoch")) == 2
    assert not caplog.text
    write_epochs(tmp_path, range(1, new + 1), start=1e9 + 10_000, of_epoch=of_epoch)
    told = rf"checkpoint{new}\.pt was written later than .*checkpoint{max(4, new + 1)}\.pt"
    if is_certain:
        with pytest.raises(UserError, match=told + ".*: they are of two trainings; remove"):
            latest_checkpoints(tmp_path, 2, by="epoch")
    else:
        latest_checkpoints(tmp_path, 2, by="epoch")
        assert re.search(told + ".*: if they are of two trainings, remove", caplog.text)
    assert len(latest_checkpoints(tmp_path, 2, by="epoch", upper_bound=new)) == 2


def test_best_checkpoints_of_an_earlier_training_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_epochs(tmp_path, [7, 8], start=1e9, of_epoch=100, best=True)
    best_checkpoints(tmp_path, 2)
    assert not caplog.text
    write_epochs(tmp_path, [2, 3], start=1e9 + 10_000, of_epoch=100, best=True)
    best_checkpoints(tmp_path, 2)
    assert "checkpoint.best_loss_6.0000.pt was written later than" in caplog.text


@pytest.mark.parametrize("seconds", [0, 1, -1])
def test_a_copied_folder_is_one_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, seconds: int
) -> None:
    """Its files have the same time, or one that grows or falls with their names."""
    write_epochs(tmp_path, range(1, 13), start=1e9, of_epoch=100)
    for number, path in enumerate(sorted(tmp_path.iterdir())):
        os.utime(path, (2e9 + seconds * number,) * 2)
    latest_checkpoints(tmp_path, 5, by="epoch")
    assert not caplog.text


def test_epochs_with_a_new_optimizer_are_of_the_same_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """--reset-optimizer counts updates from 0."""
    write_epochs(tmp_path, range(1, 6), start=1e9, of_epoch=100)
    write_epochs(tmp_path, range(6, 9), start=1e9, of_epoch=10)
    latest_checkpoints(tmp_path, 5, by="epoch")
    assert not caplog.text


# --- the best checkpoints ---


def write_best(folder: Path, values: dict[str, float], told: bool | None = None) -> None:
    """Files as ``--keep-best-checkpoints`` writes them, the values in them."""
    for index, (name, value) in enumerate(values.items()):
        state: dict[str, Any] = {"model": {}, "extra_state": {"val_loss": value}}
        if told is not None:
            metric = name.rpartition("_")[0]
            state["cfg"] = {
                "checkpoint": {
                    "best_checkpoint_metric": metric,
                    "maximize_best_checkpoint_metric": told,
                }
            }
        path = folder / f"checkpoint.best_{name}.pt"
        write(state, path)
        os.utime(path, (index, index))  # the newest is not the best


def best(folder: Path, count: int, maximize: bool | None = None) -> list[str]:
    paths = best_checkpoints(folder, count, maximize)
    return [path.name.removeprefix("checkpoint.best_") for path in paths]


def test_the_best_are_those_of_the_smallest_loss(tmp_path: Path) -> None:
    # the last digit of a name is random: the values in the files decide
    values = {
        "loss_3.1005": 3.1003,
        "loss_3.1009": 3.1001,
        "loss_10.0001": 10.0,
        "loss_4.0002": 4.0,
    }
    write_best(tmp_path, values, told=False)
    assert best(tmp_path, 2) == ["loss_3.1009.pt", "loss_3.1005.pt"]
    assert best(tmp_path, 3)[2] == "loss_4.0002.pt"
    assert best(tmp_path, 1, maximize=True) == ["loss_10.0001.pt"]


@pytest.mark.parametrize("told", [None, True])
def test_the_best_are_those_of_the_largest_bleu(tmp_path: Path, told: bool | None) -> None:
    write_best(
        tmp_path, {"bleu_31.2001": 31.2, "bleu_9.9001": 9.9, "bleu_0.0000": float("nan")}, told
    )
    assert best(tmp_path, 2) == ["bleu_31.2001.pt", "bleu_9.9001.pt"]
    (tmp_path / "checkpoint_best.pt").touch()
    with pytest.raises(UserError, match="holds 3 best checkpoints, but 4"):
        best(tmp_path, 4)


def test_without_a_value_in_the_file_the_name_counts(tmp_path: Path) -> None:
    for value in ("2.5000", "-1.0000", "10.0000"):
        write({"model": {}}, tmp_path / f"checkpoint.best_loss_{value}.pt")
    assert best(tmp_path, 2) == ["loss_-1.0000.pt", "loss_2.5000.pt"]


def test_an_unknown_direction_is_asked_for(tmp_path: Path) -> None:
    write_best(tmp_path, {"my_metric_1.0000": 1.0, "my_metric_2.0000": 2.0})
    with pytest.raises(UserError, match=r"larger my_metric better.*--no-maximize-best"):
        best(tmp_path, 1)
    assert best(tmp_path, 1, maximize=True) == ["my_metric_2.0000.pt"]
    write_best(tmp_path, {"my_metric_1.0000": 1.0, "my_metric_2.0000": 2.0}, told=True)
    assert best(tmp_path, 1) == ["my_metric_2.0000.pt"]


def test_a_contradiction_and_two_metrics_are_asked_about(tmp_path: Path) -> None:
    write_best(tmp_path, {"bleu_1.0000": 1.0}, told=False)
    with pytest.raises(UserError, match="its name and the training disagree".capitalize()):
        best(tmp_path, 1)
    write_best(tmp_path, {"loss_1.0000": 1.0})
    with pytest.raises(UserError, match="by bleu and loss"):
        best(tmp_path, 1)


@pytest.mark.parametrize("kind", [list, tuple, dict, Namespace])
def test_values_that_stand_in_many_places_keep_no_reader_busy(tmp_path: Path, kind: Any) -> None:
    """A list of ten lists of ten lists ..., each of which is in the file once."""
    value: Any = [0]
    for _ in range(20):
        names = [f"x{index}" for index in range(10)]
        value = kind([value] * 10) if kind in (list, tuple) else kind(**dict.fromkeys(names, value))
    torch.save({"model": {"a": torch.ones(2)}, "cfg": {"x": value}}, tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"x\.pt holds more than [\d,]+ values: it is damaged"):
        read(tmp_path / "x.pt")


def test_mistakes_are_named(tmp_path: Path) -> None:
    torch.save({"model": {"a": torch.ones(2)}}, tmp_path / "a.pt")
    torch.save({"model": {"a": torch.ones(3)}}, tmp_path / "b.pt")
    torch.save([1], tmp_path / "c.pt")
    torch.save({"model": {}, "last_optimizer_state": {}}, tmp_path / "optimizer.pt")
    (tmp_path / "d.pt").write_bytes(b"garbage")
    for names, message in (
        (["a", "b"], "b.pt has other parameters than"),
        (["a", "e"], "e.pt is not a file"),
        (["c"], "c.pt holds a list: expected a dictionary"),
        (["d"], "d.pt cannot be read"),
        (["optimizer"], "optimizer.pt holds no parameters"),
        ([], "names no checkpoint"),
    ):
        with pytest.raises(UserError, match=message):
            average([tmp_path / f"{name}.pt" for name in names])


def test_dictionaries_are_compared_where_checkpoints_know_them(tmp_path: Path) -> None:
    """A training that was resumed with a newer version has checkpoints with and without."""
    own, other = {"source": "f00", "target": "ba7"}, {"source": "f00", "target": "bad"}
    for name, digests in (("old", None), ("own", own), ("again", own), ("other", other)):
        state: dict[str, Any] = {"model": {"a": torch.ones(2)}}
        torch.save(state | ({"dictionaries": digests} if digests else {}), tmp_path / f"{name}.pt")
    for names in (["old", "own"], ["own", "old", "again"], ["old", "own", "again"]):
        assert average([tmp_path / f"{n}.pt" for n in names])["dictionaries"] == own
    for names in (["own", "other"], ["old", "own", "other"], ["own", "old", "other"]):
        with pytest.raises(UserError, match=r"other\.pt was trained with other dictionaries than"):
            average([tmp_path / f"{n}.pt" for n in names])


@pytest.mark.parametrize(
    ("section", "name", "before", "now", "is_refused"),
    [
        ("task", "source_lang", "en", "de", True),
        ("task", "target_lang", "zh", "zh_CN", False),
        ("task", "target_lang", "zh", None, False),
        ("model", "decoder_attention_heads", 2, 4, True),
        ("model", "activation_fn", "gelu", "relu", True),
        ("model", "share_all_embeddings", True, False, True),
        ("model", "dropout", 0.1, 0.2, False),
    ],
)
def test_checkpoints_of_other_trainings_are_not_averaged(
    tmp_path: Path, section: str, name: str, before: object, now: object, is_refused: bool
) -> None:
    """Their weights and dictionaries fit: those of the other direction, for instance."""
    paths = [tmp_path / "a.pt", tmp_path / "b.pt"]
    for path, value in zip(paths, (before, now), strict=True):
        torch.save({"model": {"a": torch.ones(2)}, "cfg": {section: {name: value}}}, path)
    if is_refused:
        message = rf"b\.pt was trained with another {flag(name)} than .*a\.pt: average checkpoints"
        with pytest.raises(UserError, match=message):
            average(paths)
    else:
        assert torch.equal(average(paths)["model"]["a"], torch.ones(2))


@pytest.mark.parametrize("cfg", [{1: 2, "a": 3}, {"model": {(1, 2): 3}}])
def test_options_without_a_digest_are_refused(tmp_path: Path, cfg: dict[Any, Any]) -> None:
    state = {"model": {"w": torch.ones(1)}, "cfg": cfg}
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"x\.pt is not a fairseq checkpoint: its entry 'cfg'"):
        average([tmp_path / "x.pt"])
    with pytest.raises(UserError, match=r"x\.pt does not have the digest"):
        check_digest({**state, "digest": "0" * 64}, tmp_path / "x.pt")


def test_a_value_beyond_all_numbers_is_named(tmp_path: Path) -> None:
    write_best(tmp_path, {"loss_1.000": 10**400})
    with pytest.raises(
        UserError, match=r"checkpoint\.best_loss_1\.000\.pt is damaged: its val_loss"
    ):
        best_checkpoints(tmp_path, 1)


def test_what_fairseq_may_load_stays_so_after_a_look(tmp_path: Path) -> None:
    """Its own loader follows ours, and old checkpoints hold a Namespace."""
    allow_safe_globals()
    torch.save({"model": {}, "args": Namespace(arch="x")}, tmp_path / "x.pt")
    for only_look in (True, False):
        read(tmp_path / "x.pt", only_look=only_look)
        assert torch.load(tmp_path / "x.pt", weights_only=True)["args"].arch == "x"


def test_a_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    write({"model": {}}, path)
    before = path.read_bytes()
    with pytest.raises(Exception, match="pickle"):
        write({"model": lambda: None}, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_resumes_with_the_safe_loader_on(corpus: Corpus, tmp_path: Path) -> None:
    train(corpus, tmp_path, "--max-epoch", 1)
    assert "Loaded checkpoint" in train(corpus, tmp_path, "--max-epoch", 2)


def test_a_changed_checkpoint_is_not_averaged(tmp_path: Path, trained: Path) -> None:
    """The average would have a digest that says that nothing was changed."""
    state = torch.load(trained / "checkpoint_best.pt")
    path = tmp_path / "x.pt"
    name = next(name for name, value in state["model"].items() if value.is_floating_point())
    state["model"][name].view(-1)[0] += 1
    torch.save(state, path)
    with pytest.raises(UserError, match=r"x\.pt does not have the digest that was written with it"):
        average([trained / "checkpoint_best.pt", path])
    del state["digest"]
    state["model"][name].view(-1)[0] = torch.nan
    torch.save(state, path)
    with pytest.raises(UserError, match=r"x\.pt has NaN or infinity"):
        average([path])
