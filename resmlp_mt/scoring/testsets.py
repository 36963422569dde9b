"""sacreBLEU's test sets, by name."""

import socket
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager

import portalocker
from sacrebleu.dataset import DATASETS
from sacrebleu.utils import SACREBLEU_DIR

from resmlp_mt.scoring.lines import InputError, Sentences, read_lines

_TIMEOUT = 30.0  # seconds; sacreBLEU sets none and would wait for a dead network for ever


def load_test_set(test_set: str, language_pair: str) -> tuple[Sentences, list[Sentences]]:
    """Return source and references; sacreBLEU downloads them on first use.

    Raises:
        InputError: if the test set or the pair is unknown, or the download fails.
    """
    dataset = DATASETS.get(test_set)
    if dataset is None:
        raise InputError(f"sacreBLEU knows no test set {test_set!r}: see `sacrebleu --list`")
    if language_pair not in dataset.langpairs:
        raise InputError(
            f"test set {test_set} has no language pair {language_pair!r}, but "
            f"{', '.join(dataset.langpairs)}"
        )
    with _download_errors(test_set):
        source = dataset.get_source_file(language_pair)
        references = dataset.get_reference_files(language_pair)
    return (
        Sentences(read_lines(source), source),
        [Sentences(read_lines(reference), reference) for reference in references],
    )


@contextmanager
def _download_errors(test_set: str) -> Iterator[None]:
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT)
    try:
        yield
    except (
        OSError,
        EOFError,
        SystemExit,  # sacreBLEU's answer to a wrong checksum
        tarfile.TarError,
        zipfile.BadZipFile,
        portalocker.LockException,
    ) as error:
        raise InputError(
            f"test set {test_set} cannot be fetched ({error}): allow the network and delete "
            f"{SACREBLEU_DIR}/{test_set} if an earlier download was cut, or give --ref FILE"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)
