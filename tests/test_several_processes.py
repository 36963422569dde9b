"""Several processes train as one; a training that loses a process says so."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.dataclass.configs import CheckpointConfig, DistributedTrainingConfig
from fairseq.distributed import utils as distributed_utils
from fairseq.trainer import Trainer
from fairseq_cli import train
from omegaconf import OmegaConf
from torch import Tensor
from torch import distributed as dist

from conftest import ROOT, Corpus
from models import build, padded, sentences
from resmlp_mt import signals
from resmlp_mt.errors import UserError
from resmlp_mt.fairseq_plugin import several_processes, stop_signals
from resmlp_mt.models import resmlp_mt  # noqa: F401  applies the remedies
from trainings import OPTIONS, as_torchrun_starts_them, training


@pytest.fixture(scope="module")
def one(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The checkpoint of one process that takes two batches for an update."""
    folder = tmp_path_factory.mktemp("one")
    options = [corpus.data, *OPTIONS, "--distributed-world-size", 1, "--update-freq", 2]
    status, log = training([*options, "--save-dir", folder], folder / "log").wait()
    assert status == 0, log
    state: dict[str, Any] = torch.load(folder / "checkpoint_last.pt")
    return state


def assert_same(folder: Path, expected: dict[str, Any]) -> None:
    found = torch.load(folder / "checkpoint_last.pt")
    updates = [state["optimizer_history"][-1]["num_updates"] for state in (found, expected)]
    assert updates[0] == updates[1]
    for name, value in expected["model"].items():
        torch.testing.assert_close(found["model"][name], value, rtol=1e-4, atol=1e-5)


def test_processes_of_torchrun_train_what_one_trains_with_two_batches(
    corpus: Corpus, tmp_path: Path, one: dict[str, Any]
) -> None:
    """No option names processes or backends; the job is stopped on the way and continues."""
    options = [corpus.data, *OPTIONS, "--save-dir", tmp_path]
    children = as_torchrun_starts_them(options, tmp_path / "logs")
    children[0].wait_for('"num_updates": "3"')
    children[1].send(signal.SIGTERM)  # to one of them alone
    for rank, child in enumerate(children):
        status, log = child.wait()
        assert status == 143, log
        assert ("Continue with" in log) == (rank == 0)
    first = torch.load(tmp_path / "checkpoint_last.pt")["optimizer_history"][-1]["num_updates"]
    assert 3 <= first < one["optimizer_history"][-1]["num_updates"]
    for child in as_torchrun_starts_them(options, tmp_path / "logs"):
        status, log = child.wait()
        assert status == 0, log
    assert_same(tmp_path, one)


def test_a_process_without_the_last_batch_of_an_epoch_counts_its_others(
    corpus: Corpus, tmp_path: Path
) -> None:
    """Of 7 batches and 2 for an update, the second process has 3."""
    options = [
        *(corpus.data, *OPTIONS),
        *("--batch-size", 72, "--required-batch-size-multiple", 1),
    ]
    one = training(
        [*options, "--distributed-world-size", 1, "--update-freq", 4, "--save-dir", tmp_path / "1"],
        tmp_path / "log",
    )
    options += ["--update-freq", 2, "--save-dir", tmp_path / "2"]
    losses = []
    for child in (one, *as_torchrun_starts_them(options, tmp_path / "logs")):
        status, log = child.wait()
        assert status == 0, log
        losses.append(re.findall(r'"train_loss": "([^"]+)"', log))
    assert losses[:2] == [losses[0]] * 2
    assert_same(tmp_path / "2", torch.load(tmp_path / "1" / "checkpoint_last.pt"))


