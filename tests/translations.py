"""Made-up translations and ways to score them, for the tests of the score command."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from resmlp_mt.errors import UserError
from resmlp_mt.score import main

TEXT = """
der die das Haus grüne Straße z.B. E-Mail-Adresse rich-text 3,14 Köln! »so« „wohl“ I. doch? it's
l'air AT&amp;T 50% (und) 😀 👩‍👩‍👧 — - -- a--b usw.-Liste 1990-2000 Ende. 中文 naïve
"""
WORDS = TEXT.split()


def sentences(count: int, seed: int) -> list[str]:
    """Sentences of 1 to 30 words, full of what tokenizers differ about."""
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(1, 30))) for _ in range(count)]


def damaged(lines: list[str], seed: int, rate: float = 0.15) -> list[str]:
    """The same sentences as a mediocre system would write them."""
    rng = random.Random(seed)
    return [
        " ".join(rng.choice(WORDS) if rng.random() < rate else w for w in line.split())
        for line in lines
    ]


def write(path: Path, lines: list[str]) -> str:
    path.write_bytes("".join(line + "\n" for line in lines).encode())
    return str(path)


def score(*argv: str, path: Path) -> dict:
    """Run the command in this process and return its JSON report."""
    main([*argv, "--json", str(path), "--quiet"])
    return json.loads(path.read_text())


def scores(report: dict) -> dict[str, tuple[float, str]]:
    return {s["metric"]: (s["score"], s["signature"]) for s in report["scores"]}


def command(name: str, *argv: str, **environment: str) -> str:
    """Run a console script of this environment, return what it prints."""
    result = subprocess.run(
        [str(Path(sys.executable).with_name(name)), *argv],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environment},
    )
    return result.stdout


class Corpus:
    """Source, two references, two systems, as lists and files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lines = {"src": sentences(150, 1), "ref": sentences(150, 2)}
        self.lines["ref2"] = damaged(self.lines["ref"], 3, 0.5)
        self.lines["sys"] = damaged(self.lines["ref"], 4)
        self.lines["sys"][7] = ""
        self.lines["base"] = damaged(self.lines["ref"], 5, 0.2)
        self.file = {name: write(folder / name, lines) for name, lines in self.lines.items()}


def fails(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """Run the command, expect that it ends with one sentence for the user; return that."""
    with pytest.raises(UserError) as stopped:
        main([*argv, "--quiet"])
    assert capsys.readouterr().out == ""
    (line,) = str(stopped.value).splitlines()
    return line
