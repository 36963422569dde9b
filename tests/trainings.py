"""fairseq-train in processes of its own, which tests signal and kill."""

import logging
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from fairseq_cli import train

from conftest import ROOT
from resmlp_mt import signals

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
