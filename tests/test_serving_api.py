"""The server's interface, with workers that are made up: LibreTranslate's answers and errors."""

import asyncio
import gzip
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress

import pytest
import requests
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import settings
from libretranslatepy import LibreTranslateAPI
from prometheus_client.parser import text_string_to_metric_families

from resmlp_mt.serving import app, connections
from resmlp_mt.serving.app import _explained, create_app
from resmlp_mt.serving.interface import ExplainedSegment
from resmlp_mt.serving.limits import Limits
from resmlp_mt.serving.service import Part
from serving import EN_DE, FR_DE, LONGEST, Reversing, served, translated, wait_for

ASKED = {"q": "Hello big world.", "source": "en", "target": "de"}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with served([Reversing(), Reversing()]) as address:
        yield address


def post(address: str, status: int = 200, path: str = "/translate", **fields: object) -> dict:
    """The answer to a JSON request, of the status that is expected."""
    answer = requests.post(address + path, json={**ASKED, **fields}, timeout=60)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    return answer.json()


def metric(address: str, name: str, **labels: str) -> float:
    text = requests.get(f"{address}/metrics", timeout=60).text
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def test_a_client_of_libretranslate_works_unchanged(server: str) -> None:
    client = LibreTranslateAPI(server)
    assert client.languages() == [
        {"code": "en", "name": "English", "targets": ["de"]},
        {"code": "de", "name": "German", "targets": []},
    ]
    assert client.translate("Hello big world.", "en", "de") == "WORLD. BIG hELLO"
    assert [found["language"] for found in client.detect("Good morning")] == ["en", "de"]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {"translatedText": "WORLD. BIG hELLO"}),
        ({"q": ["a b", "c"]}, {"translatedText": ["B A", "C"]}),
        ({"q": "😀"}, {"translatedText": "😀"}),
        ({"q": ["😀", " \n"]}, {"translatedText": ["😀", " \n"]}),
        ({"api_key": "secret", "format": "text"}, {"translatedText": "WORLD. BIG hELLO"}),
        (
            {"q": "a", "alternatives": 2},
            {"translatedText": "A", "alternatives": ["A!", "A!!"]},
        ),
        (
            {"q": ["a", "😀"], "alternatives": "1"},
            {"translatedText": ["A", "😀"], "alternatives": [["A!"], []]},
        ),
        ({"q": "a. b\n", "source": "de", "target": "deu"}, {"translatedText": "a. b\n"}),
        (
            {"q": ["a", "b"], "source": "en", "target": "en", "alternatives": 1},
            {"translatedText": ["a", "b"], "alternatives": [[], []]},
        ),
        ({"q": "a", "source": "EN", "target": "de_DE"}, {"translatedText": "A"}),
        ({"q": "a", "source": "eng", "target": "deu"}, {"translatedText": "A"}),
    ],
)
def test_answers(server: str, fields: dict, expected: dict) -> None:
    assert post(server, **fields) == expected


def test_auto_knows_a_text_in_the_target_language(server: str) -> None:
    german, before = "Wo ist der Bahnhof? Hier.", metric(server, "resmlp_sentences_total")
    found = post(server, q=["The weather is nice today.", german], source="auto")
    assert found["translatedText"] == ["TODAY. NICE IS WEATHER tHE", german]
    assert [entry["language"] for entry in found["detectedLanguage"]] == ["en", "de"]
    found = post(server, path="/explain", q=german, source="auto")
    assert found["translatedText"] == german
    assert found["detectedLanguage"]["language"] == "de"
    assert [part["text"] for part in found["segments"]] == [german]
    assert metric(server, "resmlp_sentences_total") == before + 1


@pytest.mark.parametrize("text", ["Help", "In Berlin", "Ok"])
def test_auto_translates_words_that_may_be_of_the_target(server: str, text: str) -> None:
    """German is a little likelier for them, and far from sure."""
    found = post(server, q=text, source="auto")
    assert found["translatedText"] != text
    assert found["detectedLanguage"]["language"] == "en"


def test_white_space_and_empty_lines_are_kept(server: str) -> None:
    text = "\n  One two. Three four!\t\r\n\r\n\n* five six\n"
    expected = "\n  TWO. oNE FOUR! tHREE\t\r\n\r\n\nSIX FIVE *\n"
    assert post(server, q=text)["translatedText"] == expected
    assert post(server, q=text, alternatives=1)["alternatives"] == [
        "\n  TWO. oNE! FOUR! tHREE!\t\r\n\r\n\nSIX FIVE *!\n"
    ]


