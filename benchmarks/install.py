"""Times installation, demo and tests in a clean clone of this repository.

    python -m benchmarks.install --work DIR

Also installs the package with pip alone, without extras and with each extra that needs no
compiler, and with uv where it is installed, in an environment of its own. Writes install.json and
install.md beside this file, and the numbers in README.md.
"""

import argparse
import datetime
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.readme import write_block
from resmlp_mt.command_line import command
from resmlp_mt.files import write_text

HERE = Path(__file__).resolve().parent
EXTRAS = ("onnx", "vision", "serve", "bulk", "data", "onnx-export", "plots", "ja", "ko")
PACKAGES = (".", *(f".[{extra}]" for extra in EXTRAS))  # none needs a compiler


def timed(target: str, folder: Path) -> float:
    """Seconds of one make target; its output goes to TARGET.log beside the clone."""
    start = time.monotonic()
    name = target.replace("/", "-").strip("-.")
    with (folder.parent / f"{name}.log").open("w") as log:
        subprocess.run(["make", target], cwd=folder, stdout=log, stderr=log, check=True)
    return time.monotonic() - start


def megabytes(folder: Path) -> float:
    output = subprocess.check_output(["du", "-sm", str(folder)], encoding="utf-8")
    return float(output.split()[0])


def with_pip(package: str, clone: Path) -> dict[str, float]:
    """Seconds and MB of an environment made with ``pip install PACKAGE`` in the clone."""
    folder = clone.parent / f"pip{package}"
    command = [str(folder / "bin/python"), "-m", "pip", "install"]
    start = time.monotonic()
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    with (clone.parent / f"{folder.name}.log").open("w") as log:
        subprocess.run(
            [*command, "--constraint", "constraints.txt", package],
            cwd=clone, stdout=log, stderr=log, check=True,
        )  # fmt: skip
    return {"seconds": time.monotonic() - start, "megabytes": megabytes(folder)}


def with_uv(clone: Path) -> dict[str, float] | None:
    """The same with ``uv sync``, which reads uv.lock; None without uv."""
    if shutil.which("uv") is None:
        return None
    folder = clone.parent / "uv"
    start = time.monotonic()
    with (clone.parent / "uv.log").open("w") as log:
        subprocess.run(
            ["uv", "sync", "--locked", "--no-cache"],
            cwd=clone, stdout=log, stderr=log, check=True,
            env={**os.environ, "UV_PROJECT_ENVIRONMENT": str(folder)},
        )  # fmt: skip
    return {"seconds": time.monotonic() - start, "megabytes": megabytes(folder)}


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--work", type=Path, required=True, help="an empty folder for the clone")
    work: Path = parser.parse_args().work.resolve()
    work.mkdir(parents=True)
    clone = work / "clone"
    subprocess.run(["git", "clone", "--quiet", str(HERE.parent), str(clone)], check=True)
    seconds = {"install": timed(".venv/installed", clone)}
    seconds["install again"] = timed(".venv/installed", clone)
    seconds["test"] = timed("test", clone)
    seconds["demo"] = timed("demo", clone)
    alone = {f"pip install '{package}'": with_pip(package, clone) for package in PACKAGES}
    uv = with_uv(clone)
    if uv is not None:
        alone["uv sync"] = uv
    write(seconds, alone, clone)


def write(seconds: dict[str, float], alone: dict[str, dict[str, float]], clone: Path) -> None:
    """Write the files and the numbers in README.md."""
    demo = (clone.parent / "demo.log").read_text()
    freeze = [str(clone / ".venv/bin/python"), "-m", "pip", "freeze"]
    versions = subprocess.check_output(freeze, encoding="utf-8")
    result: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "python": platform.python_version(),
        "versions": re.findall(r"^(?:torch|fairseq-fixed|numpy)==.*$", versions, re.MULTILINE),
        "seconds": seconds,
        "alone": alone,
        "environment_megabytes": megabytes(clone / ".venv"),
        "demo_scores": re.findall(r"^.*(?:BLEU|chrF).*$", demo, re.MULTILINE)[-6:],
        "wheel_cache": "warm: fairseq was compiled on this machine before"
        if os.environ.get("PIP_NO_CACHE_DIR") is None
        else "off: fairseq was compiled",
    }
    write_text(HERE / "install.json", json.dumps(result, indent=1) + "\n")
    rows = [
        ("installation (`.venv` made, fairseq's wheel and all)", f"{seconds['install']:.0f} s"),
        ("the same again", f"{seconds['install again']:.1f} s"),
        ("`make demo` after installation", f"{seconds['demo']:.0f} s"),
        ("`make test` after installation", f"{seconds['test']:.0f} s"),
        ("size of `.venv`", f"{result['environment_megabytes']:.0f} MB"),
    ]
    write_text(
        HERE / "install.md",
        "# Installation, demo and tests from a clean clone\n\n"
        f"{result['machine']}, Python {result['python']}, {', '.join(result['versions'])}, "
        f"{result['date']}; pip's wheel cache {result['wheel_cache']}.\n"
        "Written by `benchmarks/install.py`.\n\n| | |\n|-|-|\n"
        + "".join(f"| {name} | {value} |\n" for name, value in rows)
        + "\nEach in an environment of its own. On Linux, uv.lock has torch built for CUDA."
        "\n\n| | seconds | MB |\n|-|-:|-:|\n"
        + "".join(
            f"| `{how}` | {row['seconds']:.0f} | {row['megabytes']:.0f} |\n"
            for how, row in alone.items()
        )
        + "\nWhat the demo printed:\n\n"
        + "".join(f"    {line}\n" for line in result["demo_scores"]),
    )
    plain = alone["pip install '.'"]
    summary = (
        f"On {result['machine']}, `pip install .` took {plain['seconds']:.0f} s and "
        f"{plain['megabytes']:.0f} MB.\nThe environment of `make` took {seconds['install']:.0f} s "
        f"and {result['environment_megabytes']:.0f} MB (pip's wheel cache\n"
        f"{result['wheel_cache']}), the demo {seconds['demo']:.0f} s\n"
        "([benchmarks/install.md](benchmarks/install.md)).\n"
    )
    write_block("install", summary)
    print((HERE / "install.md").read_text())


if __name__ == "__main__":
    main()
