"""Several processes train as one; a training that is told to stop, or loses a process, says so."""

import contextlib
import io
import logging
import multiprocessing
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.dataclass.configs import CheckpointConfig
from fairseq.distributed import utils as distributed_utils
from fairseq.trainer import Trainer
from fairseq_cli import train
from omegaconf import OmegaConf
from torch import Tensor
from torch import distributed as dist
from torch.multiprocessing.spawn import ProcessExitedException

from conftest import ROOT, Corpus
from models import build, padded, sentences
from resmlp_mt import signals
from resmlp_mt.errors import UserError
from resmlp_mt.fairseq_plugin import several_processes, stopping
from resmlp_mt.models import resmlp_mt  # noqa: F401  applies the remedies

OPTIONS = """
    --user-dir resmlp_mt --arch resmlp_mt_tiny --cpu --encoder-layers 1 --decoder-layers 1
    --encoder-embed-dim 64 --decoder-embed-dim 64 --share-all-embeddings
    --max-source-positions 40 --max-target-positions 40 --optimizer adam --lr 0.005
    --lr-scheduler inverse_sqrt --warmup-updates 20 --criterion label_smoothed_cross_entropy
    --dropout 0 --batch-size 25 --max-epoch 2 --seed 1 --num-workers 0 --log-format json
    --log-interval 1 --no-epoch-checkpoints --disable-validation
""".split()


# A process that has fairseq loaded, and nothing of what other tests have done, is forked for each.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["fairseq_cli.train", "resmlp_mt.models.resmlp_mt"])


