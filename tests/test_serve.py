"""``python -m resmlp_mt.serve``: a real model, worker processes, signals."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from conftest import ROOT, Corpus
from resmlp_mt import serve
from resmlp_mt.engine import model_folder
from resmlp_mt.engine.options import SearchOptions
from resmlp_mt.engine.translator import Translator
from resmlp_mt.errors import UserError
from resmlp_mt.serving.connections import Server
from resmlp_mt.serving.workers import Languages
from resmlp_mt.signals import ENDING
from serving import wait_for


@contextmanager
def running(*arguments: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server in a process of its own, and its address."""
    command = [sys.executable, "-m", "resmlp_mt.serve", *map(str, arguments), "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("serving http://127.0.0.1:"), line
            yield process, line.split()[1]
        finally:
            process.kill()


@pytest.fixture(scope="module")
def server(exported: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    with running(exported, "--workers", 2, "--beam", 4, "--max-wait", 120) as started:
        yield started


def ask(address: str, q: list[str]) -> requests.Response:
    fields = {"q": q, "source": "en", "target": "de", "alternatives": 3}
    return requests.post(f"{address}/translate", json=fields, timeout=120)


def children(process: int) -> list[int]:
    """Processes that a process has started and that still run."""
    found = []
    for thread in Path(f"/proc/{process}/task").iterdir():
        found += [int(child) for child in (thread / "children").read_text().split()]
    return found


def workers(process: int) -> list[int]:
    """Worker processes, without the one that keeps track of shared memory."""
    mark = b"multiprocessing.spawn"
    return [c for c in children(process) if mark in Path(f"/proc/{c}/cmdline").read_bytes()]


def in_work(address: str) -> bool:
    text = requests.get(f"{address}/metrics", timeout=60).text
    return "resmlp_requests_in_work 2.0" in text  # with the one for the metrics


def expected(exported: Path, lines: list[str]) -> list[list[str]]:
    translator = Translator(model_folder.load(exported), SearchOptions(beam=4))
    return [[t.text for t in found] for found in translator.translate(lines)]


def test_answers_are_those_of_the_translator(
    server: tuple[subprocess.Popen[str], str], exported: Path, corpus: Corpus
) -> None:
    lines = corpus.sentences("test", "en")
    found = ask(server[1], lines).json()
    right = expected(exported, lines)
    assert found["translatedText"] == [texts[0] for texts in right]
    for alternatives, texts in zip(found["alternatives"], right, strict=True):
        assert alternatives == list(dict.fromkeys(texts))[1:]


def test_a_sentence_that_is_too_long_is_413(server: tuple[subprocess.Popen[str], str]) -> None:
    answer = ask(server[1], ["one two", "nine " * 60])
    assert answer.status_code == 413
    assert "but the model takes at most 40: divide it" in answer.json()["error"]


def test_a_killed_worker_loses_no_answer(
    server: tuple[subprocess.Popen[str], str], exported: Path, corpus: Corpus
) -> None:
    process, address = server
    lines = corpus.sentences("train", "en")[:200]
    before = workers(process.pid)
    assert len(before) == 2
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask, address, lines)
        wait_for(lambda: in_work(address))
        for worker in before:
            os.kill(worker, signal.SIGKILL)
        found = answer.result()
    assert found.status_code == 200
    assert found.json()["translatedText"] == [texts[0] for texts in expected(exported, lines)]
    assert not set(workers(process.pid)) & set(before)


def test_sigterm_answers_what_is_in_work_and_exits_0(exported: Path, corpus: Corpus) -> None:
    lines = corpus.sentences("train", "en")[:200]
    with running(exported, "--workers", 1) as (process, address), ThreadPoolExecutor(1) as pool:
        own = workers(process.pid)
        answer = pool.submit(ask, address, lines)
        wait_for(lambda: in_work(address))
        for pid in (process.pid, *own):  # as a service manager does
            os.kill(pid, signal.SIGTERM)
        assert answer.result().status_code == 200
        assert len(answer.result().json()["translatedText"]) == 200
        assert process.wait(300) == 0
        wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in own))


def test_workers_end_with_a_server_that_is_killed(exported: Path) -> None:
    with running(exported, "--workers", 1) as (process, _):
        own = workers(process.pid)
        process.kill()
        wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in own))


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGHUP, 0)])
def test_a_terminal_ends_it(exported: Path, number: signal.Signals, status: int) -> None:
    with running(exported, "--workers", 1) as (process, _):
        own = workers(process.pid)
        for pid in (process.pid, *own):
            os.kill(pid, number)
        assert process.wait(300) == status
        wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in own))