@pytest.mark.slow
def test_two_nodes_of_torchrun_at_two_addresses(
    corpus: Corpus, tmp_path: Path, one: dict[str, Any]
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    programs = Path(sys.executable).parent
    nodes = [
        subprocess.Popen(
            [
                programs / "torchrun", "--nnodes", "2", "--node-rank", str(node),
                "--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", str(port),
                "--local-addr", f"127.0.0.{node + 1}", programs / "fairseq-train", corpus.data,
                *OPTIONS, "--save-dir", tmp_path,
            ],
            cwd=ROOT,
        )
        for node in range(2)
    ]  # fmt: skip
    assert [node.wait(timeout=600) for node in nodes] == [0, 0]
    assert_same(tmp_path, one)


def test_the_rank_that_was_killed_is_named(corpus: Corpus, tmp_path: Path) -> None:
    options = [corpus.data, *OPTIONS, "--max-epoch", 500, "--save-dir", tmp_path]
    children = as_torchrun_starts_them(options, tmp_path / "logs")
    children[0].wait_for('"num_updates": "3"')
    children[1].send(signal.SIGKILL)
    status, log = children[0].wait()
    assert status == 1
    assert children[1].wait()[0] == -signal.SIGKILL
    assert "the training ended because its process of rank 1 has ended" in log
    assert "Traceback" not in log


def ended(*codes: int) -> list[Any]:
    """Processes that have ended with these codes."""
    sentinel, other = os.pipe()
    os.close(other)
    return [SimpleNamespace(exitcode=code, sentinel=os.dup(sentinel)) for code in codes]


@pytest.mark.parametrize(
    ("codes", "status"),
    [
        ([143], 143),
        ([0, 1], 1),
        ([None, 1], 1),
        *(([-number], 128 + number) for number in signals.ENDING),
    ],
)
def test_the_process_above_ends_as_its_processes_did(
    tmp_path: Path, codes: list[int | None], status: int
) -> None:
    with pytest.raises(SystemExit) as found:
        several_processes._end_like(codes, 0, CheckpointConfig(save_dir=str(tmp_path)))
    assert found.value.code == status


@pytest.mark.parametrize(("codes", "index"), [([1, -9], 1), ([-9, -15], 0), ([0, -11, None], 1)])
@pytest.mark.parametrize("start", [0, 4])
def test_the_process_above_names_the_one_that_was_killed(
    tmp_path: Path, codes: list[int | None], index: int, start: int
) -> None:
    with pytest.raises(UserError, match=rf"process of rank {start + index} was killed by SIG"):
        several_processes._end_like(codes, start, CheckpointConfig(save_dir=str(tmp_path)))


def test_ends_are_those_before_the_others_are_ended() -> None:
    processes = ended(0, 1, -9)
    running = SimpleNamespace(exitcode=None, sentinel=processes[0].sentinel)
    assert several_processes._first_ends([*processes, running]) == [0, 1, -9, None]
    assert several_processes._first_ends(ended(0, 0)) == [0, 0]


def test_processes_are_waited_for_until_one_fails() -> None:
    codes = iter([None, None, 3])

    class Process:
        sentinel = ended(0)[0].sentinel

        @property
        def exitcode(self) -> int | None:
            return next(codes)

    assert several_processes._first_ends([Process()]) == [3]


@pytest.mark.parametrize("in_thread", [False, True])
def test_signals_wait_while_processes_start_and_are_nobodys_afterwards(
    monkeypatch: pytest.MonkeyPatch, in_thread: bool
) -> None:
    """A notebook, or hydra with several trainings, goes on after one."""
    handlers: list[object] = []
    masks: list[set[int]] = []

    class Context(SimpleNamespace):
        def join(self) -> bool:
            handlers.append(signal.getsignal(signal.SIGTERM))
            masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, []))
            return True

    def spawn(**_: object) -> Context:
        masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, []))
        return Context(processes=ended(0, 0))

    monkeypatch.setattr(several_processes, "spawn", spawn)
    cfg = SimpleNamespace(distributed_training=SimpleNamespace(distributed_rank=0), checkpoint=None)
    before = [signal.getsignal(number) for number in signals.ENDING]
    if in_thread:  # where Python refuses to set handlers
        thread = threading.Thread(
            target=several_processes._start_processes, args=(cfg, None, {}, 2, 0)
        )
        thread.start()
        thread.join()
    else:
        several_processes._start_processes(cfg, None, {}, 2, 0)
    assert set(signals.ENDING) <= masks[0]
    assert not masks[1] & set(signals.ENDING)
    assert (handlers == [before[1]]) == in_thread
    assert [signal.getsignal(number) for number in signals.ENDING] == before


