"""Files of tensors and plain values: .safetensors, and what PyTorch's safe loader reads.

The one reader of weight files of any origin. What a file says about its sizes is compared with the
size of the file before anything is built from it.
"""

import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from resmlp_mt.errors import UserError

#: numbers that a byte of a file may stand for: tied tensors share their storage
NUMBERS_PER_BYTE = 16
#: dictionaries and lists inside one another
DEPTH = 50


def read(path: str | Path, allowed: Sequence[Any] = ()) -> dict[str, Any]:
    """The contents of a file, on the CPU.

    Args:
        path: .safetensors, or a file of ``torch.save``.
        allowed: types besides PyTorch's own that the file may ask for.

    Raises:
        UserError: if there is no such file, it is damaged, it asks for more than tensors and plain
            values, it does not hold a dictionary, or its tensors are larger than the file.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            contents: Any = load_file(path)
        else:
            _check_archive(path, size)
            with torch.serialization.safe_globals(list(allowed)):
                contents = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as error:  # the loaders raise a dozen types for damaged or unsafe files
        # the unpickler's own message goes on with how to load the file unsafely
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        kind = "safetensors" if path.suffix == ".safetensors" else "PyTorch"
        reason = f"it asks for {code[1]}" if code else f"it is damaged or not a {kind} file"
        raise UserError(
            f"{path} was not loaded because {reason}: expected tensors and plain values only."
        ) from error
    if not isinstance(contents, dict):
        raise UserError(
            f"{path} holds a {type(contents).__name__}: expected a dictionary of tensors."
        )
    numbers = sum(tensor.numel() for tensor in _tensors(contents, path))
    if numbers > NUMBERS_PER_BYTE * size:
        raise UserError(
            f"{path} has {size:,} bytes, but its tensors claim {numbers:,} numbers: it is damaged."
        )
    return contents


def _tensors(value: Any, path: Path, depth: int = 0) -> Iterator[Tensor]:
    """All tensors inside nested dictionaries, lists and tuples.

    Raises:
        UserError: if the nesting is too deep, or a tensor is not a plain array.
    """
    if depth > DEPTH:
        raise UserError(f"{path} nests its values more than {DEPTH} deep: it is damaged.")
    if isinstance(value, Tensor):
        if value.layout != torch.strided or value.is_quantized:
            raise UserError(f"{path} holds sparse or quantized tensors: expected dense ones.")
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(part, path, depth + 1)


def _check_archive(path: Path, size: int) -> None:
    """Refuse compressed archives, which can fill the memory, and wrong checksums.

    PyTorch writes no compressed ones, and does not look at the checksums it writes.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > size:
                raise UserError(f"{path} is a compressed archive: expected a file of torch.save.")
            damaged = archive.testzip()
        if damaged is not None:
            raise UserError(f"{path} is damaged: the checksum of {damaged} is wrong.")
