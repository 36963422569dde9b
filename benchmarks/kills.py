"""Kills trainings at random moments and inside their writes, and checks that nothing is lost.

    python -m benchmarks.kills --work DIR

Trainings of a tiny and a usual size are killed with SIGKILL many times: at random moments, and
inside the writing, copying, synchronizing and renaming of their checkpoints. After every kill, all
checkpoints are read with their checksums, and the same command is run again. At the end, weights
and optimizer are compared bit by bit with those of a training that was never killed.

Of two processes under torchrun, each rank is killed, too; the seconds until the job has ended are
measured. Every finished row is written to kills.json and kills.md beside this file.
"""

import argparse
import json
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
import typing
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from resmlp_mt.command_line import command
from resmlp_mt.errors import UserError
from resmlp_mt.fairseq_plugin import checkpoints
from resmlp_mt.files import write_text

HERE = Path(__file__).resolve().parent
SAVE_EVERY = 5  # updates
LONG = 100_000  # updates, more than are waited for
PATIENCE = 300  # seconds
SIZES = {
    "tiny": (40, 150, """
        --arch resmlp_mt_tiny --encoder-layers 1 --decoder-layers 1 --encoder-embed-dim 64
        --decoder-embed-dim 64 --batch-size 32
    """),
    "usual": (8000, 60, """
        --arch resmlp_mt_6l --encoder-layers 3 --decoder-layers 3 --encoder-embed-dim 256
        --decoder-embed-dim 256 --encoder-ffn-embed-dim 1024 --decoder-ffn-embed-dim 1024
        --decoder-attention-heads 4 --batch-size 8
    """),
}  # fmt: skip
"""Words, updates and options of every size."""

KINDS = ("at random moments", "inside writes")
OPTIONS = f"""
    --user-dir resmlp_mt --cpu --distributed-world-size 1 --share-all-embeddings
    --max-source-positions 40 --max-target-positions 40 --dropout 0.1
    --criterion label_smoothed_cross_entropy --label-smoothing 0.1
    --optimizer adam --lr 0.001 --lr-scheduler inverse_sqrt --warmup-updates 20 --clip-norm 1.0
    --save-interval-updates {SAVE_EVERY} --validate-interval-updates {SAVE_EVERY}
    --keep-interval-updates 2 --no-epoch-checkpoints --num-workers 0 --log-format json --seed 1
""".split()


@dataclass
class Count:
    """The results for trainings of one size under one kind of kills."""

    size: str
    kind: str
    megabytes: float
    kills: int = 0
    unreadable: int = 0
    failed_starts: int = 0
    chains: int = 0
    chains_that_differ: int = 0


@dataclass
class LostRank:
    """The ends of trainings of two processes after one of them was killed."""

    rank: int
    seconds: list[float] = field(default_factory=list)
    named: int = 0  # by a sentence
    tracebacks: int = 0  # besides the one of torchrun's own report


class Writes:
    """Counts the steps of writing in this process, and kills it inside step ``fatal``."""

    def __init__(self, fatal: int | None = None) -> None:
        self.steps, self.fatal = 0, fatal

    def step(self) -> None:
        if self.steps == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        self.steps += 1

    def install(self) -> None:
        """Call :meth:`step` in the middle of every write and before every system call."""
        writes, save, step = self, torch.save, self.step

        class Halves:
            def __init__(self, file: Any) -> None:
                self.file, self.flush = file, file.flush

            def write(self, content: bytes) -> int:
                half = len(content) // 2
                self.file.write(content[:half])
                self.file.flush()
                writes.step()
                self.file.write(content[half:])
                return len(content)

        def copyfile(source: Any, target: Any, **_: Any) -> Any:
            with open(source, "rb") as file, open(target, "wb") as copy:
                while content := file.read(2**22):
                    Halves(copy).write(content)
            return target

        def stepping(call: Callable[..., Any]) -> Callable[..., Any]:
            def stepped(*args: Any, **kwargs: Any) -> Any:
                step()
                return call(*args, **kwargs)

            return stepped

        setattr(torch, "save", lambda value, file: save(value, typing.cast("Any", Halves(file))))  # noqa: B010
        setattr(shutil, "copyfile", copyfile)  # noqa: B010
        for name in ("fsync", "replace", "rename", "remove", "unlink"):
            setattr(os, name, stepping(getattr(os, name)))