def fairseq_train(arguments: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
    """The command, in a process of its own."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, force=True)
    os.environ.update(environment)
    os.chdir(ROOT)
    sys.argv = ["fairseq-train", *arguments]
    torch.set_num_threads(1)
    for number in signals.ENDING:
        signal.signal(number, signal.default_int_handler)
    try:
        train.cli_main()
    except Exception:  # a process that is not forked comes here by itself
        sys.excepthook(*sys.exc_info())
        sys.exit(1)


class Child:
    """fairseq-train in another process, which starts at once."""

    def __init__(self, arguments: Sequence[object], log: Path, **environment: str) -> None:
        self.log = log
        log.touch()
        words = [str(argument) for argument in arguments]
        self.process = FORKS.Process(
            target=fairseq_train, args=(words, log, environment), daemon=True
        )
        self.process.start()

    def send(self, number: signal.Signals) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def wait(self) -> tuple[int, str]:
        """The exit status, negative for a signal, and what was printed."""
        self.process.join(300)
        assert self.process.exitcode is not None, self.log.read_text()
        return self.process.exitcode, self.log.read_text()

    def wait_for(self, text: str) -> None:
        """Until something is printed."""
        end = time.monotonic() + 300
        while text not in self.log.read_text():
            assert self.process.is_alive(), self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.01)


def as_torchrun_starts_them(
    arguments: Sequence[object], logs: Path, processes: int = 2
) -> list[Child]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    logs.mkdir(parents=True, exist_ok=True)
    return [
        Child(
            arguments, logs / f"{rank}.log", RANK=str(rank), LOCAL_RANK=str(rank),
            WORLD_SIZE=str(processes), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
        )
        for rank in range(processes)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def one(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The checkpoint of one process that takes two batches for an update."""
    folder = tmp_path_factory.mktemp("one")
    options = [corpus.data, *OPTIONS, "--distributed-world-size", 1, "--update-freq", 2]
    status, log = Child([*options, "--save-dir", folder], folder / "log").wait()
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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_training_that_is_told_to_stop_goes_on_bit_for_bit(
    corpus: Corpus, tmp_path: Path, number: signal.Signals
) -> None:
    """Before the first epoch ends, with dropout, whose random numbers go on too."""
    options = [corpus.data, *OPTIONS, "--distributed-world-size", 1, "--dropout", 0.3, "--save-dir"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert Child([*options, whole], tmp_path / "whole.log").wait()[0] == 0
    child = Child([*options, stopped], tmp_path / "log")
    child.wait_for('"num_updates": "3"')
    child.send(number)
    status, log = child.wait()
    assert status == 128 + number
    assert f"{number.name}: stopped after update" in log
    assert f"and saved {stopped / 'checkpoint_last.pt'}. Continue with\n" in log
    assert "Traceback" not in log
    assert Child([*options, stopped], tmp_path / "log").wait()[0] == 0
    found, expected = (torch.load(f / "checkpoint_last.pt") for f in (stopped, whole))
    for name, value in expected["model"].items():
        assert torch.equal(found["model"][name], value)


def test_nohup_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    handlers: dict[int, object] = {}
    monkeypatch.setattr(signal, "signal", handlers.__setitem__)
    for before in (signal.SIG_IGN, signal.SIG_DFL):
        handlers.clear()
        hangup = {signal.SIGHUP: before}
        monkeypatch.setattr(signal, "getsignal", lambda number, hangup=hangup: hangup.get(number))
        stopping.handle_signals(has_launcher=False)
        assert (signal.SIGHUP in handlers) == (before == signal.SIG_DFL)
        assert {signal.SIGINT, signal.SIGTERM} <= handlers.keys()


def test_before_the_first_update_there_is_nothing_to_save(corpus: Corpus, tmp_path: Path) -> None:
    options = [corpus.data, *OPTIONS, "--distributed-world-size", 1, "--save-dir", tmp_path / "x"]
    child = Child(options, tmp_path / "log")
    child.wait_for("fairseq_cli.train")
    child.send(signal.SIGTERM)
    status, log = child.wait()
    if "the training had not begun" in log:
        assert status == 143
        assert not (tmp_path / "x" / "checkpoint_last.pt").exists()
    else:
        assert "stopped after update" in log  # the first update was already done


def signalled_while_printing() -> None:
    class Printing(io.StringIO):
        def flush(self) -> None:
            raise RuntimeError("reentrant call")

    sys.stdout = Printing()
    stopping.handle_signals(has_launcher=False)
    with contextlib.suppress(RuntimeError):  # as logging does
        os.kill(os.getpid(), signal.SIGTERM)
    sys.exit(0)


def test_a_signal_in_the_middle_of_printing_ends_the_process() -> None:
    process = FORKS.Process(target=signalled_while_printing, daemon=True)
    process.start()
    process.join(300)
    assert process.exitcode == 128 + signal.SIGTERM


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


def context(*codes: int) -> Any:
    processes = [SimpleNamespace(exitcode=code, join=lambda timeout: None) for code in codes]
    return SimpleNamespace(processes=processes)


def test_the_process_above_ends_as_its_processes_did() -> None:
    stopped = ProcessExitedException("", 0, 1, exit_code=143)
    with pytest.raises(SystemExit) as end:
        several_processes._end_like(context(143, 143), stopped)
    assert end.value.code == 143
    lost = ProcessExitedException("", 0, 1, exit_code=1)
    for codes, rank in (((1, -9), 1), ((-9, -15), 0), ((0, -11), 1)):
        with pytest.raises(UserError, match=rf"process of rank {rank} was killed by SIG"):
            several_processes._end_like(context(*codes), lost)


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
    monkeypatch.setattr(stopping, "handle_signals", lambda **_: None)
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


def test_a_plugin_that_came_too_late_does_not_train_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in several_processes.OF_TORCHRUN:
        monkeypatch.setenv(name, "2")
    with pytest.raises(UserError, match="torchrun has started 2 processes, but this one would"):
        several_processes._trainer_init(lambda self: None, None)


def test_the_command_that_goes_on() -> None:
    words = ["fairseq-train", "data (1)", "--reset-optimizer", "--lr", "0.1"]
    assert stopping.going_on(words, "checkpoint_last.pt") == "fairseq-train 'data (1)' --lr 0.1"
    assert stopping.going_on(words, "old.pt").endswith(" --restore-file checkpoint_last.pt")


@pytest.mark.parametrize("program", ["fairseq-hydra-train", "python -m fairseq_cli.hydra_train",
                                     "torchrun bin/fairseq-hydra-train"])  # fmt: skip
def test_the_command_that_goes_on_with_hydra(program: str) -> None:
    last = "checkpoint.restore_file=checkpoint_last.pt"
    start = [*program.split(), "--config-name", "x", "optimization.lr=[0.1]"]
    resets = ["checkpoint.reset_optimizer=true", "++checkpoint.reset_meters=True"]
    words = [*start, "checkpoint.restore_file=old.pt", *resets]
    expected = shlex.join(start)
    assert stopping.going_on(start, "checkpoint_last.pt") == expected
    assert stopping.going_on([*start, last], "checkpoint_last.pt") == f"{expected} {last}"
    in_words = ["reset_optimizer", "reset_meters"]
    assert stopping.going_on(words, "old.pt", in_words) == f"{expected} {last}"
    # those of a configuration file are turned off
    found = stopping.going_on(words, "old.pt", [*in_words, "reset_dataloader"])
    assert found == f"{expected} checkpoint.reset_dataloader=false {last}"


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
