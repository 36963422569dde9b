"""The job script of Slurm, run with stand-ins for Slurm's own commands."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from torch.distributed.launcher.api import LaunchConfig

from conftest import ROOT

SCRIPT = ROOT / "configs/slurm/train.sbatch"

# the step: waits for the signal that srun would hand on, and ends as a stopped training does
STUBS = {
    "scontrol": 'if [ "$1" = show ]; then echo node1; echo node2; else echo "$@" >> "$OUT"; fi',
    "fairseq-train": "exit 0",
    "srun": 'echo "$@" > "$OUT.srun"; echo "$TORCH_ELASTIC_SHUTDOWN_TIMEOUT" > "$OUT.timeout"; '
    'trap "exit 143" TERM; touch "$OUT.ready"; '
    'if [ -n "${LONG:-}" ]; then while :; do sleep 0.05; done; fi; exit "${STATUS:-0}"',
}


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in STUBS.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    return {
        "PATH": f"{folder}:{os.environ['PATH']}", "OUT": str(tmp_path / "out"),
        "SLURM_JOB_ID": "7", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_GPUS_ON_NODE": "8",
    }  # fmt: skip


def test_all_nodes_meet_at_the_first(environment: dict[str, str], tmp_path: Path) -> None:
    done = subprocess.run(["bash", SCRIPT, "data (1)", "--lr", "1"], env=environment)
    assert done.returncode == 0
    command = (tmp_path / "out.srun").read_text()
    assert "torchrun --nnodes 2 --nproc-per-node 8 --rdzv-id 7" in command
    assert "--rdzv-endpoint node1:29500" in command
    assert command.rstrip().endswith("fairseq-train data (1) --lr 1")
    assert not (tmp_path / "out").exists()  # a finished training is not begun again


def test_a_failed_training_is_not_begun_again(environment: dict[str, str], tmp_path: Path) -> None:
    done = subprocess.run(["bash", SCRIPT], env={**environment, "STATUS": "3"})
    assert done.returncode == 3
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "option",
    [
        "--restore-file",
        "--restore-file=x",
        "--reset-optimizer",
        "--reset-lr-scheduler",
        "--reset-meters",
        "--reset-dataloader",
    ],
)
def test_a_command_that_would_begin_again_is_refused(
    environment: dict[str, str], tmp_path: Path, option: str
) -> None:
    done = subprocess.run(
        ["bash", SCRIPT, "data", option, "x"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"{option.partition('=')[0]} would begin again")
    assert not (tmp_path / "out.srun").exists()


def test_a_command_that_goes_on_is_accepted(environment: dict[str, str], tmp_path: Path) -> None:
    words = ["data", "--reset-logging", "--restore-file=checkpoint_last.pt", "--restore-file",
             "checkpoint_last.pt"]  # fmt: skip
    assert subprocess.run(["bash", SCRIPT, *words], env=environment).returncode == 0
    assert (tmp_path / "out.srun").read_text().rstrip().endswith(" ".join(words))


def test_a_training_that_ends_after_the_signal_is_not_begun_again(
    environment: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "bin/srun").write_text(
        '#!/bin/bash\ntrap "exit 0" TERM; touch "$OUT.ready"; while :; do sleep 0.05; done\n'
    )
    job = subprocess.Popen(["bash", SCRIPT], env=environment)
    while not (tmp_path / "out.ready").exists():
        time.sleep(0.01)
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=300) == 0
    assert not (tmp_path / "out").exists()


def stopped(environment: dict[str, str], out: Path) -> tuple[int, str]:
    """The status and the messages of a job that is told to stop."""
    job = subprocess.Popen(
        ["bash", SCRIPT], env={**environment, "LONG": "1"}, stderr=subprocess.PIPE, text=True
    )
    while not out.with_suffix(".ready").exists():
        time.sleep(0.01)
    job.send_signal(signal.SIGTERM)
    _, told = job.communicate(timeout=300)
    return job.returncode, told


def test_a_stopped_training_is_put_into_the_queue_again(
    environment: dict[str, str], tmp_path: Path
) -> None:
    """``SECONDS`` is how long bash takes itself to have run."""
    out = tmp_path / "out"
    assert stopped({**environment, "SECONDS": "301"}, out) == (143, "")
    assert out.read_text() == "requeue 7\n"


def test_a_training_that_is_stopped_at_once_is_not_begun_again(
    environment: dict[str, str], tmp_path: Path
) -> None:
    """As Slurm does in every start if --time is below the seconds of --signal."""
    status, told = stopped(environment, tmp_path / "out")
    assert status == 143
    assert "give a --time longer than the seconds of --signal" in told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("given", [None, "1740"])
def test_torchrun_waits_for_a_validation(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], tmp_path: Path, given: str | None
) -> None:
    """Of itself it kills its processes after 30 seconds."""
    if given is not None:
        environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = given
    assert subprocess.run(["bash", SCRIPT, "data"], env=environment).returncode == 0
    seconds = int((tmp_path / "out.timeout").read_text())
    (notice,) = re.findall(r"^#SBATCH --signal=B:TERM@(\d+)$", SCRIPT.read_text(), re.MULTILINE)
    assert seconds == int(given or int(notice) - 60)
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(seconds))
    config = LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=1)
    if hasattr(config, "shutdown_timeout"):  # PyTorch 2.12
        assert config.shutdown_timeout == seconds
