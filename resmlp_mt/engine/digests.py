"""The digests of an exported folder's files, in the form that ``sha256sum --check`` reads.

Without them, a damaged weight or option would change translations silently.
"""

import hashlib
import logging
from collections.abc import Iterable
from pathlib import Path

from resmlp_mt.errors import UserError, reason, refused
from resmlp_mt.files import sha256

logger = logging.getLogger(__name__)

NAME = "SHA256SUMS"
EXPORTED = ("config.json", "dict.*.txt", "sentencepiece.model", "*.safetensors", "*.onnx*")
"""The files of a model, in every form."""


def write(folder: Path) -> None:
    """Write ``SHA256SUMS`` for the files of a model.

    Raises:
        OSError: if a file cannot be read or written.
    """
    (folder / NAME).write_text(_listed(folder), encoding="utf-8")


def check(folder: Path, used: Iterable[str]) -> None:
    """Compare files with their digests; warn if the folder has none, which means that it is old.

    Args:
        used: the files that will be used; each must be listed if it exists.

    Raises:
        UserError: naming the file that was changed since it was written, or is missing.
    """
    try:
        text = (folder / NAME).read_text(encoding="utf-8")
    except FileNotFoundError:
        logger.warning(
            "%s has no %s: it was written by an older version, and damage to it would not be "
            "noticed; export the model again.",
            folder,
            NAME,
        )
        return
    except (OSError, UnicodeError) as error:
        raise UserError(f"{folder / NAME} cannot be read: {reason(error)}.") from error
    listed = {}
    for line in text.splitlines():
        digest, _, name = line.partition(" ")
        listed[name[1:]] = digest  # behind another space, or a star for a binary file
    for name in used:
        path = folder / name
        if not path.exists():
            if name in listed:
                raise UserError(
                    f"{path} is missing, which was exported (see {NAME}): export the model again."
                )
            continue
        if listed.get(name) != sha256(path):
            raise UserError(
                f"{path} is not the file that was exported (see {NAME}): it is damaged or was "
                "changed; export the model again."
            )


def total(folder: Path) -> str:
    """One digest for all that was exported: of ``SHA256SUMS``, or of what it would be.

    Other files in the folder, such as a README, do not count.

    Raises:
        UserError: if a file cannot be read.
    """
    with refused(lambda error: f"{folder} cannot be read: {reason(error)}.", OSError):
        sums = folder / NAME
        text = sums.read_bytes() if sums.exists() else _listed(folder).encode()
    return hashlib.sha256(text).hexdigest()


def files(folder: Path) -> list[Path]:
    """The files of a model; others in its folder, such as a README, may be anything."""
    found = sorted({path for pattern in EXPORTED for path in folder.glob(pattern)})
    return [path for path in found if path.is_file() and not path.name.startswith(".")]


def _listed(folder: Path) -> str:
    return "".join(f"{sha256(path)}  {path.name}\n" for path in files(folder))
