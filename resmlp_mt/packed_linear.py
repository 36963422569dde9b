"""Linear layers for inference on a CPU, with weights in the order that the kernels read.

Float32 and bfloat16 products are oneDNN's with prepacked weights. Int8 products are FBGEMM's, or
oneDNN's for many rows where the processor multiplies tiles of int8 or has VNNI. These are the
operators that ``torch.compile`` puts in place of ``nn.Linear`` when weights are frozen;
docs/engine.md has the measurements. An int8 table may be an embedding too.
"""

import math
import os
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resmlp_mt.graphs import is_recording
from resmlp_mt.layers import linear_of
from resmlp_mt.machine import adds_int8_in_32_bits, computes_in_bfloat16, multiplies_int8_tiles

LARGEST_UNPACKED = 2**19
"""Largest size of a float32 weight for which PyTorch's own kernel is faster.

The kernels for packed weights need about 15 us more to start, whatever the size, and 70 us between
products of the other kind. With 512 inputs and outputs, or 128 inputs and 4,000 words, they take
1.1 to 2 times as long for products of 1 to 5 rows, and the same time for 64 or more.
"""

FEW_ROWS_WITH_TILES, FEW_ROWS_WITH_VNNI = 8, 63
"""Most rows of an int8 product for which FBGEMM is faster than oneDNN."""

LEAST_SCALE = 1e-12
"""Least scale of the inputs of an int8 product."""

# The operator itself: its packet first looks for fake tensors among the arguments, which takes a
# sixth of the time of a small product.
_fbgemm = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32.default._op

# For every new number of rows, a product is prepared and cached, about 0.2 MB each: up to 1024 in
# oneDNN and 1024 more in PyTorch, so memory grew for tens of thousands of sentences of random
# lengths. PyTorch's cache saves no time. oneDNN's cache has to hold three or four products for each
# of 60 lengths of single sentences; preparing one takes 0.2 ms. Both sizes are read at the first
# product. Sizes that the user has set are kept.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")
os.environ.setdefault("LRU_CACHE_CAPACITY", "16")


def can_pack(weight: Tensor) -> bool:
    """Whether there is a kernel for packed weights of this type on their device."""
    return (
        weight.device.type == "cpu"
        and torch.backends.mkldnn.is_available()
        and (
            weight.dtype == torch.float32
            or (weight.dtype == torch.bfloat16 and computes_in_bfloat16())
        )
    )


def gains_by_packing(weight: Tensor) -> bool:
    """Whether products with few rows, as in a step of decoding, are faster packed."""
    is_small = weight.dtype == torch.float32 and weight.numel() <= LARGEST_UNPACKED
    return not is_small and can_pack(weight)


def _pack(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), None)
    return packed


