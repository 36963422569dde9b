"""Rebuilds numpy's arrays and numbers in checkpoints, without a call that the file could abuse.

fairseq saves the counts of ``--eval-bleu`` as numpy arrays. A pickled array names ``numpy.ndarray``
and ``numpy.dtype`` and calls them. A hostile file could use them to make arrays of objects over its
own bytes. Here these names stand for our own functions and classes, which only build arrays of
numbers and texts, from exactly as many bytes as they need.
"""

import math
import re
from collections.abc import Callable
from pickle import UnpicklingError
from typing import Any, Self

import numpy as np

DTYPES = {f"i{size}" for size in (1, 2, 4, 8)} | {f"u{size}" for size in (1, 2, 4, 8)}
DTYPES |= {"f2", "f4", "f8", "b1"}
TEXT = re.compile(r"U[1-9]\d{0,3}")
MOST_DIMENSIONS = 8


def _is_allowed(code: str) -> bool:
    return code in DTYPES or TEXT.fullmatch(code) is not None


class StoredDtype:
    """The type of an array in a file, a code of ``DTYPES`` or of texts, and a byte order.

    Raises:
        UnpicklingError: for any other type.
    """

    __slots__ = ("code", "order")
    code: str
    order: str

    def __new__(cls, code: object = "", *_: object) -> Self:
        if not (isinstance(code, str) and _is_allowed(code)):
            raise UnpicklingError(f"arrays of type {code!r:.40} are not read from files")
        self = super().__new__(cls)
        self.code, self.order = code, "|" if code.endswith("1") else "<"
        return self

    def __setstate__(self, state: object) -> None:
        """Take version and byte order; what only types with fields have must be absent."""
        match state:
            case (int(), str(order), None, None, None, *_) if order in ("<", ">", "|", "="):
                self.order = order
            case _:
                raise UnpicklingError(
                    "the type of an array has fields, which are not read from files"
                )


class StoredArray(np.ndarray[Any, Any]):
    """An array of numbers or texts from a file; empty until its content is set.

    It is pickled as a plain array.
    """

    def __new__(cls, *_: object) -> Self:
        return np.zeros(0, dtype=np.int64).view(cls)

    def __setstate__(self, state: Any) -> None:  # type: ignore[override]
        """Take (version, shape, dtype, whether in Fortran order, bytes).

        Raises:
            UnpicklingError: if these do not fit each other exactly.
        """
        match state:
            case (int(), tuple(shape), StoredDtype() as stored, bool(fortran), bytes(content)):
                pass
            case _:
                raise UnpicklingError("an array in the file has another form than numpy writes")
        if not _is_allowed(stored.code) or stored.order not in ("<", ">", "|", "="):
            raise UnpicklingError("an array in the file is neither of numbers nor of texts")
        sizes_are_right = all(type(size) is int and 0 <= size <= len(content) for size in shape)
        dtype = np.dtype(stored.order.replace("|", "=") + stored.code)
        if (
            len(shape) > MOST_DIMENSIONS
            or not sizes_are_right
            or math.prod(shape) * dtype.itemsize != len(content)
        ):
            raise UnpicklingError(
                f"an array in the file has {len(content)} bytes for shape {shape}"
            )
        if TEXT.fullmatch(stored.code):
            try:
                content.decode("utf-32-be" if stored.order == ">" else "utf-32-le")
            except UnicodeDecodeError as error:
                raise UnpicklingError("an array in the file holds no valid text") from error
        super().__setstate__((1, shape, dtype, fortran, content))  # type: ignore[arg-type]

    def __reduce__(self) -> Any:  # type: ignore[override]
        return self.view(np.ndarray).__reduce__()


def number(stored: object, content: object) -> Any:
    """Replaces numpy's function for a single number, which would allocate any size.

    Raises:
        UnpicklingError: if it is not a number or a text of exactly these bytes.
    """
    if not (isinstance(stored, StoredDtype) and isinstance(content, bytes)):
        raise UnpicklingError("a number in the file has another form than numpy writes")
    array = StoredArray()
    array.__setstate__((1, (), stored, False, content))
    return array.view(np.ndarray)[()]


def _reconstruct(*_: object) -> StoredArray:
    """Replaces numpy's function of this name: an empty array, whatever the file asks for."""
    return StoredArray()


# arguments of torch.serialization.add_safe_globals: the object, and its name in files
GLOBALS: list[tuple[Callable[..., Any], str]] = [
    (_reconstruct, "numpy._core.multiarray._reconstruct"),
    (_reconstruct, "numpy.core.multiarray._reconstruct"),  # before numpy 2
    (StoredArray, "numpy.ndarray"),
    (StoredDtype, "numpy.dtype"),
]
