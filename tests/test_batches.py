"""Batches, and workers that run several at once: they change the time and nothing else."""

import logging
import os
import signal
import subprocess
import sys
import threading
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import build, sentences, translation_model
from resmlp_mt.engine.batches import Workers, batches
from resmlp_mt.engine.beam_search import beam_search
from resmlp_mt.engine.folding import fold
from resmlp_mt.engine.model_folder import TranslationModel
from resmlp_mt.engine.options import SearchOptions, StepResult
from resmlp_mt.engine.translator import Translator
from resmlp_mt.errors import UserError
from test_machine import threads_of_another

LINES = ["w1 w2 w3", "", "w4", "w5 w5 w5 w5 w5 w5", "w1 w9", "w8 " * 40, "w2 w3 w4 w5"] * 3


@pytest.fixture(scope="module")
def loaded() -> TranslationModel:
    return translation_model(fold(build(0)))


@given(
    st.lists(st.integers(1, 20), max_size=30),
    st.integers(1, 8),
    st.none() | st.integers(20, 60),
)
def test_batches_hold_every_sentence_once_and_as_many_as_fit(
    lengths: list[int], size: int, max_tokens: int | None
) -> None:
    sentences = {number: [0] * length for number, length in enumerate(lengths)}
    found = list(batches(sentences, size, max_tokens))
    order = [number for batch in found for number in batch]
    assert sorted(order) == list(sentences)
    assert [lengths[n] for n in order] == sorted(lengths, reverse=True)

    def fits(batch: list[int]) -> bool:
        longest = max(lengths[n] for n in batch)
        return len(batch) <= size and (max_tokens is None or longest * len(batch) <= max_tokens)

    assert all(fits(batch) for batch in found)
    assert not any(fits([*a, b[0]]) for a, b in pairwise(found))


@pytest.mark.parametrize(
    ("options", "call"),
    [
        ({"beam": 3}, {}),
        ({"beam": 2, "coverage_penalty": 0.5}, {"return_attention": True}),
        ({"beam": 2, "sampling": True}, {}),
        ({"beam": 1}, {"return_scores": False, "target_prefix": ["w7"] * len(LINES)}),
    ],
    ids=str,
)
def test_translations_do_not_depend_on_the_workers(
    loaded: TranslationModel, options: dict[str, Any], call: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    found, logged = [], []
    for workers in (1, 3):
        caplog.clear()
        translator = Translator(loaded, SearchOptions(**options), batch_size=2, workers=workers)
        with caplog.at_level(logging.ERROR):
            found.append(translator.translate(LINES, **call))
        logged.append(caplog.messages)
    assert logged[0] == logged[1]
    assert len(logged[0]) == 3  # the lines that are too long
    for one, several in zip(*found, strict=True):
        assert [t.text for t in one] == [t.text for t in several]
        assert [str(t.score) for t in one] == [str(t.score) for t in several]
        assert [t.positional_scores for t in one] == [t.positional_scores for t in several]
        for a, b in zip(one, several, strict=True):
            assert a.attention is b.attention is None or torch.equal(a.attention, b.attention)
    first, second = (
        Translator(loaded, SearchOptions(), 2, workers=workers).score_batch(
            ["w1", "w2"], ["w3"] * 2
        )
        for workers in (1, 2)
    )
    assert first == second


def test_several_batches_are_in_work_at_once_with_their_own_threads() -> None:
    """Three workers meet at a barrier, which one could not pass; the caller's threads stay."""
    before = torch.get_num_threads()
    meeting = threading.Barrier(3)

    def meet(item: int, check: object) -> tuple[int, int]:
        meeting.wait(300)
        return item, torch.get_num_threads()

    assert Workers(3, threads=2).results(meet, [5, 6, 7]) == [(5, 2), (6, 2), (7, 2)]
    assert torch.get_num_threads() == threads_of_another() == before


def test_threads_end_with_their_translator() -> None:
    """Else a program that loads models again and again fills up."""
    workers = Workers(2)
    assert workers.results(lambda item, check: item, [1, 2]) == [1, 2]
    assert workers._threads is not None
    threads = list(workers._threads._threads)
    del workers
    for thread in threads:
        thread.join(300)
        assert not thread.is_alive()


def test_several_workers_leave_other_models_their_threads() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        several = Translator.load(workers=2)
        assert torch.get_num_threads() == 3
        several.translate(["A dog runs."] * 200)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("most", [0, 2])
def test_a_system_that_starts_no_more_threads_is_told(
    monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    start, started = threading.Thread.start, []

    def limited(thread: threading.Thread) -> None:
        if len(started) == most:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    gate = threading.Event()  # so that each item needs a thread
    message = r"starts no more threads \(can't start new thread\): lower --workers\.$"
    try:
        with pytest.raises(UserError, match=message):
            Workers(9).results(lambda item, check: gate.wait(300), list(range(9)))
    finally:
        gate.set()


@pytest.mark.parametrize("cause", ["error", "ctrl-c"])
def test_the_others_end_where_one_fails(cause: str) -> None:
    ended = threading.Semaphore(0)

    def work(item: int, check: Any) -> None:
        if item == 0 and cause == "error":
            raise RuntimeError("broken")
        if item == 0:
            os.kill(os.getpid(), signal.SIGINT)
        try:
            while True:
                check()
        finally:
            ended.release()

    expected = RuntimeError if cause == "error" else KeyboardInterrupt
    with pytest.raises(expected):
        Workers(2).results(work, list(range(9)))
    assert ended.acquire(timeout=300)


@pytest.mark.parametrize("again", [False, True])
def test_a_program_ends_if_ctrl_c_came_as_a_worker_was_started(again: bool) -> None:
    """The thread runs, but the pool does not know it yet."""
    program = """
import weakref
from concurrent.futures import thread
from resmlp_mt.engine.batches import Workers

class Interrupted(weakref.WeakKeyDictionary):
    def __setitem__(self, key, value):
        raise KeyboardInterrupt

workers, known = Workers(2), thread._threads_queues
thread._threads_queues = Interrupted()
try:
    workers.results(lambda item, check: item, [1, 2])
except KeyboardInterrupt:
    thread._threads_queues = known
if again:
    print(workers.results(lambda item, check: item, [1, 2]))
"""
    command = [sys.executable, "-c", f"again = {again}\n{program}"]
    done = subprocess.run(command, timeout=300, capture_output=True, check=True)
    assert done.stdout == (b"[1, 2]\n" if again else b"")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_callback_may_translate(loaded: TranslationModel, workers: int) -> None:
    """With the same translator, while all of its workers are busy or wait for the callback."""
    translator = Translator(loaded, SearchOptions(beam=1), batch_size=2, workers=workers)
    expected = translator.translate(LINES)
    seen: list[object] = []

    def again(step: StepResult) -> None:
        if step.step == 0:
            seen.append(translator.translate(LINES))

    done: list[object] = []
    thread = threading.Thread(
        target=lambda: done.append(translator.translate(LINES, callback=again)), daemon=True
    )
    thread.start()
    thread.join(timeout=300)
    assert done == [expected]
    assert seen
    assert all(found == expected for found in seen)


class RuntimesError(Exception):
    """As the types of ONNX Runtime, which have no common base."""


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), "not enough memory to translate 2 lines at once, .* 'w5 w5 w5"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: tried"), "lower --batch-size"),
        (
            RuntimesError("Failed to allocate memory for requested buffer of size 9"),
            "lower --batch-s",
        ),
        (
            RuntimesError("while running MatMul node. Status Message: std::bad_alloc"),
            "lower --batch-s",
        ),
    ],
)
@pytest.mark.parametrize("workers", [1, 2])
def test_too_little_memory_is_told_with_the_line(
    loaded: TranslationModel, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str,
    workers: int,
) -> None:  # fmt: skip
    def failing(*_: object) -> object:
        raise error

    monkeypatch.setattr("resmlp_mt.engine.translator.search_of", lambda *_: failing)
    translator = Translator(loaded, SearchOptions(), batch_size=2, workers=workers)
    with pytest.raises(UserError, match=message):
        translator.translate(LINES[:5])
    translator.memory_remedy = "ask somebody"  # of a program with other options
    with pytest.raises(UserError, match=r"not enough memory to translate .*: ask somebody\.$"):
        translator.translate(LINES[:5])


