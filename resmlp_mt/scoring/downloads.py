"""Files that sacreBLEU downloads on first use; a failure is a :class:`UserError`."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import portalocker
from sacrebleu.utils import SACREBLEU_DIR

from resmlp_mt.errors import UserError
from resmlp_mt.unpacking import DAMAGE

_TIMEOUT = 30.0  # seconds; sacreBLEU sets none and would wait for a dead network forever


@contextmanager
def download(what: str, place: str, instead: str) -> Iterator[None]:
    """Let sacreBLEU fetch something within the block.

    Args:
        what: its name, for the message.
        place: its path below sacreBLEU's folder.
        instead: what the user can do without it.

    Raises:
        UserError: if it cannot be fetched, or an earlier download left it broken.
    """
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT)
    try:
        yield
    except UserError:
        raise
    except (
        *DAMAGE,
        SystemExit,  # of status 1: raised by sacreBLEU for a wrong checksum
        portalocker.LockException,
    ) as error:
        if isinstance(error, SystemExit) and error.code != 1:
            raise
        reason = " ".join(str(error).split())
        raise UserError(
            f"{what} cannot be fetched ({reason}): allow the network and delete "
            f"{SACREBLEU_DIR}/{place} if an earlier download was cut, or {instead}."
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)
