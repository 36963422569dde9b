"""Each remedy: the defect without it, and the right result with it."""

import inspect
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from fairseq import utils
from fairseq.data import data_utils, iterators
from fairseq.distributed import utils as distributed_utils
from fairseq.nan_detector import NanDetector
from fairseq.sequence_generator import SequenceGenerator
from fairseq.tasks import FairseqTask
from fairseq.tasks.translation import TranslationConfig, TranslationTask
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import ROOT, Corpus, fairseq, train
from models import build, dictionary, padded, sentences
from resmlp_mt.errors import UserError
from resmlp_mt.fairseq_plugin import fairseq_fixes

fairseq_fixes.apply()


def batches_of(
    function: Any, lengths: list[int], multiple: int, max_tokens: int | None, batch_size: int | None
) -> list[list[int]]:
    sizes = np.array(lengths, dtype=np.int64)
    batches = function(
        np.arange(len(sizes)),
        lambda index: sizes[index],
        num_tokens_vec=sizes,
        max_tokens=max_tokens,
        max_sentences=batch_size,
        required_batch_size_multiple=multiple,
    )
    return [list(map(int, batch)) for batch in batches]


# --- colons in paths ---


EVERY_REMEDY = """
import sys
import resmlp_mt.models
from resmlp_mt.fairseq_plugin.wrapping import command_modules
places = 0
for module in [module for name, module in sys.modules.items() if name.startswith("resmlp_mt.")]:
    for function in vars(module).values():
        for place, name, _ in getattr(function, "mends", ()):
            for owner in command_modules(place) if isinstance(place, str) else [place]:
                places += 1
                if function not in getattr(getattr(owner, name), "remedies", ()):
                    print(module.__name__, function.__name__, "does not mend", owner, name)
assert places > 50, places
"""


def test_every_remedy_is_applied_when_the_plugin_is_loaded() -> None:
    """In a new process: other tests here apply some themselves."""
    done = subprocess.run(
        [sys.executable, "-c", EVERY_REMEDY], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        ("a:b/bin", ["a:b/bin"]),
        ("a:b/bin:a:b/bin2:c", ["a:b/bin", "a:b/bin2", "c"]),
        ("c:none:d", ["c", "none", "d"]),
        ("s3://c|a:b/bin", ["s3://c", "a:b/bin"]),
    ],
)
def test_a_colon_in_a_path_that_exists_divides_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, paths: str, expected: list[str]
) -> None:
    for name in ("a:b/bin", "a:b/bin2", "c"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert utils.split_paths(paths) == expected


# --- the last batch ---


@pytest.mark.parametrize(
    ("sentences", "batch_size", "kept_by_fairseq"), [(13, None, 8), (200, 7, 196)]
)
def test_fairseq_drops_sentences_and_the_remedy_keeps_them(
    sentences: int, batch_size: int | None, kept_by_fairseq: int
) -> None:
    limits = (8, 10_000, batch_size)
    original = inspect.unwrap(data_utils.batch_by_size)
    assert sum(map(len, batches_of(original, [5] * sentences, *limits))) == kept_by_fairseq
    assert (
        sum(map(len, batches_of(data_utils.batch_by_size, [5] * sentences, *limits))) == sentences
    )


@settings(deadline=None, max_examples=200)
@given(
    lengths=st.lists(st.integers(1, 20), max_size=60),
    multiple=st.integers(1, 9),
    max_tokens=st.none() | st.integers(20, 100),
    batch_size=st.none() | st.integers(1, 30),
)
def test_every_sentence_is_in_one_batch_and_every_batch_within_limits(
    lengths: list[int], multiple: int, max_tokens: int | None, batch_size: int | None
) -> None:
    batches = batches_of(data_utils.batch_by_size, lengths, multiple, max_tokens, batch_size)
    assert [index for batch in batches for index in batch] == list(range(len(lengths)))
    for batch in batches:
        assert batch
        if batch_size is not None:
            assert len(batch) <= batch_size
        if max_tokens is not None:
            assert len(batch) * max(lengths[index] for index in batch) <= max_tokens


def test_a_batch_smaller_than_a_sentence_is_refused() -> None:
    with pytest.raises(UserError, match=r"^--max-tokens 8 .* is less than a sentence has: give mo"):
        batches_of(data_utils.batch_by_size, [5, 9], 1, 8, None)


def test_a_training_epoch_sees_every_sentence(corpus: Corpus, tmp_path: Path) -> None:
    log = train(corpus, tmp_path, "--max-epoch", 1, "--batch-size", 7)
    assert '"train_num_updates": "72"' in log  # 500 sentences: 71 batches of 7 and one of 3
    assert '"valid_num_updates": "72"' in log


# --- exit status ---

READER = """
import sys, torch
from fairseq.data import iterators
if sys.argv[1] == "mended":
    import resmlp_mt.models
class Endless:
    def __len__(self): return 10 ** 9
    def __iter__(self):
        while True:
            yield torch.randn(200, 200) @ torch.randn(200, 200)
batches = iter(iterators.BufferedIterator(10, Endless()))
next(batches)
"""


def exit_statuses(how: str, runs: int) -> list[int]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return [
        subprocess.run(
            [sys.executable, "-c", READER, how], env=environment, stderr=subprocess.DEVNULL
        ).returncode
        for _ in range(runs)
    ]


def test_reading_ahead_does_not_spoil_the_exit_status() -> None:
    assert exit_statuses("mended", 3) == [0] * 3


@pytest.mark.slow
def test_twenty_trainings_that_stop_inside_an_epoch_exit_0(corpus: Corpus, tmp_path: Path) -> None:
    assert any(exit_statuses("as it is", 20))
    for run in range(20):  # train() checks the exit status
        train(corpus, tmp_path / str(run), "--max-update", 5, "--disable-validation")


def test_readers_are_stopped_at_exit() -> None:
    class Endless:
        def __len__(self) -> int:
            return 10**9

        def __iter__(self) -> Any:
            while True:
                yield 1

    batches = iter(iterators.BufferedIterator(4, Endless()))
    assert next(batches) == 1
    reader = batches._consumer
    assert reader.is_alive()
    fairseq_fixes._stop_readers()
    assert not reader.is_alive()


# --- two processes on CPU ---

TWO = ("--distributed-world-size", 2)
GLOO = (*TWO, "--distributed-backend", "gloo", "--ddp-backend", "legacy_ddp")


def test_two_cpu_processes_train_what_one_trains_with_two_batches(
    corpus: Corpus, tmp_path: Path
) -> None:
    options = ("--dropout", 0, "--max-epoch", 1, "--batch-size", 25)
    train(corpus, tmp_path / "one", *options, "--update-freq", 2)
    train(corpus, tmp_path / "two", *options, *GLOO)
    one, two = (
        torch.load(tmp_path / name / "checkpoint_last.pt")["model"] for name in ("one", "two")
    )
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-5)


