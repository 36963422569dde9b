"""Sentences and the scheduler of the server."""

import asyncio
import multiprocessing
import random
import re
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import fields
from pathlib import Path
from typing import ClassVar, TypeVar

import pytest
import sentencex
from hypothesis import given, settings
from hypothesis import strategies as st

from resmlp_mt import serve, signals
from resmlp_mt.engine import pretrained, sentences
from resmlp_mt.engine.sentences import segments
from resmlp_mt.errors import UserError
from resmlp_mt.serving import languages, service, workers
from resmlp_mt.serving.alignment import Word, between_words, words
from resmlp_mt.serving.interface import BadRequestError
from resmlp_mt.serving.languages import Pairs
from resmlp_mt.serving.limits import ModelOptions
from resmlp_mt.serving.metrics import Metrics
from resmlp_mt.serving.scheduler import (
    LARGEST_REMEMBERED,
    MOST_REMEMBERED,
    FailedError,
    Matrices,
    RefusedError,
    Scheduler,
)
from resmlp_mt.serving.service import TooLongError, translate
from resmlp_mt.serving.workers import (
    Answer,
    Languages,
    Work,
    Worker,
    WorkerDiedError,
    WorkerGoneError,
)
from serving import EN_DE, FR_DE, Reversing, translated

T = TypeVar("T")
LANGUAGES = st.sampled_from(["en", "de", "zh", "th", "ar", "xx"])
TEXTS = st.text(st.sampled_from("aB.?! \t\n\r\u2028\u3000中。é5\"'()")) | st.text()


@given(TEXTS, LANGUAGES)
def test_segments_put_together_are_the_text(text: str, language: str) -> None:
    found = segments(text, language)
    assert "".join(segment.text for segment in found) == text
    for segment in found:
        assert text.startswith(segment.text, segment.start)
        assert segment.text
        if segment.is_sentence:
            assert segment.text == segment.text.strip()
            assert len(segment.text.splitlines()) == 1
            assert any(character.isalnum() or character == "_" for character in segment.text)


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        ("Dr. Smith came. He left!  Why?", "en", ["Dr. Smith came.", "He left!", "Why?"]),
        ("Am 3. Mai kam z.B. Anna. Gut.", "de", ["Am 3. Mai kam z.B. Anna.", "Gut."]),
        ("我们去。你呢？", "zh", ["我们去。", "你呢？"]),
        (" One line\nanother\r\n\n- item ", "en", ["One line", "another", "- item"]),
        ("😀\n---\n  \n…", "en", []),
    ],
)
def test_sentences_are_found(text: str, language: str, expected: list[str]) -> None:
    assert [part.text for part in segments(text, language) if part.is_sentence] == expected


@pytest.mark.parametrize("code", ["de", "de_AT", "deu", "deu_Latn", "de_DE"])
def test_the_rules_of_a_language_are_found_under_every_spelling(code: str) -> None:
    text = "Das gilt für Dr. Meier usw. und ca. 5 andere. Ja."
    assert [part.text for part in segments(text, code)] == [text[:-4], " ", "Ja."]


def test_long_lines_are_divided_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's time grows with the square of the length for some texts."""
    longest, segment = 0, sentencex.segment

    def counting(language: str, text: str) -> list[str]:
        nonlocal longest
        longest = max(longest, len(text))
        return segment(language, text)

    text = 'He said: "It rains." Dr. Smith (who knows?) slept, e.g. on 3.5 beds! Did he? ' * 300
    whole = [part.strip() for part in segment("en", text)]
    monkeypatch.setattr(sentencex, "segment", counting)
    assert [part.text for part in segments(text, "en") if part.is_sentence] == whole
    for hostile in ("\u00ab " * 10_000, "'" * 20_000, "word " * 4000, "x" * 20_000):
        found = segments(hostile, "en")
        assert "".join(part.text for part in found) == hostile
        assert all(len(part.text) <= sentences.WINDOW for part in found)
    assert longest <= sentences.WINDOW


def with_queue(
    run: Callable[[Scheduler], Awaitable[T]], workers: list[Reversing], **changes: float
) -> T:
    """What a function returns that is given a queue with these workers."""
    limits = {"max_batch_characters": 40, "max_batch_size": 4, "queue_size": 100, "max_wait": 60.0}

    async def started() -> T:
        queue = Scheduler(workers, Metrics(), **{**limits, **changes})  # type: ignore[arg-type]
        queue.start()
        found = await run(queue)
        await queue.stop()
        return found

    return asyncio.run(started())


