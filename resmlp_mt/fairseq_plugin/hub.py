"""Remedies for the hub interface: it changes no file of the user, and unpacks into its own folder.

fairseq takes every path that is not a folder for an archive: it writes the members wherever their
names lead, and then removes the archive.
"""

import os
import tarfile
from pathlib import Path, PurePosixPath
from typing import Any
from unittest import mock

from fairseq import file_utils, hub_utils

from resmlp_mt.errors import UserError, reason
from resmlp_mt.fairseq_plugin.wrapping import Original, remedy
from resmlp_mt.unpacking import DAMAGE, members_of


@remedy(hub_utils, "from_pretrained")
def _from_pretrained(
    original: Original,
    model_name_or_path: str,
    checkpoint_file: str = "model.pt",
    data_name_or_path: str = ".",
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Find ``./DATA`` and ``../DATA`` in the current folder, as every other path.

    fairseq takes them for paths from the folder of the model, which they are if there are no such
    folders.
    """
    data = data_name_or_path
    if data and data.startswith(("./", "../")) and Path(data).is_dir():
        data = os.path.abspath(data)
    return original(model_name_or_path, checkpoint_file, data, *args, **kwargs)


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
    try:
        fetched = Path(file_utils.cached_path(archive_file))
        if not fetched.is_dir():
            _check_names(fetched)
        with (
            mock.patch.object(file_utils, "cached_path", return_value=str(fetched)),
            mock.patch.object(
                tarfile.TarFile, "extraction_filter", staticmethod(tarfile.data_filter)
            ),
        ):
            return original(archive_file)
    except UserError:
        raise
    except DAMAGE as error:
        raise UserError(
            f"{archive_file} cannot be fetched and unpacked: {reason(error)}."
        ) from error


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
