"""The safe loader stays on: fairseq's checkpoints pass, anything else is refused; averages."""

import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import ROOT, Corpus, fairseq, train
from resmlp_mt.errors import UserError
from resmlp_mt.fairseq_plugin.checkpoints import (
    allow_safe_globals,
    average,
    latest_checkpoints,
    save,
)


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
            "--cpu", "-s", "en", "-t", "de", input="one\n", expect=1,
        )  # fmt: skip
        assert "Weights only load failed" in refused.stdout
    with pytest.raises(UserError, match=r"hostile\.pt cannot be read as a fairseq checkpoint"):
        average([tmp_path / "hostile.pt"])
    assert not touched.exists()
    torch.load(tmp_path / "hostile.pt", weights_only=False)
    assert touched.exists()  # the payload does work: only the safe loader stood before it


def test_average_is_the_mean_of_every_parameter(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    paths, values = [], []
    for index in range(3):
        value = torch.randn(4, 5, generator=generator)
        values.append(value)
        path = tmp_path / f"{index}.pt"
        half = value.bfloat16()
        torch.save({"model": {"a": value, "half": half, "version": torch.tensor([3])}}, path)
        paths.append(path)
    model = average(paths)["model"]
    expected = sum(value.double() for value in values) / 3
    torch.testing.assert_close(model["a"], expected.float(), rtol=0, atol=0)
    halves = sum(value.bfloat16().double() for value in values) / 3
    torch.testing.assert_close(model["half"], halves.bfloat16(), rtol=0, atol=0)
    assert model["version"].tolist() == [3]


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
    refused = subprocess.run(
        [*command, "--num-epoch-checkpoints", "99", "--output", str(output)],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert refused.returncode == 1
    assert refused.stderr.strip().endswith("holds 3 epoch checkpoints, but 99 were asked for.")


def test_latest_checkpoints_are_chosen_by_number(tmp_path: Path) -> None:
    for name in ("1", "2", "10", "_1_500", "_2_1000", "_last", "_best", ".best_bleu_31.20"):
        (tmp_path / f"checkpoint{name}.pt").touch()

    def names(*args: Any, **kwargs: Any) -> list[str]:
        return [path.name for path in latest_checkpoints(tmp_path, *args, **kwargs)]

    assert names(2, by="epoch") == ["checkpoint10.pt", "checkpoint2.pt"]
    assert names(2, by="epoch", upper_bound=9) == ["checkpoint2.pt", "checkpoint1.pt"]
    assert names(1, by="update") == ["checkpoint_2_1000.pt"]
    assert names(1, by="best") == ["checkpoint.best_bleu_31.20.pt"]


def test_mistakes_are_named(tmp_path: Path) -> None:
    torch.save({"model": {"a": torch.ones(2)}}, tmp_path / "a.pt")
    torch.save({"model": {"a": torch.ones(3)}}, tmp_path / "b.pt")
    torch.save([1], tmp_path / "c.pt")
    (tmp_path / "d.pt").write_bytes(b"garbage")
    for names, message in (
        (["a", "b"], "b.pt has other parameters than"),
        (["a", "e"], "e.pt is not a file"),
        (["c"], "c.pt is no fairseq checkpoint"),
        (["d"], "d.pt cannot be read"),
        ([], "names no checkpoint"),
    ):
        with pytest.raises(UserError, match=message):
            average([tmp_path / f"{name}.pt" for name in names])


def test_a_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    save({"model": {}}, path)
    before = path.read_bytes()
    with pytest.raises(Exception, match="pickle"):
        save({"model": lambda: None}, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_resumes_with_the_safe_loader_on(corpus: Corpus, tmp_path: Path) -> None:
    train(corpus, tmp_path, "--max-epoch", 1)
    assert "Loaded checkpoint" in train(corpus, tmp_path, "--max-epoch", 2)