def test_signals_are_nobodys_after_a_training(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*several_processes.OF_TORCHRUN, "SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST"):
        monkeypatch.delenv(name, raising=False)
    cfg = OmegaConf.create(
        {
            "common": {"cpu": True, "tpu": False},
            "distributed_training": OmegaConf.structured(
                DistributedTrainingConfig(distributed_world_size=1)
            ),
        }
    )
    before = [signal.getsignal(number) for number in signals.ENDING]

    def fail(*_: object) -> None:
        assert signal.getsignal(signal.SIGTERM) == stop_signals._request
        raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        several_processes._call_main(fail, cfg, train.main)
    assert [signal.getsignal(number) for number in signals.ENDING] == before


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception], str]:
    """The process of rank 5 with an error, and all that it writes at once."""

    def run(error: Exception) -> str:
        def fail(index: int, main: object, cfg: object, kwargs: dict[str, int]) -> None:
            kwargs.clear()  # as fairseq does
            raise error

        written: list[bytes] = []
        monkeypatch.setattr(distributed_utils, "distributed_main", fail)
        monkeypatch.setattr(sys, "orig_argv", sys.orig_argv)
        for name in ("handle_signals", "stop_after_an_update"):
            monkeypatch.setattr(stop_signals, name, lambda *_, **__: None)
        monkeypatch.setattr(several_processes, "end_with_parent", lambda: None)
        monkeypatch.setattr(os, "write", lambda _, text: written.append(text))
        with pytest.raises(SystemExit) as found:
            several_processes._worker(1, train.main, None, {"start_rank": 4}, [], [])
        monkeypatch.undo()
        assert found.value.code == 1
        (told,) = written  # in pieces it would mix with that of other processes
        return told.decode()

    return run


def test_a_process_prints_its_own_traceback(failing: Callable[[Exception], str]) -> None:
    """torch hands on that of the first process to end, which may have lost the one that failed."""
    told = failing(ValueError("of this rank"))
    assert told.startswith("rank 5:\nTraceback")
    assert told.rstrip().endswith("ValueError: of this rank")


def test_a_process_prints_its_own_mistake(failing: Callable[[Exception], str]) -> None:
    assert failing(UserError("x is missing.")) == "rank 5: x is missing.\n"


@pytest.mark.parametrize("processes", [1, 2])
def test_the_longest_sentence_of_all_processes_is_saved(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, processes: int
) -> None:
    model, group = build().train(), object()
    model(padded(sentences([5])), None, padded(sentences([4])))

    class Alone:
        data_parallel_rank, data_parallel_process_group = 0, group

        def get_model(self) -> object:
            return model

    def reduced(tensor: Tensor, group: object, op: str) -> None:
        assert (group, op) == (Alone.data_parallel_process_group, "max")
        tensor.clamp_(min=9)  # of the other process

    monkeypatch.setattr(dist, "is_initialized", lambda: processes > 1)
    monkeypatch.setattr(distributed_utils, "all_reduce", reduced)
    nothing_saved = OmegaConf.structured(CheckpointConfig(save_dir=str(tmp_path), no_save=True))
    checkpoint_utils.save_checkpoint(nothing_saved, Alone(), {}, None)
    assert model.encoder.longest_trained_source == (5 if processes == 1 else 9)