def _product(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    output: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return output


class PackedLinear(nn.Module):
    """x W + b in the type of the weights; (..., in_features) -> (..., out_features)."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = _pack(linear.weight)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return _product(x, self.weight, self.bias)

    def unpacked(self) -> nn.Linear:
        """The same layer with its weights in their usual order."""
        return linear_of(self.weight.to_dense(), self.bias)

    def gelu(self, x: Tensor) -> Tensor:
        """GELU(x W + b), as the product is computed."""
        output: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self.weight, self.bias, "gelu", [], "none"
        )
        return output

    def plus(self, x: Tensor, addend: Tensor) -> Tensor:
        """x W + b + addend, as the product is computed."""
        output: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, addend, self.weight, self.bias, "add"
        )
        return output


class PackingLinear(nn.Linear):
    """``nn.Linear`` that keeps a packed copy of large weights for products without gradients.

    It shares the parameters of the linear layer that it is made from. They can still be saved,
    trained, converted and moved, and the copy follows them.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.train(linear.training)
        self._packed: Tensor | None = None
        self._packed_from: tuple[int, int] | None = None

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        if (
            torch.is_grad_enabled()
            or x.dtype != weight.dtype
            or weight.is_inference()  # its changes cannot be detected
            or torch.is_autocast_enabled("cpu")
            or not gains_by_packing(weight)
        ):
            # Optimizers may change weights in ways that leave no trace in their version.
            self._packed = None
            return super().forward(x)
        version = weight.data_ptr(), weight._version
        if self._packed is None or self._packed_from != version:
            self._packed = _pack(weight)
            self._packed_from = version
        return _product(x, self._packed, self.bias)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_packed": None, "_packed_from": None}


class Int8Linear(nn.Module):
    """The product of weights and inputs rounded to 8 and 7 bits; float32 in and out.

    Weights have one scale per output channel. Inputs have a scale per row, taken from the row, so
    that a sentence's translation does not depend on its neighbours. With W = diag(s) Q for integers
    Q, and x = m u, where m = max |x|, or x = least + m u after an activation that is never below
    ``least``, where m = max (x - least),

        W x + b = m (diag(s) Q u) + b     or     m (diag(s) Q u) + (b + least W 1).

    u has 7 bits because processors without VNNI add two products in 16 bits. With ``least``, rows
    whose values all lie near it are rounded coarsely, by |least| / 254. With ``columns`` r, the
    weights are W = diag(s) Q diag(r), and x stands for diag(r) x above.
    """

    def __init__(
        self,
        weight: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        least: float | None = None,
        columns: Tensor | None = None,
        is_temporary: bool = False,
    ) -> None:
        """Take quantized weights.

        Args:
            weight: int8, (out_features, in_features).
            scale: float32, (out_features,).
            bias: float32, (out_features,); zeros by default.
            least: of all inputs, if it is known and there are no ``columns``.
            columns: float32, (in_features,); ones by default.
            is_temporary: for a few products only: the weights are not packed for oneDNN.
        """
        super().__init__()
        self.bias = torch.zeros_like(scale) if bias is None else bias
        self.least, self.columns = least, columns
        self.constant = self.bias
        if least:
            self.constant = self.bias + least * weight.sum(dim=1, dtype=torch.float32) * scale
        self.scale, self.zeros = scale, torch.zeros(len(scale), dtype=torch.int32)
        # For many rows oneDNN takes less time than FBGEMM: with tiles a quarter for 256 rows and
        # half for 27, with VNNI about 0.75 for 256; for a few it takes more. So the weights are
        # packed for both when there are many rows for the first time. Packing takes as long as 50
        # products of a row; with tiles, weights that are not packed take a third longer.
        has_tiles = multiplies_int8_tiles()
        self.few_rows: float = math.inf
        if has_tiles:
            self.few_rows = FEW_ROWS_WITH_TILES
        elif adds_int8_in_32_bits() and not is_temporary:
            self.few_rows = FEW_ROWS_WITH_VNNI
        self.blocks: Tensor | None = None
        self.half_steps = scale.new_full((weight.size(1),), 64.5 if least is None else 0.5)
        self.unpacked: Tensor | None = None
        if is_temporary and has_tiles:
            self.unpacked = weight
            return
        with warnings.catch_warnings():
            # PyTorch will drop quantized tensors some day, but cannot pack anything else so far
            warnings.filterwarnings("ignore", message="torch.quantize_per_tensor")
            quantized = torch._make_per_channel_quantized_tensor(
                weight, scale, torch.zeros(len(scale), dtype=torch.long), 0
            )
        self.packed = torch.ops.quantized.linear_prepack(quantized, None)

    def forward(self, x: Tensor) -> Tensor:
        if self.columns is not None:
            x = x * self.columns
        steps, zero = (63, 64) if self.least is None else (127, 0)
        rows = x.numel() // x.size(-1)
        if rows > self.few_rows and self.unpacked is None:
            product, largest = self._onednn_product(x, steps, zero)
            return torch.addcmul(self.constant, product, largest, out=product)
        if self.least:
            x = x - self.least
        absolute = x.abs() if self.least is None else x
        if rows == 1 and self.unpacked is None and not is_recording():
            # in fewer calls: the kernel multiplies by the scale of the only row
            step = max(float(absolute.max()), LEAST_SCALE) / steps
            return self._packed_product(x, step, zero).add_(self.constant)
        largest = absolute.amax(dim=-1, keepdim=True).clamp_min_(LEAST_SCALE)
        if self.unpacked is not None:
            product = self._unpacked_product(x / largest, steps)
        else:
            product = self._packed_product(x / largest, 1 / steps, zero)
        return torch.addcmul(self.constant, product, largest, out=product)

    def _packed_product(self, u: Tensor, step: float, zero: int) -> Tensor:
        product: Tensor = _fbgemm(u, step, zero, self.packed)
        return product

    def _unpacked_product(self, u: Tensor, steps: int) -> Tensor:
        assert self.unpacked is not None
        integers = u.mul_(steps).round_().to(torch.int8).view(-1, u.size(-1))
        product = torch._int_mm(integers, self.unpacked.t()).float()
        return product.mul_(self.scale / steps).view(*u.shape[:-1], -1)

    def _onednn_product(self, x: Tensor, steps: int, zero: int) -> tuple[Tensor, Tensor]:
        """diag(s) Q u and m, with few passes over many rows."""
        if self.blocks is None:
            self.blocks = torch.ops.onednn.qlinear_prepack(self.integers()[0], None)
        largest = (x.abs() if self.least is None else x).amax(dim=-1, keepdim=True)
        if self.least:
            largest -= self.least
        inverse = steps / largest.clamp_min_(LEAST_SCALE)
        # Half a step more, and the fraction is cut off: rounded. At most 127, so that they may be
        # converted to int8, which takes a quarter of the time.
        integers = torch.addcmul(self.half_steps, x, inverse)
        if self.least:
            integers -= self.least * inverse
        product: Tensor = torch.ops.onednn.qlinear_pointwise(
            integers.to(torch.int8).view(torch.uint8), 1 / steps, zero, self.blocks, self.scale,
            self.zeros, None, 1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        return product, largest

    def integers(self) -> tuple[Tensor, Tensor]:
        """The weights as they were given: int8 (out_features, in_features), and their scales."""
        if self.unpacked is not None:
            return self.unpacked, self.scale
        quantized, _ = torch.ops.quantized.linear_unpack(self.packed)
        return quantized.int_repr(), self.scale

    def selector(self) -> Callable[[Tensor], "Int8Linear"]:
        """See :func:`selector`."""
        integers, scale = self.integers()

        def select(rows: Tensor) -> Int8Linear:
            weight, its_scale, bias = (
                x.index_select(0, rows) for x in (integers, scale, self.bias)
            )
            return Int8Linear(weight, its_scale, bias, self.least, self.columns, is_temporary=True)

        return select


class Int8Embedding(nn.Module):
    """Rows of an int8 table, each times its scale; (...,) -> (..., dim) in float32.

    Symmetric, unlike PyTorch's own ``quantized::embedding_byte``, so that an :class:`Int8Linear`
    may have the same table.

    Args:
        weight: int8, (rows, dim).
        scale: float32, (rows,).
    """

    weight: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("scale", scale, persistent=False)
        self._column = scale.unsqueeze(1)

    def forward(self, tokens: Tensor) -> Tensor:
        # not by indexing, which takes four times as long for a few tokens
        return F.embedding(tokens, self.weight) * F.embedding(tokens, self._column)


def quantize(weight: Tensor, largest: int = 127) -> tuple[Tensor, Tensor]:
    """Round weights to int8, symmetrically, with one scale per row.

    Args:
        weight: (out_features, in_features) of a linear layer, or (rows, dim) of an embedding.
        largest: what the largest weight of a row becomes.

    Returns:
        The int8 weights and their scales, one for each row.
    """
    scale = weight.float().abs().amax(dim=1).clamp_min(1e-12) / largest
    rounded = (weight / scale.unsqueeze(1)).round()
    return rounded.clamp(-largest, largest).to(torch.int8), scale


def selector(layer: nn.Module) -> Callable[[Tensor], nn.Module]:
    """A function that reduces a linear layer, packed or not, to some of its outputs.

    It takes the indices of these outputs. The layer's weights are unpacked once, here.
    """
    if isinstance(layer, Int8Linear):
        return layer.selector()
    if not isinstance(layer, nn.Linear | PackedLinear):
        raise TypeError(f"{type(layer).__name__} is not a linear layer")
    packed = isinstance(layer, PackedLinear)
    weight = layer.weight.to_dense() if packed else layer.weight.detach()
    bias = layer.bias

    def select(rows: Tensor) -> nn.Module:
        # not by indexing, which takes many times as long
        linear = linear_of(weight.index_select(0, rows), bias.index_select(0, rows))
        return PackedLinear(linear) if packed else linear

    return select
