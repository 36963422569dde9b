"""Small archives in the layouts of statmt.org, IWSLT and Multi30k, and a server with faults."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


class CorpusServer(ThreadingHTTPServer):
    """Serves `files` (path -> bytes) with ETag and Range.

    `faults` maps a path to faults, one for each coming request: "cut" ends the connection in the
    middle, an integer is a status (with a Retry-After of an hour),
    "no range" ignores Range, "gzip" adds Content-Encoding,
    "page" says that it is HTML.
    `requests` logs path and Range header of each request.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[str | int]] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.sent = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: CorpusServer

    def do_GET(self) -> None:
        # As a proxy it is asked for a whole address.
        path = (
            "/" + self.path.split("://")[-1].partition("/")[2] if "://" in self.path else self.path
        )
        self.server.requests.append((self.path, self.headers.get("Range")))
        waiting = self.server.faults.get(path, [])
        fault = waiting.pop(0) if waiting else None
        content = self.server.files.get(path)
        if isinstance(fault, int) or content is None:
            self.send_response(fault if isinstance(fault, int) else 404)
            self.send_header("Retry-After", "3600")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        etag = f'"{hashlib.md5(content).hexdigest()}"'
        asked = self.headers.get("Range", "")
        start = 0
        if asked and fault != "no range" and self.headers.get("If-Range") in (None, etag):
            start = int(asked.removeprefix("bytes=").partition("-")[0])
        if start >= len(content) > 0:
            self.send_response(416)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if fault == "gzip":
            self.send_header("Content-Encoding", "gzip")
        if fault == "page":
            self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("ETag", etag)
        body = content[start:]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if fault == "cut":
            body = body[: len(body) // 2]
            self.close_connection = True
        self.wfile.write(body)
        self.server.sent += len(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def ask_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the client neither wait between two attempts nor go through a proxy."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@contextmanager
def serve() -> Iterator[CorpusServer]:
    server = CorpusServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def tar(members: Mapping[str, bytes | tarfile.TarInfo], mode: str = "w:gz") -> bytes:
    """A tar archive; a TarInfo stands for itself (links, devices)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def zipped(members: Mapping[str, bytes]) -> bytes:
    """A zip archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


LETTERS = "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ 0123456789 _-"
"""In every sentence, so that no letter of a held-out sentence is unknown."""


def text(lang: str, count: int, topic: str = "") -> list[str]:
    """`count` different sentences; line n of one language belongs to line n of the others."""
    words = {
        "en": ("the small house", "a big tree", "this old street", "in the morning", "stands near"),
        "de": ("das kleine Haus", "ein großer Baum", "diese alte Straße", "am Morgen", "steht bei"),
        "fr": (
            "la petite maison",
            "un grand arbre",
            "cette vieille rue",
            "le matin",
            "se trouve près",
        ),
    }[lang]
    return [
        f"{words[n % 3]} {words[4]} {words[(n // 3) % 3]} {n} {words[3]} & {topic}. {LETTERS}"
        for n in range(count)
    ]


def lines(sentences: list[str], end: str = "\n") -> bytes:
    return "".join(sentence + end for sentence in sentences).encode()


def sgm(sentences: list[str], kind: str, set_id: str) -> bytes:
    """An sgm test set, as statmt.org has them: two documents, entities escaped."""
    half = len(sentences) // 2
    documents = []
    for number, part in enumerate((sentences[:half], sentences[half:])):
        segments = "\n".join(
            f'<seg id="{index}">{_escaped(sentence)}</seg>'
            for index, sentence in enumerate(part, 1)
        )
        documents.append(
            f'<doc sysid="ref" docid="paper-{number}" genre="news" origlang="en">\n<p>\n'
            f"{segments}\n</p>\n</doc>"
        )
    inner = "\n".join(documents)
    return f'<{kind} setid="{set_id}" srclang="any">\n{inner}\n</{kind}>\n'.encode()


def ted_xml(sentences: list[str], set_id: str) -> bytes:
    """An IWSLT development or test set."""
    segments = "\n".join(
        f'<seg id="{index}"> {_escaped(sentence)} </seg>'
        for index, sentence in enumerate(sentences, 1)
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<mteval>\n'
        f'<srcset setid="{set_id}" srclang="german">\n'
        f'<doc docid="1" genre="lectures">\n<url>http://www.ted.com/talks/1</url>\n'
        f"<keywords>talks, art</keywords>\n<title>A talk</title>\n{segments}\n"
        "</doc>\n</srcset>\n</mteval>\n"
    ).encode()


def ted_tags(sentences: list[str], lang: str) -> bytes:
    """An IWSLT training file: talks with tag lines between the sentences."""
    title = {"de": "Ein Vortrag über Bäume", "en": "A talk about trees"}[lang]
    talk = [
        "<url>http://www.ted.com/talks/2</url>",
        "<keywords>talks, trees</keywords>",
        "<speaker>Ada Example</speaker>",
        "<talkid>2</talkid>",
        f"<title>{title}</title>",
        f"<description>{title} & mehr</description>",
        *(f" {sentence}" for sentence in sentences),
        '<reviewer href="http://www.ted.com/profiles/1">R. Example</reviewer>',
    ]
    return lines(talk)


def _escaped(sentence: str) -> str:
    return sentence.replace("&", "&amp;")


def wmt14(source: str, target: str, pair: str, test: str) -> dict[str, bytes]:
    """The archives of WMT14 by file name; `pair` is "de-en", `test` "deen", say."""
    training = {
        f"training/europarl-v7.{pair}.{lang}": lines(text(lang, 300, "Europe"))
        for lang in (source, target)
    }
    others = {"training/europarl-v7.cs-en.cs": b"x\n", "training/europarl-v7.cs-en.en": b"x\n"}
    crawl = {
        f"commoncrawl.{pair}.{lang}": lines(text(lang, 200, "crawl\u2028ed"), "\r\n")
        for lang in (source, target)
    }
    crawl[f"commoncrawl.{pair}.annotation"] = b"1 http://example.org\n"
    news = {
        f"training/news-commentary-v9.{pair}.{lang}": lines(text(lang, 100, "news"))
        for lang in (source, target)
    }
    un = {f"un/undoc.2000.{pair}.{lang}": lines(text(lang, 50, "UN")) for lang in (source, target)}
    giga = {
        f"giga-fren.release2.fixed.{lang}.gz": gzip.compress(lines(text(lang, 60, "web")))
        for lang in (source, target)
    }
    dev = {
        f"dev/newstest2013-src.{source}.sgm": sgm(
            text(source, 20, "dev"), "srcset", "newstest2013"
        ),
        f"dev/newstest2013-ref.{target}.sgm": sgm(
            text(target, 20, "dev"), "refset", "newstest2013"
        ),
    }
    full = {
        f"test-full/newstest2014-{test}-src.{source}.sgm": sgm(
            text(source, 21, "test"), "srcset", "newstest2014"
        ),
        f"test-full/newstest2014-{test}-ref.{target}.sgm": sgm(
            text(target, 21, "test"), "refset", "newstest2014"
        ),
    }
    return {
        "training-parallel-europarl-v7.tgz": tar({**others, **training}),
        "training-parallel-commoncrawl.tgz": tar(crawl),
        "training-parallel-nc-v9.tgz": tar(news),
        "training-parallel-un.tgz": tar(un),
        "training-giga-fren.tar": tar(giga, "w:"),
        "dev.tgz": tar(dev),
        "test-full.tgz": tar(full),
    }


def multi30k(target: str) -> dict[str, bytes]:
    """The gzip files of Multi30k's task 1."""
    sizes = {"train": 300, "val": 14, "test_2016_flickr": 10, "test_2017_flickr": 11}
    sizes["test_2017_mscoco"] = 9
    return {
        f"{split}.{lang}.gz": gzip.compress(lines(text(lang, size, split)))
        for split, size in sizes.items()
        for lang in ("en", target)
    }


def iwslt14() -> dict[str, bytes]:
    """The archive of IWSLT14 German-English."""
    members = {
        f"de-en/train.tags.de-en.{lang}": ted_tags(text(lang, 400), lang) for lang in ("de", "en")
    }
    for number, name in enumerate(
        ("TED.dev2010", "TEDX.dev2012", "TED.tst2010", "TED.tst2011", "TED.tst2012"), 5
    ):
        for lang in ("de", "en"):
            members[f"de-en/IWSLT14.{name}.de-en.{lang}.xml"] = ted_xml(
                text(lang, number, name), name
            )
    members["de-en/README"] = b"talks\n"
    members["de-en/train.en"] = b"monolingual\n"
    return {"de-en.tgz": tar(members)}
