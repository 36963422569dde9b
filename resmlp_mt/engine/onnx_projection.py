"""The output projection as ONNX graphs: of all words, and of those that a shortlist chooses.

The graphs are written as text, because ONNX Runtime turns these very operations into one product in
int8, and because their weights may be inputs, which quantizing tools leave in float32.
"""

import json
from pathlib import Path

import onnx
from onnx import numpy_helper
from onnx.parser import parse_model
from torch import Tensor, nn

from resmlp_mt.engine.onnx_model import (
    ALWAYS,
    PROJECTION,
    SHORTLIST_PROJECTION,
    SHORTLIST_ROWS,
)
from resmlp_mt.engine.shortlist import Shortlist
from resmlp_mt.files import replacing
from resmlp_mt.onnx_exporter import check_size
from resmlp_mt.packed_linear import quantize

LARGEST = 63
"""Of the int8 weights: processors without VNNI add two products with 8-bit inputs in 16 bits."""
Rows = dict[str, Tensor]
"""The weights of some words, (words, dim), their biases and in int8 their scales, (words,)."""

HEADER = '<ir_version: 10, opset_import: ["" : 20]>'
# {scores} of the words whose weight, bias and scale have the prefix {of}
FLOAT_SCORES = """
    {of}products = MatMul(states, {of}weight)
    {scores} = Add({of}products, {of}bias)"""
INT8_INPUT = """
    rounded, step, zero = DynamicQuantizeLinear(states)"""
INT8_SCORES = """
    {of}integers = MatMulInteger(rounded, {of}weight, zero)
    {of}floats = Cast<to = 1>({of}integers)
    {of}steps = Mul(step, {of}scale)
    {of}products = Mul({of}floats, {of}steps)
    {scores} = Add({of}products, {of}bias)"""


class ProjectionGraphs:
    """Writes the graphs of one projection.

    Args:
        projection: has a bias.
        metadata: of the graphs.
        is_int8: whether weights are rounded to 7 bits, with a scale for each word.
    """

    def __init__(self, projection: nn.Linear, metadata: dict[str, str], is_int8: bool) -> None:
        self._metadata = metadata
        weight = projection.weight.detach()
        self._words, self._dim = weight.shape
        self._rows: Rows = {"weight": weight, "bias": projection.bias.detach()}
        if is_int8:
            self._rows["weight"], self._rows["scale"] = quantize(weight, LARGEST)
        self._input, self._product = (INT8_INPUT, INT8_SCORES) if is_int8 else ("", FLOAT_SCORES)

    def write(self, folder: Path) -> None:
        """Write ``projection.onnx``: states (batch, beam, dim) -> scores (batch, beam, words).

        Raises:
            UserError: if the graph is too large.
            OSError: if the file cannot be written.
        """
        text = f"""{HEADER}
projection (float[batch, beam, {self._dim}] states) => (float[batch, beam, {self._words}] scores) {{
    {self._input}{self._product.format(of="", scores="scores")}
}}"""
        self._save(text, _columns(self._rows), self._metadata, folder / PROJECTION)

    def write_shortlist(self, shortlist: Shortlist, folder: Path) -> None:
        """Write ``shortlist_rows.onnx`` and ``shortlist_projection.onnx``.

        The first gives the rows of words, the second takes them beside states. Rows of the words
        that every sentence may use are constants of the second, which are packed once.

        Raises:
            UserError: if a graph is too large.
            OSError: if a file cannot be written.
        """
        kind = {"torch.int8": "int8", "torch.float32": "float"}[str(self._rows["weight"].dtype)]
        rows = [f"{kind}[{self._dim}, words] weight", "float[words] bias"]
        gathered = """
    rows = Gather(all_weight, words)
    weight = Transpose<perm = [1, 0]>(rows)
    bias = Gather(all_bias, words)"""
        if "scale" in self._rows:
            rows.append("float[words] scale")
            gathered += """
    scale = Gather(all_scale, words)"""
        text = f"""{HEADER}
rows (int64[words] words) => ({", ".join(rows)}) {{{gathered}
}}"""
        constants = {f"all_{name}": array for name, array in self._rows.items()}
        self._save(text, constants, self._metadata, folder / SHORTLIST_ROWS)
        text = f"""{HEADER}
shortlist_projection (
    float[batch, beam, {self._dim}] states, {", ".join(rows)}
) => (float[batch, beam, all_words] scores) {{{self._input}
    {self._product.format(of="always_", scores="always_scores")}
    {self._product.format(of="", scores="own_scores")}
    scores = Concat<axis = 2>(always_scores, own_scores)
}}"""
        always = shortlist.always.tolist()
        some = _columns({name: array[always] for name, array in self._rows.items()})
        constants = {f"always_{name}": array for name, array in some.items()}
        metadata = {**self._metadata, ALWAYS: json.dumps(always)}
        self._save(text, constants, metadata, folder / SHORTLIST_PROJECTION)

    @staticmethod
    def _save(text: str, constants: Rows, metadata: dict[str, str], path: Path) -> None:
        check_size(path.name, sum(array.nbytes for array in constants.values()))
        model = parse_model(text)
        for name, array in constants.items():
            constant = numpy_helper.from_array(array.contiguous().numpy(), name)
            model.graph.initializer.append(constant)
        onnx.helper.set_model_props(model, metadata)
        with replacing(path) as partial:
            onnx.save(model, partial)


def _columns(rows: Rows) -> Rows:
    """The weights as (dim, words)."""
    return {**rows, "weight": rows["weight"].t()}