def corpus(folder: Path, words: int) -> Path:
    """Random sentences, binarised."""
    data = folder / f"bin-{words}"
    if data.exists():
        return data
    rng = random.Random(words)
    names = [f"w{index}" for index in range(words)]
    dictionary = folder / f"dict-{words}.txt"
    dictionary.write_text("".join(f"{name} 1\n" for name in names))
    for split, size in (("train", 400), ("valid", 20)):
        for language in ("en", "de"):
            lines = (" ".join(rng.choices(names, k=rng.randint(2, 12))) for _ in range(size))
            (folder / f"{split}-{words}.{language}").write_text("\n".join(lines) + "\n")
    command = [
        "-s", "en", "-t", "de", "--trainpref", folder / f"train-{words}",
        "--validpref", folder / f"valid-{words}", "--srcdict", dictionary, "--joined-dictionary",
        "--destdir", data,
    ]  # fmt: skip
    program = Path(sys.executable).parent / "fairseq-preprocess"
    subprocess.run([program, *map(str, command)], check=True, stdout=subprocess.DEVNULL)
    return data


def start(arguments: list[str], log: Path, writes: Writes | None = None) -> int:
    """Start or continue a training in a forked process; returns its process id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        if writes is not None:
            writes.install()
        from fairseq_cli import train

        sys.argv = ["fairseq-train", *arguments]
        train.cli_main()
        if writes is not None and writes.fatal is None:
            (log.parent / "steps").write_text(str(writes.steps))
        status = 0
    except SystemExit as end:
        status = 1 if end.code else 0
        print(end.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def unreadable(folder: Path) -> int:
    """The number of checkpoints that cannot be read or have wrong checksums."""
    count = 0
    for path in folder.glob("checkpoint*.pt"):
        try:
            checkpoints.read(path)
        except UserError as error:
            print(error, flush=True)
            count += 1
    return count


def differs(one: Any, other: Any) -> bool:
    """Whether nested values differ in any bit."""
    if isinstance(one, torch.Tensor):
        return not torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() != other.keys() or any(differs(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) != len(other) or any(map(differs, one, other))
    return bool(one != other)


def measure(work: Path, size: str, kind: str, kills: int) -> Count:
    """Kill the training of a size ``kills`` times."""
    words, updates, options = SIZES[size]
    folder = work / f"{size}-{kind.split()[0]}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    arguments = [str(corpus(work, words)), *OPTIONS, *options.split()]
    arguments += ["--max-update", str(updates), "--save-dir"]
    whole, log = folder / "whole", folder / "log"
    began = time.monotonic()
    assert os.waitpid(start([*arguments, str(whole)], log, Writes()), 0)[1] == 0, log.read_text()
    seconds, steps = time.monotonic() - began, int((folder / "steps").read_text())
    expected = torch.load(whole / "checkpoint_last.pt", weights_only=True)
    megabytes = (whole / "checkpoint_last.pt").stat().st_size / 1e6
    count = Count(size, kind, round(megabytes, 1))
    rng = random.Random(f"{size} {kind}")
    killed = folder / "killed"
    while count.kills < kills:
        inside = kind.startswith("inside")
        writes = Writes(rng.randrange(min(400, max(1, steps // 5)))) if inside else None
        child = start([*arguments, str(killed)], log, writes)
        status: int | None = None
        if not inside:
            end = time.monotonic() + rng.uniform(0.5, min(6, 1 + seconds / 5))
            while time.monotonic() < end:
                done, status = os.waitpid(child, os.WNOHANG)
                if done:
                    break
                time.sleep(0.01)
            else:
                os.kill(child, signal.SIGKILL)
                status = os.waitpid(child, 0)[1]
        else:
            status = os.waitpid(child, 0)[1]
        if os.WIFSIGNALED(status):
            count.kills += 1
            count.unreadable += unreadable(killed)
        elif status != 0:
            count.failed_starts += 1
            print(log.read_text()[-2000:], flush=True)
            shutil.rmtree(killed)
        else:
            count.chains += 1
            count.chains_that_differ += compare(killed, expected)
            shutil.rmtree(killed)
        print(count, flush=True)
    status = os.waitpid(start([*arguments, str(killed)], log), 0)[1]
    count.failed_starts += status != 0
    count.chains += 1
    count.chains_that_differ += status != 0 or compare(killed, expected)
    return count


def compare(folder: Path, expected: dict[str, Any]) -> bool:
    """Whether weights or optimizer differ from those of the training that was never killed."""
    found = torch.load(folder / "checkpoint_last.pt", weights_only=True)
    return any(differs(found[part], expected[part]) for part in ("model", "last_optimizer_state"))


def kill_rank(work: Path, rank: int, kills: int) -> LostRank:
    """Kill one of two processes under torchrun, ``kills`` times."""
    lost = LostRank(rank)
    words, _, options = SIZES["tiny"]
    folder, log = work / f"rank{rank}", work / f"rank{rank}.log"
    programs = Path(sys.executable).parent
    for _ in range(kills):
        shutil.rmtree(folder, ignore_errors=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [
            programs / "torchrun", "--nproc-per-node", "2", "--master-port", port,
            programs / "fairseq-train", corpus(work, words), *OPTIONS, *options.split(),
            "--max-update", LONG, "--save-dir", folder,
        ]  # fmt: skip
        with log.open("w") as output:
            job = subprocess.Popen(
                [str(word) for word in command],
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            end = time.monotonic() + PATIENCE
            while not (folder / "checkpoint_last.pt").exists():  # training has begun
                assert job.poll() is None, log.read_text()
                assert time.monotonic() < end, log.read_text()
                time.sleep(0.1)
            os.kill(process_of(job.pid, rank), signal.SIGKILL)
            began = time.monotonic()
            job.wait(PATIENCE)
            lost.seconds.append(round(time.monotonic() - began, 1))
        finally:
            with suppress(ProcessLookupError):
                os.killpg(job.pid, signal.SIGKILL)
        said = log.read_text()
        lost.named += f"because its process of rank {rank} has ended" in said
        lost.tracebacks += max(said.count("Traceback") - 1, 0)
        print(lost, flush=True)
    return lost


def process_of(launcher: int, rank: int) -> int:
    """The process of a rank under torchrun."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    variable = f"RANK={rank}".encode()
    (found,) = (
        pid
        for pid in children
        if variable in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    )
    return int(found)


