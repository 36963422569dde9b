"""Shared by all tests: the fairseq commands, a small real corpus, and a model trained on it."""

import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import hypothesis
import numpy as np
import pytest
import sentencepiece
import torch

from forks import ROOT, Fork
from resmlp_mt import export

# Measurements and repeatability: one thread each, so that parallel test processes do not compete.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"
# The same examples in every run; `make test-all` explores. A slow machine is not a failure.
hypothesis.settings.register_profile("explore", deadline=None)
hypothesis.settings.register_profile("repeat", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("repeat")

PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]


def fairseq(
    command: str,
    *arguments: object,
    expect: int = 0,
    typed: bytes = b"",
    folder: Path = ROOT,
    environment: Mapping[str, str | None] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run an installed fairseq command, and return what it printed on both streams.

    ``typed`` is its standard input, ``environment`` has more variables, or None for one to remove.
    """
    with tempfile.TemporaryDirectory() as place:
        log, keys = Path(place, "log"), Path(place, "typed")
        keys.write_bytes(typed)
        status, said = Fork(command, arguments, log, environment, folder, keys).wait(600)
    assert status == expect, said
    return subprocess.CompletedProcess([command, *map(str, arguments)], status, said)


def pytest_make_parametrize_id(val: object) -> str | None:
    """Name a value that is bytes by its length.

    Test processes must agree on names, and packed bytes may hold the time at which they were made.
    """
    return f"{len(val)} bytes" if isinstance(val, bytes) else None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Processes send UTF-8 alone, and a test may print names of files that are not."""
    report = yield
    report.sections = [
        (name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections
    ]
    return report


@pytest.fixture(autouse=True)
def process_as_before() -> Iterator[None]:
    """Give every test the same process, whatever tests ran before it.

    Commands that are called here set handlers of signals, threads, the levels of loggers, variables
    and what they keep of their options for their whole process. Signals end the process and those
    that it starts, also if the tests run in the background, where they are ignored.
    """
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE)
    handlers = {number: signal.getsignal(number) for number in numbers}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    logging.getLogger("fairseq")  # which commands silence
    loggers = [logging.getLogger(name) for name in ("", *logging.root.manager.loggerDict)]
    levels = {logger: logger.level for logger in loggers}
    environment, folder, path = dict(os.environ), os.getcwd(), list(sys.path)
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)  # SIGPIPE's default ends a process in silence
    for logger, level in levels.items():
        if logger.level != level:
            logger.setLevel(level)
    logging.disable(logging.NOTSET)
    for name in os.environ.keys() - environment.keys() - {"PYTEST_CURRENT_TEST"}:
        del os.environ[name]
    os.environ.update(environment)
    os.chdir(folder)
    sys.path[:] = path
    for name, kept, nothing in (("bleu", "_joined_by", None), ("ignored_options", "_unread", [])):
        if module := sys.modules.get(f"resmlp_mt.fairseq_plugin.{name}"):
            vars(module)[kept] = nothing
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as it is installed."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "resmlp_mt", source / "resmlp_mt", ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    subprocess.run(
        [*PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source],
        check=True,
    )
    (built,) = folder.glob("*.whl")
    return built


class Corpus(NamedTuple):
    """Sentences over ten words, translated word by word and reversed."""

    folder: Path
    data: Path
    spm: Path

    def sentences(self, split: str, language: str) -> list[str]:
        """The raw lines of one side of a split."""
        return (self.folder / f"{split}.{language}").read_text().splitlines()


ENGLISH = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
GERMAN = ["null", "eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun"]
SPLITS = {"train": 500, "valid": 21, "test": 13}


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """A binarised corpus with a joint sentencepiece vocabulary; 13 test sentences."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = random.Random(1)
    for split, size in SPLITS.items():
        digits = [[rng.randrange(10) for _ in range(rng.randint(2, 7))] for _ in range(size)]
        english = [" ".join(ENGLISH[d] for d in row) for row in digits]
        german = [" ".join(GERMAN[d] for d in reversed(row)) for row in digits]
        for language, lines in (("en", english), ("de", german)):
            (folder / f"{split}.{language}").write_text("\n".join(lines) + "\n")
    sentencepiece.SentencePieceTrainer.train(
        input=f"{folder}/train.en,{folder}/train.de",
        model_prefix=str(folder / "spm"),
        vocab_size=64,
        hard_vocab_limit=False,
        bos_id=-1,
        eos_id=-1,
        minloglevel=2,
    )
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spm.model"))
    pieces = [processor.id_to_piece(index) for index in range(1, len(processor))]
    (folder / "dict.txt").write_text("".join(f"{piece} 1\n" for piece in pieces))
    prefixes = {}
    for split in SPLITS:
        for language in ("en", "de"):
            lines = (folder / f"{split}.{language}").read_text().splitlines()
            encoded = [" ".join(processor.encode(line, out_type=str)) for line in lines]
            (folder / f"{split}.spm.{language}").write_text("\n".join(encoded) + "\n")
        prefixes[split] = folder / f"{split}.spm"
    fairseq(
        "preprocess", "-s", "en", "-t", "de", "--trainpref", prefixes["train"],
        "--validpref", prefixes["valid"], "--testpref", prefixes["test"],
        "--joined-dictionary", "--srcdict", folder / "dict.txt", "--destdir", folder / "bin",
    )  # fmt: skip
    return Corpus(folder, folder / "bin", folder / "spm.model")


def train(corpus: Corpus, save_dir: Path, *arguments: object, expect: int = 0) -> str:
    """Train a 1 + 1 layer ``resmlp_mt_tiny`` on the corpus and return what the command printed.

    ``arguments`` come last and win.
    """
    return fairseq(
        "train", corpus.data, "--user-dir", "resmlp_mt", "--arch", "resmlp_mt_tiny", "--cpu",
        "--distributed-world-size", 1,
        "--encoder-layers", 1, "--decoder-layers", 1, "--encoder-embed-dim", 64,
        "--decoder-embed-dim", 64, "--share-all-embeddings", "--max-source-positions", 40,
        "--max-target-positions", 40, "--optimizer", "adam", "--lr", 0.005, "--lr-scheduler",
        "inverse_sqrt", "--warmup-updates", 20, "--criterion", "label_smoothed_cross_entropy",
        "--label-smoothing", 0.1, "--dropout", 0.1, "--batch-size", 32, "--max-epoch", 2,
        "--seed", 1, "--num-workers", 0, "--log-format", "json", "--save-dir", save_dir,
        *arguments, expect=expect,
    ).stdout  # fmt: skip


@pytest.fixture(scope="session")
def trained(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training of forty epochs, the last three checkpoints kept."""
    save_dir = tmp_path_factory.mktemp("trained")
    log = train(
        corpus, save_dir, "--max-epoch", 40, "--layer-scale-init", 1.0, "--keep-last-epochs", 3
    )
    (save_dir / "train.log").write_text(log)
    return save_dir


@pytest.fixture(scope="session")
def exported(corpus: Corpus, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the trained model, which translates without fairseq."""
    folder = tmp_path_factory.mktemp("exported") / "model"
    checkpoint = str(trained / "checkpoint_best.pt")
    export.main([checkpoint, "--out", str(folder), "--sentencepiece-model", str(corpus.spm)])
    return folder
