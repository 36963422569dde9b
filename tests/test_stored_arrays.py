"""Arrays in checkpoints: plain numbers come back, and nothing else is built from a file."""

import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fairseq import checkpoint_utils
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from conftest import ROOT
from resmlp_mt.errors import UserError
from resmlp_mt.fairseq_plugin import checkpoints
from resmlp_mt.fairseq_plugin.checkpoints import allow_safe_globals
from resmlp_mt.models import resmlp_mt  # noqa: F401  registers the architectures
from resmlp_mt.stored_arrays import StoredArray
from resmlp_mt.visualization.matrices import state_dict

RECONSTRUCT = np._core.multiarray._reconstruct  # type: ignore[attr-defined]


class Called:
    """Pickled as a call; ``state`` is handed to what the call made."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.call = (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.call if self.call[2] is not None else self.call[:2]


def dtype(code: str, *fields: Any, order: str = "<") -> Called:
    return Called(
        np.dtype, code, False, True, state=(3, order, *(fields or (None,) * 3), -1, -1, 0)
    )


def array(shape: Any, kind: Any, content: Any, fortran: Any = False) -> Called:
    empty = (np.ndarray, (0,), b"b")
    return Called(RECONSTRUCT, *empty, state=(1, shape, kind, fortran, content))


def load(value: Any, path: Path) -> Any:
    allow_safe_globals()
    torch.save({"value": value}, path)
    return torch.load(path, weights_only=True)["value"]


numbers = arrays.arrays(
    st.sampled_from([np.dtype(order + code) for order in "<>" for code in
                     ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "b1")]),
    arrays.array_shapes(min_dims=0, max_dims=4, min_side=1, max_side=4),
)  # fmt: skip


@settings(max_examples=60, deadline=None, derandomize=True)
@given(numbers, st.booleans())
def test_numbers_come_back(
    tmp_path_factory: pytest.TempPathFactory, value: Any, turned: bool
) -> None:
    folder = tmp_path_factory.getbasetemp()
    value = value.T if turned else value
    found = load(value, folder / "numbers.pt")
    assert found.dtype.newbyteorder("=") == value.dtype.newbyteorder("=")
    np.testing.assert_array_equal(found, value)
    again = pickle.loads(pickle.dumps(found))
    assert type(again) is np.ndarray
    np.testing.assert_array_equal(again, value)
    assert type(load(found, folder / "again.pt")) is StoredArray


@pytest.mark.parametrize("order", ["<", ">"])
def test_texts_come_back(tmp_path: Path, order: str) -> None:
    """Such as the names of classes."""
    value = np.array([["cat", ""], ["Hündin", "\U0001f436"]]).astype(f"{order}U6")
    found = load(value, tmp_path / "x.pt")
    assert found.tolist() == value.tolist() == [["cat", ""], ["Hündin", "\U0001f436"]]


@pytest.mark.parametrize(
    "value",
    [
        Called(np.ndarray, (1,), "O", b"12345678"),
        Called(np.ndarray, (1 << 40,), "i8"),
    ],
)
def test_a_call_of_ndarray_makes_an_empty_array_of_integers(tmp_path: Path, value: Any) -> None:
    found = load(value, tmp_path / "x.pt")
    assert (found.dtype, found.shape) == (np.int64, (0,))


HOSTILE = {
    "objects": np.array([None]),
    "objects by hand": array((1,), dtype("O"), b"12345678"),
    "a list of objects": array((1,), dtype("O"), [None]),
    "void": np.zeros(2, dtype="V8"),
    "bytes": np.array([b"a"]),
    "no character": array((1,), dtype("U1"), b"\xff\xff\xff\xff"),
    "half a surrogate": array((1,), dtype("U1"), b"\x00\xd8\x00\x00"),
    "text of no length": array((1,), dtype("U0"), b""),
    "too short a text": array((1,), dtype("U2"), b"a\0\0\0"),
    "complex numbers": np.array([1j]),
    "dates": np.array(["2020-01-01"], dtype="M8[D]"),
    "long doubles": np.zeros(1, dtype=np.longdouble),
    "fields": np.zeros(1, dtype=[("a", "i4")]),
    "fields by hand": array((1,), dtype("i8", None, ("a",), {"a": 1}), b"12345678"),
    "a subarray": array((1,), dtype("i8", (1, (2,)), None, None), b"12345678"),
    "metadata": np.zeros(1, dtype=np.dtype("i8", metadata={"a": 1})),
    "a dtype that is not a string": Called(np.dtype, {"names": ["a"], "formats": ["O"]}),
    "a dtype of a list": Called(np.dtype, [("a", "O")]),
    "a dtype as text": array((1,), "i8", b"12345678"),
    "an unfinished dtype's order": array((1,), dtype("i8", order="O"), b"12345678"),
    "too few bytes": array((2,), dtype("i8"), b"12345678"),
    "too many bytes": array((1,), dtype("i8"), b"12345678abcdefgh"),
    "a huge shape": array((1 << 62, 4), dtype("i8"), b""),
    "a huge shape of nothing": array((1 << 62, 0), dtype("i8"), b""),
    "a negative shape": array((-1, -1), dtype("i8"), b"12345678"),
    "a shape of truths": array((True,), dtype("i8"), b"12345678"),
    "a shape that is not a tuple": array([1], dtype("i8"), b"12345678"),
    "65 dimensions": array((1,) * 65, dtype("i8"), b"12345678"),
    "a list for bytes": array((1,), dtype("i8"), [1]),
    "an order that is not a truth value": array((1,), dtype("i8"), b"12345678", 7),
    "no state": Called(RECONSTRUCT, np.ndarray, (0,), b"b", state=()),
    "a scalar": np.float64(1.0),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:metadata on a dtype")
@pytest.mark.parametrize("name", HOSTILE)
def test_anything_else_is_refused(tmp_path: Path, name: str) -> None:
    if name == "metadata":  # is left away by numpy when it writes the array
        assert load(HOSTILE[name], tmp_path / "x.pt").dtype.metadata is None
        return
    with pytest.raises(pickle.UnpicklingError):
        load(HOSTILE[name], tmp_path / "x.pt")


def test_an_options_object_cannot_become_a_type(tmp_path: Path) -> None:
    """The loader sets attributes of a Namespace: its class must not turn into one of ours."""
    program = """
