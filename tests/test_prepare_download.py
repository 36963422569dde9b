"""Downloads against a local server: resumption, mirrors, verification."""

from __future__ import annotations

import errno
import gzip
import hashlib
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

from resmlp_mt.errors import UserError
from resmlp_mt.preparation import download
from resmlp_mt.preparation.corpus import Package
from tests import corpus_server

CONTENT = random.Random(1).randbytes(3_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[corpus_server.CorpusServer]:
    corpus_server.ask_at_once(monkeypatch)
    with corpus_server.serve() as running:
        running.files["/a/x.tgz"] = CONTENT
        yield running


def fetch(tmp_path: Path, *packages: Package) -> Path:
    path, digest = download.fetch(packages, tmp_path / "d", download.Checksums(tmp_path / "sums"))
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    # Nothing but the finished file is left.
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    return path


def test_cut_connections_are_resumed(tmp_path: Path, server: corpus_server.CorpusServer) -> None:
    server.faults["/a/x.tgz"] = ["cut", "cut"]
    package = Package((f"{server.url}/a/x.tgz",), size=len(CONTENT), sha256=SHA256)
    assert fetch(tmp_path, package).read_bytes() == CONTENT
    half, quarter = len(CONTENT) // 2, len(CONTENT) // 2 + len(CONTENT) // 4
    assert [asked for _, asked in server.requests] == [None, f"bytes={half}-", f"bytes={quarter}-"]
    assert server.sent == len(CONTENT)


def test_progress_tells_rate_and_time_left(
    tmp_path: Path, server: corpus_server.CorpusServer, capsys: pytest.CaptureFixture[str]
) -> None:
    fetch(tmp_path, Package((f"{server.url}/a/x.tgz",), size=len(CONTENT)))
    progress = capsys.readouterr().err
    assert re.search(r"x\.tgz: +0%.+\| 0\.00/2\.86M \[00:00<\?, \?B/s\]", progress)
    assert re.search(r"x\.tgz: 100%.+2\.86M/2\.86M \[\d+:\d+<00:00, .+B/s\]", progress)


def test_an_interrupted_run_goes_on(
    tmp_path: Path, server: corpus_server.CorpusServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = Package((f"{server.url}/a/x.tgz",), sha256=SHA256)
    server.faults["/a/x.tgz"] = ["cut"]
    with monkeypatch.context() as patch:
        patch.setattr(time, "sleep", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            fetch(tmp_path, package)
    assert not (tmp_path / "d" / "x.tgz").exists()
    assert fetch(tmp_path, package).read_bytes() == CONTENT
    assert server.requests[-1][1] == f"bytes={len(CONTENT) // 2}-"


def test_a_file_changed_on_the_server_is_not_glued(
    tmp_path: Path, server: corpus_server.CorpusServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No checksum is known: only the ETag can tell that the second half is of another file.
    package = Package((f"{server.url}/a/x.tgz",))
    server.faults["/a/x.tgz"] = ["cut"]
    with monkeypatch.context() as patch:
        patch.setattr(time, "sleep", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            fetch(tmp_path, package)
    server.files["/a/x.tgz"] = changed = CONTENT[::-1]
    assert fetch(tmp_path, package).read_bytes() == changed


def test_a_part_without_its_validator_is_not_trusted(
    tmp_path: Path, server: corpus_server.CorpusServer
) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "x.tgz.part").write_bytes(b"something else")
    assert fetch(tmp_path, Package((f"{server.url}/a/x.tgz",))).read_bytes() == CONTENT


def test_a_server_without_range_starts_again(
    tmp_path: Path, server: corpus_server.CorpusServer
) -> None:
    server.faults["/a/x.tgz"] = ["cut", "no range"]
    assert fetch(tmp_path, Package((f"{server.url}/a/x.tgz",))).read_bytes() == CONTENT


def test_busy_servers_are_asked_again(
    tmp_path: Path, server: corpus_server.CorpusServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.faults["/a/x.tgz"] = [503, 429]
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    assert fetch(tmp_path, Package((f"{server.url}/a/x.tgz",))).read_bytes() == CONTENT
    # Retry-After says an hour.
    assert sum(waits) < 60


@pytest.mark.parametrize(
    "fault", ["404", "web page", "wrong length", "wrong checksum", "wrong md5"]
)
def test_the_next_mirror_is_tried(
    tmp_path: Path, server: corpus_server.CorpusServer, fault: str
) -> None:
    if fault == "wrong length":
        server.files["/bad/x.tgz"] = CONTENT[:-1]
    elif fault == "web page":
        server.files["/bad/x.tgz"] = b"<html>moved</html>"
        server.faults["/bad/x.tgz"] = ["page"]
    elif fault != "404":
        server.files["/bad/x.tgz"] = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
    urls = (f"{server.url}/bad/x.tgz", f"{server.url}/a/x.tgz")
    md5 = hashlib.md5(CONTENT).hexdigest()
    known = {
        "404": {},
        "web page": {},
        "wrong length": {"size": len(CONTENT)},
        "wrong checksum": {"sha256": SHA256},
        "wrong md5": {"md5": md5},
    }[fault]
    assert fetch(tmp_path, Package(urls, **known)).read_bytes() == CONTENT  # type: ignore[arg-type]


def test_a_wrong_length_is_seen_before_the_transfer(
    tmp_path: Path, server: corpus_server.CorpusServer
) -> None:
    package = Package((f"{server.url}/a/x.tgz",), size=7)
    with pytest.raises(UserError, match=f"offers {len(CONTENT)} bytes where 7 are expected"):
        fetch(tmp_path, package)


def test_another_packing_is_taken_when_the_first_cannot_be_had(
    tmp_path: Path, server: corpus_server.CorpusServer
) -> None:
    server.files["/b/x.zip"] = b"zip"
    packages = Package((f"{server.url}/gone/x.tgz",)), Package((f"{server.url}/b/x.zip",))
    assert fetch(tmp_path, *packages).name == "x.zip"


def test_the_error_names_every_address_and_reason(
    tmp_path: Path, server: corpus_server.CorpusServer
) -> None:
    server.files["/bad/x.tgz"] = b"page"
    package = Package((f"{server.url}/gone/x.tgz", f"{server.url}/bad/x.tgz"), sha256=SHA256)
    with pytest.raises(
        UserError, match=r"gone/x.tgz answers 404.*bad/x.tgz has SHA-256.*--from-dir"
    ):
        fetch(tmp_path, package)
    assert list((tmp_path / "d").iterdir()) == []


def test_a_dead_server_ends_in_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"x.tgz could not be fetched.*127.0.0.1:9/x.tgz failed"):
        fetch(tmp_path, Package(("http://127.0.0.1:9/x.tgz",)))


def test_a_digest_is_recorded_at_first_sight_and_enforced(
    tmp_path: Path, server: corpus_server.CorpusServer
) -> None:
    package = Package((f"{server.url}/a/x.tgz",))
    fetch(tmp_path, package).unlink()
    assert not (tmp_path / "sums").exists()
    sums = download.Checksums(tmp_path / "sums")
    sums.record("x.tgz", SHA256)
    sums.record("x.tgz", "another")
    server.files["/a/x.tgz"] = CONTENT[::-1]
    with pytest.raises(UserError, match=rf"{SHA256} was recorded in .*sums \(remove 'x.tgz'"):
        fetch(tmp_path, package)
    server.files["/a/x.tgz"] = CONTENT
    fetch(tmp_path, package)


def test_damaged_records_are_told_and_nothing_is_removed(tmp_path: Path) -> None:
    sums = tmp_path / "sums"
    (tmp_path / "x.tgz").write_bytes(CONTENT)
    for content in ('{"x.tgz": ', "[]"):
        sums.write_text(content)
        with pytest.raises(UserError, match="sums is damaged"):
            download.fetch(
                [Package(("http://127.0.0.1:9/x.tgz",))], tmp_path, download.Checksums(sums)
            )
        assert (tmp_path / "x.tgz").exists()


def test_a_file_that_is_there_is_verified_not_fetched(
    tmp_path: Path, server: corpus_server.CorpusServer
) -> None:
    package = Package((f"{server.url}/a/x.tgz",), sha256=SHA256)
    path = fetch(tmp_path, package)
    fetch(tmp_path, package)
    assert len(server.requests) == 1
    path.write_bytes(b"damaged")
    assert fetch(tmp_path, package).read_bytes() == CONTENT


def test_gzip_files_arrive_as_they_are(tmp_path: Path, server: corpus_server.CorpusServer) -> None:
    server.files["/a/x.gz"] = gzip.compress(b"text")
    server.faults["/a/x.gz"] = ["gzip"]
    path = fetch(tmp_path, Package((f"{server.url}/a/x.gz",)))
    assert gzip.decompress(path.read_bytes()) == b"text"


def test_proxies_are_honoured(
    tmp_path: Path, server: corpus_server.CorpusServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", server.url)
    url = "http://corpus.invalid/a/x.tgz"
    assert fetch(tmp_path, Package((url,))).read_bytes() == CONTENT
    assert server.requests == [(url, None)]


def test_a_full_disk_leaves_a_part_that_is_resumed(
    tmp_path: Path, server: corpus_server.CorpusServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = Package((f"{server.url}/a/x.tgz",), sha256=SHA256)
    real_open = open

    def small_disk(path: Path, mode: str = "r", **options: object) -> BinaryIO:
        file = real_open(path, mode, **options)  # type: ignore[call-overload]
        if str(path).endswith(".part") and mode != "rb":
            file.write(CONTENT[:1000])
            file.close()
            raise OSError(errno.ENOSPC, "No space left on device")
        return file  # type: ignore[no-any-return]

    with monkeypatch.context() as patch:
        patch.setattr(download, "open", small_disk, raising=False)
        with pytest.raises(OSError, match="No space left"):
            fetch(tmp_path, package)
    assert not (tmp_path / "d" / "x.tgz").exists()
    assert fetch(tmp_path, package).read_bytes() == CONTENT
    assert server.requests[-1][1] == "bytes=1000-"


def test_a_folder_of_archives_is_verified_like_a_download(tmp_path: Path) -> None:
    package = Package(("http://corpus.invalid/x.tgz",), sha256=SHA256)
    sums = download.Checksums(tmp_path / "sums")
    with pytest.raises(UserError, match=r"lacks x.tgz: fetch it from http://corpus.invalid/x.tgz"):
        download.take([package], tmp_path, sums)
    (tmp_path / "x.tgz").write_bytes(CONTENT[1:])
    with pytest.raises(UserError, match=r"x.tgz has SHA-256"):
        download.take([package], tmp_path, sums)
    (tmp_path / "x.tgz").write_bytes(CONTENT)
    assert download.take([package], tmp_path, sums) == (tmp_path / "x.tgz", SHA256)


def _interrupt(seconds: float) -> None:
    raise KeyboardInterrupt