LINES = st.lists(st.sampled_from(["a b", "c", "d e f", "poison", "x" * 50]), max_size=6)
REQUESTS = st.lists(st.tuples(st.sampled_from([EN_DE, FR_DE]), LINES, st.booleans()), max_size=12)


@settings(max_examples=60, deadline=None)
@given(requests=REQUESTS, count=st.integers(1, 3), seed=st.integers(0, 99))
def test_no_answer_is_lost_or_given_to_another(
    requests: list[tuple[Languages, list[str], bool]], count: int, seed: int
) -> None:
    """Clients that come and go while workers fail on some sentences."""
    workers = [Reversing() for _ in range(count)]

    async def client(
        queue: Scheduler, number: int, languages: Languages, lines: list[str]
    ) -> list[str]:
        for _ in range(random.Random(seed + number).randrange(4)):
            await asyncio.sleep(0)
        answers = await queue.translate(Work(languages), [f"{line} {number}" for line in lines])
        return [answer.translations[0].text for answer in answers]

    async def run(queue: Scheduler) -> list[object]:
        tasks = [
            asyncio.create_task(client(queue, number, languages, lines))
            for number, (languages, lines, _) in enumerate(requests)
        ]
        for _ in range(seed % 5):
            await asyncio.sleep(0)
        for task, (_, _, leaves) in zip(tasks, requests, strict=True):
            if leaves:
                task.cancel()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert queue.waiting() == 0
        return found

    found = with_queue(run, workers)
    for number, ((_, lines, leaves), answer) in enumerate(zip(requests, found, strict=True)):
        if isinstance(answer, asyncio.CancelledError):
            assert leaves
        elif isinstance(answer, FailedError):
            assert "poison" in lines
        else:
            assert answer == [translated(f"{line} {number}") for line in lines]
    for worker in workers:
        for _, batch in worker.batches:
            assert len(batch) <= 4
            assert len(batch) == 1 or sum(map(len, batch)) <= 40


def test_batches_are_of_what_waits_oldest_first() -> None:
    worker = Reversing()

    async def run(queue: Scheduler) -> None:
        worker.gate.clear()
        requests = [asyncio.create_task(queue.translate(Work(EN_DE), ["first"]))]
        while not worker.batches:
            await asyncio.sleep(0)
        requests += [
            asyncio.create_task(queue.translate(Work(languages), [line]))
            for languages, line in [
                *((FR_DE, "a"), (EN_DE, "b"), (FR_DE, "c"), (EN_DE, "d")),
                *((EN_DE, "e"), (EN_DE, "f"), (EN_DE, "g")),
            ]
        ]
        while queue.waiting() < 7:
            await asyncio.sleep(0)
        worker.gate.set()
        await asyncio.gather(*requests)

    with_queue(run, [worker])
    assert worker.batches == [
        (EN_DE, ["first"]),
        (FR_DE, ["a", "c"]),
        (EN_DE, ["b", "d", "e", "f"]),
        (EN_DE, ["g"]),
    ]


def test_a_full_queue_refuses_and_places_of_those_who_leave_are_free() -> None:
    worker = Reversing()

    async def run(queue: Scheduler) -> None:
        worker.gate.clear()
        in_work = asyncio.create_task(queue.translate(Work(EN_DE), ["in work"]))
        while not worker.batches:
            await asyncio.sleep(0)
        waits = asyncio.create_task(queue.translate(Work(EN_DE), ["a", "b"]))
        while queue.waiting() < 2:
            await asyncio.sleep(0)
        with pytest.raises(RefusedError, match="queue is full"):
            await queue.translate(Work(EN_DE), ["c", "d"])
        waits.cancel()
        await asyncio.gather(waits, return_exceptions=True)
        assert queue.waiting() == 0
        stays = asyncio.create_task(queue.translate(Work(EN_DE), ["c", "d", "e"]))
        while queue.waiting() < 3:
            await asyncio.sleep(0)
        worker.gate.set()
        await asyncio.gather(in_work, stays)

    with_queue(run, [worker], queue_size=3)
    assert [lines for _, lines in worker.batches] == [["in work"], ["c", "d", "e"]]


