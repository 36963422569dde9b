"""A trained image model with every Affine and LayerScale folded into its neighbours.

An affine map before or after a linear layer becomes part of that layer. The mixing matrix acts
over patches and the affine maps act over channels, so they commute:

    x + gamma (A (alpha x + beta) + b) = x + s A x + c,
    s = gamma alpha,    c_t = gamma ((sum_u A_tu) beta + b_t)

The bias of a feed-forward sublayer is not added to the hidden states, but becomes part of c in the
next mixing, so that its product can be added to the hidden states while it is computed. On a CPU,
GELU is also part of a product.
"""

import copy
from typing import TypeGuard

import torch
from torch import Tensor, nn

from resmlp_mt.layers import LEAST_GELU, Affine, merged_after, merged_before
from resmlp_mt.packed_linear import Int8Linear, PackedLinear, can_pack, quantize
from resmlp_mt.vision.blocks import Block
from resmlp_mt.vision.mixing import LinearMixing
from resmlp_mt.vision.model import ResMLP

ROWS = 784  # tokens whose hidden states are computed at once, so that they stay in cache


class FoldedBlock(nn.Module):
    """x + s A x + c, then x + C GELU(B x); changes x (tokens, batch, dim) in place.

    ``missing``, (dim,), is the bias that the input lacks.
    """

    def __init__(self, block: Block, missing: Tensor) -> None:
        super().__init__()
        mixing, pre, gamma = block.token_mixing, block.mixing_pre, block.mixing_post.alpha
        assert isinstance(mixing, LinearMixing)
        assert isinstance(pre, Affine)
        assert isinstance(block.ffn_pre, Affine)
        self.mixing = nn.Parameter(mixing.weight.clone())
        self.scale = nn.Parameter(gamma * pre.alpha)
        row_sums = mixing.weight.sum(1, keepdim=True)
        constant = gamma * (row_sums * pre(missing) + mixing.bias.unsqueeze(1)) + missing
        self.constant = nn.Parameter(constant.unsqueeze(1))  # (tokens, 1, dim)
        self.fc1: nn.Module = merged_before(block.ffn_pre, block.ffn.fc1)
        fc2 = merged_after(block.ffn.fc2, block.ffn_post)
        fc2.register_parameter("bias", None)  # added in the next mixing
        self.fc2: nn.Module = fc2

    def forward(self, x: Tensor) -> Tensor:
        mixed = torch.mm(self.mixing, x.flatten(1)).view_as(x)
        x.addcmul_(self.scale, mixed).add_(self.constant)
        tokens = x.view(-1, x.size(2))
        if isinstance(self.fc1, PackedLinear) and isinstance(self.fc2, PackedLinear):
            for rows in tokens.split(ROWS):
                rows.copy_(self.fc2.plus(self.fc1.gelu(rows), rows))
        elif isinstance(self.fc1, Int8Linear):
            for rows in tokens.split(ROWS):
                rows += self.fc2(nn.functional.gelu(self.fc1(rows)))
        else:
            tokens += self.fc2(nn.functional.gelu(self.fc1(tokens)))
        return x

    def pack(self) -> None:
        """Put weights in the order that the CPU's kernels read, if there are such kernels."""
        if can_pack(self.mixing):
            assert isinstance(self.fc1, nn.Linear)
            assert isinstance(self.fc2, nn.Linear)
            self.fc1, self.fc2 = PackedLinear(self.fc1), PackedLinear(self.fc2)

    def quantize(self) -> None:
        """Compute the feed-forward layer, nine tenths of all operations, in 8-bit integers."""
        assert isinstance(self.fc1, nn.Linear)
        assert isinstance(self.fc2, nn.Linear)
        self.fc1 = Int8Linear(*quantize(self.fc1.weight), self.fc1.bias)
        self.fc2 = Int8Linear(*quantize(self.fc2.weight), None, least=LEAST_GELU)


class FoldedResMLP(nn.Module):
    """The folded model that :func:`folded` returns.

    Shapes: (batch, channels, height, width) -> (batch, num_classes), logits.
    """

    def __init__(self, model: ResMLP) -> None:
        super().__init__()
        assert isinstance(model.norm, Affine)
        self.patch_embed = copy.deepcopy(model.patch_embed)
        self.blocks = nn.ModuleList()
        missing = torch.zeros_like(model.norm.alpha)
        for block in model.blocks:
            assert isinstance(block, Block)
            self.blocks.append(FoldedBlock(block, missing))
            missing = block.ffn_post.alpha * block.ffn.fc2.bias
        assert isinstance(model.head, nn.Linear)
        self.head = merged_before(model.norm, model.head)
        self.head.bias.add_(self.head.weight @ missing)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch_embed(images).transpose(0, 1)  # tokens first, as in memory
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(x.mean(0))
        return logits


def can_be_folded(model: nn.Module) -> TypeGuard[ResMLP]:
    """Whether :func:`folded` can fold the model."""
    return (
        isinstance(model, ResMLP)
        and all(isinstance(block.token_mixing, LinearMixing) for block in model.blocks)
        and isinstance(model.norm, Affine)
        and model.class_token is None
        and isinstance(model.head, nn.Linear)
    )


@torch.no_grad()
def folded(
    model: ResMLP, dtype: torch.dtype | None = None, int8: bool = False, pack: bool = True
) -> FoldedResMLP:
    """A copy of ``model`` for inference, without Affine and LayerScale; outputs equal to rounding.

    It cannot be moved or converted afterwards: move and convert ``model`` first.

    Args:
        dtype: type to compute in, by default that of ``model``; folding is done in the latter.
        int8: 8-bit products in the feed-forward layers, on a CPU; the rest stays float32.
        pack: False leaves plain operations, for export.

    Raises:
        ValueError: if the model has LayerNorm, a mixing that is not linear, or class-MLP pooling;
            with ``int8``, if it is not on a CPU in float32.
    """
    if not can_be_folded(model):
        raise ValueError(
            "only models with affine maps, linear mixing and mean pooling can be folded."
        )
    result = FoldedResMLP(model).to(dtype=dtype).eval().requires_grad_(False)
    weight = result.head.weight
    if int8 and (weight.device.type != "cpu" or weight.dtype != torch.float32):
        raise ValueError("int8 is for models in float32 on a CPU.")
    for block in result.blocks:
        assert isinstance(block, FoldedBlock)
        if int8:
            block.quantize()
        elif pack:
            block.pack()
    return result