@pytest.mark.parametrize("content", ["data", "files", "params"])
def test_forms_and_addresses_do_as_well_as_json(server: str, content: str) -> None:
    fields = {"q": "Hello\nbig world.", "source": "en", "target": "de", "alternatives": "1"}
    sent = [(name, (None, v) if content == "files" else v) for name, v in fields.items()]
    answer = requests.post(f"{server}/translate", timeout=60, **{content: sent})
    assert answer.json() == {
        "translatedText": "hELLO\nWORLD. BIG",
        "alternatives": ["hELLO!\nWORLD. BIG!"],
    }
    sent = [*sent[:3], ("q", (None, "a") if content == "files" else "a")]
    answer = requests.post(f"{server}/translate", timeout=60, **{content: sent})
    assert answer.json() == {"translatedText": ["hELLO\nWORLD. BIG", "A"]}  # both


@pytest.mark.parametrize("empty", [None, ""])
def test_an_empty_field_is_as_if_left_out(server: str, empty: str | None) -> None:
    fields = {"format": empty, "alternatives": empty, "api_key": empty}
    assert post(server, **fields) == {"translatedText": "WORLD. BIG hELLO"}
    assert post(server, api_key=123) == {"translatedText": "WORLD. BIG hELLO"}
    assert post(server, path="/detect", api_key=123)


def test_pages_of_the_sites_that_are_named_may_ask() -> None:
    ours, other = "https://example.org", "https://example.com"
    asks = {"Access-Control-Request-Method": "POST"}
    for origins, allowed in (([ours], {ours}), ([], set())):
        client = TestClient(create_app([Reversing()], [EN_DE], Limits(), origins))
        for origin in (ours, other):
            answers = (
                client.options("/translate", headers={"Origin": origin, **asks}),
                client.get("/languages", headers={"Origin": origin}),
            )
            for answer in answers:
                said = answer.headers.get("access-control-allow-origin")
                assert said == (origin if origin in allowed else None)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"q": None}, "Invalid request: missing q parameter"),
        ({"q": []}, "Invalid request: missing q parameter"),
        ({"source": ""}, "Invalid request: missing source parameter"),
        ({"target": None}, "Invalid request: missing target parameter"),
        ({"target": "zz"}, "zz is not supported"),
        ({"source": "zz"}, "zz is not supported"),
        (
            {"source": "de", "target": "en"},
            "en is not available as a target language from de",
        ),
        ({"target": "de-x" + "-private" * 4}, "de-x" + "-private" * 4 + " is not supported"),
        ({"format": "html"}, "html format is not supported"),
        ({"alternatives": "abc"}, "Invalid request: alternatives parameter is not a number"),
        ({"alternatives": 5}, "Invalid request: alternatives must be at most 4"),
        ({"alternatives": True}, "Invalid request: alternatives parameter is not a number"),
        ({"alternatives": -1}, "Invalid request: alternatives parameter is not a number"),
        ({"q": 7}, "Invalid request: q: Input should be a valid string"),
    ],
)
def test_wrong_requests_get_libretranslates_sentences(
    server: str, fields: dict, error: str
) -> None:
    assert post(server, 400, **fields) == {"error": error}