def test_an_answer_that_takes_too_long_is_refused() -> None:
    worker = Reversing()

    async def run(queue: Scheduler) -> None:
        worker.gate.clear()
        with pytest.raises(RefusedError, match=r"no answer within 0\.01 seconds"):
            await queue.translate(Work(EN_DE), ["a"])
        worker.gate.set()
        queue._max_wait = 60.0  # the rest does not depend on time
        answer = (await queue.translate(Work(EN_DE), ["b"]))[0]  # the worker goes on
        assert answer.translations[0].text == "B"

    with_queue(run, [worker], max_wait=0.01)


def test_a_worker_that_dies_is_tried_again_once() -> None:
    class Dying(Reversing):
        async def translate(self, work: Work, lines: list[str]) -> list[Answer]:
            if "dies" in lines or len(self.batches) == 0:
                self.batches.append((work.languages, lines))
                raise WorkerDiedError
            return await super().translate(work, lines)

    worker = Dying()

    async def run(queue: Scheduler) -> None:
        answers = await queue.translate(Work(EN_DE), ["a", "b"])
        assert [answer.translations[0].text for answer in answers] == ["A", "B"]
        with pytest.raises(FailedError, match="failed twice: a worker died"):
            await queue.translate(Work(EN_DE), ["dies"])

    with_queue(run, [worker])
    assert [len(lines) for _, lines in worker.batches] == [2, 1, 1, 1, 1]


