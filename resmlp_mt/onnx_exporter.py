"""PyTorch's exporter of ONNX graphs."""

import importlib.util
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from resmlp_mt.errors import UserError
from resmlp_mt.extras import installation

LARGEST = 1536 * 2**20
"""Bytes of weights in a graph, at most: PyTorch's exporter puts more into a file beside it."""


def check_exporter() -> None:
    """Check that onnxscript, which the exporter needs, is installed.

    Raises:
        UserError: naming the extra that has it.
    """
    if importlib.util.find_spec("onnxscript") is None:
        raise UserError(
            f"exporting ONNX graphs (--format onnx, or images) needs the package onnxscript: run "
            f"{installation('onnxscript')}."
        )


def graph_of(module: nn.Module, metadata: dict[str, str], **arguments: Any) -> Any:
    """A module as an ``onnx_ir`` program, which has a method ``save``.

    Args:
        metadata: of the graph.
        arguments: of ``torch.onnx.export``.
    """
    # These log every node that they simplify, if a program's root logger lets them.
    with silenced("onnx_ir", "onnxscript"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(module.eval(), dynamo=True, verbose=False, **arguments)
    assert program is not None
    program.model.metadata_props.update(metadata)
    return program


def weight_bytes(program: Any) -> int:
    """The bytes of the weights of a program of :func:`graph_of`."""
    values = program.model.graph.initializers.values()
    return sum(value.const_value.nbytes for value in values if value.const_value is not None)


def check_size(name: str, size: int) -> None:
    """Refuse a graph of a translation model that does not go into one file.

    Args:
        name: of its file.
        size: of its weights, in bytes.

    Raises:
        UserError: naming both.
    """
    if size > LARGEST:
        raise UserError(
            f"{name} would hold {size / 1e9:.1f} GB of weights, but graphs hold "
            f"{LARGEST / 1e9:.1f} GB at most: export without --format onnx."
        )


@contextmanager
def silenced(*names: str) -> Iterator[None]:
    """Let some loggers write errors alone."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
