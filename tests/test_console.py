"""The fairseq commands print their own messages, and not the warnings of their libraries."""

import ast
import json
import logging
import os
import re
import subprocess
import sys
import warnings
from argparse import Namespace
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fairseq import checkpoint_utils, file_utils
from fairseq.data import EpochBatchIterator
from fairseq.data.encoders.sentencepiece_bpe import SentencepieceConfig
from fairseq.dataclass.configs import CheckpointConfig
from fairseq.optim import FairseqOptimizer, build_optimizer
from fairseq.optim.lr_scheduler.inverse_square_root_schedule import (
    InverseSquareRootLRScheduleConfig,
    InverseSquareRootSchedule,
)
from fairseq.optim.lr_scheduler.step_lr_scheduler import StepLRSchedule, StepLRScheduleConfig
from fairseq.optim.lr_scheduler.triangular_lr_scheduler import (
    TriangularLRSchedule,
    TriangularLRScheduleConfig,
)
from fairseq.optim.sgd import SGD
from fairseq.scoring.bertscore import BertScoreScorer, BertScoreScorerConfig
from fairseq.scoring.wer import WerScorer, WerScorerConfig
from fairseq_cli import generate, validate
from omegaconf import OmegaConf

from conftest import ROOT, Corpus
from resmlp_mt.errors import UserError
from resmlp_mt.fairseq_plugin import console


def test_fairseq_generate_prints_its_own_messages_alone(corpus: Corpus, trained: Path) -> None:
    done = subprocess.run(
        [
            Path(sys.executable).parent / "fairseq-generate", corpus.data,
            "--user-dir", "resmlp_mt", "--path", trained / "checkpoint_best.pt", "--cpu",
            "--remove-bpe", "sentencepiece",
        ],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    said = done.stderr.splitlines()
    assert all(re.match(r"INFO:fairseq(_cli)?\.[\w.]+:", line) for line in said), done.stderr
    assert 0 < len(said) <= 15  # there were 40


def test_fairseq_train_prints_no_warning(trained: Path) -> None:
    log = (trained / "train.log").read_text()
    assert "epoch 001" in log or '"epoch": 1' in log
    assert "Warning" not in log
    assert "DEBUG" not in log


@pytest.mark.parametrize(
    ("message", "category", "is_shown"),
    [
        ("\nThe version_base parameter is not specified.\nPlease ...", UserWarning, False),
        ("`torch.cuda.amp.GradScaler(args...)` is deprecated.", FutureWarning, False),
        ("'pin_memory' argument is set as true but no accelerator is found,", UserWarning, False),
        ("`torch.cuda.amp.GradScaler(args...)` is deprecated.", UserWarning, True),
        ("The loss: The version_base parameter is not specified", UserWarning, True),
        ("lr_scheduler.step() was called before optimizer.step()", UserWarning, True),
    ],
)
def test_other_warnings_are_shown(message: str, category: type[Warning], is_shown: bool) -> None:
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        console.quieten()
        warnings.warn(message, category, stacklevel=1)
    assert [str(warning.message) for warning in shown] == [message] * is_shown


@pytest.mark.parametrize(
    ("form", "level", "variable", "expected"),
    [
        (logging.BASIC_FORMAT, logging.DEBUG, "", logging.INFO),
        (logging.BASIC_FORMAT, logging.DEBUG, "debug", logging.DEBUG),
        (logging.BASIC_FORMAT, logging.DEBUG, "WARNING", logging.WARNING),
        (logging.BASIC_FORMAT, logging.WARNING, "", logging.WARNING),
        ("%(message)s", logging.DEBUG, "", logging.DEBUG),  # of a program of its own
    ],
)
def test_what_fairseq_makes_of_the_root_logger(
    monkeypatch: pytest.MonkeyPatch, form: str, level: int, variable: str, expected: int
) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(form))
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [handler])
    monkeypatch.delenv("LOGLEVEL", raising=False)
    if variable:
        monkeypatch.setitem(os.environ, "LOGLEVEL", variable)
    before = root.level
    root.setLevel(level)
    try:
        with warnings.catch_warnings():
            console.quieten()
        assert root.level == expected
    finally:
        root.setLevel(before)


def raised(function: Callable[..., object], *arguments: object) -> BaseException:
    with pytest.raises(BaseException) as caught:  # noqa: PT011
        function(*arguments)
    return caught.value


