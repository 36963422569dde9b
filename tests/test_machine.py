"""The machine that the program runs on: its cores, and the threads of PyTorch."""

import math
import subprocess
import sys
import threading
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import torch

from conftest import ROOT
from resmlp_mt import machine, translate


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, math.inf),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, math.inf),
        ({"cpu/cpu.cfs_quota_us": "50000\n"}, math.inf),
        ({"cpu.max": ""}, math.inf),
        ({}, math.inf),
    ],
)
def test_the_time_of_a_container_is_limited(
    tmp_path: Path, files: dict[str, str], expected: float
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert machine.quota(tmp_path) == expected


def test_cores_are_at_most_those_of_the_container(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: set(range(8)))
    for quota, cores in ((0.5, 1), (1.5, 2), (8.0, 8), (99.0, 8), (math.inf, 8)):
        monkeypatch.setattr(machine, "quota", lambda quota=quota: quota)
        assert machine.usable_cores() == cores


def threads_of_another() -> int:
    """The threads of a product in a thread that has not computed yet."""
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return found[0]


def test_threads_are_put_back() -> None:
    before = torch.get_num_threads()
    with suppress(RuntimeError), machine.threads_kept():
        machine.set_threads(before + 1)
        assert torch.get_num_threads() == threads_of_another() == before + 1
        raise RuntimeError
    assert torch.get_num_threads() == threads_of_another() == before


def test_a_command_leaves_the_threads_of_a_program_as_they_were(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    (tmp_path / "a.en").write_text("A dog runs.\n")
    words = ["--input", tmp_path / "a.en", "--output", tmp_path / "a.de", "--threads"]
    translate.main([*map(str, words), str(before + 1)])
    assert torch.get_num_threads() == threads_of_another() == before


def test_threads_are_put_back_where_pytorch_was_not_loaded_before() -> None:
    program = (
        "import sys; from resmlp_mt import machine\n"
        "with machine.threads_kept():\n"
        "    assert 'torch' not in sys.modules\n"
        "    import torch; before = torch.get_num_threads()\n"
        "    machine.set_threads(before + 1)\n"
        "assert torch.get_num_threads() == before"
    )
    run = partial(subprocess.run, cwd=ROOT, capture_output=True, text=True)
    done = run([sys.executable, "-c", program])
    assert done.returncode == 0, done.stderr
