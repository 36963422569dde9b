"""Files of tensors and plain values: safetensors, and what PyTorch's safe loader reads.

Every checkpoint and every weight file of others is read here. The sizes that a file declares are
compared with the size of the file before anything is built from it.
"""

import errno
import re
import zipfile
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from resmlp_mt.errors import UserError, is_of_memory, reason, refused
from resmlp_mt.files import check_is_whole, replacing
from resmlp_mt.unpacking import is_packed

#: numbers per byte of a file, at most: tied tensors share their storage
NUMBERS_PER_BYTE = 16
#: dictionaries and lists inside one another
DEPTH = 50
#: values of all kinds; those that are in several places count in each, because they are read there
VALUES = 10_000_000
#: parts that wrappers, such as torch.compile, insert into names of parameters
WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}


def unwrapped(name: str, *more: str) -> str:
    """A parameter's name without the parts that wrappers insert, and without ``more``."""
    return ".".join(part for part in name.split(".") if part not in {*WRAPPERS, *more})


def read(
    path: str | Path, allowed: Sequence[Any] = (), *, only_look: bool = False
) -> dict[str, Any]:
    """The contents of a file, on the CPU.

    Args:
        path: of safetensors, or a file of ``torch.save``; the content counts, not the name.
        allowed: types besides PyTorch's own that the file may ask for.
        only_look: map the tensors of ``torch.save`` instead of reading them, without their
            checksums; those of safetensors are read.

    Raises:
        UserError: if there is no such file, it is damaged, it asks for more than tensors and plain
            values, it does not hold a dictionary, or its tensors are larger than the file.
        MemoryError, RuntimeError, OSError: if memory runs out; :func:`is_of_memory` knows them.
    """
    path = Path(path)
    with refused(lambda error: f"{path} cannot be read: {reason(error)}.", OSError):
        check_is_whole(path)
        if path.is_fifo():  # reading it would wait forever
            raise OSError(errno.EINVAL, "it is a pipe, not a file")
        size, is_safe = path.stat().st_size, _is_safetensors(path)
    try:
        if is_safe:
            from safetensors.torch import load_file

            contents: Any = load_file(path, backend="pread")  # which takes any path
        else:
            check_archive(path, sums=not only_look)
            known = torch.serialization.get_safe_globals()  # would be forgotten if named again
            with torch.serialization.safe_globals([kind for kind in allowed if kind not in known]):
                contents = _load(path, only_look)
    except UserError:
        raise
    except Exception as error:  # the loaders raise a dozen types for damaged or unsafe files
        if _lacks_memory(error, size):
            raise
        # the rest of the unpickler's message says how to load the file unsafely
        found = re.search(r"GLOBAL ([\w.]+)|arrays of type '\w+'", str(error))
        kind = "safetensors" if is_safe else "PyTorch"
        why = f"it is damaged or not a {kind} file"
        if found:
            why = f"it asks for {found[1]}" if found[1] else f"it holds {found[0]}"
        elif path.is_file() and (what := _other(path)):
            why = what
        elif "DTensors" in str(error):
            why = "its tensors are shared among processes (DTensor)"
        raise UserError(
            f"{path} cannot be read because {why}: expected tensors and plain values only, as in a "
            "model's state_dict()."
        ) from error
    if not isinstance(contents, dict):
        raise UserError(
            f"{path} holds a {type(contents).__name__}: expected a dictionary of tensors."
        )
    check_tensors(contents, path, size)
    return contents


def _is_safetensors(path: Path) -> bool:
    """Whether JSON follows the 8 bytes of its length; else by name, unless PyTorch has written it.

    Raises:
        OSError: if the file cannot be read.
    """
    named = path.suffix.lower() == ".safetensors"
    if not path.is_file():  # a pipe can be read only once
        return named
    with path.open("rb") as file:
        head = file.read(9)
    return head[8:] == b"{" or (named and not head.startswith((b"PK\3\4", b"\x80\2\x8a")))


def _other(path: Path) -> str | None:
    """What a file is that holds no tensors: people download pages, and pack files."""
    if path.suffix.lower() == ".onnx":
        return "it is a graph of ONNX"
    with path.open("rb") as file:
        head = file.read(512)
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "it is a web page, such as an error of its server"
    return "it is packed (unpack it)" if is_packed(head) else None


