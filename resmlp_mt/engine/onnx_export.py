"""The folded model as two ONNX graphs: the encoder, and one step of the decoder with its caches.

``encoder.onnx`` is :meth:`EncoderDecoder.encode` and ``decoder_step.onnx`` is
:meth:`EncoderDecoder.step`. Their inputs and outputs have the names and shapes given there; keys,
values and mask of the memory are separate. Batch, length, beam and position are free. The metadata
of both has the model's configuration.
"""

import dataclasses
import importlib.util
import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from resmlp_mt.engine import exported_config
from resmlp_mt.engine.onnx_model import DECODER_STEP, ENCODER
from resmlp_mt.errors import UserError
from resmlp_mt.files import replacing
from resmlp_mt.model.attention import Memory
from resmlp_mt.model.encoder_decoder import EncoderDecoder


class _Encoder(nn.Module):
    def __init__(self, folded: EncoderDecoder) -> None:
        super().__init__()
        self.folded = folded

    def forward(self, tokens: Tensor, lengths: Tensor) -> Memory:
        return self.folded.encode(tokens, lengths)


class _DecoderStep(nn.Module):
    def __init__(self, folded: EncoderDecoder) -> None:
        super().__init__()
        self.folded = folded

    def forward(
        self,
        tokens: Tensor,
        history: Tensor,
        ancestors: Tensor,
        keys: Tensor,
        values: Tensor,
        mask: Tensor,
    ) -> tuple[Tensor, Tensor]:
        return self.folded.step(tokens, history, ancestors, Memory(keys, values, mask))


def export_onnx(folded: EncoderDecoder, folder: Path) -> None:
    """Write ``encoder.onnx`` and ``decoder_step.onnx``; each appears complete or not at all.

    Args:
        folded: the model; the graphs have its type, float32 for ONNX Runtime on the CPU.
        folder: an existing folder.

    Raises:
        UserError: if onnxscript, PyTorch's exporter, is not installed.
        OSError: if a file cannot be written.
    """
    if importlib.util.find_spec("onnxscript") is None:
        raise UserError(
            "--format onnx needs the package onnxscript: run pip install 'resmlp_mt[onnx-export]'."
        )
    config = folded.config
    # Examples for all free sizes. None is 0 or 1, which the exporter would take for constants.
    batch, length, beam, position = 2, 3, 4, 5
    dtype = folded.decoder.output_projection.weight.dtype
    tokens = torch.zeros(batch, length, dtype=torch.long)
    lengths = torch.full((batch,), length)
    heads = config.decoder_attention_heads
    memory = (config.decoder_layers, batch, heads, length, config.decoder_embed_dim // heads)
    mixing_heads = config.decoder_mixing.heads
    width = config.decoder_embed_dim // mixing_heads
    metadata = exported_config.metadata(dataclasses.asdict(config))
    history = (config.decoder_layers, batch, mixing_heads, position, beam, width)
    _write(
        _Encoder(folded),
        {"tokens": (tokens, ("batch", "length")), "lengths": (lengths, ("batch",))},
        ("keys", "values", "mask"),
        metadata,
        folder / ENCODER,
    )
    _write(
        _DecoderStep(folded),
        {
            "tokens": (tokens.new_zeros(batch, beam), ("batch", "beam")),
            "history": (
                torch.zeros(history, dtype=dtype),
                (None, "batch", None, "position", "beam"),
            ),
            "ancestors": (tokens.new_zeros(batch, beam, position), ("batch", "beam", "position")),
            "keys": (torch.zeros(memory, dtype=dtype), (None, "batch", None, "length")),
            "values": (torch.zeros(memory, dtype=dtype), (None, "batch", None, "length")),
            "mask": (
                torch.zeros(batch, 1, 1, length, dtype=dtype),
                ("batch", None, None, "length"),
            ),
        },
        ("scores", "entries"),
        metadata,
        folder / DECODER_STEP,
    )


def export_int8(folded: EncoderDecoder, folder: Path) -> None:
    """:func:`export_onnx` with weights in int8, a scale for each output channel.

    ONNX Runtime rounds the inputs of each product to 8 bits at run time, with one scale for a
    batch. Weights have 7 bits, because processors without VNNI add two products in 16 bits.

    Raises:
        UserError: if a package is not installed.
        OSError: if a file cannot be written.
    """
    try:
        from onnxruntime import quantization
    except ImportError as error:
        raise UserError(
            "--format onnx --dtype int8 needs the package onnxruntime: run pip install "
            "'resmlp_mt[onnx-export]'."
        ) from error
    with tempfile.TemporaryDirectory(dir=folder) as name:
        export_onnx(folded, Path(name))
        root = logging.getLogger()
        level = root.level
        root.setLevel(logging.ERROR)  # it recommends a step that does not suit these graphs
        try:
            for graph in (ENCODER, DECODER_STEP):
                with replacing(folder / graph) as partial:
                    quantization.quantize_dynamic(
                        Path(name) / graph, partial, per_channel=True, reduce_range=True
                    )
        finally:
            root.setLevel(level)


def _write(
    module: nn.Module,
    inputs: dict[str, tuple[Tensor, tuple[str | None, ...]]],
    outputs: tuple[str, ...],
    metadata: dict[str, str],
    path: Path,
) -> None:
    """Export a module; each input is an example and the names of its free dimensions."""
    names = {name for _, dims in inputs.values() for name in dims if name is not None}
    free: dict[str, Any] = {name: Dim(name, min=0 if name == "position" else 1) for name in names}
    # These log every node that they simplify, if a program's root logger lets them.
    loggers = [logging.getLogger(name) for name in ("onnx_ir", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # dimensions of two inputs have the same name on purpose
            warnings.filterwarnings("ignore", message=".*axis name.*")
            warnings.filterwarnings("ignore", category=FutureWarning)  # PyTorch's of its own code
            program = torch.onnx.export(
                module.eval(),
                kwargs={name: example for name, (example, _) in inputs.items()},
                dynamic_shapes={
                    name: {index: free[dim] for index, dim in enumerate(dims) if dim is not None}
                    for name, (_, dims) in inputs.items()
                },
                output_names=outputs,
                dynamo=True,
                verbose=False,
            )
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
    assert program is not None
    program.model.metadata_props.update(metadata)
    with replacing(path) as partial:
        program.save(partial)