import argparse, pickle, sys, torch
from resmlp_mt.errors import UserError
from resmlp_mt.fairseq_plugin import checkpoints
from resmlp_mt.fairseq_plugin.checkpoints import allow_safe_globals
from resmlp_mt.stored_arrays import StoredDtype
allow_safe_globals()
import numpy as np
class N:
    def __reduce__(self):
        return argparse.Namespace, (), (None, {"__class__": np.dtype, "code": "O"})
class A:
    def __reduce__(self):
        state = (1, (1,), N(), False, b"12345678")
        return np._core.multiarray._reconstruct, (np.ndarray, (0,), b"b"), state
torch.save(A(), sys.argv[1])
try:
    print(torch.load(sys.argv[1], weights_only=True).dtype)
except Exception as error:
    print("refused")
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "x.pt")],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout.strip()) == (0, "refused"), done.stderr


PARAMETERS: dict[str, Any] = {
    "sparse": (torch.ones(2, 2).to_sparse(), "sparse, quantized or nested"),
    "sparse outside of its size": (
        Called(
            torch._utils._rebuild_sparse_tensor, torch.sparse_coo,
            (torch.full((2, 1), 1 << 40), torch.ones(1), torch.Size((2, 2))),
        ),
        "sparse, quantized or nested|torch.Size",
    ),
    "compressed rows": (torch.ones(2, 2).to_sparse_csr(), "sparse, quantized or nested"),
    "without content": (torch.empty(2, 2, device="meta"), "without content"),
    "complex": (torch.full((2, 2), float("nan"), dtype=torch.complex64), "complex64"),
    "of eight bits": (torch.ones(2, 2).to(torch.float8_e4m3fn), "float8_e4m3fn"),
    "repeated": (torch.ones(1).expand(1 << 30, 1 << 30), "claim .* numbers"),
    "a text": ("abc", "not a tensor"),
    "under a number": (torch.ones(1), "not a tensor"),
}  # fmt: skip


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_plain_arrays(tmp_path: Path, name: str) -> None:
    """Others end in the middle of a command, fill the memory or lose a part of their numbers."""
    path = tmp_path / "x.pt"
    state = torch.load(ROOT / "tests/fixtures/resmlp_mt_0_1_0/checkpoint.pt")
    value, message = PARAMETERS[name]
    state["model"][5 if name == "under a number" else "encoder.embed_tokens.weight"] = value
    torch.save(state, path)
    for read in (
        lambda: checkpoint_utils.load_checkpoint_to_cpu(str(path)),
        lambda: checkpoints.average([path]),
    ):
        with pytest.raises(UserError, match=rf"x\.pt .*({message})"):
            read()


def test_a_compressed_checkpoint_is_refused(tmp_path: Path) -> None:
    """A look at it, without reading it in, would see the compressed bytes as parameters."""
    source = ROOT / "tests/fixtures/resmlp_mt_0_1_0/checkpoint.pt"
    with (
        zipfile.ZipFile(source) as stored,
        zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for entry in stored.namelist():
            packed.writestr(entry, stored.read(entry))
    for look in (False, True):
        with pytest.raises(UserError, match=r"x\.pt is a compressed archive"):
            checkpoints.read(tmp_path / "x.pt", only_look=look)


def test_a_tensor_of_another_size_than_its_bytes_is_named(tmp_path: Path) -> None:
    """A look at the file, which maps it, would show the bytes after those of the tensor."""
    source = ROOT / "tests/fixtures/resmlp_mt_0_1_0/checkpoint.pt"
    size, larger = b"M\x00\x03t", b"M\x00\x13t"  # 768 and 4864 numbers
    with (
        zipfile.ZipFile(source) as stored,
        zipfile.ZipFile(tmp_path / "x.pt", "w") as changed,
    ):
        for entry in stored.namelist():
            content = stored.read(entry)
            if entry.endswith("data.pkl"):
                assert size in content
                content = content.replace(size, larger, 1)
            changed.writestr(entry, content)
    with pytest.raises(UserError, match=r"x\.pt cannot be read as a fairseq checkpoint: record"):
        checkpoint_utils.load_checkpoint_to_cpu(str(tmp_path / "x.pt"))


def test_a_tensor_under_a_number_is_not_drawn() -> None:
    ones = torch.ones(2, 2)
    assert state_dict({"model": {5: ones, "a": ones}}, "x.pt") == {"a": ones}
    with pytest.raises(UserError, match=r"x\.pt holds no state dict"):
        state_dict({"model": {5: ones}}, "x.pt")