@pytest.mark.parametrize(
    ("main", "message"),
    [
        (validate.main, "Must specify batch size either with --max-tokens or --batch-size."),
        (generate.main, "--path required for generation."),
    ],
)
def test_what_a_command_asserts_of_its_options_is_one_sentence(
    main: Callable[..., object], message: str
) -> None:
    batches = {"max_tokens": None, "batch_size": None}
    cfg = OmegaConf.create({"common": {}, "common_eval": {"path": None}, "dataset": batches})
    assert console.mistake(raised(main, cfg)) == message


def test_a_mistake_is_one_sentence_of_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    """Also of a script that calls fairseq's command, as the one of its checkout does."""
    namespace: dict[str, Any] = {
        "__spec__": ModuleSpec("fairseq_cli.train", None),
        "UserError": UserError,
    }
    exec("def main():\n    raise UserError('--arch is unknown.')", namespace)
    error = raised(namespace["main"])
    assert console.mistake(error) == "--arch is unknown."
    shown: list[object] = []
    console._excepthook(shown.append, type(error), error, error.__traceback__)
    assert capsys.readouterr().err == "--arch is unknown.\n"
    assert not shown


@pytest.mark.parametrize(
    ("sentence", "names"),
    [
        ("--max-tokens must be at least 1.", "dataset.max_tokens"),
        ("--criterion x needs y: use --label-smoothing.", "criterion._name, criterion.label_smoot"),
        ("--arch x is unknown (--no-such-option).", "model._name"),
        ("--a.b and --max-source-positions, --max-source-positions.", "task.max_source_positions"),
        ("nothing to do with options.", ""),
    ],
)
def test_a_mistake_in_a_job_of_hydra_has_its_names(
    sentence: str, names: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(cfg: object) -> None:
        raise UserError(sentence)

    groups = {
        "_name": None,
        "dataset": {"max_tokens": 1},
        "model": {"_name": "x", "max_source_positions": 8},
        "task": {"_name": "x", "max_source_positions": "???"},
        "criterion": {"_name": "x", "label_smoothing": "${dataset.max_tokens}"},
    }
    error = raised(fail, OmegaConf.create(groups))
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setattr(sys, "orig_argv", ["bin/fairseq-train", "data"])
    assert console.mistake(error) == sentence
    monkeypatch.setattr(sys, "orig_argv", ["bin/fairseq-hydra-train", "task.data=data"])
    expected = f"{sentence[:-1]} (in Hydra: {names}" if names else sentence
    said = console.mistake(error)
    assert said is not None
    assert said.startswith(expected)


def test_a_mistake_ends_a_fairseq_command_with_status_1() -> None:
    program = (
        "import sys; sys.argv[0] = 'bin/fairseq-train'\n"
        "import resmlp_mt.models; from resmlp_mt.errors import UserError\n"
        "raise UserError('--arch is unknown.')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr.splitlines()[-1:]) == (1, ["--arch is unknown."])
    assert "Traceback" not in done.stderr


def test_missing_files_and_options_are_one_sentence(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    both = CheckpointConfig(restore_file=__file__, finetune_from_model=__file__)
    both.save_dir = str(tmp_path)
    trainer = {"checkpoint_suffix": "", "should_save_checkpoint_on_current_rank": False}
    empty = SimpleNamespace(frozen_batches=[])
    lacking = "raise ModuleNotFoundError('No module', name='botocore')"
    for error, message in (
        (raised(missing.open), f"{missing} cannot be opened: No such file or directory."),
        (raised(tmp_path.open), f"{tmp_path} cannot be opened: Is a directory."),
        (
            raised(checkpoint_utils.load_model_ensemble_and_task, [str(missing)]),
            f"Model file not found: {missing}.",
        ),
        (
            raised(
                checkpoint_utils.load_checkpoint,
                OmegaConf.structured(both),
                SimpleNamespace(**trainer),
            ),
            "--finetune-from-model and --restore-file (non-default value) can not be specified "
            "together.",
        ),
        (
            raised(EpochBatchIterator.first_batch.fget, empty),
            "The dataset is empty. This could indicate that all elements in the dataset have been "
            "skipped. Try increasing the max number of allowed tokens or using a larger dataset.",
        ),
        (raised(build_optimizer, None, []), "--optimizer is missing."),
        (
            raised(TriangularLRSchedule, TriangularLRScheduleConfig(max_lr=0.1, lr=[0.2]), None),
            "TriangularLRSchedule: max_lr must be more than lr.",
        ),
        (
            raised(SGD, Namespace(lr=[0.1], momentum=-1.0, weight_decay=0.0), [torch.ones(1)]),
            "SGD: Invalid momentum value: -1.0.",
        ),
        (
            FloatingPointError("gradients are Nan/Inf"),
            "gradients are Nan/Inf: lower --lr, or give --clip-norm or more --warmup-updates.",
        ),
        (
            FileExistsError("bin/dict.en.txt"),
            "bin/dict.en.txt is there already: remove it, or give another --destdir.",
        ),
        (raised(open, "", "rb"), "'' cannot be opened: No such file or directory."),
        (raised(file_utils.cached_path, str(missing)), f"file {missing} not found."),
        (
            OSError("We couldn't connect to 'https://huggingface.co'.\nCheck your connection."),
            "We couldn't connect to 'https://huggingface.co'. Check your connection.",
        ),
        (
            LookupError("Resource 'punkt_tab' not found.\n  >>> nltk.download('punkt_tab')"),
            "NLTK lacks punkt_tab: run python -m nltk.downloader punkt_tab.",
        ),
        (
            raised(exec, lacking, {"__spec__": file_utils.__spec__}),  # as s3://BUCKET/FILE
            "fairseq needs botocore for this, which is not installed: install it.",
        ),
        (
            raised(lambda: OmegaConf.structured(SentencepieceConfig).sentencepiece_model),
            "--sentencepiece-model is missing.",
        ),
        (
            raised(ast.literal_eval, "{'beam':"),
            "{'beam': among the options cannot be read: '{' was never closed.",
        ),
        (
            raised(json.loads, "{beam: 4}"),
            "{beam: 4} among the options is not JSON: Expecting property name enclosed in double "
            "quotes.",
        ),
    ):
        assert console.mistake(error) == message


def test_too_little_memory_is_one_sentence() -> None:
    """As with --max-source-positions 1000000."""
    of_a_gpu = torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 20.00 MiB.")
    for error in (MemoryError(), of_a_gpu, raised(torch.empty, 10**15)):
        said = console.mistake(error) or ""
        assert re.fullmatch(r"there is not enough memory \(.+\): lower --max-tokens or .+", said)


@pytest.mark.parametrize(
    "name", ["fairseq_cli.preprocess", "fairseq_cli.score", "fairseq.checkpoint_utils"]
)
def test_work_without_batches_gets_no_advice_for_them(name: str) -> None:
    places = {"__spec__": ModuleSpec(name, None)}
    error = raised(exec, "raise MemoryError", places)
    assert re.fullmatch(r"there is not enough memory \([^)]+\)\.", console.mistake(error) or "")


def test_options_that_do_not_fit_the_model_are_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layer = torch.nn.Linear(2, 3)
    error = raised(layer.load_state_dict, torch.nn.Linear(2, 4).state_dict())
    assert console.mistake(error) == (
        "the checkpoint does not fit the options of the model (size mismatch for weight: copying "
        "a param with shape torch.Size([4, 2]) from checkpoint, the shape in current model is "
        "torch.Size([3, 2])): give the --arch and the options of its training."
    )

    def load(filename: str) -> None:  # as load_model_ensemble_and_task
        layer.load_state_dict({})

    def train(filename: str) -> None:  # as Trainer.load_checkpoint
        try:
            load(filename)
        except Exception:
            raise Exception(  # noqa: B904
                f"Cannot load model parameters from checkpoint {filename}; please ensure that the "
                "architectures match."
            )

    for function in (load, train):
        assert console.mistake(raised(function, "a.pt")) == (
            'a.pt does not fit the options of the model (Missing key(s) in state_dict: "weight" '
            "and 1 more): give the --arch and the options of its training."
        )

    def full(_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(layer, "load_state_dict", full)
    no_advice = r"there is not enough memory \([^)]+\)\."
    assert re.fullmatch(no_advice, console.mistake(raised(train, "a.pt")) or "")
    monkeypatch.setattr(layer, "load_state_dict", lambda _: {}["x"])
    assert console.mistake(raised(train, "a.pt")) is None  # a defect
    monkeypatch.setitem(sys.modules, "editdistance", None)
    error = raised(WerScorer, WerScorerConfig())
    assert console.mistake(error) == "Please install editdistance to use WER scorer."
    monkeypatch.setitem(sys.modules, "bert_score", None)
    error = raised(BertScoreScorer, BertScoreScorerConfig())
    assert console.mistake(error) == "Please install BERTScore: pip install bert-score."
    options = InverseSquareRootLRScheduleConfig(lr=[0.1, 0.2])
    assert console.mistake(raised(InverseSquareRootSchedule, options, None)) == (
        "Cannot use a fixed learning rate schedule with inverse_sqrt. Consider "
        "--lr-scheduler=fixed instead."
    )
    optimizer = object.__new__(FairseqOptimizer)
    error = raised(StepLRSchedule, StepLRScheduleConfig(lr=[0.1], lr_decay=2), optimizer)
    assert console.mistake(error) == "StepLRSchedule: lr_decay <= 1 does not hold."


def test_other_errors_keep_their_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    defect = AssertionError("a defect")
    with pytest.raises(AssertionError):
        raise defect
    for error in (defect, KeyError("x"), OSError("broken"), RuntimeError("not found")):
        assert console.mistake(error) is None
    shown: list[object] = []
    missing = FileNotFoundError(2, "No such file", "x")
    for program, error in (("fairseq-generate", defect), ("mine.py", missing)):
        monkeypatch.setattr(sys, "argv", [program])
        console._excepthook(lambda *told: shown.append(told[1]), type(error), error, None)
    assert shown == [defect, missing]
    monkeypatch.setattr(sys, "argv", ["bin/fairseq-generate"])
    console._excepthook(lambda *told: shown.append(told[1]), type(missing), missing, None)
    assert capsys.readouterr().err == "x cannot be opened: No such file.\n"
    assert len(shown) == 2


def test_ctrl_c_and_a_closed_pipe_are_silent() -> None:
    program = (
        "import sys; from resmlp_mt.fairseq_plugin import console, wrapping\n"
        "wrapping.mend(console); sys.argv = ['fairseq-generate']\n"
    )
    for error, status in (("KeyboardInterrupt", -2), ("BrokenPipeError", -13)):
        reading, writing = os.pipe()
        os.close(reading)
        done = subprocess.run(
            [sys.executable, "-c", f"{program}raise {error}"],
            stdout=writing, stderr=subprocess.PIPE, cwd=ROOT,
        )  # fmt: skip
        os.close(writing)
        assert (done.returncode, done.stderr) == (status, b"")
    # fairseq-preprocess ends at once: its pool of processes could wait for them without end
    late = (
        "import atexit; atexit.register(print, 'late')\n"
        "from importlib.machinery import ModuleSpec\n"
        "exec('raise KeyboardInterrupt', {'__spec__': ModuleSpec('fairseq_cli.preprocess', None)})"
    )
    done = subprocess.run([sys.executable, "-c", program + late], capture_output=True, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (-2, b"", b"")
    # of another pipe
    done = subprocess.run(
        [sys.executable, "-c", f"{program}raise BrokenPipeError"], capture_output=True, cwd=ROOT
    )
    assert done.returncode == 1
    assert b"Traceback" in done.stderr


def test_streams_are_utf8_whatever_the_locale_is() -> None:
    program = (
        "import sys; from resmlp_mt.models import resmlp_mt\n"
        "print(input(), [s.encoding for s in (sys.stdin, sys.stdout, sys.stderr)])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], input="Straße ÿ 東".encode(), capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"}, cwd=ROOT, check=True,
    )  # fmt: skip
    assert done.stdout.decode() == f"Straße ÿ 東 {['utf-8'] * 3}\n"


@pytest.mark.parametrize(
    "locale",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
)
def test_the_bytes_of_the_folder_are_printed(locale: dict[str, str]) -> None:
    folder = b"/home/j\xc3\xbcrgen/\xff"
    program = (
        "import os, pathlib, sys; from resmlp_mt import __main__ as command\n"
        f"sys.argv = ['resmlp_mt']; command.FOLDER = pathlib.Path(os.fsdecode({folder!r}))\n"
        "command.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env={**os.environ, **locale},
        capture_output=True, check=True,
    )  # fmt: skip
    assert done.stdout == folder + b"\n"
