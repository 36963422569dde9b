"""The folded model as ONNX graphs: the encoder and a step of the decoder.

The output projection is in onnx_projection.py. docs/onnx.md describes inputs and outputs. Batch,
length, beam and entries are free. The metadata of each graph has the model's configuration. Keys,
values and past of each layer are inputs of their own, because a graph copies what it cuts out of
one array for all layers.
"""

import copy
import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.export import Dim

from resmlp_mt.engine import exported_config
from resmlp_mt.engine.onnx_model import DECODER_STEP, ENCODER
from resmlp_mt.engine.shortlist import Shortlist
from resmlp_mt.files import replacing
from resmlp_mt.materialised_mixing import MaterialisedMixing
from resmlp_mt.mixing import MixingConfig, TokenMixing
from resmlp_mt.mixing_products import Past, diagonals, is_toeplitz
from resmlp_mt.model.attention import Memory
from resmlp_mt.model.decoder import DecoderLayer
from resmlp_mt.model.encoder import EncoderLayer
from resmlp_mt.model.encoder_decoder import EncoderDecoder
from resmlp_mt.onnx_exporter import check_exporter, check_size, graph_of, silenced, weight_bytes
from resmlp_mt.packed_linear import Int8Embedding, quantize

Inputs = Mapping[str, tuple[Tensor, tuple[str | None, ...]]]
"""An example of each input, and the names of its free dimensions."""


class _ByDistance(TokenMixing):
    """A mixing with a number for each distance of positions in place of a matrix."""

    def __init__(self, mixing: MaterialisedMixing) -> None:
        super().__init__(mixing.max_positions, mixing.causal, MixingConfig(heads=mixing.heads))
        self.v_proj, self.gate_proj = mixing.v_proj, mixing.gate_proj
        self.out_proj, self.constant = mixing.out_proj, mixing.constant
        self.weights = nn.Buffer(diagonals(mixing.weight.detach()))

    def matrix(self, length: int) -> Tensor:
        positions = torch.arange(length)
        index = self.max_positions - 1 - positions.unsqueeze(1) + positions
        return self.weights.index_select(1, index.flatten()).view(-1, length, length)

    def offset(self, length: int) -> Tensor | None:
        return None if self.constant is None else self.constant[:length]


