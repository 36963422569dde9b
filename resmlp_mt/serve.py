"""``python -m resmlp_mt.serve``: a server for translation, with LibreTranslate's interface.

    python -m resmlp_mt.serve
    curl -d q="A dog runs." -d source=en -d target=de http://127.0.0.1:5000/translate

/ is a page, /docs the description of the interface, /metrics has counters for Prometheus. See
docs/serve.md.
"""

import argparse
import re
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from resmlp_mt.command_line import Parser, command, option
from resmlp_mt.errors import reason, refused
from resmlp_mt.machine import usable_cores
from resmlp_mt.option_types import PROCESSES, number
from resmlp_mt.serving.limits import Limits
from resmlp_mt.signals import handle


def origin(text: str) -> str:
    """A site as browsers name it: in small letters, without a path and the default port; null or *.

    Pages opened from a file, and frames in a sandbox, have the origin null.
    """
    found = text.removesuffix("/").lower()
    if not re.fullmatch(
        r"\*|null|[a-z][a-z0-9+.-]*://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]+)?", found
    ):
        # which spelling of a letter such as \u00df a browser sends is not decided here
        names = "" if text.isascii() else "; browsers send a NAME with such letters as xn--..."
        raise argparse.ArgumentTypeError(
            f"expected https://NAME, https://NAME:PORT, null or *, not {text}{names}"
        )
    port = {"https": ":443", "http": ":80"}.get(found.partition(":")[0], "")
    return found.removesuffix(port)


@dataclass(frozen=True)
class Options(Limits):
    """Models and address."""

    models: list[Path] = option(
        [], "models", nargs="*", metavar="MODEL",
        help="exported folders (default: en-de, which comes with the package)",
    )  # fmt: skip
    host: str = option("127.0.0.1", help="0.0.0.0 serves other machines too")
    port: int = option(5000, type=number(int, least=0, most=65535), help="0 takes a free one")
    cors_origin: list[str] = option(
        [], type=origin, action="append", metavar="ORIGIN",
        help="site whose pages may ask from a browser, may be repeated, * for all (default: none)",
    )  # fmt: skip
    workers: int = option(usable_cores(), type=PROCESSES, help="processes")


def parse_args(argv: Sequence[str] | None) -> Options:
    """Parse the command line; exits with status 2 on a wrong one."""
    parser = Parser(
        "resmlp_mt.serve",
        "Serve translations over HTTP, with the interface of LibreTranslate.",
        needs=["fastapi"],
    )
    parser.add_options(Options)
    parser.refuse("LibreTranslate", "libretranslate")
    return Options(**vars(parser.parse_args(argv)))


@command
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    import uvicorn

    from resmlp_mt.engine.pretrained import located
    from resmlp_mt.serving.app import create_app
    from resmlp_mt.serving.connections import Server, protocol
    from resmlp_mt.serving.workers import Worker

    models = [located(model) for model in args.models] or [located()]
    listener = bind(args.host, args.port)
    workers = [Worker(models, args) for _ in range(args.workers)]
    try:
        loaded = [worker.languages() for worker in workers]
        config = uvicorn.Config(
            create_app(workers, loaded[0], args, args.cors_origin),
            http=protocol(args.max_wait),
            ws="none",
            log_level="warning",
            timeout_graceful_shutdown=round(args.max_wait) + 5,
        )
        host, port = listener.getsockname()[:2]
        with using(host, port):  # another server may have started at the same time
            listener.listen()
        # uvicorn answers open requests, then raises the signal again, which is not a failure
        handle(lambda *_: sys.exit(0), {signal.SIGTERM})
        server = Server(config, f"http://{f'[{host}]' if ':' in host else host}:{port}")
        handle(server.handle_exit, {signal.SIGHUP})
        server.run(sockets=[listener])
    finally:
        for worker in workers:
            worker.stop()


def bind(host: str, port: int) -> socket.socket:
    """A socket on the address that does not take connections yet.

    Raises:
        UserError: if the address is taken or is not an address of this machine.
    """
    with using(host, port):
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        return listener


def using(host: str, port: int) -> AbstractContextManager[None]:
    """In the block, errors of the address become a :class:`UserError`."""
    return refused(
        lambda error: (
            f"--host {host} --port {port} cannot be used ({reason(error)}): choose another."
        ),
        *(OSError, UnicodeError),  # the latter for a label that no name can have
    )


if __name__ == "__main__":
    main()
