"""What happens to every request: limits of its body, counts, clients that go away."""

import asyncio
import time
from collections import Counter
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from fastapi import HTTPException, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from resmlp_mt.serving.interface import BadRequestError
from resmlp_mt.serving.metrics import Metrics

Result = TypeVar("Result")


class ClientGoneError(Exception):
    """Nobody is left to answer."""


class LimitedBodies:
    """Middleware: a body that is too large, or comes too slowly, is refused while it comes in."""

    def __init__(self, app: ASGIApp, most: int, seconds: float) -> None:
        self._app = app
        self._most = most
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        size = 0
        is_complete = False

        async def limited() -> Message:
            nonlocal size, is_complete
            if is_complete:  # what follows is the client's leaving, however late
                return await receive()
            try:
                async with asyncio.timeout(self._seconds):
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

        await self._app(scope, limited, send)


class Counted:
    """Middleware: every answer is counted, with its time."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        status = 500

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        with self._metrics.in_work.track_inprogress():
            try:
                await self._app(scope, receive, watched)
            finally:
                route = scope.get("route")
                # any other path would make a new time series for every wrong address
                path = getattr(route, "path", None) or "other"
                self._metrics.requests.labels(path, scope["method"], str(status)).inc()
                self._metrics.latency.labels(path).observe(time.perf_counter() - start)


class ClientLimit:
    """How many requests of one address may be in work.

    Args:
        most: 0 is no limit.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._in_work: Counter[str] = Counter()

    @contextmanager
    def place(self, request: Request) -> Iterator[None]:
        """A place within the block.

        Raises:
            HTTPException: 429, if all places of the client are taken.
        """
        client = request.client.host if request.client else ""
        if self._most and self._in_work[client] >= self._most:
            raise HTTPException(
                429,
                f"Slowdown: {self._most} requests of yours are in work, wait for their answers",
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
    """The fields of a request: of JSON, of a form, or of the address.

    Raises:
        BadRequestError: if the body has another form.
    """
    found: dict[str, Any] = dict(request.query_params)
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type in ("application/x-www-form-urlencoded", "multipart/form-data"):
        form = await request.form()
        for key in form:
            values = form.getlist(key)
            found[key] = values[0] if len(values) == 1 else values
        return found
    body = await request.body()
    if not body:
        return found
    try:
        sent = await request.json()
    except (ValueError, RecursionError) as error:
        raise BadRequestError("Invalid JSON format") from error
    if not isinstance(sent, dict):
        raise BadRequestError("Invalid JSON format")
    return {**found, **sent}


async def while_connected(
    request: Request, work: Coroutine[Any, Any, Result], metrics: Metrics
) -> Result:
    """The result of the work, which is cancelled if the client goes away. Read the body before.

    Raises:
        ClientGoneError: if it did.
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
