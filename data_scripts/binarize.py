"""fairseq-preprocess, shard by shard."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from errors import DataError

SHARD = 8_000_000
"""Training pairs in one binary file.

fairseq reads `train`, `train1`, `train2`, ... of a folder as one training set. Its index writer
keeps Python objects for every sentence, and with several workers and numpy 2 its offsets wrap at
2**31 bytes, which one file with 40M pairs would pass.
"""


def split_name(split: str, index: int) -> str:
    """fairseq's name of part `index` of a split: `train`, `train1`, ..."""
    return split if index == 0 else f"{split}{index}"


def binarize(
    out: Path,
    languages: tuple[str, str],
    dictionary: Path,
    *,
    train: str,
    valid: Sequence[str] = (),
    tests: Sequence[str] = (),
    jobs: int,
) -> list[Path]:
    """Binarises `out/subword/{train,valid,tests}` into `out/bin`; returns the files.

    fairseq writes into a temporary folder; finished files are then moved one by one.

    Raises:
        DataError: fairseq failed; the message has the end of its output.
    """
    for left in (out / ".steps").glob("bin.*"):
        shutil.rmtree(left)
    # A new name each time: processes left over from a killed run cannot write into it.
    temporary = Path(tempfile.mkdtemp(prefix="bin.", dir=out / ".steps"))
    command = [sys.executable, "-m", "fairseq_cli.preprocess"]
    command += ["--source-lang", languages[0], "--target-lang", languages[1]]
    command += ["--joined-dictionary", "--srcdict", str(dictionary.resolve())]
    command += ["--trainpref", train, "--destdir", str(temporary.resolve())]
    if valid:
        command += ["--validpref", ",".join(valid)]
    if tests:
        command += ["--testpref", ",".join(tests)]
    command += ["--workers", str(jobs)]
    # Relative prefixes: fairseq splits them at commas, which a path may have.
    _run(command, out / "subword")
    # The log has times and paths, which differ from run to run.
    (temporary / "preprocess.log").unlink(missing_ok=True)
    target = out / "bin"
    target.mkdir(exist_ok=True)
    moved = []
    for path in sorted(temporary.iterdir()):
        name = path.name
        if name.startswith("train."):
            name = train + name.removeprefix("train")
        os.replace(path, target / name)
        moved.append(target / name)
    temporary.rmdir()
    return moved


def _run(command: Sequence[str], folder: Path) -> None:
    process = subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    try:
        output, _ = process.communicate()
    except BaseException:
        # fairseq's own workers are in the same process group.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    if process.returncode != 0:
        tail = " | ".join(output.strip().splitlines()[-3:])
        raise DataError(f"fairseq-preprocess failed with status {process.returncode}: {tail}")
