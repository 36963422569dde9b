"""Remedies for the hub interface: it changes no file of the user, and unpacks into its own folder.

fairseq takes every path that is not a folder for an archive: it writes the members wherever their
names lead, and then removes the archive.
"""

import inspect
import os
import sys
import tarfile
from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any
from unittest import mock

import numpy as np
from fairseq import file_utils, hub_utils
from omegaconf import DictConfig

from resmlp_mt.command_line import did_you_mean
from resmlp_mt.errors import UserError, reason, refused
from resmlp_mt.fairseq_plugin.evaluated_options import check_search
from resmlp_mt.fairseq_plugin.stored_options import is_known, is_ours, registry
from resmlp_mt.fairseq_plugin.wrapping import Original, remedy
from resmlp_mt.unpacking import DAMAGE, members_of


@remedy(hub_utils, "from_pretrained")
def _from_pretrained(
    original: Original,
    model_name_or_path: Any,
    checkpoint_file: Any = "model.pt",
    data_name_or_path: Any = ".",
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Find ``./DATA`` and ``../DATA`` in the current folder, as every other path.

    fairseq takes them for paths from the folder of the model, which they are if there are no such
    folders. It ignores unknown options, and takes no ``Path``.
    """
    given = {name: _text(value) for name, value in kwargs.items()}
    for kind in ("bpe", "tokenizer"):
        known, name = registry(kind), given.get(kind)
        if isinstance(name, str) and name not in known and "user_dir" not in given:
            raise UserError(f"{kind}={name!r} is unknown{did_you_mean(name, known)}.")
    data = _text(data_name_or_path)
    if data and data.startswith(("./", "../")) and Path(data).is_dir():
        data = os.path.abspath(data)
    found = original(_text(model_name_or_path), _text(checkpoint_file), data, *args, **given)
    if found["models"] and is_ours(type(found["models"][0])):
        _check_options(given, found["args"])
    return found


def _text(path: Any) -> Any:
    """A path as text, and any other value as it is."""
    return os.fspath(path) if isinstance(path, os.PathLike) else path


def _check_options(given: Iterable[str], config: DictConfig) -> None:
    """Refuse options that no part of a configuration has."""
    known = {"archive_map", "generation_args", *config}
    for section in config.values():  # a task of many languages has a Namespace
        if isinstance(section, DictConfig | Namespace):
            known.update(section if isinstance(section, DictConfig) else vars(section))
    for name in given:
        if name in known:
            continue
        for kind in ("bpe", "tokenizer"):
            for other, part in registry(kind).items():
                if hasattr(getattr(part, "__dataclass", None), name):
                    raise UserError(f"{name} changes nothing without {kind}={other!r}: add it.")
        raise UserError(f"{name} is no option of the model or its task{did_you_mean(name, known)}.")


@remedy(hub_utils.GeneratorHubInterface, "generate")
def _generate(
    original: Original, self: Any, tokenized_sentences: Any, *args: Any, **kwargs: Any
) -> Any:
    """Refuse unknown options of the search; the task of a user may have a generator of its own."""
    others = inspect.signature(original).parameters
    if is_known(type(self.task)) and any(is_ours(type(model)) for model in self.models):
        # numbers of numpy, as of a loop over arange, are numbers
        kwargs = {
            name: value.item() if isinstance(value, np.generic) else value
            for name, value in kwargs.items()
        }
        given = {
            name: value for name, value in kwargs.items() if name not in others or name == "beam"
        }
        check_search("the hub's options of the search", given)
    return original(self, tokenized_sentences, *args, **kwargs)


LOCAL_FILE = "a local file"
"""What to give in place of an address; in place of an archive's, a folder."""


class _UnfetchedError(UserError, RuntimeError):
    """As fairseq's own, after which it looks at what it has fetched before."""


@remedy(file_utils, "request_wrap_timeout")
def _request_wrap_timeout(original: Original, func: Any, url: str) -> Any:
    """Refuse the page of an error, which fairseq would keep as the file."""
    others = (None, sys.exception())  # what a program handles while it fetches
    try:
        answer = original(func, url)
        answer.raise_for_status()
    except (OSError, RuntimeError) as error:  # of requests, and fairseq's after a timeout
        first: BaseException = error
        while first.__context__ not in others:  # the system's
            first = first.__context__  # type: ignore[assignment]
        why = reason(first) if isinstance(error, OSError) else "no answer"
        options = " (--gpt2-encoder-json and --gpt2-vocab-bpe)" if "/gpt2_bpe/" in url else ""
        raise _UnfetchedError(
            f"{url} cannot be fetched: {why}; give {LOCAL_FILE}{options}."
        ) from error
    return answer


@remedy(file_utils, "load_archive_file")
def _load_archive_file(original: Original, archive_file: str) -> Any:
    """The folder itself, or the one to which an archive from the network is unpacked.

    An archive is fetched and unpacked once.

    Raises:
        UserError: if there is no such folder, or the archive would leave its own.
    """
    path = Path(archive_file)
    if path.is_dir():
        return original(archive_file)
    if path.suffix == ".pt" and path.exists():
        raise UserError(
            f"{path} is a checkpoint: give its folder {path.parent}, and {path.name} as the second "
            "argument."
        )
    if path.exists():
        raise UserError(f"{path} is a file: give a folder, and unpack an archive before.")
    if "://" not in archive_file:
        raise UserError(f"{path} does not exist: give the folder of a training or its data.")
    data_filter = staticmethod(tarfile.data_filter)
    what = f"{archive_file} cannot be fetched and unpacked"
    with refused(lambda error: f"{what}: {reason(error)}.", *DAMAGE):
        try:
            fetched = Path(file_utils.cached_path(archive_file))
        except _UnfetchedError as error:
            told = str(error).replace(LOCAL_FILE, "the folder of the unpacked archive")
            raise UserError(told) from error
        if not fetched.is_dir():
            _check_names(fetched)
        with (
            mock.patch.object(file_utils, "cached_path", return_value=str(fetched)),
            mock.patch.object(tarfile.TarFile, "extraction_filter", data_filter),
        ):
            return original(archive_file)


def _check_names(archive: Path) -> None:
    """Refuse damage, and names that lead out of a folder: fairseq moves what they have in common.

    Raises:
        Exception: one of ``DAMAGE``.
    """
    with tarfile.open(archive) as opened:
        for name in (PurePosixPath(member.name) for member in members_of(opened)):
            if name.is_absolute() or ".." in name.parts:
                raise tarfile.TarError(f"its member {name} lies outside of it")
        assert opened.fileobj is not None  # it is open
        while opened.fileobj.read(2**20):  # to the end, where a packed file has its checksum
            pass