def test_fairseq_alone_exits_0_having_trained_nothing(corpus: Corpus, tmp_path: Path) -> None:
    fairseq(
        "train", corpus.data, "--arch", "transformer_tiny", "--cpu", *GLOO, "--optimizer", "adam",
        "--distributed-init-method", "tcp://localhost:29511", "--batch-size", 25,
        "--save-dir", tmp_path / "x",
    )  # fmt: skip
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("options", "missing"),
    [(TWO, "--distributed-backend gloo"), ((*TWO, *GLOO[2:4]), "--ddp-backend legacy_ddp")],
)
def test_two_cpu_processes_without_what_they_need_fail_loudly(
    corpus: Corpus, tmp_path: Path, options: tuple[object, ...], missing: str
) -> None:
    output = train(corpus, tmp_path, *options, expect=1)
    assert missing in output.splitlines()[-1]
    assert "Traceback" not in output


# --- lines that are too long, resuming, unknown words: the wrapped functions have the defect ---


def test_fairseq_stops_at_a_long_line_and_the_skip_flag_loses_it(
    corpus: Corpus, tmp_path: Path
) -> None:
    limits = ("--max-source-positions", 40, "--max-target-positions", 40)
    fairseq(
        "train", corpus.data, "--arch", "transformer_tiny", "--cpu", "--optimizer", "adam",
        "--batch-size", 100, "--max-update", 1, "--disable-validation", "--data-buffer-size", 0,
        "--save-dir", tmp_path, *limits,
    )  # fmt: skip
    arguments = (
        "interactive", corpus.data, "--path", tmp_path / "checkpoint_last.pt", "--cpu",
        "-s", "en", "-t", "de", "--buffer-size", 3, "--batch-size", 3, *limits,
    )  # fmt: skip
    text = ("▁one\n" + "▁two " * 50 + "\n▁three\n").encode()
    skip = "--skip-invalid-size-inputs-valid-test"
    # without the plugin the safe loader refuses even fairseq's own checkpoint
    unsafe = {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}
    stopped = fairseq(*arguments, typed=text, environment=unsafe, expect=1).stdout
    assert "Size of sample #1 is invalid" in stopped
    assert fairseq(*arguments, skip, typed=text, environment=unsafe).stdout.count("\nH-") == 2
    for options in ((), (skip,)):
        mended = fairseq(*arguments, "--user-dir", "resmlp_mt", *options, typed=text).stdout
        assert mended.count("\nH-") == 3


