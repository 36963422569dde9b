"""Downloads files: resumes, tries every mirror, and verifies a file before it gets its name."""

import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import requests
from requests.adapters import HTTPAdapter
from tqdm import tqdm
from urllib3.exceptions import HTTPError
from urllib3.util import Retry

from resmlp_mt.errors import UserError
from resmlp_mt.preparation.corpus import Package
from resmlp_mt.preparation.steps import read_json, write_json

ATTEMPTS = 5
"""Times that a mirror may cut the connection; each attempt continues where the last one ended."""

TIMEOUT = (20, 60)
"""Seconds to connect, and between two pieces of data."""

BLOCK = 1 << 20


class _RejectedError(Exception):
    """A mirror cannot deliver; the message says why. Another mirror may."""


class MismatchError(Exception):
    """A file is not the expected one; the message says what differs."""


class Checksums:
    """SHA-256 of files: recorded when first read completely, then enforced if none is published."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def known(self) -> dict[str, str]:
        """Recorded digests by file name."""
        if not self.path.exists():
            return {}
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            return {str(name): str(digest) for name, digest in content.items()}
        except (ValueError, AttributeError) as error:
            raise UserError(
                f"{self.path} is damaged ({error}): remove it, "
                "and the digests are recorded anew from the files"
            ) from None

    def record(self, name: str, digest: str) -> None:
        """Records the digest of a file that was read to its end, unless one is recorded."""
        known = self.known()
        if name not in known:
            write_json(self.path, dict(sorted({**known, name: digest}.items())))

    def verify(self, path: Path, package: Package) -> str:
        """Checks size and digests of `path`; returns its SHA-256.

        Raises:
            MismatchError: saying what differs.
            UserError: damaged records.
        """
        size = path.stat().st_size
        if package.size is not None and size != package.size:
            raise MismatchError(f"has {size} bytes where {package.size} are expected")
        with open(path, "rb") as file:  # once for both: it may have gigabytes
            sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
            while block := file.read(BLOCK):
                sha256.update(block)
                if package.md5 is not None:
                    md5.update(block)
        if package.md5 is not None and md5.hexdigest() != package.md5:
            raise MismatchError(f"has MD5 {md5.hexdigest()} where {package.md5} is expected")
        digest = sha256.hexdigest()
        name = package.file_name
        expected = package.sha256 or self.known().get(name)
        if expected is not None and digest != expected:
            recorded = f"was recorded in {self.path} (remove {name!r} there if that was wrong)"
            raise MismatchError(
                f"has SHA-256 {digest} where {expected} "
                + ("is expected" if package.sha256 else recorded)
            )
        return digest


def fetch(packages: Sequence[Package], folder: Path, checksums: Checksums) -> tuple[Path, str]:
    """Downloads the first package that any mirror delivers intact; returns its path and SHA-256.

    A file that is already in `folder` is only verified.

    Raises:
        UserError: no mirror delivered; the message has the reason for each address.
    """
    folder.mkdir(parents=True, exist_ok=True)
    reasons: list[str] = []
    for package in packages:
        path = folder / package.file_name
        if path.exists():
            try:
                return path, checksums.verify(path, package)
            except MismatchError as error:
                reasons.append(f"{path} {error}")
                path.unlink()
        for url in package.urls:
            try:
                _download(url, path, package.size)
                digest = checksums.verify(_partial(path), package)
            except (_RejectedError, MismatchError) as error:
                reasons.append(f"{url} {error}")
                if isinstance(error, MismatchError):
                    _forget(path)
                continue
            os.replace(_partial(path), path)
            _forget(path)
            return path, digest
    raise UserError(
        f"{packages[0].file_name} could not be fetched ({'; '.join(reasons)}): check the network "
        "or proxy, or fetch the file by other means and give its folder with --from-dir"
    )


def take(packages: Sequence[Package], folder: Path, checksums: Checksums) -> tuple[Path, str]:
    """Verifies the first package that is in `folder`; returns its path and SHA-256."""
    for package in packages:
        path = folder / package.file_name
        if path.exists():
            try:
                return path, checksums.verify(path, package)
            except MismatchError as error:
                raise UserError(f"{path} {error}: fetch it again") from None
    raise UserError(
        f"--from-dir {folder} lacks {' or '.join(package.file_name for package in packages)}: "
        f"fetch it from {packages[0].urls[0]}"
    )


def _partial(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def _validator_path(path: Path) -> Path:
    return path.with_name(path.name + ".part.json")


def _forget(path: Path) -> None:
    _partial(path).unlink(missing_ok=True)
    _validator_path(path).unlink(missing_ok=True)


def _download(url: str, path: Path, size: int | None) -> None:
    """Fills the part file of `path` from `url`.

    Raises:
        _RejectedError: the server refuses, or sent nothing new `ATTEMPTS` times.
    """
    print(f"{url} -> {path}", file=sys.stderr)
    retry = Retry(
        total=ATTEMPTS,
        connect=2,
        backoff_factor=0.5,
        status_forcelist=(429, 500, 502, 503, 504),
        raise_on_status=False,
        # A server may ask to wait for hours; then another mirror is tried.
        respect_retry_after_header=False,
    )
    with requests.Session() as session:
        session.mount("http://", HTTPAdapter(max_retries=retry))
        session.mount("https://", HTTPAdapter(max_retries=retry))
        failures = 0
        while True:
            before = _size(_partial(path))
            try:
                _transfer(session, url, path, size)
                return
            except (requests.RequestException, HTTPError) as error:
                failures = 0 if _size(_partial(path)) > before else failures + 1
                if failures >= ATTEMPTS or isinstance(error, requests.exceptions.InvalidURL):
                    raise _RejectedError(f"failed: {_short(error)}") from error
                time.sleep(min(0.2 * 2**failures, 10))


def _transfer(session: requests.Session, url: str, path: Path, size: int | None) -> None:
    """Sends one request; appends to the part file if the server confirms its version."""
    part = _partial(path)
    start = _size(part)
    begun = read_json(_validator_path(path))
    known = begun.get("validator") if begun.get("url") == url else None
    # gzip files must arrive as they are, not decoded on the way.
    headers = {"Accept-Encoding": "identity"}
    if start and isinstance(known, str):
        headers |= {"Range": f"bytes={start}-", "If-Range": known}
    with session.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        if response.status_code == 416:
            # The part is as long as the file, or longer: start again.
            _forget(path)
            raise requests.ConnectionError("the part file did not fit and was dropped")
        if not response.ok:
            raise _RejectedError(f"answers {response.status_code} {response.reason}")
        if response.headers.get("Content-Type", "").startswith("text/html"):
            raise _RejectedError("answers with a web page")
        sent = response.headers.get("Content-Range", "")  # such as "bytes 10-99/100"
        resumed = response.status_code == 206 and sent.startswith(f"bytes {start}-")
        if response.status_code == 206 and not resumed:
            _forget(path)
            raise requests.ConnectionError("the server sent another range than asked for")
        if not resumed:
            start = 0
            # the validator of this version of the file, for If-Range; a weak ETag cannot be one
            etag = response.headers.get("ETag", "")
            validator = etag if etag.startswith('"') else response.headers.get("Last-Modified")
            write_json(_validator_path(path), {"url": url, "validator": validator})
        length = response.headers.get("Content-Length")
        total = start + int(length) if length and length.isdigit() else size
        if size is not None and total != size:
            raise _RejectedError(f"offers {total} bytes where {size} are expected")
        with (
            open(part, "ab" if resumed else "wb") as file,
            tqdm(
                desc=path.name,
                total=total,
                initial=start,
                unit="B",
                unit_scale=True,
                unit_divisor=1024,
            ) as progress,
        ):
            for block in response.raw.stream(BLOCK, decode_content=False):
                file.write(block)
                progress.update(len(block))
            file.flush()
            os.fsync(file.fileno())


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _short(error: Exception) -> str:
    # requests wraps urllib3's reason in a message with pool, address and object.
    reason = getattr(error.args[0], "reason", error) if error.args else error
    return re.sub(r"^.*?[>)]: ", "", str(reason))[:200] or type(error).__name__
