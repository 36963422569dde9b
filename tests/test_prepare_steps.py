"""Records of steps, atomic files, and ordered work over processes."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from conftest import ROOT
from resmlp_mt.preparation import parallel
from resmlp_mt.preparation.steps import Steps, atomic_write


def test_a_file_has_its_old_content_until_the_new_one_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"old")

    def fill() -> None:
        with atomic_write(path) as file:
            file.write(b"half")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fill()
    assert path.read_bytes() == b"old"
    with atomic_write(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


class Work:
    """A step that writes its input; `fails` makes it stop after the first of two outputs."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.summary = out / "manifest.json"
        self.steps = Steps(out, self.summary)
        self.runs = 0

    @staticmethod
    def fill(path: Path) -> dict[str, str]:
        path.write_text("new")
        return {}

    def __call__(self, content: str, fails: bool = False) -> str:
        def action() -> dict[str, str]:
            self.runs += 1
            for name in "ab":
                with atomic_write(self.out / name) as file:
                    file.write(content.encode())
                if fails:
                    raise KeyboardInterrupt
            return {"said": content}

        outputs = [self.out / "a", self.out / "b"]
        record = self.steps.run("work", {"content": content}, outputs, action)
        return str(record["facts"]["said"])


def test_a_finished_step_is_skipped(tmp_path: Path) -> None:
    work = Work(tmp_path)
    assert [work("one"), work("one"), Work(tmp_path)("one")] == ["one"] * 3
    assert work.runs == 1
    assert work("two") == "two"
    assert work.runs == 2


def test_a_copied_folder_is_finished(tmp_path: Path) -> None:
    work = Work(tmp_path)
    work("one")
    os.utime(tmp_path / "b", ns=(1, 1))
    work("one")
    assert work.runs == 1


def test_a_step_cut_off_is_not_trusted_even_with_the_old_options(tmp_path: Path) -> None:
    work = Work(tmp_path)
    work("old")
    work.summary.write_text("{}")
    # Same size: only the record can tell that "a" is no longer what "old" made.
    with pytest.raises(KeyboardInterrupt):
        work("new", fails=True)
    assert (tmp_path / "a").read_text() == "new"
    assert not work.summary.exists()
    work("old")
    assert [(tmp_path / name).read_text() for name in "ab"] == ["old", "old"]