def test_fairseq_takes_a_bare_replace_unk_for_a_file() -> None:
    with pytest.raises(FileNotFoundError, match="@@"):
        inspect.unwrap(utils.load_align_dict)("@@ ")
    assert utils.load_align_dict("@@ ") == {}
    assert utils.load_align_dict(None) is None


def test_an_alignment_dictionary_is_utf8_whatever_the_locale_is(tmp_path: Path) -> None:
    path = tmp_path / "words"
    path.write_text("f\xfcr for 0.9\n\nHund dog\n", encoding="utf-8")
    program = (
        "import sys; from fairseq import utils; from resmlp_mt.models import resmlp_mt\n"
        "print(ascii(utils.load_align_dict(sys.argv[1])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, path], capture_output=True, text=True, cwd=ROOT,
        env={**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    )  # fmt: skip
    assert done.stdout.strip() == ascii({"f\xfcr": "for", "Hund": "dog"}), done.stderr
    path.write_text("Hund\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"--replace-unk .*words: Hund has no word in its place"):
        utils.load_align_dict(str(path))


def test_unknown_words_are_replaced_by_the_aligned_ones() -> None:
    pairs = [(2, 0), (0, 2)]
    call = ("<unk> b <unk>", "x y z", pairs, {"z": "zett"}, "<unk>")
    with pytest.raises(TypeError):
        inspect.unwrap(utils.replace_unk)(*call)
    assert utils.replace_unk(*call) == "zett b x"


def test_the_module_that_made_a_nan_is_named(caplog: pytest.LogCaptureFixture) -> None:
    model = build()
    source, target = padded(sentences([3])), padded(sentences([4]))
    with NanDetector(model):
        model(source, None, target)
    assert not caplog.messages
    with torch.no_grad():
        model.encoder.layers[1].ffn_post.alpha[0] = torch.nan
    with NanDetector(model):
        model(source, None, target)[0].sum().backward()
    assert "NaN detected in output of encoder.layers.1.ffn_post" in caplog.messages[0]
    inspect.unwrap(NanDetector.add_hooks)(NanDetector(model), model.encoder)
    with pytest.raises(StopIteration):
        model(source, None, target)


# --- footprint ---


def test_applying_again_changes_nothing() -> None:
    before = (data_utils.batch_by_size, FairseqTask.train_step, distributed_utils.call_main)
    fairseq_fixes.apply()
    assert before == (data_utils.batch_by_size, FairseqTask.train_step, distributed_utils.call_main)


def test_the_room_for_a_target_is_that_of_the_shortest_of_our_models() -> None:
    words = dictionary(20)
    task = TranslationTask(TranslationConfig(), words, words)
    short = build(max_target_positions=5)
    stock = SimpleNamespace(decoder=None, max_decoder_positions=lambda: 3)  # goes beyond it
    sample = {"net_input": {"src_lengths": torch.tensor([4, 5])}}
    generator = SimpleNamespace(match_source_len=True, max_len=3)

    def translated(*models: Any) -> list[int]:
        found = fairseq_fixes._inference_step(
            lambda *given: [["translated"]] * len(given[3]["net_input"]["src_lengths"]),
            *(task, generator, models, sample),
        )
        return [row for row, hypotheses in enumerate(found) if hypotheses == ["translated"]]

    assert translated(short, stock) == [0]
    assert translated(build(max_target_positions=9), short) == [0]
    assert translated(stock) == [0, 1]


@pytest.mark.parametrize("limit", [5, 7])
def test_sources_that_leave_no_room_for_as_long_a_target_are_left_empty(
    limit: int, caplog: pytest.LogCaptureFixture
) -> None:
    """--match-source-len generates as many tokens as the longest source of a batch has, and 1."""
    words, lines = dictionary(20), sentences([3, 5, 4])
    model = build(max_target_positions=limit).eval()
    task = TranslationTask(TranslationConfig(), words, words)
    lengths = torch.tensor([len(line) for line in lines])
    net_input = {"src_tokens": padded(lines), "src_lengths": lengths}
    generator = SequenceGenerator([model], words, beam_size=2, match_source_len=True)
    found = task.inference_step(generator, [model], {"net_input": net_input})
    sizes = [len(hypotheses[0]["tokens"]) for hypotheses in found]
    fits = [int(length) < limit for length in lengths]
    assert [size > 1 for size in sizes] == fits
    assert caplog.text.count("has no translation: with --match-source-len") == fits.count(False)