@pytest.mark.parametrize("body", [b"{", b"[1]", b"\xff", b'"q"', b"[" * 100_000])
def test_a_body_that_is_no_json_object_is_refused(server: str, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    answer = requests.post(f"{server}/translate", body, headers=headers, timeout=60)
    assert (answer.status_code, answer.json()) == (400, {"error": "Invalid JSON format"})


def test_wrong_addresses_and_methods_get_an_error_in_json(server: str) -> None:
    assert requests.get(f"{server}/nothing", timeout=60).json() == {"error": "Not Found"}
    answer = requests.get(f"{server}/translate", timeout=60)
    assert (answer.status_code, answer.json()) == (405, {"error": "Method Not Allowed"})


@pytest.mark.parametrize("path", ["suggest", "translate_file"])
def test_what_is_not_offered_is_refused_in_a_sentence(server: str, path: str) -> None:
    answer = requests.post(f"{server}/{path}", files={"file": b"text" * 10_000}, timeout=60)
    assert (answer.status_code, answer.json()) == (
        403,
        {"error": "this server takes neither files nor suggestions: it translates text alone"},
    )


def test_head_is_answered_as_get(server: str) -> None:
    """As by LibreTranslate: proxies look whether a server lives."""
    labels = {"path": "/health", "method": "HEAD", "status": "200"}
    before = metric(server, "resmlp_requests_total", **labels)
    for path in ("/", "/health", "/languages"):
        answer, full = (ask(f"{server}{path}", timeout=60) for ask in (requests.head, requests.get))
        assert (answer.status_code, answer.content) == (200, b"")
        assert answer.headers["content-length"] == str(len(full.content))
    assert metric(server, "resmlp_requests_total", **labels) == before + 1
    assert requests.head(f"{server}/translate", timeout=60).status_code == 405
    assert requests.head(f"{server}/nothing", timeout=60).status_code == 404


def test_methods_that_nobody_knows_are_counted_together(server: str) -> None:
    """Any token is a method, and each would be a new series of numbers for ever."""
    before = metric(server, "resmlp_requests_total", method="other")
    for method in ("BREW", "x" * 50):
        assert requests.request(method, f"{server}/health", timeout=60).status_code == 405
    assert metric(server, "resmlp_requests_total", method="other") == before + 2
    assert "BREW" not in requests.get(f"{server}/metrics", timeout=60).text


def test_a_server_without_workers_says_so() -> None:
    workers = [Reversing(), Reversing()]
    with served(workers) as server:
        workers[0].failure = "no memory"
        assert requests.get(f"{server}/health", timeout=60).json() == {"status": "ok"}
        assert post(server, q="a")["translatedText"] == "A"
        workers[1].failure = "no memory"
        answer = requests.get(f"{server}/health", timeout=60)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert answer.json()["error"].startswith("no worker can translate: ")
        assert post(server, 503, q="a") == answer.json()
        assert requests.get(f"{server}/mixing?source=en&target=de", timeout=60).status_code == 503
        workers[1].failure = None
        assert requests.get(f"{server}/health", timeout=60).status_code == 200


def test_a_long_explanation_is_written_beside_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other clients do not wait for it."""
    loops = []

    def watched(part: Part) -> ExplainedSegment:
        loops.append(asyncio._get_running_loop())
        return _explained(part)

    monkeypatch.setattr(app, "_explained", watched)
    worker = Reversing()
    with served([worker]) as server:
        assert post(server, path="/explain", q="One two.")["translatedText"] == "TWO. oNE"
        assert loops == [None]
        assert "one text" in post(server, 400, path="/explain", q=["a", "b"])["error"]
        assert len(worker.batches) == 1  # what is refused is not translated first


def test_what_is_too_long_is_413() -> None:
    limits = Limits(max_body=1000, char_limit=300, queue_size=5)
    with served([Reversing()], limits) as server:
        assert post(server, q="a " * LONGEST)["translatedText"]
        error = post(server, 413, q="Fits. " + "word " * LONGEST + "end.")["error"]
        assert error.startswith("the sentence that begins with 'word word")
        assert f"has {LONGEST + 1} tokens, but the model takes at most {LONGEST}" in error
        assert "exceeds text limit (300)" in post(server, 413, q="x" * 301)["error"]
        assert (
            "6 sentences, more than the server's queue of 5"
            in post(server, 413, q="a\n" * 6)["error"]
        )
        assert "larger than 1000 bytes" in post(server, 413, q="x" * 1001)["error"]
        pieces = iter([json.dumps(ASKED).encode(), *[b" " * 100] * 10])
        answer = requests.post(f"{server}/translate", data=pieces, timeout=60)  # of unknown length
        assert answer.status_code == 413


def test_every_kind_of_request_may_be_as_large_as_the_limit() -> None:
    limits = Limits(max_body=2_000_000, char_limit=2_000_000)
    asked = {**ASKED, "q": "Fits." + " " * 1_500_000}
    with served([Reversing()], limits) as server:
        parts = {name: (None, str(value)) for name, value in asked.items()}
        for body in ({"json": asked}, {"data": asked}, {"files": parts}):
            answer = requests.post(f"{server}/translate", timeout=60, **body)
            assert answer.status_code == 200, answer.text


def test_a_sentence_without_a_translation_is_an_error(server: str) -> None:
    assert "has no translation" in post(server, 500, q="silence")["error"]
    assert "translating failed twice: poison" in post(server, 500, q=["fine", "poison"])["error"]
    assert post(server, q="fine")["translatedText"] == "FINE"


def test_too_many_requests_of_a_client_are_429() -> None:
    worker = Reversing()
    limits = Limits(client_requests=2, queue_size=2)
    with served([worker], limits) as server, ThreadPoolExecutor(3) as pool:
        worker.gate.clear()
        first = pool.submit(post, server, q="first")
        wait_for(lambda: worker.batches)
        second = pool.submit(post, server, q=["a", "b"])
        wait_for(lambda: metric(server, "resmlp_queue_sentences") == 2)
        assert post(server, 429)["error"].startswith(
            "Slowdown: 2 of your requests are not answered"
        )
        worker.gate.set()
        assert first.result()["translatedText"] == "FIRST"
        assert second.result()["translatedText"] == ["A", "B"]
        assert post(server, q="free again")["translatedText"] == "AGAIN FREE"


def test_a_busy_server_says_when_to_come_back() -> None:
    worker = Reversing()
    with served([worker], Limits(queue_size=1)) as server, ThreadPoolExecutor(2) as pool:
        worker.gate.clear()
        waiting = [pool.submit(post, server, q="in work")]
        wait_for(lambda: worker.batches)
        waiting.append(pool.submit(post, server, q="waits"))
        wait_for(lambda: metric(server, "resmlp_queue_sentences") == 1)
        answer = requests.post(f"{server}/translate", json=ASKED, timeout=60)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert answer.json() == {"error": "the server is busy: its queue is full, try again later"}
        worker.gate.set()
        assert [done.result()["translatedText"] for done in waiting] == ["WORK IN", "WAITS"]


def test_a_client_that_goes_away_frees_its_place() -> None:
    worker = Reversing()
    with served([worker], Limits(queue_size=1)) as server, ThreadPoolExecutor(1) as pool:
        worker.gate.clear()
        first = pool.submit(post, server, q="first")
        wait_for(lambda: worker.batches)
        host, port = server.removeprefix("http://").split(":")
        body = json.dumps({**ASKED, "q": "abandoned"}).encode()
        head = f"POST /translate HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        with closing(socket.create_connection((host, int(port)))) as leaving:
            leaving.sendall(head.encode() + body)
            wait_for(lambda: metric(server, "resmlp_queue_sentences") == 1)
        wait_for(lambda: metric(server, "resmlp_queue_sentences") == 0)
        wait_for(lambda: metric(server, "resmlp_clients_gone_total") == 1)
        worker.gate.set()
        assert first.result()["translatedText"] == "FIRST"
    assert [lines for _, lines in worker.batches] == [["first"]]


def exchange(address: str, *parts: bytes, half_closes: bool = False) -> str:
    """What the server says to these bytes, until it closes the connection."""
    host, port = address.removeprefix("http://").split(":")
    with closing(socket.create_connection((host, int(port)), timeout=300)) as connection:
        for part in parts:
            connection.sendall(part)
        if half_closes:
            connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(10_000), b"")).decode()


def raw(fields: object, head: str = "Connection: close\r\n") -> bytes:
    """A request for /translate, byte by byte."""
    body = json.dumps(fields)
    head = f"Host: x\r\nContent-Length: {len(body)}\r\n{head}"
    return f"POST /translate HTTP/1.1\r\n{head}\r\n{body}".encode()


FORM = "application/x-www-form-urlencoded"
PARTS = "multipart/form-data; boundary=end"


@pytest.mark.parametrize(
    ("kind", "q", "expected"),
    [
        (FORM, "Où é".encode(), "É oÙ"),  # so ``curl -d q=...`` sends it
        (FORM, b"a+b%20c", "C B A"),
        (f"{FORM}; charset=iso-8859-1", b"%E9 o\xf9", "OÙ É"),
        (FORM, b"%E9 o", "Invalid request: its text is not utf-8"),
        (FORM, b"a \xff", "Invalid request: its text is not utf-8"),
        (f"{FORM}; charset=none", b"a", "Invalid request: unknown charset none"),
        (f"{FORM}; charset=punycode", b"a", "Invalid request: unknown charset punycode"),
        (PARTS, "Où é".encode(), "É oÙ"),
        (PARTS, "Où é".encode("latin-1"), "Invalid request: its text is not utf-8"),
        (f"{PARTS}; charset=latin1", "Où é".encode("latin-1"), "É oÙ"),
        ("application/json; charset=ISO-8859-1", "Où é".encode("latin-1"), "É oÙ"),
        ("application/json", "Où é".encode("latin-1"), "Invalid JSON format"),
        ("application/json; charset=none", b"a", "Invalid request: unknown charset none"),
    ],
)
def test_text_has_the_charset_that_its_request_names(
    server: str, kind: str, q: bytes, expected: str
) -> None:
    body = b'{"source": "en", "target": "de", "q": "%s"}' % q
    body = b"source=en&target=de&q=" + q if FORM in kind else body
    if PARTS in kind:
        part = b'--end\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n'
        fields = {b"source": b"en", b"target": b"de", b"q": q}
        body = b"".join(part % field for field in fields.items()) + b"--end--\r\n"
    answer = requests.post(f"{server}/translate", body, headers={"Content-Type": kind}, timeout=60)
    assert list(answer.json().values()) == [expected]


def test_a_request_that_cannot_be_read_is_refused(server: str) -> None:
    packed = gzip.compress(json.dumps(ASKED).encode())
    headers = {"Content-Encoding": "gzip"}
    answer = requests.post(f"{server}/translate", packed, headers=headers, timeout=60)
    assert (answer.status_code, answer.json()["error"][:25]) == (415, "the request is compressed")
    many = requests.post(f"{server}/translate", {**ASKED, "q": ["a"] * 1001}, timeout=60)
    assert (many.status_code, many.json()["error"]) == (
        400,
        "Invalid request: more than 1000 fields",
    )


def test_a_client_may_offer_http_2_and_send_requests_without_waiting(server: str) -> None:
    """The first as Java's HttpClient does; the answers come in the order of the requests."""
    offer = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
    said = exchange(
        server,
        raw({**ASKED, "q": "one two"}, offer) + raw({**ASKED, "q": "three four"}, ""),
        raw({**ASKED, "q": "five six"}),
    )
    assert said.count("HTTP/1.1 200 OK") == 3
    found = [said.index(text) for text in ("TWO ONE", "FOUR THREE", "SIX FIVE")]
    assert found == sorted(found)


def test_half_a_surrogate_stops_no_request(server: str) -> None:
    """As JSON may hold it, in one text and in a list, whose other texts are right."""
    assert (
        post(server, q="One \ud800a.")["translatedText"]
        == post(server, q="One \ufffda.")["translatedText"]
    )
    found = post(server, q=["One two.", "a \udc00b", "\ud83d"])["translatedText"]
    assert found == ["TWO. oNE", "\ufffdB A", "\ufffd"]
    assert post(server, path="/explain", q="a\ud800")["segments"][0]["text"] == "a\ufffd"
    assert post(server, path="/detect", q="a\ud800")


def test_an_error_that_cites_half_a_surrogate_can_be_sent(server: str) -> None:
    assert post(server, 400, format="\ud800") == {"error": "? format is not supported"}


def test_texts_are_counted_even_if_they_are_empty() -> None:
    with served([Reversing()], Limits(queue_size=5)) as server:
        assert post(server, q=[""] * 5)["translatedText"] == [""] * 5
        assert "has 6 texts, more than" in post(server, 413, q=[""] * 6)["error"]


def test_a_client_that_leaves_before_its_request_is_there_is_no_failure() -> None:
    with served([Reversing()]) as server:
        host, port = server.removeprefix("http://").split(":")
        with closing(socket.create_connection((host, int(port)))) as leaving:
            leaving.sendall(raw(ASKED)[:-3])
            wait_for(lambda: metric(server, "resmlp_requests_in_work") == 2)  # with this one
        wait_for(lambda: metric(server, "resmlp_requests_total", status="499") == 1)
        assert metric(server, "resmlp_requests_total", status="500") == 0


def test_a_client_that_closes_its_side_gets_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """As ``nc -N`` does; a slow answer has one before it that shows whether the client is there."""
    worker = Reversing()
    with served([worker]) as server, ThreadPoolExecutor(2) as pool:
        answer = exchange(server, raw(ASKED, ""), half_closes=True)
        assert answer.startswith("HTTP/1.1 200")
        assert "WORLD. BIG hELLO" in answer
        monkeypatch.setattr(connections, "PROBE", 0.05)
        worker.gate.clear()
        old = raw(ASKED, "").replace(b"HTTP/1.1", b"HTTP/1.0")
        slow = [pool.submit(exchange, server, r, half_closes=True) for r in (raw(ASKED, ""), old)]
        wait_for(lambda: metric(server, "resmlp_requests_in_work") == 3)  # with this one
        time.sleep(0.3)  # several times the pause
        worker.gate.set()
        assert slow[0].result().startswith("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200")
        assert slow[1].result().startswith("HTTP/1.1 200")  # HTTP/1.0 has no such answers
        assert all("WORLD. BIG hELLO" in each.result() for each in slow)


def test_matrices_count_among_the_requests_of_a_client() -> None:
    worker = Reversing()
    limits = Limits(client_requests=1)
    with served([worker], limits) as server, ThreadPoolExecutor(1) as pool:
        worker.gate.clear()
        first = pool.submit(post, server)
        wait_for(lambda: worker.batches)
        answer = requests.get(f"{server}/mixing?source=en&target=de", timeout=60)
        assert answer.status_code == 429
        worker.gate.set()
        first.result()


def test_a_head_that_does_not_arrive_ends_the_connection() -> None:
    with served([Reversing()], Limits(max_wait=0.2)) as server:
        assert exchange(server).startswith("HTTP/1.1 408")
        assert exchange(server, b"POST /translate HTTP/1.1\r\nHo").startswith("HTTP/1.1 408")
    with served([Reversing()]) as server:
        endless = exchange(server, b"GET / HTTP/1.1\r\nX: " + b"x" * 100_000)
        assert endless.startswith("HTTP/1.1 400")


def test_a_request_that_does_not_arrive_is_408() -> None:
    with served([Reversing()], Limits(max_wait=0.2)) as server:
        answer = exchange(server, raw(ASKED)[:-3])
    assert answer.startswith("HTTP/1.1 408")
    assert "did not arrive within 0.2 seconds" in answer


def test_a_request_that_is_answered_early_does_not_keep_its_connection() -> None:
    """Each byte of the body that arrives later would put off uvicorn's own limit."""
    with served([Reversing()], Limits(max_wait=0.2)) as server:
        host, port = server.removeprefix("http://").split(":")
        with closing(socket.create_connection((host, int(port)), timeout=300)) as slow:
            slow.sendall(b"POST /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
            assert slow.recv(10_000).startswith(b"HTTP/1.1 404")
            slow.sendall(b"a")
            assert slow.recv(10_000) == b""


def test_a_request_that_arrives_byte_by_byte_is_408() -> None:
    """Every byte in time, but not the whole."""
    with served([Reversing()], Limits(max_wait=0.3)) as server:
        host, port = server.removeprefix("http://").split(":")
        with closing(socket.create_connection((host, int(port)), timeout=0.05)) as slow:
            slow.sendall(b"POST /translate HTTP/1.1\r\nHost: x\r\nContent-Length: 6000\r\n\r\n")
            answer = b""
            for _ in range(5999):
                slow.send(b" ")
                with suppress(TimeoutError):
                    answer = slow.recv(1000)
                if answer:
                    break
    assert answer.startswith(b"HTTP/1.1 408")


def test_many_clients_each_get_their_own_answers() -> None:
    """More at once than are in work, with batches of several clients."""
    workers = [Reversing(), Reversing()]
    limits = Limits(max_batch_size=8)

    def client(number: int) -> None:
        with requests.Session() as session:
            for i in range(20):
                texts = [f"client {number} text {i} line {k}" for k in range(i % 3 + 1)]
                answer = session.post(f"{server}/translate", json={**ASKED, "q": texts}, timeout=60)
                assert answer.json()["translatedText"] == list(map(translated, texts))

    with served(workers, limits) as server, ThreadPoolExecutor(24) as pool:
        list(pool.map(client, range(24)))
        assert metric(server, "resmlp_requests_total", path="/translate", status="200") == 24 * 20
        assert metric(server, "resmlp_request_seconds_count", path="/translate") == 24 * 20
        assert (
            metric(server, "resmlp_sentences_total", pair="en-de")
            == sum(i % 3 + 1 for i in range(20)) * 24
        )
    assert max(len(lines) for worker in workers for _, lines in worker.batches) > 1


def test_several_models_are_chosen_by_their_languages() -> None:
    worker = Reversing()
    with served([worker], languages=[EN_DE, FR_DE]) as server:
        post(server, source="fr")
        found = post(server, q="Bonjour, comment allez-vous aujourd'hui ?", source="auto")
        assert found["detectedLanguage"]["language"] == "fr"
        found = post(server, q=["The weather is nice today.", "Il fait beau."], source="auto")
        assert [entry["language"] for entry in found["detectedLanguage"]] == ["en", "fr"]
        assert found["translatedText"] == ["TODAY. NICE IS WEATHER tHE", "BEAU. FAIT iL"]
        ranked = requests.post(
            f"{server}/detect", json={"q": "Où est la gare ?"}, timeout=60
        ).json()
        assert [entry["language"] for entry in ranked] == ["fr", "en", "de"]
        assert sum(entry["confidence"] for entry in ranked) <= 100.1
    assert [languages for languages, _ in worker.batches] == [FR_DE, FR_DE, EN_DE, FR_DE]


def test_explain_tells_sentences_and_scores(server: str) -> None:
    found = post(server, path="/explain", q=" One two.\n😀")
    assert found["translatedText"] == " TWO. oNE\n😀"
    assert [(part["text"], part["start"]) for part in found["segments"]] == [
        *((" ", 0), ("One two.", 1), ("\n", 9), ("😀", 10)),
    ]
    assert [hypothesis["text"] for hypothesis in found["segments"][1]["translations"]] == [
        "TWO. oNE" + "!" * n for n in range(5)
    ]
    assert found["segments"][1]["translations"][1]["score"] == -1.1
    assert found["segments"][3]["translations"] == []
    assert found["segments"][1]["words"] == [
        {"text": "One", "begin": 0, "end": 1},
        {"text": "two.", "begin": 1, "end": 2},
    ]
    assert found["segments"][1]["translations"][0]["words"] == ["TWO.", "oNE"]
    assert found["segments"][1]["translations"][0]["attention"] == [[0.0, 1.0], [1.0, 0.0]]
    assert "q must be one text" in post(server, 400, path="/explain", q=["a"])["error"]


def test_rows_of_the_mixing_matrix(server: str) -> None:
    pair = {"source": "en", "target": "de"}
    answer = requests.get(f"{server}/mixing", {**pair, "layer": 1, "length": 2}, timeout=60)
    assert answer.json() == {"layers": 2, "matrix": [[0.0, 1.5], [-0.25, 0.0]]}
    answer = requests.get(f"{server}/mixing", {**pair, "layer": 2}, timeout=60)
    assert (answer.status_code, answer.json()) == (
        404,
        {"error": "the model has 2 layers and 20 positions"},
    )
    answer = requests.get(f"{server}/mixing", {**pair, "layer": "x"}, timeout=60)
    assert answer.status_code == 422
    assert answer.json()["error"].startswith("Invalid request: layer: ")
    for source in ("auto", "de"):  # no model
        answer = requests.get(f"{server}/mixing", {**pair, "source": source}, timeout=60)
        assert answer.status_code == 400
        assert "de is not available as a target language" in answer.json()["error"]


def test_the_page_and_the_description_need_nothing_from_elsewhere(server: str) -> None:
    page = requests.get(server, timeout=60)
    assert "default-src 'self'" in page.headers["content-security-policy"]
    for path in ("/page/page.js", "/page/style.css", "/docs"):
        text = requests.get(server + path, timeout=60).text
        assert "https://" not in text.replace("https://fastapi.tiangolo.com", "")
    assert "https://" not in page.text


schema = schemathesis.openapi.from_asgi(
    "/openapi.json", create_app([Reversing()], [EN_DE], Limits())
)


@schema.parametrize()
@settings(max_examples=25, deadline=None, derandomize=True)
def test_the_server_keeps_to_its_own_description(case: schemathesis.Case) -> None:
    case.call_and_validate()