def test_what_a_step_cut_off_has_left_is_removed(tmp_path: Path) -> None:
    """Even if the step has other outputs when it is run again."""
    work = Work(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        work("old", fails=True)
    assert work.steps.outputs() == {"a", "b"}
    assert (tmp_path / "a").exists()
    work.steps.run("work", {"content": "new"}, [tmp_path / "b"], lambda: Work.fill(tmp_path / "b"))
    assert not (tmp_path / "a").exists()
    assert (tmp_path / "b").exists()


@pytest.mark.parametrize(
    "listed",
    [{"../victim": {}}, {"link/victim": {}}, {"": {}}, {".": {}}, {"a\0b": {}}, ["x"], 5, {"~": 1}],
)
def test_records_name_files_of_their_folder_alone(tmp_path: Path, listed: object) -> None:
    """A folder from elsewhere has records that this program did not write."""
    work, victim = Work(tmp_path / "out"), tmp_path / "victim"
    victim.write_text("of somebody else")
    work.steps.folder.mkdir(parents=True)
    (work.out / "link").symlink_to(tmp_path)
    record = work.steps.folder / "work.json"
    record.write_text(json.dumps({"outputs": {"../victim": {}}}))
    assert work.steps.outputs() == set()
    record.write_text(json.dumps({"outputs": listed}))
    assert work.steps.outputs() <= {"~"}
    work("new")
    assert victim.read_text() == "of somebody else"


def test_other_spellings_of_an_output_are_the_same_output(tmp_path: Path) -> None:
    work = Work(tmp_path)
    work("new")
    (work.steps.folder / "old.json").write_text(json.dumps({"outputs": {"x/../a": {}}}))
    assert work.steps.outputs() == {"a", "b"}


def test_names_of_files_need_not_be_utf_8(tmp_path: Path) -> None:
    name = os.fsdecode(b"a\xff.en")
    steps = Steps(tmp_path / "out", tmp_path / "m")
    (tmp_path / name).write_bytes(b"x\n")
    assert steps.digest(tmp_path / name) == steps.digest(tmp_path / name)
    assert str(tmp_path / name) in json.loads((steps.folder / "digests.json").read_text())


@pytest.mark.parametrize("damage", ["cut", "gone", "changed", "record"])
def test_what_is_damaged_is_made_again(tmp_path: Path, damage: str) -> None:
    work = Work(tmp_path)
    work("one")
    if damage == "cut":
        os.truncate(tmp_path / "b", 1)
    elif damage == "gone":
        (tmp_path / "b").unlink()
    elif damage == "changed":
        (tmp_path / "b").write_text("eno")
        os.utime(tmp_path / "b", ns=(1, 1))
    else:
        (tmp_path / ".steps" / "work.json").write_text('{"key": ')
    work("one")
    assert work.runs == 2
    assert (tmp_path / "b").read_text() == "one"


def test_a_digest_follows_the_file(tmp_path: Path) -> None:
    steps = Steps(tmp_path / "out", tmp_path / "m")
    path = tmp_path / "x"
    digests: list[str] = []
    for content, modified in ((b"one", 0), (b"two", 1), (b"two", 2), (b"six", 2)):
        path.write_bytes(content)
        os.utime(path, ns=(1, modified))
        digests.append(steps.digest(path))
    assert digests[0] != digests[1] == digests[2] != digests[3]


def slow_first(factor: int, number: int) -> int:
    time.sleep(0.2 if number == 0 else 0)
    return factor * number


@pytest.mark.parametrize("jobs", [1, 2])
def test_results_come_in_order_and_items_are_read_as_needed(jobs: int) -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for number in range(100):
            taken += 1
            yield number

    with parallel.mapped(jobs, partial, (slow_first, 3), items()) as results:
        first = list(itertools.islice(results, 5))
        assert first == [0, 3, 6, 9, 12]
        assert taken <= 5 + parallel.IN_FLIGHT_PER_PROCESS * jobs
        assert [*first, *results] == [3 * number for number in range(100)]


FAILING = """
import os
from functools import partial
from resmlp_mt.preparation import parallel
try:
    with parallel.mapped(2, partial, ({function},), {items}) as results:
        list(results)
except ValueError as error:
    print(error)
"""


INTERRUPTED = """
import os, signal, threading
from functools import partial
from resmlp_mt.preparation import parallel
signal.signal(signal.SIGINT, lambda *_: None)
for seconds in (0.05, 0.1, 0.2):
    threading.Timer(seconds, os.killpg, (0, signal.SIGINT)).start()
with parallel.mapped(2, partial, (abs,), [-1, -2]) as results:
    print(list(results))
"""


def test_ctrl_c_does_not_reach_workers_that_are_starting() -> None:
    """A terminal signals the whole group; they printed tracebacks."""
    command = [sys.executable, "-c", INTERRUPTED]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, start_new_session=True)
    assert (done.stdout, done.stderr) == ("[1, 2]\n", "")


ENDED = """
import multiprocessing, os, sys, time
from functools import partial
from resmlp_mt.command_line import command
from resmlp_mt.preparation import parallel
@command
def main():
    with parallel.mapped(2, partial, (time.sleep,), [0, 600, 600]) as results:
        next(results)
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
        os.kill(os.getpid(), int(sys.argv[1]))
        next(results)
main()
"""


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGKILL, -9)]
)
def test_workers_end_with_a_command_that_is_ended(number: int, status: int) -> None:
    """The signal of a service manager reaches the command alone."""
    command = [sys.executable, "-c", ENDED, str(int(number))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == status
    assert "Traceback" not in done.stderr
    workers = [Path("/proc", process, "stat") for process in done.stdout.split()]
    assert len(workers) == 2

    def runs(worker: Path) -> bool:
        with suppress(OSError):  # it is gone
            return worker.read_text().rpartition(")")[2].split()[0] != "Z"
        return False

    deadline = time.monotonic() + 30
    while any(map(runs, workers)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(runs, workers))


KILLED = """
import os
from resmlp_mt.preparation import parallel
try:
    parallel.run_in_process("--input-sentence-size", os._exit, 3)
except ValueError as error:
    print(error)
"""


def test_the_option_that_a_killed_process_depends_on_is_named() -> None:
    command = [sys.executable, "-c", KILLED]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert "memory ran out: use a smaller --input-sentence-size and run" in done.stdout


@pytest.mark.parametrize(
    ("function", "items", "message"),
    [("int", "['1', 'x', '2']", "invalid literal"), ("os._exit", "[3, 3]", "a smaller --jobs")],
)
def test_failures_of_workers_arrive(function: str, items: str, message: str) -> None:
    """In an interpreter of its own: what ends workers must not come near the test run."""
    done = subprocess.run(
        [sys.executable, "-c", FAILING.format(function=function, items=items)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert message in done.stdout
