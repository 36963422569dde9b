"""The engine's memory does not grow with the variety of sentences."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT


@pytest.mark.slow
def test_forty_thousand_sentences_of_random_lengths(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.memory", "--rows", "6 MB", "0.6 MB"]
    subprocess.run([*command, "--output", str(tmp_path)], cwd=ROOT, check=True)
    for found in json.loads((tmp_path / "memory.json").read_text())["megabytes"].values():
        assert found["40000"] < 1.5 * found["1000"]
