"""``python -m tests.mutation``: each fault of faults.py, one at a time, and whether tests notice.

Copies the tracked files to a temporary folder, runs the named tests there with each fault (one of
them must fail) and without any (they must pass), and writes docs/mutation.md.

The libraries are imported once; every run is a forked process that imports this project's code
from the copy.
"""

import argparse
import importlib
import multiprocessing
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import Phase, settings

from tests.mutation.faults import FAULTS, Fault

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/mutation.md"
SECONDS = 900
LIBRARIES = (
    "torch", "numpy", "fairseq.checkpoint_utils", "fairseq.tasks", "fairseq.models", "hypothesis",
    "sentencepiece", "sacrebleu", "sacremoses", "safetensors.torch", "yaml", "tqdm",
)  # fmt: skip


def main() -> int:
    """The status is 1 if a fault was not noticed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--room", help="only the faults of one room; writes no page")
    args = parser.parse_args()
    chosen = [fault for fault in FAULTS if args.room in (None, fault.room)]
    for name in LIBRARIES:
        importlib.import_module(name)
    rows: list[tuple[Fault, str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        copy(tree)
        passing: dict[str, bool] = {}  # without a fault, by arguments of pytest
        for fault in chosen:
            caught, seconds = noticed(tree, fault)
            if fault.tests not in passing:
                passing[fault.tests] = passes(tree, fault.tests)
            result = "**not caught**" if not caught else "caught"
            if not passing[fault.tests]:
                result = "**fails without the fault too**"
            print(f"{fault.room}: {fault.what}: {result}, {seconds:.0f} s", flush=True)
            rows.append((fault, result, seconds))
            if args.room is None:
                PAGE.write_text(page(rows), encoding="utf-8")
    return int(any(result != "caught" for _, result, _ in rows))


def copy(tree: Path) -> None:
    """The tracked files of this tree, as they are now."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, stdout=subprocess.PIPE, check=True)
    archive = ["tar", "--null", "--create", "--files-from=-", f"--file={tree}/tree.tar"]
    subprocess.run(archive, cwd=ROOT, input=names.stdout, check=True)
    subprocess.run(["tar", "--extract", "--file=tree.tar"], cwd=tree, check=True)


def noticed(tree: Path, fault: Fault) -> tuple[bool, float]:
    """Whether the tests notice a fault, and after how many seconds."""
    path = tree / fault.file
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(fault.old, fault.new, 1), encoding="utf-8")
    began = time.monotonic()
    caught = not passes(tree, fault.tests)
    seconds = time.monotonic() - began
    path.write_text(text, encoding="utf-8")
    return caught, seconds


def passes(tree: Path, tests: str) -> bool:
    """Whether all of the tests pass in the tree; those that do not end fail.

    Raises:
        RuntimeError: if pytest could not run them.
    """
    process = multiprocessing.get_context("fork").Process(target=run, args=(tree, tests))
    process.start()
    process.join(SECONDS)
    if process.is_alive():
        os.killpg(process.pid or 0, signal.SIGKILL)
        process.join()
        return False
    if process.exitcode not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise RuntimeError(f"pytest {tests} ended with {process.exitcode}")
    return process.exitcode == pytest.ExitCode.OK


def run(tree: Path, tests: str) -> None:
    """In a process of its own: run the tests of the tree on the code of the tree."""
    os.setsid()
    os.chdir(tree)
    os.environ["PYTHONPATH"] = str(tree)
    sys.dont_write_bytecode = True
    # which input shows a fault is all that counts, not the smallest
    settings.register_profile("mutation", phases=[Phase.explicit, Phase.generate])
    settings.load_profile("mutation")
    for name in [n for n in sys.modules if re.match(r"(resmlp_mt|tests|mutation)(\.|$)", n)]:
        del sys.modules[name]
    sys.path[:] = [str(tree), *(p for p in sys.path if Path(p or ".").resolve() != ROOT)]
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
        status = pytest.main(["-q", "-x", "-p", "no:cacheprovider", *shlex.split(tests)])
    os._exit(int(status))


def page(rows: list[tuple[Fault, str, float]]) -> str:
    """The table."""
    lines = [
        "# Deliberate faults",
        "",
        "Written by `python -m tests.mutation`; do not edit.",
        "",
        f"{len(rows)} of {len(FAULTS)} faults were put into the code, one at a time; the tests "
        f"named noticed {sum(result == 'caught' for _, result, _ in rows)} and pass without the "
        "fault. What was changed: `tests/mutation/faults.py`.",
        "",
        "| where | fault | tests | result | seconds |",
        "|-|-|-|-|-:|",
    ]
    for fault, result, seconds in rows:
        lines.append(
            f"| {fault.room} | {fault.what} | `{fault.tests}` | {result} | {seconds:.0f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
