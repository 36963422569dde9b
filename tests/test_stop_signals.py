"""A training that is told to stop ends its update, saves, and says how to go on."""

import contextlib
import io
import os
import re
import shlex
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fairseq.dataclass.configs import CheckpointConfig

from conftest import ROOT, Corpus
from forks import FORKS
from resmlp_mt.fairseq_plugin import continue_command, several_processes, stop_signals
from trainings import OPTIONS, training


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_training_that_is_told_to_stop_goes_on_bit_for_bit(
    corpus: Corpus, tmp_path: Path, number: signal.Signals
) -> None:
    """Before the first epoch ends, with dropout, whose random numbers go on too."""
    options = [corpus.data, *OPTIONS, "--distributed-world-size", 1, "--dropout", 0.3, "--save-dir"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert training([*options, whole], tmp_path / "whole.log").wait()[0] == 0
    child = training([*options, stopped], tmp_path / "log")
    child.wait_for('"num_updates": "3"')
    child.send(number)
    status, log = child.wait()
    assert status == 128 + number
    assert f"{number.name}: stopped after update" in log
    assert f"and saved {stopped / 'checkpoint_last.pt'}. Continue with\n" in log
    assert "Traceback" not in log
    assert training([*options, stopped], tmp_path / "log").wait()[0] == 0
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
        stop_signals.handle_signals(has_launcher=False)
        assert (signal.SIGHUP in handlers) == (before == signal.SIG_DFL)
        assert {signal.SIGINT, signal.SIGTERM} <= handlers.keys()


def test_before_the_first_update_there_is_nothing_to_save(corpus: Corpus, tmp_path: Path) -> None:
    options = [corpus.data, *OPTIONS, "--distributed-world-size", 1, "--save-dir", tmp_path / "x"]
    child = training(options, tmp_path / "log")
    child.wait_for("fairseq_cli.train")
    child.send(signal.SIGTERM)
    status, log = child.wait()
    if "the training had not begun" in log:
        assert status == 143
        assert not (tmp_path / "x" / "checkpoint_last.pt").exists()
    else:
        assert "stopped after update" in log  # the first update was already done


@pytest.mark.parametrize(("seconds", "is_killed"), [(0.5, False), (1.5, True)])
def test_a_sender_that_reaches_a_process_twice_is_no_second_wish(
    monkeypatch: pytest.MonkeyPatch, seconds: float, is_killed: bool
) -> None:
    """As ``timeout``, which signals its child and then the group of both."""
    now, killed, state = [0.0], list[int](), stop_signals._Stop
    monkeypatch.setattr(stop_signals, "forget_lost_terminal", lambda _: None)
    monkeypatch.setattr(stop_signals, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(os, "kill", lambda _, number: killed.append(number))
    for name, value in {"requested": 0, "process": os.getpid(), "updating": True}.items():
        monkeypatch.setattr(state, name, value)
    monkeypatch.setattr(state, "has_launcher", False)
    stop_signals._request(signal.SIGTERM, None)
    now[0] = seconds
    stop_signals._request(signal.SIGTERM, None)
    assert killed == [signal.SIGTERM] * is_killed


def signalled_while_printing() -> None:
    class Printing(io.StringIO):
        def flush(self) -> None:
            raise RuntimeError("reentrant call")

    sys.stdout = Printing()
    stop_signals.handle_signals(has_launcher=False)
    with contextlib.suppress(RuntimeError):  # as logging does
        os.kill(os.getpid(), signal.SIGTERM)
    sys.exit(0)


def test_a_signal_in_the_middle_of_printing_ends_the_process() -> None:
    process = FORKS.Process(target=signalled_while_printing, daemon=True)
    process.start()
    process.join(300)
    assert process.exitcode == 128 + signal.SIGTERM


def test_the_command_that_goes_on() -> None:
    words = ["fairseq-train", "data (1)", "--reset-optimizer", "--lr", "0.1"]
    assert (
        continue_command.going_on(words, "checkpoint_last.pt")
        == "fairseq-train 'data (1)' --lr 0.1"
    )
    assert continue_command.going_on(words, "old.pt").endswith(" --restore-file checkpoint_last.pt")


@pytest.mark.parametrize("program", ["fairseq-hydra-train", "python -m fairseq_cli.hydra_train",
                                     "torchrun bin/fairseq-hydra-train"])  # fmt: skip
def test_the_command_that_goes_on_with_hydra(program: str) -> None:
    last = "checkpoint.restore_file=checkpoint_last.pt"
    start = [*program.split(), "--config-name", "x", "optimization.lr=[0.1]"]
    resets = ["checkpoint.reset_optimizer=true", "++checkpoint.reset_meters=True"]
    words = [*start, "checkpoint.restore_file=old.pt", *resets]
    expected = shlex.join(start)
    assert continue_command.going_on(start, "checkpoint_last.pt") == expected
    assert continue_command.going_on([*start, last], "checkpoint_last.pt") == f"{expected} {last}"
    in_words = ["reset_optimizer", "reset_meters"]
    assert continue_command.going_on(words, "old.pt", in_words) == f"{expected} {last}"
    # those of a configuration file are turned off
    found = continue_command.going_on(words, "old.pt", [*in_words, "reset_dataloader"])
    assert found == f"{expected} checkpoint.reset_dataloader=false {last}"


@pytest.mark.parametrize(
    ("exists", "options", "expected"),
    [
        (False, {"restore_file": "old.pt"}, "run the same command again"),
        (True, {}, "run the same command again to continue from the last checkpoint"),
        (True, {"restore_file": "old.pt"}, "continue with a --restore-file checkpoint_last.pt"),
        (True, {"reset_meters": True}, "continue with a"),
    ],
)
def test_the_advice_does_not_begin_again(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    exists: bool,
    options: dict[str, Any],
    expected: str,
) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["a", "--reset-meters"])
    config = CheckpointConfig(save_dir=str(tmp_path), **options)
    if exists:
        (tmp_path / "checkpoint_last_x.pt").touch()
    assert continue_command.advice(config, "_x") == expected


PROGRAM = f"""#!{sys.executable}
import torch
torch.cuda.device_count = lambda: 2
from fairseq_cli.train import cli_main
if __name__ == "__main__":
    cli_main()
"""


IMPORTING = """
import os, time
from pathlib import Path
print("imports:", os.getpid(), flush=True)
while not Path(GO).exists():
    time.sleep(0.01)
"""


HANGING = """
import os, time
from fairseq.distributed import utils
def hang(*_):
    from resmlp_mt.fairseq_plugin import stop_signals
    stop_signals._Stop.updating = True
    print("hangs:", os.getpid(), flush=True)
    while True:
        time.sleep(1)
utils.distributed_main = hang
"""


class OnTwoDevices:
    """fairseq-train where PyTorch counts two GPUs, and each process computes on the CPU."""

    def __init__(self, folder: Path, *arguments: object, program_text: str = PROGRAM) -> None:
        program, self.log = folder / "fairseq-train", folder / "log"
        program.write_text(program_text)
        program.chmod(0o755)
        options = [option for option in OPTIONS if option != "--cpu"]
        words = [program, *options, "--distributed-world-size", 2, "--distributed-backend", "gloo",
                 "--ddp-backend", "legacy_ddp", *arguments]  # fmt: skip
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, *map(str, words)], stdout=log, stderr=log, cwd=ROOT
            )


