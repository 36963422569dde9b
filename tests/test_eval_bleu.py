"""BLEU on the validation set during training: the number is right and chooses the checkpoint."""

import json
import re
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from conftest import Corpus, fairseq, train
from resmlp_mt.fairseq_plugin.checkpoints import allow_safe_globals
from resmlp_mt.score import main as score

SEARCH = {"beam": 3, "lenpen": 0.6, "max_len_a": 1.0, "max_len_b": 5}
EVAL_BLEU = (
    *("--eval-bleu", "--eval-bleu-remove-bpe", "sentencepiece"),
    *("--eval-bleu-args", json.dumps(SEARCH)),
    *("--best-checkpoint-metric", "bleu", "--maximize-best-checkpoint-metric"),
)


class Training(NamedTuple):
    """The folder of checkpoints, and the BLEU that the log reports for each epoch."""

    folder: Path
    bleu: list[float]


def reported(log: str, key: str) -> list[float]:
    """What the validations in a log reported, in their order."""
    return [float(value) for value in re.findall(rf'"{key}": "([\d.]+)"', log)]


@pytest.fixture(scope="module")
def training(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Training:
    """Ten epochs that learn and one whose learning rate destroys the model."""
    folder = tmp_path_factory.mktemp("eval_bleu")
    log = train(
        corpus, folder, *EVAL_BLEU, "--dropout", 0, "--lr-scheduler", "fixed",
        "--lr", ",".join(["0.01"] * 10 + ["0.1"]), "--max-epoch", 11,
    )  # fmt: skip
    return Training(folder, reported(log, "valid_bleu"))


def parameters(path: Path) -> dict[str, torch.Tensor]:
    """The model of a checkpoint."""
    allow_safe_globals()
    model: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["model"]
    return model


def test_the_best_checkpoint_is_the_one_with_the_highest_bleu(training: Training) -> None:
    assert len(training.bleu) == 11
    highest = max(training.bleu)
    assert highest > 40.0
    assert training.bleu[-1] < highest / 2  # else the last checkpoint would pass as the best
    # fairseq keeps the later of two equals
    epoch = max(i for i, bleu in enumerate(training.bleu, start=1) if bleu == highest)
    best = parameters(training.folder / "checkpoint_best.pt")
    chosen = parameters(training.folder / f"checkpoint{epoch}.pt")
    last = parameters(training.folder / "checkpoint_last.pt")
    assert all(torch.equal(best[name], chosen[name]) for name in best)
    assert not all(torch.equal(best[name], last[name]) for name in best)


def test_reported_bleu_is_that_of_the_translations(
    training: Training, corpus: Corpus, tmp_path: Path
) -> None:
    """All 21 sentences count, against the raw reference; the log rounds to two decimals."""
    options = [f"--{name.replace('_', '-')}={value}" for name, value in SEARCH.items()]
    output = fairseq(
        "generate", corpus.data, "--user-dir", "resmlp_mt", "--cpu", "--gen-subset", "valid",
        "--path", training.folder / "checkpoint_best.pt", "--remove-bpe", "sentencepiece",
        *options,
    ).stdout  # fmt: skip
    (tmp_path / "gen.txt").write_text(output, encoding="utf-8")
    report = tmp_path / "score.json"
    argv = ("--generate-output", tmp_path / "gen.txt", "--ref", corpus.folder / "valid.de")
    score([*map(str, argv), "-m", "bleu", "--json", str(report)])
    found = json.loads(report.read_text())
    assert found["sentences"] == 21
    assert found["scores"][0]["score"] == pytest.approx(max(training.bleu), abs=0.1)


def test_a_resumed_training_remembers_the_best_bleu(training: Training, corpus: Corpus) -> None:
    """From the destroyed model one epoch cannot beat it: the best checkpoint has to stay."""
    best = parameters(training.folder / "checkpoint_best.pt")
    log = train(
        corpus, training.folder, *EVAL_BLEU, "--lr-scheduler", "fixed", "--lr", 0.0001,
        "--max-epoch", 12,
    )  # fmt: skip
    assert reported(log, "valid_best_bleu") == [max(training.bleu)]
    after = parameters(training.folder / "checkpoint_best.pt")
    assert all(torch.equal(best[name], after[name]) for name in best)