OPTIONS = ModelOptions(beam=1, lenpen=1.0, max_batch_tokens=10)
Outcome = object  # what a process answers, or the error that it ends with


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Set what the processes of workers do, one after the other: what loading gives, and then each
    piece of work; an error that a process raises before a work is told when the work is given."""

    def of(*lives: tuple[Outcome, ...]) -> None:
        remaining: Iterator[tuple[Outcome, ...]] = iter(lives)

        class Pool:
            _processes: ClassVar[dict[int, object]] = {}

            def __init__(self, **_: object) -> None:
                self.outcomes = iter(next(remaining))

            def submit(self, *_: object) -> "Future[object]":
                outcome = next(self.outcomes)
                if outcome == "gone":
                    raise BrokenProcessPool
                if isinstance(outcome, OSError | NoThreadError):
                    raise outcome
                if isinstance(outcome, Future):
                    return outcome
                future: Future[object] = Future()
                if isinstance(outcome, BaseException):
                    future.set_exception(outcome)
                else:
                    future.set_result(outcome)
                return future

            def shutdown(self, **_: object) -> None:
                pass

        monkeypatch.setattr(workers, "ProcessPoolExecutor", Pool)

    return of


LOADED = {EN_DE: "digest"}


class NoThreadError(RuntimeError):
    """As Python raises it, where the work is given."""


def test_a_worker_whose_models_cannot_be_loaded_tries_it_again_later_and_later(
    processes: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    no_thread = NoThreadError("can't start new thread")
    bad = ("no memory", OSError(12, "Cannot allocate memory"), BrokenProcessPool(), no_thread)
    others = ({EN_DE: "another"}, {FR_DE: "digest"})
    unusable = [(outcome,) for outcome in ("no memory", *["no room"] * 3, *bad, *others)]
    processes((LOADED, BrokenProcessPool()), *unusable, (LOADED, []))
    pauses, failures = [], []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        failures.append(worker.failure or "")

    worker = Worker([Path("model")], OPTIONS)
    assert worker._folders == [Path.cwd() / "model"]  # also for processes that start later
    assert worker.languages() == [EN_DE]
    monkeypatch.setattr(asyncio, "sleep", sleep)

    async def run() -> None:
        await worker.ready()
        assert not pauses
        with pytest.raises(WorkerDiedError):
            await worker.translate(Work(EN_DE), ["a"])
        await worker.ready()
        assert await worker.translate(Work(EN_DE), []) == []

    asyncio.run(run())
    assert worker.failure is None
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60, 60]
    assert failures[:5] == ["no memory", *["no room"] * 3, "no memory"]
    assert failures[5] == "a worker cannot be started: Cannot allocate memory."
    assert failures[6].startswith("a worker died while it loaded its models")
    assert failures[7] == "a worker cannot be started: can't start new thread."
    assert all(told.startswith("other models are in the folders now") for told in failures[8:])
    for told in set(failures):
        assert told in caplog.text


def test_a_worker_that_dies_while_it_has_nothing_to_do_is_replaced_first(
    processes: Callable[..., None],
) -> None:
    processes((LOADED, "gone"), (LOADED, ["answer"]))
    worker = Worker([], OPTIONS)
    worker.languages()

    async def run() -> None:
        with pytest.raises(WorkerGoneError):
            await worker.translate(Work(EN_DE), ["a"])
        await worker.ready()
        assert await worker.translate(Work(EN_DE), ["a"]) == ["answer"]

    asyncio.run(run())


@pytest.mark.parametrize("now", ["no memory", {EN_DE: "another"}, BrokenProcessPool(), Future()])
def test_another_model_than_that_of_the_start_answers_nothing(
    processes: Callable[..., None], now: Outcome
) -> None:
    """Nor does a process that is still loading: neither translations nor matrices."""
    processes((LOADED, "gone"), (now, ["wrong"], ["wrong"]))
    worker = Worker([], OPTIONS)
    worker.languages()

    async def run() -> None:
        for _ in range(2):
            with pytest.raises(WorkerGoneError):
                await worker.mixing(EN_DE, 0, 1)
            with pytest.raises(WorkerGoneError):
                await worker.translate(Work(EN_DE), ["a"])

    asyncio.run(run())


def test_a_process_that_was_gone_does_not_count_as_a_failure() -> None:
    """All processes may have been killed while they had nothing to do."""

    class Gone(Reversing):
        async def translate(self, work: Work, lines: list[str]) -> list[Answer]:
            if len(self.batches) < 3:
                self.batches.append((work.languages, lines))
                raise WorkerGoneError
            return await super().translate(work, lines)

    async def run(queue: Scheduler) -> None:
        answers = await queue.translate(Work(EN_DE), ["a", "b"])
        assert [answer.translations[0].text for answer in answers] == ["A", "B"]

    with_queue(run, [Gone(), Gone()])


def test_where_no_thread_can_be_started_no_process_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would wait for work for ever, and the server for it."""

    def start(_: object) -> None:
        raise RuntimeError("can't start new thread")

    def pool(**_: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(workers, "ProcessPoolExecutor", pool)
    monkeypatch.setattr(threading.Thread, "start", start)
    worker = Worker([], OPTIONS)
    with pytest.raises(UserError, match="a worker cannot be started: can't start new thread"):
        worker.languages()
    worker.stop()


def test_a_process_without_its_pool_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that serves it could not be started after all."""
    started: list[ProcessPoolExecutor] = []

    class Pool(ProcessPoolExecutor):
        def _start_executor_manager_thread(self) -> None:
            started.append(self)
            raise RuntimeError("can't start new thread")

    monkeypatch.setattr(workers, "ProcessPoolExecutor", Pool)
    before = set(multiprocessing.active_children())
    worker = Worker([], OPTIONS)
    assert len(started) == 1
    for process in set(multiprocessing.active_children()) - before:
        process.join(300)
        assert process.exitcode
    with pytest.raises(UserError, match="a worker cannot be started: can't start new thread"):
        worker.languages()
    worker.stop()


def test_an_error_for_users_does_not_end_the_server(processes: Callable[..., None]) -> None:
    """A task that raised ``SystemExit`` would end it."""
    processes((LOADED, UserError("there is not enough memory")))
    worker = Worker([], OPTIONS)
    worker.languages()
    with pytest.raises(UserError, match="not enough memory"):
        asyncio.run(worker.translate(Work(EN_DE), ["a"]))


class Broken(Reversing):
    """A worker that dies at its first batch, and whose models cannot be loaded again."""

    async def ready(self) -> None:
        if self.batches:
            self.failure = "no memory"
            await asyncio.Event().wait()

    async def translate(self, work: Work, lines: list[str]) -> list[Answer]:
        self.batches.append((work.languages, lines))
        raise WorkerDiedError


def test_a_worker_without_models_takes_no_sentences() -> None:
    broken, healthy = Broken(), Reversing()

    async def run(queue: Scheduler) -> None:
        for line in "abcde":
            (answer,) = await queue.translate(Work(EN_DE), [line])
            assert answer.translations[0].text == line.upper()
        queue.check_workers()

    with_queue(run, [broken, healthy])
    assert len(broken.batches) == 1


def test_without_workers_requests_are_refused_at_once() -> None:
    broken = Broken()

    async def run(queue: Scheduler) -> None:
        first = asyncio.create_task(queue.translate(Work(EN_DE), ["a"]))
        while broken.failure is None:
            await asyncio.sleep(0)
        with pytest.raises(RefusedError, match="no worker can translate"):
            await queue.translate(Work(EN_DE), ["b"])
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        assert queue.waiting() == 0

    with_queue(run, [broken])


def test_a_failure_without_words_has_a_reason() -> None:
    class Asserting(Reversing):
        async def translate(self, work: Work, lines: list[str]) -> list[Answer]:
            raise AssertionError

    async def run(queue: Scheduler) -> None:
        with pytest.raises(FailedError, match=r"failed twice: AssertionError\(\)"):
            await queue.translate(Work(EN_DE), ["a"])

    with_queue(run, [Asserting()])


def test_the_pairs_of_a_request_wait_together() -> None:
    """So they have one time limit, and the sentences of all of them leave the queue."""
    worker = Reversing()

    async def run(queue: Scheduler) -> None:
        worker.gate.clear()
        asked = translate(["a", "b"], [EN_DE, FR_DE], queue, Metrics())
        task = asyncio.create_task(asked)
        while not worker.batches:
            await asyncio.sleep(0)
        assert queue.waiting() == 1
        queue._max_wait = 0.01
        with pytest.raises(RefusedError, match=r"no answer within 0\.01 seconds"):
            await translate(["a", "b"], [EN_DE, FR_DE], queue, Metrics())
        assert queue.waiting() == 1
        worker.gate.set()
        assert [text.joined() for text in await task] == ["A", "B"]

    with_queue(run, [worker], max_wait=300.0)


@pytest.mark.parametrize(
    ("target", "expected"), [("en", "我们去。 你呢？"), ("ja", "我们去。你呢？")]
)
def test_sentences_that_nothing_divides_get_a_space_where_the_target_has_one(
    target: str, expected: str
) -> None:
    async def run(queue: Scheduler) -> None:
        pair = Languages("zh", target)
        (text,) = await translate(["我们去。你呢？\n😀"], [pair], queue, Metrics())
        assert text.joined() == expected + "\n😀"
        assert text.alternatives(1) == [expected.replace("。", "。!") + "!\n😀"]

    with_queue(run, [Reversing()])


def test_matrices_are_made_once_and_few_at_a_time() -> None:
    class Slow(Broken):
        def __init__(self) -> None:
            super().__init__()
            self.asked: list[int] = []
            self.opened = asyncio.Event()

        async def mixing(self, languages: Languages, layer: int, length: int) -> bytes:
            self.asked.append(layer)
            await self.opened.wait()
            return b"x" * length

    async def run() -> None:
        gone, slow = Broken(), Slow()
        gone.failure = "no memory"
        matrices = Matrices([gone, slow])
        first = [asyncio.create_task(matrices.answer(EN_DE, layer, 2)) for layer in range(2)]
        while len(slow.asked) < 2:
            await asyncio.sleep(0)
        with pytest.raises(RefusedError, match="busy"):
            await matrices.answer(EN_DE, 2, 2)
        slow.opened.set()
        assert await asyncio.gather(*first) == [b"xx"] * 2
        assert await matrices.answer(EN_DE, 0, 2) == b"xx"
        assert slow.asked == [0, 1]
        for layer in [*range(2, MOST_REMEMBERED + 1), 1]:
            await matrices.answer(EN_DE, layer, 2)
        assert slow.asked == list(range(MOST_REMEMBERED + 1))  # all but the first are remembered
        await matrices.answer(EN_DE, 0, 2)
        assert slow.asked[-1] == 0
        for _ in range(2):
            await matrices.answer(EN_DE, 0, LARGEST_REMEMBERED + 1)
        assert slow.asked[-3:] == [0, 0, 0]
        slow.failure = "no memory"
        with pytest.raises(RefusedError, match="busy"):
            await matrices.answer(EN_DE, 0, 3)

    asyncio.run(run())


def test_a_language_is_known_by_the_beginning_of_a_text() -> None:
    seen: list[int] = []

    class Identifier:
        def rank(self, text: str) -> list[tuple[str, float]]:
            seen.append(len(text))
            return [("fr", 0.9), ("en", 0.1)]

    pairs = Pairs([EN_DE, FR_DE])
    pairs._identifier = Identifier()
    assert pairs.detect("mot " * 1_000_000)[0].language == "fr"
    assert seen == [languages.DETECTED]


def test_words_and_attention_between_them() -> None:
    pieces = ["\u2581the", "\u2581cat", "s", "\u2581", "."]
    source = words(pieces)
    assert source == [Word("the", 0, 1), Word("cats", 1, 3), Word(".", 3, 5)]
    target = words(["\u2581Kat", "zen"])
    attention = [[0.1, 0.4, 0.3, 0.1, 0.05], [0.0, 0.2, 0.8, 0.0, 0.0]]
    assert between_words(attention, target, source) == [[0.05, 0.85, 0.075]]
    assert [word.text for word in words(["a", "b"])] == ["a", "b"]
    assert words([]) == []
    assert words(["ka", "t\u2581", "5", "<0xE2>", "<0x82>", "<0xAC>", "\u2581"]) == [
        Word("kat", 0, 2),
        Word("5€", 2, 7),
    ]
    assert words(["\u2581<", "0x41>", "<0x41>"]) == [Word("<0x41>A", 0, 3)]


@pytest.mark.parametrize(
    ("code", "known", "found"),
    [
        ("zh-Hant", ["zh", "zh_TW"], "zh_TW"),
        ("zh-SG", ["zh_TW", "zh"], "zh"),
        ("zh-TW", ["zh"], None),  # in other characters
        ("zt", ["en", "zt"], "zt"),
        ("zt", ["zh", "zh-TW"], "zh-TW"),  # an earlier code of LibreTranslate, as the next one
        ("pb", ["en", "pt"], "pt"),
        ("kor_Hang", ["ko"], "ko"),
        ("nb", ["no"], "no"),
        ("sr-Latn", ["sr"], None),
        ("pt-PT", ["en", "pt_BR"], "pt_BR"),
        ("de-AT", ["de_CH"], "de_CH"),
        ("XX", ["xx"], "xx"),
        ("not a code", ["de"], None),
    ],
)
def test_a_language_is_found_in_its_script(code: str, known: list[str], found: str | None) -> None:
    pairs = Pairs([Languages("en", target) for target in known])
    if found is None:
        with pytest.raises(BadRequestError, match=f"^{code} is not supported$"):
            pairs.find("en", code, "a")
    else:
        assert pairs.find("en", code, "a")[0].target == found


@pytest.mark.parametrize("kind", ["ImportError", "OSError"])
def test_a_library_that_does_not_load_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The process of a worker takes the paths of imports from this one."""
    (tmp_path / "sentencepiece.py").write_text(
        f"raise {kind}('libgone.so: cannot open shared object')"
    )
    monkeypatch.syspath_prepend(tmp_path)
    worker = Worker([tmp_path], ModelOptions(beam=1, lenpen=1.0, max_batch_tokens=10))
    try:
        with pytest.raises(UserError, match=rf"could not load.*{kind}.*libgone\.so"):
            worker.languages()
    finally:
        worker.stop()


def test_a_worker_names_the_remedies_of_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """The options of ``translate`` are none of its own."""
    monkeypatch.setattr(signals, "follow_parent", lambda: None)
    monkeypatch.setattr(workers, "_translators", {})
    monkeypatch.setattr(workers, "_digests", {})
    workers._load([pretrained.located()], ModelOptions(beam=1, lenpen=1.0, max_batch_tokens=10))
    remedy = workers._translator(EN_DE).memory_remedy
    known = {f"--{field.name.replace('_', '-')}" for field in fields(serve.Options)}
    assert set(re.findall(r"--[\w-]+", remedy)) <= known


@pytest.mark.parametrize(("most", "named"), [(10, "this server"), (4096, "the model")])
def test_a_sentence_that_is_too_long_is_told_whose_limit_it_is(
    monkeypatch: pytest.MonkeyPatch, most: int, named: str
) -> None:
    monkeypatch.setattr(signals, "follow_parent", lambda: None)
    monkeypatch.setattr(workers, "_translators", {})
    monkeypatch.setattr(workers, "_digests", {})
    workers._load([pretrained.located()], ModelOptions(beam=1, max_batch_tokens=most))
    line = "dog " * 200
    answer, unknown = workers._translate(Work(EN_DE, explained=True), [line, "北京"])
    # names in another script stay as they are
    assert [(found.text, found.pieces) for found in unknown.translations] == [
        ("北京", ["▁", "北京"])
    ]
    with pytest.raises(TooLongError, match=f"but {named} takes at most {min(most, 128)}: divide"):
        service._check(line, answer)
