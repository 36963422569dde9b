"""The image commands: recipes, the files of a wheel, signals, memory, and processes."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from conftest import ROOT
from resmlp_mt.errors import UserError
from resmlp_mt.vision import checkpoints, evaluate, image_dataset, knn, predict, train
from resmlp_mt.vision.classifier import Classifier, check_forward
from resmlp_mt.vision.distributed import start_process
from resmlp_mt.vision.images import BadImage
from resmlp_mt.vision.libraries import timm
from resmlp_mt.vision.memory import memory_told
from resmlp_mt.vision.trainer import Trainer
from resmlp_mt.vision.training_arguments import RECIPES, parse_args
from terminals import Terminal
from vision_checkpoints import checkpoint, folder, start, wait_for


def test_recipes_inherit_and_go_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # not in the checkout
    small, large = parse_args(["-c", "resmlp_s12"]), parse_args(["-c", "resmlp_s24.yaml"])
    assert (large.model, large.lr, large.epochs) == ("resmlp_s24", small.lr, small.epochs)
    assert parse_args(["-c", "configs/vision/finetune_cars.yaml", "--weights", "w.pth"]).lr == 5e-6
    with pytest.raises(UserError, match="mine/resmlp_s12 cannot be read"):
        parse_args(["-c", "mine/resmlp_s12"])
    Path("first.yaml").write_text("base: second.yaml\nlr: 0.5")
    Path("second.yaml").write_text("lr: 0.1\nopt: sgd")
    options = parse_args(["-c", "first.yaml"])
    assert (options.lr, options.opt) == (0.5, "sgd")
    Path("second.yaml").write_text("base: first.yaml")
    with pytest.raises(UserError, match="base must name another file"):
        parse_args(["-c", "first.yaml"])
    Path("many.yaml").write_text("a: &a [1, 1]\nb: &b [*a, *a]\nc: &c [*b, *b]\nlr: [*c, *c]")
    with pytest.raises(UserError, match="expected lines of the form OPTION: VALUE"):
        parse_args(["-c", "many.yaml"])


def test_a_wheel_has_the_recipes_and_models() -> None:
    """What setuptools would copy holds all files that are not Python: recipes, models, the page."""
    program = (
        "from setuptools import Distribution; d = Distribution({'script_name': 'setup.py'}); "
        "d.parse_config_files(); c = d.get_command_obj('build_py'); c.ensure_finalized(); "
        "print(*c.get_outputs(), sep='\\n')"
    )
    copied = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    package = ROOT / "resmlp_mt"
    patterns = ("configs/**/*", "pretrained/*/*", "serving/page/*", "py.typed", "*.toml")
    files = [file for pattern in patterns for file in package.glob(pattern) if file.is_file()]
    for file in files:
        assert f"build/lib/{file.relative_to(ROOT)}" in copied, file
    assert package / "configs/vision" == RECIPES


@pytest.fixture
def words(tmp_path: Path) -> list[Any]:
    """A training that does not end by itself."""
    data = folder(folder(tmp_path / "data", "train", a=8, b=8), a=2, b=2)
    return [
        "--data", data, "--img-size", 8, "--patch-size", 4, "--batch-size", 4, "--epochs", 10**6,
        "--recovery-interval", 1, "--output", tmp_path / "out", "--workers", 1,
    ]  # fmt: skip


def test_a_training_saves_when_its_terminal_is_closed(words: list[Any], tmp_path: Path) -> None:
    """Although its progress can no longer be shown."""
    with Terminal("from resmlp_mt.vision.train import main", *words) as terminal:
        terminal.read_until(lambda _: (tmp_path / "out/summary.csv").exists())
        before = checkpoints.load(tmp_path / "out/last.pth")["position"]["updates"]
        assert terminal.status_after_closing() == 129
    assert checkpoints.load(tmp_path / "out/last.pth")["position"]["updates"] >= before


def test_torchrun_does_not_call_a_stopped_training_complete(
    words: list[Any], tmp_path: Path
) -> None:
    run = ["torch.distributed.run", "--nproc-per-node", 2, "--standalone"]
    process = start(*run, "-m", "resmlp_mt.vision.train", *words, "--device", "cpu")
    wait_for(tmp_path / "out/summary.csv", process)
    os.killpg(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0, output
    updates = checkpoints.load(tmp_path / "out/last.pth")["position"]["updates"]
    last = f"-m resmlp_mt.vision.train --resume {tmp_path / 'out/last.pth'}"
    assert (
        f"stopped after update {updates}; continue with: torchrun --nproc-per-node 2 {last}"
        in output
    )


def test_a_signal_before_the_first_update_ends_at_once(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "from resmlp_mt.vision.signals import stops\n"
        "with stops():\n"
        "    os.kill(os.getpid(), int(sys.argv[1]))\n"
        "    print('not reached')"
    )
    for number, status in ((signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)):
        done = subprocess.run(
            [sys.executable, "-c", code, str(int(number))], cwd=ROOT, capture_output=True, text=True
        )
        assert (done.returncode, done.stdout) == (status, "")
        assert done.stderr == "stopped before the first update: there is nothing to save\n"


NO_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    OSError(12, "Cannot allocate memory"),
]


@pytest.mark.parametrize("error", NO_MEMORY, ids=lambda error: str(error)[:30])
def test_a_batch_that_does_not_fit_is_a_sentence(
    words: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: Any) -> None:
        raise error

    for kind, name in ((Trainer, "_forward"), (Classifier, "logits"), (Classifier, "features")):
        monkeypatch.setattr(kind, name, fail)
    best, data = checkpoint(tmp_path / "best.pth", ["a", "b"]), tmp_path / "data"
    for main, given in (
        (train.main, words),
        (evaluate.main, [best, "--data", data]),
        (knn.main, [best, "--data", data, "-k", 1]),
        (predict.main, [best, data]),
    ):
        with pytest.raises(UserError, match=r"^there is not enough memory: give a smaller --batch"):
            main([*map(str, given), "--workers", "0"])


@pytest.mark.parametrize("error", NO_MEMORY[:2], ids=lambda error: str(error)[:30])
def test_memory_for_one_image_is_not_a_wrong_size(error: Exception) -> None:
    class Full(torch.nn.Linear):
        def forward(self, _: torch.Tensor) -> torch.Tensor:
            raise error

    with pytest.raises(UserError, match=r"^there is not enough memory for best\.pth and one image"):
        check_forward(Full(1, 1), "best.pth", (3, 8, 8), 1)


class Ungiven:
    """A part of a batch that cannot be given to another process."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        raise self.error