class _Encoder(nn.Module):
    """Tokens and lengths -> the keys of each layer, the values of each layer, the mask."""

    def __init__(self, folded: EncoderDecoder) -> None:
        super().__init__()
        self.folded = folded
        for layer in cast("list[EncoderLayer]", folded.encoder.layers):
            mixing = layer.token_mixing
            if isinstance(mixing, MaterialisedMixing) and is_toeplitz(mixing.weight):
                layer.token_mixing = _ByDistance(mixing)

    def forward(self, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        keys, values, mask = self.folded.encode(tokens, lengths)
        assert mask is not None
        return *keys.unbind(), *values.unbind(), mask


class _Entries(Past):
    """:class:`Past` whose weights and history have an axis for the heads."""

    def added_to(self, x: Tensor) -> Tensor:
        return x + (self.weights @ self.history).transpose(1, 2).flatten(2)


class _DecoderStep(nn.Module):
    """:meth:`Decoder.step` over entries in any order: a graph then has few operations for a beam.

    Its mixing tables are made here, for the longest input.
    """

    def __init__(self, folded: EncoderDecoder) -> None:
        super().__init__()
        self.decoder = folded.decoder
        longest = min(folded.decoder.longest, folded.config.max_target_positions)
        tables = folded.decoder.mixing_tables(longest)
        matrices = tables.matrices.detach()
        self.is_toeplitz = is_toeplitz(matrices)
        own = tables.diagonals.detach()
        if self.is_toeplitz:  # one row for all positions, of distances in place of positions
            matrices, own = matrices[:, :, -1:].flip(3), own[:, :1]
        # (position, layers, heads, position) and (position, layers, dim)
        self.rows = nn.Buffer(matrices.permute(2, 0, 1, 3).contiguous())
        self.own = nn.Buffer(own.transpose(0, 1).contiguous())
        offsets = tables.offsets
        self.offsets = None if offsets is None else nn.Buffer(offsets.detach().transpose(0, 1))

    def forward(
        self,
        tokens: Tensor,
        position: Tensor,
        positions: Tensor,
        descends: Tensor,
        mask: Tensor,
        keys: list[Tensor],
        values: list[Tensor],
        past: list[Tensor],
    ) -> tuple[Tensor, ...]:
        if self.is_toeplitz:
            row, own, columns = self.rows[0], self.own[0], position - positions
        else:
            row, own = (x.index_select(0, position).squeeze(0) for x in (self.rows, self.own))
            columns = positions
        # (layers, batch, heads, beam, entries)
        weights = row.index_select(2, columns)[:, None, :, None] * descends[:, None]
        layers = cast("list[DecoderLayer]", self.decoder.layers)
        offsets: tuple[Tensor | None, ...] = (None,) * len(layers)
        if self.offsets is not None:
            offsets = self.offsets.index_select(0, position).squeeze(0).unbind()
        x = self.decoder.embed(tokens)
        present = []
        parts = zip(
            layers, weights.unbind(), past, own.unbind(), offsets, keys, values, strict=True
        )
        for layer, its_weights, its_past, its_own, offset, its_keys, its_values in parts:
            heads = its_past.size(1)
            entries = _Entries(its_weights, its_past, heads)
            # asked for weights, the attention is written as plain products
            memory = Memory(its_keys, its_values, mask)
            x, entry, _ = layer.step(x, entries, its_own, offset, memory, need_weights=True)
            entry = entry.unflatten(2, (heads, -1)).transpose(1, 2)
            present.append(torch.cat([its_past, entry], dim=2))
        return x, *present


def export_onnx(folded: EncoderDecoder, folder: Path, shortlist: Shortlist | None = None) -> None:
    """Write the graphs; each appears complete or not at all.

    Args:
        folded: a float32 model.
        folder: an existing folder.
        shortlist: also write the graphs that score its words.

    Raises:
        UserError: if onnxscript, PyTorch's exporter, is not installed, or a graph is too large.
        OSError: if a file cannot be written.
    """
    check_exporter()
    _export(copy.deepcopy(folded), folder)
    _export_projection(folded, folder, shortlist, is_int8=False)


def export_int8(folded: EncoderDecoder, folder: Path, shortlist: Shortlist | None = None) -> None:
    """:func:`export_onnx` with weights in int8, a scale for each output channel or embedding.

    ONNX Runtime rounds the inputs of each product to 8 bits at run time, with one scale for all
    rows. So only sentences that are translated alone do not depend on others.

    Raises:
        UserError: if onnxscript is not installed, or a graph is too large, in float32 too.
        OSError: if a file cannot be written.
    """
    check_exporter()
    import onnx
    from onnxruntime import quantization

    rounded = copy.deepcopy(folded)
    for side in (rounded.encoder, rounded.decoder):
        weight = side.embed_tokens.weight.detach()
        side.set_submodule("embed_tokens", Int8Embedding(*quantize(weight)))
    with tempfile.TemporaryDirectory(dir=folder) as name:
        _export(rounded, Path(name))
        with silenced(""):  # it recommends a step that does not suit these graphs
            for graph in (ENCODER, DECODER_STEP):
                with replacing(folder / graph) as partial:
                    quantization.quantize_dynamic(
                        onnx.load(Path(name) / graph),  # a path would have to be UTF-8
                        partial,
                        op_types_to_quantize=["MatMul"],
                        per_channel=True,
                        reduce_range=True,
                    )
    _export_projection(folded, folder, shortlist, is_int8=True)


def _export_projection(
    folded: EncoderDecoder, folder: Path, shortlist: Shortlist | None, is_int8: bool
) -> None:
    from resmlp_mt.engine.onnx_projection import ProjectionGraphs  # needs onnx

    metadata = exported_config.metadata(dataclasses.asdict(folded.config))
    graphs = ProjectionGraphs(folded.decoder.output_projection, metadata, is_int8)
    graphs.write(folder)
    if shortlist is not None:
        graphs.write_shortlist(shortlist, folder)


def _export(folded: EncoderDecoder, folder: Path) -> None:
    """Write the encoder and a step of the decoder; changes the model."""
    config = folded.config
    # Examples for all free sizes. None is 0 or 1, which the exporter would take for constants.
    batch, length, beam, entries = 2, 3, 4, 5
    dtype, dim = folded.decoder.output_projection.weight.dtype, config.decoder_embed_dim
    tokens = torch.zeros(batch, length, dtype=torch.long)
    heads, mixing_heads = config.decoder_attention_heads, config.decoder_mixing.heads
    memory = torch.zeros(batch, heads, length, dim // heads, dtype=dtype)
    past = torch.zeros(batch, mixing_heads, entries, dim // mixing_heads, dtype=dtype)

    def of_layers(name: str, example: Tensor, free: str) -> Inputs:
        sizes = ("batch", None, free, None)
        layers = range(config.decoder_layers)
        # the exporter takes inputs that are one tensor for one input
        return {f"{name}.{layer}": (example.clone(), sizes) for layer in layers}

    metadata = exported_config.metadata(dataclasses.asdict(config))
    keys, values = of_layers("keys", memory, "length"), of_layers("values", memory, "length")
    histories = of_layers("past", past, "entries")
    _write(
        _Encoder(folded),
        {"tokens": (tokens, ("batch", "length")), "lengths": (tokens[:, 0] + 1, ("batch",))},
        (*keys, *values, "mask"),
        metadata,
        folder / ENCODER,
    )
    _write(
        _DecoderStep(folded),
        {
            "tokens": (tokens.new_zeros(batch, beam), ("batch", "beam")),
            "position": (tokens.new_zeros(1), (None,)),
            "positions": (tokens.new_zeros(entries), ("entries",)),
            "descends": (
                torch.zeros(batch, beam, entries, dtype=dtype),
                ("batch", "beam", "entries"),
            ),
            "mask": (
                torch.zeros(batch, 1, 1, length, dtype=dtype),
                ("batch", None, None, "length"),
            ),
            **keys,
            **values,
            **histories,
        },
        ("states", *(f"present.{layer}" for layer in range(config.decoder_layers))),
        metadata,
        folder / DECODER_STEP,
    )


def _write(
    module: nn.Module,
    inputs: Inputs,
    outputs: tuple[str, ...],
    metadata: dict[str, str],
    path: Path,
) -> None:
    """Export a module, whose lists of arrays have inputs numbered from 0."""
    names = {name for _, dims in inputs.values() for name in dims if name is not None}
    free = {name: Dim(name, min=0 if name == "entries" else 1) for name in names}
    arguments: dict[str, Any] = {}
    shapes: dict[str, Any] = {}
    for name, (example, dims) in inputs.items():
        shape = {index: free[dim] for index, dim in enumerate(dims) if dim is not None}
        argument, _, number = name.partition(".")
        if number:
            arguments.setdefault(argument, []).append(example)
            shapes.setdefault(argument, []).append(shape)
        else:
            arguments[argument], shapes[argument] = example, shape
    program = graph_of(
        module,
        metadata,
        kwargs=arguments,
        dynamic_shapes=shapes,
        input_names=list(inputs),
        output_names=outputs,
    )
    check_size(path.name, weight_bytes(program))
    with replacing(path) as partial:
        program.save(partial)