def _lacks_memory(error: Exception, size: int) -> bool:
    """Whether memory ran out, and not because a damaged file asks for more than it can hold.

    Args:
        size: of the file in bytes.
    """
    asked = re.search(r"tried to allocate (\d+) bytes", str(error))
    return is_of_memory(error) and (asked is None or int(asked[1]) <= size)


def _load(path: Path, only_look: bool) -> Any:
    if path.suffix == ".safetensors":  # PyTorch goes by the name
        with path.open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=only_look)
    except (RuntimeError, UnicodeError) as error:
        # an older format, or below a path that is not UTF-8: neither can be mapped
        if only_look and (isinstance(error, UnicodeError) or "mmap" in str(error)):
            return _load(path, only_look=False)
        raise


def write(contents: Any, path: Path) -> None:
    """Write what :func:`read` reads; the file appears complete or not at all.

    Raises:
        OSError: if it cannot be written.
    """
    with replacing(path) as partial, partial.open("wb") as file:
        try:
            torch.save(contents, file)
        except RuntimeError as error:
            # PyTorch's writer reports a full disk in other words
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def check_tensors(contents: Mapping[str, Any], path: Path, size: int) -> None:
    """Refuse tensors that are not plain arrays, or that claim more numbers than fit into the file.

    Args:
        size: of the file in bytes.

    Raises:
        UserError: naming the file.
    """
    numbers = sum(tensor.numel() for tensor in _tensors(contents, path, min(size, VALUES)))
    if numbers > NUMBERS_PER_BYTE * size:
        raise UserError(
            f"{path} has {size:,} bytes, but its tensors claim {numbers:,} numbers: it is damaged."
        )


def _tensors(contents: Any, path: Path, most: int) -> Iterator[Tensor]:
    """All tensors inside nested dictionaries, lists, tuples, sets and namespaces.

    Args:
        most: how many values there may be. A list can hold another one many times, which holds a
            third one: a small file would keep every reader busy for ever.

    Raises:
        UserError: if there are more, the nesting is too deep, or a tensor is not a plain array.
    """
    left: list[tuple[Any, int]] = [(contents, 0)]
    seen = 0
    while left:
        value, depth = left.pop()
        seen += 1
        if depth > DEPTH:
            raise UserError(f"{path} nests its values more than {DEPTH} deep: it is damaged.")
        if seen > most:
            raise UserError(f"{path} holds more than {most:,} values: it is damaged.")
        if isinstance(value, Tensor):
            _check_is_dense(value, path)
            yield value
        elif isinstance(value, list | tuple | Set):
            left += [(part, depth + 1) for part in value]
        elif isinstance(value, Mapping | Namespace | SimpleNamespace):
            parts = value if isinstance(value, Mapping) else vars(value)
            left += [(part, depth + 1) for part in parts.values()]


def _check_is_dense(tensor: Tensor, path: Path) -> None:
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested:
        raise UserError(f"{path} holds sparse, quantized or nested tensors: expected dense ones.")
    if tensor.is_meta:
        raise UserError(f"{path} holds tensors without content: expected dense ones.")
    if tensor.is_complex() or (tensor.is_floating_point() and tensor.itemsize < 2):
        raise UserError(f"{path} holds tensors of {tensor.dtype}: expected plain floats.")


def check_archive(path: Path, *, sums: bool = True) -> None:
    """Refuse compressed archives, which can fill the memory, and wrong checksums.

    PyTorch does not write compressed archives, and does not check the checksums that it writes.

    Args:
        sums: whether to read the whole file for its checksums.

    Raises:
        UserError: naming the file.
    """
    if not zipfile.is_zipfile(path):
        return
    damage = OSError, ValueError, NotImplementedError, zipfile.BadZipFile
    with (
        refused(lambda error: f"{path} is damaged: {error}.", *damage),
        zipfile.ZipFile(path) as archive,
    ):
        entries = archive.infolist()
        stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
        damaged = archive.testzip() if sums and stored else None
    if any(entry.filename.endswith("/constants.pkl") for entry in entries):
        raise UserError(f"{path} is a TorchScript program: save the model's state_dict() instead.")
    if not stored:
        raise UserError(f"{path} is a compressed archive: expected a file of torch.save.")
    if damaged is not None:
        raise UserError(f"{path} is damaged: the checksum of {damaged} is wrong.")