SMALL = r"memory or /dev/shm is too small; give --workers 0, or docker run --ipc=host\.$"
ELSEWHERE = r"--workers 0 shows where\.$"


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (signal.SIGKILL, rf"signal: Killed\): {SMALL}"),
        (signal.SIGTERM, rf"signal: Terminated\): {ELSEWHERE}"),
        (OSError(28, "No space left on device"), rf"exit code 12\): {SMALL}"),
        (OSError(24, "Too many open files"), rf"exit code 1\): {ELSEWHERE}"),
    ],
    ids=["killed", "ended", "full", "other"],
)
def test_a_reading_process_that_ends_is_a_sentence(
    words: list[Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    fault: signal.Signals | OSError,
    said: str,
) -> None:
    """As by the system, for want of memory, or in a container, whose /dev/shm has 64 MB.

    Without memory for its batch, a process would give none, and be waited for for ever.
    """

    def fail(name: str) -> Image.Image:
        if isinstance(fault, OSError):
            raise BadImage(name, Ungiven(fault))  # type: ignore[arg-type]
        if fault != signal.SIGKILL:
            signal.signal(fault, signal.SIG_DFL)
        os.kill(os.getpid(), fault)
        raise AssertionError

    monkeypatch.setattr(image_dataset, "open_image", fail)
    best = checkpoint(tmp_path / "best.pth", ["a", "b"])
    for main, given in ((train.main, words), (evaluate.main, [best, "--data", tmp_path / "data"])):
        message = rf"^a process of --workers ended \(DataLoader worker \(pid \d+\) .* {said}"
        with pytest.raises(UserError, match=message):
            main([*map(str, given), "--workers", "1"])
        told = "cannot give its batch: Too many open files" in capfd.readouterr().err
        assert told == ("exit code 1\\" in said)


@pytest.mark.parametrize(
    ("ended", "told"),
    [
        ("is killed by signal: Killed. ", "is killed by signal: Killed): memory or /dev/shm is"),
        ("is killed by signal: Bus error. ", "is killed by signal: Bus error): memory or /dev/shm"),
        ("is killed by signal: Segmentation fault. ", "fault): --workers 0 shows where."),
        ("exited unexpectedly with exit code 1. Details are lost.", "1): --workers 0 shows where."),
        ("exited unexpectedly with exit code 12. Details are lost.", "12): memory or /dev/shm is"),
        ("exited unexpectedly with exit code 127. Details.", "127): --workers 0 shows where."),
    ],
)
def test_only_ends_for_want_of_memory_are_said_to_be(ended: str, told: str) -> None:
    """PyTorch wraps some of these errors in another, which only says that there was an end."""
    first = RuntimeError(f"DataLoader worker (pid 5) {ended}")
    wrapping = RuntimeError("DataLoader worker (pid(s) 5) exited unexpectedly")
    wrapping.__cause__ = first
    for error in (first, wrapping):
        with pytest.raises(UserError) as caught, memory_told():
            raise error
        assert told in str(caught.value)
    unknown = RuntimeError("DataLoader worker (pid(s) 5) exited unexpectedly")
    with pytest.raises(UserError, match=r"unexpectedly\): --workers 0 shows"), memory_told():
        raise unknown


SLURM = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
MEETING = {"MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
RANKS = {"WORLD_SIZE": "4", "RANK": "1", "LOCAL_RANK": "1"}


@pytest.mark.parametrize(
    ("environment", "joins"),
    [
        ({}, False),
        (SLURM, False),  # a plain command in a job: timm would wait for three others
        (SLURM | MEETING, False),
        (SLURM | RANKS, False),
        (RANKS | MEETING, True),
        (SLURM | RANKS | MEETING, True),
        (SLURM | MEETING | {"SLURM_STEP_NUM_TASKS": "4"}, True),  # srun
        (SLURM | MEETING | {"SLURM_STEP_NUM_TASKS": "1"}, False),
    ],
)
def test_processes_are_joined_where_they_know_each_other(
    environment: dict[str, str], joins: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def join(device: str) -> dict[str, Any]:
        return {"device": device, "global_rank": 1, "local_rank": 1, "world_size": 4}

    monkeypatch.setattr(timm.utils.distributed, "init_distributed_device_so", join)
    for name in (*SLURM, *MEETING, *RANKS, "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert start_process("cpu").world_size == (4 if joins else 1)


@pytest.mark.parametrize(
    "environment",
    [SLURM | {"SLURM_STEP_NUM_TASKS": "4"}, RANKS | {"MASTER_ADDR": "localhost"}],
)
def test_processes_that_do_not_know_where_to_meet_are_refused(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each would train for itself."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="one of 4 processes, which do not know where to meet: st"):
        start_process("cpu")


def join(monkeypatch: pytest.MonkeyPatch, device: str, **changes: str) -> None:
    for name in (*SLURM, *MEETING, *RANKS, "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (RANKS | MEETING | changes).items():
        monkeypatch.setenv(name, value)
    start_process(device)


def test_processes_that_cannot_meet_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        message = (
            rf"^the 4 processes cannot meet at MASTER_ADDR localhost and MASTER_PORT {port} \("
        )
        with pytest.raises(
            UserError, match=message + r".*\): set them to the address of the first"
        ):
            join(monkeypatch, "cpu", RANK="0", MASTER_PORT=port)
    for port in ("port", "0", "65536", ""):
        with pytest.raises(UserError, match=f"^MASTER_PORT is '{port}': set it to a number from 1"):
            join(monkeypatch, "cpu", MASTER_PORT=port)
    with pytest.raises(UserError, match=r"cannot meet at .* \(invalid literal for int"):
        join(monkeypatch, "cpu", WORLD_SIZE="four")


def test_more_processes_than_gpus_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    message = "^--device cuda: process 2 of this machine, counted from 0, sees 2 GPUs: start as"
    with pytest.raises(UserError, match=message):
        join(monkeypatch, "cuda", RANK="2", LOCAL_RANK="2")
    slurm = SLURM | {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "3"}
    for name in RANKS:
        monkeypatch.delenv(name)
    for name, value in (slurm | MEETING).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="--device cuda: process 3 of"):
        start_process("cuda")