def test_other_errors_keep_their_type_and_name_the_line(
    loaded: TranslationModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> object:
        raise RuntimeError("a bug")

    monkeypatch.setattr("resmlp_mt.engine.translator.search_of", lambda *_: failing)
    with pytest.raises(RuntimeError, match="a bug") as caught:
        Translator(loaded, SearchOptions(), workers=2).translate(LINES[:3])
    assert "begins with 'w1 w2 w3'" in caught.value.__notes__[0]


def test_a_number_of_workers_is_at_least_one(loaded: TranslationModel) -> None:
    for wrong in ({"workers": 0}, {"threads": 0}):
        with pytest.raises(UserError, match="must be at least 1, but is 0"):
            Translator(loaded, SearchOptions(), **wrong)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    st.builds(
        SearchOptions,
        beam=st.just(1),
        temperature=st.sampled_from([1.0, 0.3]),
        no_repeat_ngram_size=st.integers(0, 2),
        repetition_penalty=st.sampled_from([1.0, 1.5]),
        min_len=st.sampled_from([1, 6]),
        max_len_b=st.integers(6, 9),
    ),
    st.lists(st.integers(4, 19), max_size=3),
    st.integers(0, 1000),
)
def test_greedy_search_finds_the_same_without_scores(
    options: SearchOptions, prefix: list[int], seed: int
) -> None:
    model = fold(build(seed, vocabulary=300))
    rows = [row.tolist() for row in sentences([4, 9, 2], seed=seed)]
    prefixes = [prefix, [], prefix[:1]]
    scored, plain = (
        beam_search(model, rows, options, prefixes=prefixes, is_scored=is_scored)
        for is_scored in (True, False)
    )
    assert [h[0].tokens for h in scored] == [h[0].tokens for h in plain]


def test_a_softmax_is_taken_only_for_scores(
    loaded: TranslationModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A beam of one needs none; a larger one, samples and a callback do."""
    lines = ["w1 w2 w3"]
    expected = Translator(loaded, SearchOptions(beam=1)).translate(lines)

    def refused(*_: object, **__: object) -> object:
        raise AssertionError("a softmax")

    monkeypatch.setattr(torch.Tensor, "log_softmax", refused)
    translator = Translator(loaded, SearchOptions(beam=1))
    ((found,),) = translator.translate(lines, return_scores=False)
    assert (found.text, found.positional_scores) == (expected[0][0].text, [])
    assert found.score != found.score
    for call in ({"beam_size": 2}, {"sampling_topk": 5}, {"callback": lambda step: None}):
        with pytest.raises(AssertionError, match="a softmax"):
            translator.translate(lines, return_scores=False, **call)