@pytest.mark.skipif(torch.cuda.is_available(), reason="its processes would compute on GPUs")
def test_processes_that_fairseq_starts_for_gpus_save_when_told_to_stop(
    corpus: Corpus, tmp_path: Path
) -> None:
    """The signal comes to the process above them, which fairseq lets end at once."""
    job = OnTwoDevices(tmp_path, corpus.data, "--save-dir", tmp_path, "--max-epoch", 500)
    while '"num_updates": "3"' not in job.log.read_text():
        assert job.process.poll() is None, job.log.read_text()
        time.sleep(0.01)
    job.process.send_signal(signal.SIGTERM)
    log = job.log.read_text() if job.process.wait(300) != 143 else ""
    assert job.process.returncode == 143, log
    log = job.log.read_text()
    assert log.count("Continue with\n  fairseq-train --user-dir resmlp_mt") == 1
    assert "Traceback" not in log
    state = torch.load(tmp_path / "checkpoint_last.pt")
    assert state["optimizer_history"][-1]["num_updates"] >= 3
    assert state["extra_state"]["train_iterator"]["num_shards"] == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="its processes would compute on GPUs")
def test_a_mistake_in_processes_for_gpus_is_one_sentence(corpus: Corpus, tmp_path: Path) -> None:
    job = OnTwoDevices(tmp_path, corpus.data, "--restore-file", "missing.pt")
    assert job.process.wait(300) == 1
    log = job.log.read_text()
    assert "--restore-file missing.pt does not exist.\n" in log
    assert "Traceback" not in log


@pytest.mark.skipif(torch.cuda.is_available(), reason="its processes would compute on GPUs")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_processes_for_gpus_that_hang_can_be_ended(
    corpus: Corpus, tmp_path: Path, number: signal.Signals
) -> None:
    """By a second signal, or with the process above them."""
    program = PROGRAM.replace("if __name__", f"{HANGING}if __name__")
    job = OnTwoDevices(tmp_path, corpus.data, program_text=program)
    while len(processes := re.findall(r"hangs: (\d+)", job.log.read_text())) < 2:
        assert job.process.poll() is None, job.log.read_text()
        time.sleep(0.01)
    job.process.send_signal(number)
    if number != signal.SIGKILL:
        time.sleep(stop_signals.AT_ONCE + 0.1)
        assert job.process.poll() is None
    # a busy machine may hand on the first signal so late that the second still counts as the first
    while number != signal.SIGKILL and job.process.poll() is None:
        job.process.send_signal(number)
        time.sleep(stop_signals.AT_ONCE + 0.1)
    assert job.process.wait(300) == -number
    end = time.monotonic() + 300
    while not all(several_processes._ended(int(process)) for process in processes):
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.skipif(torch.cuda.is_available(), reason="its processes would compute on GPUs")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_processes_for_gpus_that_load_their_modules_are_stopped_without_a_traceback(
    corpus: Corpus, tmp_path: Path, number: signal.Signals
) -> None:
    """A terminal sends its signal to all processes, and Python's own handler would answer it."""
    go = tmp_path / "go"
    importing = IMPORTING.replace("GO", repr(str(go)))
    program = f"{PROGRAM}else:{textwrap.indent(importing, '    ')}"
    job = OnTwoDevices(tmp_path, corpus.data, program_text=program)
    while not (processes := re.findall(r"imports: (\d+)\n", job.log.read_text())):
        assert job.process.poll() is None, job.log.read_text()
        time.sleep(0.01)
    for process in map(int, [*processes, job.process.pid]):
        os.kill(process, number)
    go.touch()
    status, log = job.process.wait(300), job.log.read_text()
    assert status == 128 + number, log
    assert "Traceback" not in log
    assert "too little memory" not in log