def table(counts: list[Count], ranks: list[LostRank]) -> str:
    """The counts as Markdown."""
    lines = [
        "Written by `benchmarks/kills.py`: trainings killed with SIGKILL, then given again.",
        "",
        "| checkpoint | kills | of them | unreadable files | failed starts | trainings finished | "
        "of them not bit-identical |",
        "|-|-|-|-|-|-|-|",
    ]
    for c in counts:
        lines.append(
            f"| {c.size}, {c.megabytes} MB | {c.kills} | {c.kind} | {c.unreadable} | "
            f"{c.failed_starts} | {c.chains} | {c.chains_that_differ} |"
        )
    lines += [
        "",
        "Two processes under torchrun, of which one was killed:",
        "",
        "| killed | kills | seconds until the job had ended: median, most | rank named in a "
        "sentence | tracebacks besides torchrun's own |",
        "|-|-|-|-|-|",
    ]
    for r in ranks:
        lines.append(
            f"| rank {r.rank} | {len(r.seconds)} | {statistics.median(r.seconds):.1f}, "
            f"{max(r.seconds):.1f} | {r.named} | {r.tracebacks} |"
        )
    return "\n".join(lines) + "\n"


@command
def main() -> None:
    parser = argparse.ArgumentParser(description="Kill trainings and count what is lost.")
    parser.add_argument("--work", required=True, type=Path, metavar="DIR")
    parser.add_argument("--kills", type=int, default=50, metavar="N", help="of each kind and size")
    parser.add_argument("--sizes", nargs="*", choices=SIZES, default=list(SIZES))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--ranks", nargs="*", type=int, choices=(0, 1), default=[0, 1])
    parser.add_argument("--rank-kills", type=int, default=5, metavar="N", help="of each rank")
    args = parser.parse_args()
    torch.set_num_threads(1)  # threads do not survive a fork
    import fairseq_cli.train  # noqa: F401  once for all lives

    import resmlp_mt.models  # noqa: F401

    args.work.mkdir(parents=True, exist_ok=True)
    for size in args.sizes:
        for kind in args.kinds:
            count = measure(args.work, size, kind, args.kills)
            if args.kills >= 50:
                keep(count)
    for rank in args.ranks:
        keep(kill_rank(args.work, rank, args.rank_kills))


def keep(row: Count | LostRank) -> None:
    """Write a row to the files beside this one, replacing an earlier row of its kind."""
    path = HERE / "kills.json"
    stored = json.loads(path.read_text()) if path.exists() else {"trainings": [], "ranks": []}
    counts = {(c.size, c.kind): c for c in (Count(**each) for each in stored["trainings"])}
    ranks = {r.rank: r for r in (LostRank(**each) for each in stored["ranks"])}
    if isinstance(row, Count):
        counts[row.size, row.kind] = row
    else:
        ranks[row.rank] = row
    trainings = sorted(counts.values(), key=lambda row: (list(SIZES).index(row.size), row.kind))
    lost = sorted(ranks.values(), key=lambda row: row.rank)
    rows = {"trainings": list(map(asdict, trainings)), "ranks": list(map(asdict, lost))}
    write_text(path, json.dumps(rows, indent=2) + "\n")
    write_text(HERE / "kills.md", table(trainings, lost))


if __name__ == "__main__":
    main()
