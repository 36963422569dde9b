"""Handling of every request: limits of its body, counts, clients that disconnect."""

import asyncio
import codecs
import email.message
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Coroutine, Iterable, Iterator
from contextlib import contextmanager, suppress
from http import HTTPMethod
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from fastapi import HTTPException, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from resmlp_mt.serving.interface import BadRequestError
from resmlp_mt.serving.metrics import Metrics

Result = TypeVar("Result")
COMPRESSED = re.compile(r"\b(gzip|deflate|compress|br|zstd)\b", re.IGNORECASE)
NOT_OF_REQUESTS = {"idna", "punycode", "raw-unicode-escape", "unicode-escape", "utf-7"}
MOST_FIELDS = 1000  # of a form, as starlette has it for the other kind of form


class ClientGoneError(Exception):
    """The client has disconnected."""


class Watched:
    """Middleware that counts every answer and its time.

    It refuses a body that is too large or too slow, while it arrives.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, most: int, seconds: float) -> None:
        self._app = app
        self._metrics = metrics
        self._most = most
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        status, size = 500, 0
        is_complete = False
        end = asyncio.get_running_loop().time() + self._seconds

        async def limited() -> Message:
            nonlocal size, is_complete
            if is_complete:  # the only further message is the client's disconnection
                return await receive()
            try:
                async with asyncio.timeout_at(end):
                    message = await receive()
            except TimeoutError as error:
                raise HTTPException(
                    408, f"the request did not arrive within {self._seconds:g} seconds"
                ) from error
            size += len(message.get("body", b""))
            is_complete = not message.get("more_body", False)
            if size > self._most:
                raise HTTPException(
                    413, f"the request is larger than {self._most} bytes: send less at a time"
                )
            return message

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        with self._metrics.in_work.track_inprogress():
            try:
                await self._app(scope, limited, watched)
            finally:
                route = scope.get("route")
                # other paths and methods would make a new time series for every wrong request
                path = getattr(route, "path", None) or "other"
                method = scope["method"] if scope["method"] in HTTPMethod.__members__ else "other"
                self._metrics.requests.labels(path, method, str(status)).inc()
                self._metrics.latency.labels(path).observe(time.perf_counter() - start)


class ClientLimit:
    """Limits the unanswered requests of one address.

    Args:
        most: the limit; 0 means no limit.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._in_work: Counter[str] = Counter()

    @contextmanager
    def place(self, request: Request) -> Iterator[None]:
        """Take a place for the block.

        Raises:
            HTTPException: 429, if all places of the client are taken.
        """
        client = request.client.host if request.client else ""
        if self._most and self._in_work[client] >= self._most:
            raise HTTPException(
                429,
                f"Slowdown: {self._most} of your requests are not answered yet, wait for them",
                {"Retry-After": "1"},
            )
        self._in_work[client] += 1
        try:
            yield
        finally:
            self._in_work[client] -= 1
            if not self._in_work[client]:
                del self._in_work[client]


async def fields(request: Request) -> dict[str, Any]:
    """The fields of a request, from JSON, a form or the address.

    Raises:
        BadRequestError: if the body has another format.
    """
    if COMPRESSED.search(request.headers.get("content-encoding", "")):
        raise HTTPException(415, "the request is compressed: send it as it is")
    found = _grouped(_decoded(request.scope["query_string"]))
    header = email.message.Message()
    header["Content-Type"] = request.headers.get("content-type", "")
    content_type, charset = header.get_content_type(), _charset(header)
    body = await request.body()
    if content_type == "multipart/form-data":
        _text(body, charset)  # starlette would take it for Latin-1
        # the body as a whole is limited by Watched
        async with request.form(max_part_size=sys.maxsize) as form:
            return found | _grouped(form.multi_items())
    if content_type == "application/x-www-form-urlencoded":
        return found | _grouped(_decoded(body, charset))
    if not body:
        return found
    try:  # without a charset, JSON may be UTF-16, too
        sent = json.loads(body if charset == "utf-8" else body.decode(charset))
    except (ValueError, LookupError, RecursionError) as error:
        raise BadRequestError("Invalid JSON format") from error
    if not isinstance(sent, dict):
        raise BadRequestError("Invalid JSON format")
    return {**found, **sent}


def _charset(header: email.message.Message) -> str:
    """The encoding that a request declares, in Python's spelling.

    Those that no client has are refused: some of Python's take quadratic time to decode.
    """
    declared = header.get_content_charset("utf-8")
    try:
        name = codecs.lookup(declared).name
    except (LookupError, ValueError) as error:
        raise BadRequestError(f"Invalid request: unknown charset {declared}") from error
    if name in NOT_OF_REQUESTS:
        raise BadRequestError(f"Invalid request: unknown charset {declared}")
    return name


def _decoded(form: bytes, charset: str = "utf-8") -> list[tuple[str, Any]]:
    """The fields of a form. As in browsers, its bytes need not be escaped."""
    options: Any = {"keep_blank_values": True, "max_num_fields": MOST_FIELDS}
    text = _text(form, charset)
    try:
        return parse_qsl(text, encoding=charset, errors="strict", **options)
    except UnicodeError as error:
        raise _not_in(charset) from error
    except ValueError as error:
        raise BadRequestError(f"Invalid request: more than {MOST_FIELDS} fields") from error


def _text(body: bytes, charset: str) -> str:
    try:
        return body.decode(charset)
    except (UnicodeError, LookupError) as error:
        raise _not_in(charset) from error


def _not_in(charset: str) -> BadRequestError:
    return BadRequestError(f"Invalid request: its text is not {charset}")


def _grouped(items: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Fields by their names; one that comes several times is a list."""
    values: dict[str, list[Any]] = {}
    for name, value in items:
        values.setdefault(name, []).append(value)
    return {name: found[0] if len(found) == 1 else found for name, found in values.items()}


async def while_connected(
    request: Request, work: Coroutine[Any, Any, Result], metrics: Metrics
) -> Result:
    """The result of the work, which is cancelled if the client disconnects. Read the body first.

    Raises:
        ClientGoneError: if the client disconnects.
    """
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        metrics.disconnected.inc()
        raise ClientGoneError
    finally:
        for task in (working, gone):
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
