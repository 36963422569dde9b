"""The server and its connections.

They are HTTP/1.1, with a limit for the time until a request's head is there. A client may close its
side after its request, and still gets its answer.
"""

import asyncio
from types import FrameType
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from resmlp_mt.signals import forget_lost_terminal, reader_is_gone

PROBE = 0.5  # seconds until a client that has closed its side is asked whether it still reads


class Server(uvicorn.Server):
    """uvicorn, which prints its address when it takes requests and signals."""

    def __init__(self, config: uvicorn.Config, address: str) -> None:
        super().__init__(config)
        self.address = address

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        print(f"serving {self.address}", flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        forget_lost_terminal(sig)
        super().handle_exit(sig, frame)


def protocol(seconds: float) -> type[H11Protocol]:
    """Connections for uvicorn, which themselves only limit the time between two requests.

    Of uvicorn's two parsers, h11 limits the size of a head, and ignores the offers of HTTP/2 that
    clients in Java make; httptools then loses the request's body.

    Args:
        seconds: after which a connection is closed if the head of a request has not arrived.
    """

    class Connection(H11Protocol):
        _deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._deadline = self.loop.call_later(seconds, self._give_up)

        def data_received(self, data: bytes) -> None:
            if self._deadline is None and self._is_idle():
                self._deadline = self.loop.call_later(seconds, self._give_up)
            is_late = self.conn.our_state is h11.DONE  # the body of an answered request
            super().data_received(data)
            if not self._is_idle() or (is_late and self.conn.our_state is h11.IDLE):
                self._cancel()

        def _is_idle(self) -> bool:
            """Whether no request is in work; the body of an answered one may still arrive."""
            return self.conn.their_state is h11.IDLE or self.conn.our_state is h11.DONE

        def eof_received(self) -> bool:  # type: ignore[override]
            """Keep the connection while its client waits for an answer.

            A client that is gone looks like one that has only closed its own side.
            """
            cycle = self.cycle
            waits = cycle is not None and not (cycle.more_body or cycle.response_complete)
            if waits:
                cycle.keep_alive = False
                self.loop.call_later(PROBE, self._probe)
            return waits

        def _probe(self, has_asked: bool = False) -> None:
            """Send what every client reads over; the system of one that is gone answers that."""
            if self.transport.is_closing():
                return
            if reader_is_gone(self.transport.get_extra_info("socket").fileno()):
                self.transport.abort()
                return
            can_ask = self.scope["http_version"] == "1.1" and not self.cycle.response_started
            if can_ask and not has_asked:
                self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.loop.call_later(PROBE, self._probe, True)

        def connection_lost(self, exc: Exception | None) -> None:
            self._cancel()
            super().connection_lost(exc)

        def _cancel(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

        def _give_up(self) -> None:
            self._deadline = None
            if self.conn.our_state is h11.IDLE:
                self.transport.write(
                    b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\n"
                    b"Content-Length: 0\r\n\r\n"
                )
            self.transport.close()

    return Connection
