"""Test sets and models that sacreBLEU downloads on first use."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import portalocker
from sacrebleu.dataset import DATASETS
from sacrebleu.utils import SACREBLEU_DIR

from resmlp_mt import language_codes
from resmlp_mt.errors import UserError
from resmlp_mt.scoring.languages import language_pair
from resmlp_mt.scoring.lines import Sentences, read_lines
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


def load_test_set(test_set: str, languages: str) -> tuple[Sentences, list[Sentences]]:
    """Return source and references; sacreBLEU downloads them on first use.

    The languages of the set match the pair, however it spells them, and whatever regions
    it names: English for ``en_GB``, but not Simplified Chinese for ``zh_TW`` or ``yue``.

    Raises:
        UserError: if the test set or the pair is unknown, or the download fails.
    """
    dataset = DATASETS.get(test_set)
    if dataset is None:
        raise UserError(f"sacreBLEU knows no test set {test_set!r}: see `sacrebleu --list`")
    source, target = language_pair(languages)
    known = [pair.split("-") for pair in dataset.langpairs]
    first = _find(source, {pair[0] for pair in known})
    second = _find(target, {pair[1] for pair in known if pair[0] == first})
    pair = f"{first}-{second}"
    if None in (first, second):
        raise UserError(
            f"test set {test_set} has no language pair {languages!r}, but "
            f"{', '.join(dataset.langpairs)}"
        )
    with download(f"test set {test_set}", test_set, "give --ref FILE"):
        source_file = dataset.get_source_file(pair)
        references = dataset.get_reference_files(pair)
    return (
        Sentences(read_lines(source_file), source_file),
        [Sentences(read_lines(reference), reference) for reference in references],
    )


def _find(code: str, known: set[str]) -> str | None:
    """The code of the same language, else the only one of the same language and script."""
    related = language_codes.relatives(code, known)
    return language_codes.find(code, known) or (related[0] if len(related) == 1 else None)