def test_a_process_that_fails_waits_for_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """fairseq's trainer saves crash.pt in the failing process alone."""

    class Failing:
        cfg = OmegaConf.create({"checkpoint": {"no_save_optimizer_state": True}})
        data_parallel_world_size = 2

    monkeypatch.delattr(distributed_utils, "all_reduce")
    Trainer.consolidate_optimizer(Failing())


@pytest.mark.parametrize(("cuda", "cpu"), [(True, False), (True, True), (False, False)])
def test_the_backends_are_those_of_the_device(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, cpu: bool
) -> None:
    """GPUs keep nccl and the user's choices; the rest is the same code."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    environment = {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8"}
    for name, value in {**environment, "MASTER_ADDR": "node", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    called = []
    monkeypatch.setattr(stop_signals, "handle_signals", lambda **_: {})
    config = OmegaConf.create(
        {
            "common": {"cpu": cpu},
            "distributed_training": {
                "distributed_world_size": 1, "distributed_init_method": None,
                "distributed_rank": 0, "device_id": 0, "distributed_no_spawn": False,
                "distributed_backend": "nccl", "ddp_backend": "pytorch_ddp",
            },
        }
    )  # fmt: skip
    several_processes._call_main(lambda cfg, main: called.append(cfg), config, train.main)
    found = called[0].distributed_training
    assert (found.distributed_world_size, found.distributed_rank, found.device_id) == (8, 5, 1)
    assert found.distributed_init_method == "env://"
    assert found.distributed_no_spawn
    gpu = cuda and not cpu
    assert found.distributed_backend == ("nccl" if gpu else "gloo")
    assert found.ddp_backend == ("pytorch_ddp" if gpu else "legacy_ddp")


@pytest.mark.parametrize(
    ("world", "address", "rank", "started"),
    [(2, None, 0, (2, 0)), (8, "tcp://first:1", 4, (4, 4)), (1, None, 0, None)],
)
def test_a_process_for_every_gpu_is_started_here(
    monkeypatch: pytest.MonkeyPatch, world: int, address: str | None, rank: int,
    started: tuple[int, int] | None,
) -> None:  # fmt: skip
    """On each of two machines with four GPUs, or on this one: they then receive its signals."""
    for name in (*several_processes.OF_TORCHRUN, "SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    found: list[Any] = []
    monkeypatch.setattr(
        several_processes, "_start_processes",
        lambda cfg, main, kwargs, processes, start_rank: found.append((processes, start_rank)),
    )  # fmt: skip
    monkeypatch.setattr(stop_signals, "handle_signals", lambda **_: {})
    options = OmegaConf.structured(
        DistributedTrainingConfig(
            distributed_world_size=world, distributed_init_method=address, distributed_rank=rank
        )
    )
    common = {"cpu": False, "tpu": False}
    cfg = OmegaConf.create({"common": common, "distributed_training": options})
    several_processes._call_main(lambda cfg, main: found.append(None), cfg, train.main)
    assert found == [started]
    assert (cfg.distributed_training.distributed_init_method is None) == (started is None)


def test_processes_for_no_gpu_are_refused() -> None:
    """fairseq ends with status 0 and has trained nothing."""
    with pytest.raises(UserError, match="but there is no GPU: give --cpu"):
        several_processes._start_processes(None, None, {}, 0, 0)


def test_a_plugin_that_came_too_late_does_not_train_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in several_processes.OF_TORCHRUN:
        monkeypatch.setenv(name, "2")
    with pytest.raises(UserError, match="torchrun has started 2 processes, but this one would"):
        several_processes.check_joined()


@pytest.fixture
def zombie() -> Iterator[int]:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    yield child
    os.waitpid(child, 0)


def test_a_process_that_has_ended_is_seen_before_it_is_waited_for(zombie: int) -> None:
    assert several_processes._ended(zombie)
    assert several_processes._ended(2**22)
    assert not several_processes._ended(os.getpid())