class Loaded:
    """In place of a worker: one that has models, and does nothing."""

    def __init__(self, *_: object) -> None:
        self.failure = None

    def languages(self) -> list[Languages]:
        return [Languages("en", "de")]

    def stop(self) -> None:
        """There is no process."""


def test_it_is_started_in_any_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the main thread may set the handlers of signals."""
    monkeypatch.setattr("resmlp_mt.serving.workers.Worker", Loaded)
    served: list[str] = []
    monkeypatch.setattr(Server, "run", lambda server, **_: served.append(server.address))
    before = [signal.getsignal(number) for number in ENDING]
    with ThreadPoolExecutor(1) as pool:
        pool.submit(serve.main, ["--port", "0", "--workers", "1"]).result()
    serve.main(["--port", "0", "--workers", "1"])
    assert len(served) == 2
    assert [signal.getsignal(number) for number in ENDING] == before


def test_a_model_that_cannot_be_used_is_one_sentence(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none is neither a checkpoint nor a folder"):
        serve.main([str(tmp_path / "none"), "--port", "0", "--workers", "1"])
    with pytest.raises(UserError, match="is a second model from en to de"):
        serve.main([str(exported), str(exported), "--port", "0", "--workers", "1"])


def test_an_address_that_is_taken_is_one_sentence(exported: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        with pytest.raises(UserError, match=f"--port {port} cannot be used"):
            serve.main([str(exported), "--port", port])
    # two that start together both get the address, as long as none of them listens
    with serve.bind("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with serve.bind("127.0.0.1", port) as second:
            first.listen()
            expected = pytest.raises(UserError, match=f"--port {port} cannot be used .*in use")
            with expected, serve.using("127.0.0.1", port):
                second.listen()
    for host in ("nowhere", "a..b", "a" * 64):
        with pytest.raises(UserError, match=f"--host {host} --port 5000 cannot be used"):
            serve.main([str(exported), "--host", host])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["m", "--workers", "0"], "--workers: must be at least 1, but is 0"),
        (["m", "--workers", "2000"], "--workers: must be at most 1024, but is 2000"),
        (["m", "--port", "70000"], "--port: must be at most 65535, but is 70000"),
        (["m", "--max-wait", "0"], "--max-wait: must be above 0"),
        (["m", "--max-wait", "nan"], "--max-wait: must be a finite number, but is nan"),
        (["m", "--max-wait", "inf"], "--max-wait: must be a finite number, but is inf"),
        (["m", "--max-wait", "1e300"], "--max-wait: must be at most 86400"),
        (["m", "--lenpen", "inf"], "--lenpen: must be a finite number, but is inf"),
        (["m", "--lenpen", "11"], "--lenpen: must be at most 10, but is 11"),
        *(
            (["m", "--cors-origin", text], "--cors-origin: expected https://NAME, https:")
            for text in (
                *("example.org", "https://example.org/app", "https://a.org https://b.org"),
                *("https://example.org:x", "https://", "", "https://example.org//"),
            )
        ),
        (["m", "--cors-origin", "https://b\u00fccher.org"], "a NAME with such letters as xn--..."),
    ],
)
def test_wrong_options_are_explained(
    capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        serve.main(arguments)
    assert stopped.value.code == 2
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("https://example.org", "https://example.org"),
        ("https://example.org/", "https://example.org"),
        ("HTTPS://Example.ORG:443/", "https://example.org"),
        ("http://localhost:3000", "http://localhost:3000"),
        ("http://[::1]:80", "http://[::1]"),
        ("https://example.org:80", "https://example.org:80"),
        ("chrome-extension://abc", "chrome-extension://abc"),
        ("https://xn--bcher-kva.example", "https://xn--bcher-kva.example"),
        ("null", "null"),  # of pages opened from a file
        ("*", "*"),
    ],
)
def test_origins_are_those_that_browsers_send(given: str, sent: str) -> None:
    assert serve.parse_args(["m", "--cors-origin", given]).cors_origin == [sent]


@pytest.mark.parametrize("module", ["fastapi", "uvicorn", "sentencex", "prometheus_client"])
def test_a_missing_extra_is_named(module: str) -> None:
    program = (
        f"import runpy, sys; sys.modules[{module!r}] = None; sys.argv = ['serve', 'model'];"
        "runpy.run_module('resmlp_mt.serve', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert module in done.stderr
    assert done.stderr.endswith("pip install '.[serve]' in the checkout of resmlp_mt.\n")
    assert done.stderr.count("\n") == 1


def test_neither_help_nor_the_servers_own_process_loads_torch() -> None:
    program = (
        "import sys; from resmlp_mt import serve\n"
        "try: serve.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print('fastapi' in sys.modules)\n"
        "import resmlp_mt.serving.app, resmlp_mt.serving.workers\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-2:] == ["False", "False"], done.stderr
