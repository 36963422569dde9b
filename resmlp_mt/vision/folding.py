"""A trained image model with every Affine and LayerScale folded into its neighbours.

An affine map in front of or behind a linear layer is part of that layer. The mixing matrix acts
over patches and the affine maps over channels, so the two commute:

    x + gamma (A (alpha x + beta) + b) = x + s A x + c,
    s = gamma alpha,    c_t = gamma ((sum_u A_tu) beta + b_t)

The bias of a feed-forward sublayer is left out of the hidden states and made good in the next
mixing, in c, so that its product is added to the hidden states as it is computed.
"""

import copy

import torch
from torch import Tensor, nn

from resmlp_mt.layers import Affine, TokenMixing
from resmlp_mt.vision.model import Block, ResMLP


class FoldedBlock(nn.Module):
    """x + s A x + c, then x + C GELU(B x); changes x in place.

    Shapes: input and output (tokens, batch, dim).

    Args:
        block: with affine maps and linear mixing.
        missing: (dim,), what the input lacks.
    """

    def __init__(self, block: Block, missing: Tensor) -> None:
        super().__init__()
        mixing, pre, gamma = block.token_mixing, block.mixing_pre, block.mixing_post.alpha
        assert isinstance(mixing, TokenMixing)
        assert isinstance(pre, Affine)
        assert isinstance(block.ffn_pre, Affine)
        self.mixing = nn.Parameter(mixing.weight.clone())
        self.scale = nn.Parameter(gamma * pre.alpha)
        row_sums = mixing.weight.sum(1, keepdim=True)
        constant = gamma * (row_sums * pre(missing) + mixing.bias.unsqueeze(1)) + missing
        self.constant = nn.Parameter(constant.unsqueeze(1))  # (tokens, 1, dim)
        self.fc1 = _behind(block.ffn_pre, block.ffn.fc1)
        # as the right-hand factor of a product, (hidden, dim)
        self.fc2 = nn.Parameter((block.ffn_post.alpha.unsqueeze(1) * block.ffn.fc2.weight).T)

    def forward(self, x: Tensor) -> Tensor:
        mixed = torch.mm(self.mixing, x.flatten(1)).view_as(x)
        x.addcmul_(self.scale, mixed).add_(self.constant)
        hidden = nn.functional.gelu(self.fc1(x.flatten(0, 1)))
        x.view(-1, x.size(2)).addmm_(hidden, self.fc2)
        return x


class FoldedResMLP(nn.Module):
    """What :func:`folded` returns.

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
        self.head = _behind(model.norm, model.head)
        self.head.bias.add_(self.head.weight @ missing)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch_embed(images)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(x.mean(0))
        return logits


@torch.no_grad()
def folded(model: ResMLP) -> FoldedResMLP:
    """A copy of ``model`` for inference, without Affine and LayerScale; outputs equal to rounding.

    Raises:
        ValueError: if the model has LayerNorm, a mixing that is not linear, or class-MLP pooling.
    """
    linear = all(isinstance(block.token_mixing, TokenMixing) for block in model.blocks)
    if not (linear and isinstance(model.norm, Affine) and model.class_token is None):
        raise ValueError(
            "only models with affine maps, linear mixing and mean pooling can be folded."
        )
    return FoldedResMLP(model).eval().requires_grad_(False)


def _behind(affine: Affine, linear: nn.Linear) -> nn.Linear:
    """One linear layer for ``linear(affine(x))``."""
    layer = copy.deepcopy(linear)
    layer.weight.mul_(affine.alpha)
    if affine.beta is not None:
        layer.bias.add_(linear.weight @ affine.beta)
    return layer
