"""The layers of the image models, which :mod:`resmlp_mt.vision.model` puts together.

Hidden states are (batch, tokens, dim), as in timm. In memory the tokens come first, and the layers
compute with that view, so that mixing over patches is one matrix product.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resmlp_mt.layers import Affine, FeedForward
from resmlp_mt.vision.mixing import create_mixing

NORMS = ("affine", "layernorm")


@torch.fx.wrap  # a symbolic trace keeps this as one step
def check_size(images: Tensor, channels: int, height: int, width: int) -> None:
    """Refuse images of another size, or with other channels.

    Raises:
        ValueError: naming what is expected and what is there.
    """
    if images.dim() != 4:
        raise ValueError(
            "this model takes images of the shape (batch, channels, height, width), but these have "
            f"{images.dim()} dimensions: stack them, also a single one."
        )
    if images.shape[1] != channels:
        raise ValueError(
            f"this model takes images of {channels} channels, but these have {images.shape[1]}: "
            "convert them, or create the model with their in_chans."
        )
    if images.shape[2] != height or images.shape[3] != width:
        raise ValueError(
            f"this model takes images of {height} x {width} pixels, but these have "
            f"{images.shape[2]} x {images.shape[3]}: resize them, or create the model with their "
            "size and adapt its weights with load_weights."
        )


class PatchEmbed(nn.Module):
    """A linear layer over the pixels of each patch; patches do not overlap.

    Shapes: (batch, channels, height, width) -> (batch, tokens, dim), the patches row by row.

    The pixels of a patch are ordered (channel, row, column), so that ``proj.weight`` is the
    flattened kernel of the equivalent convolution.

    Raises:
        ValueError: for images of another size, or with other channels.
    """

    def __init__(self, img_size: tuple[int, int], patch_size: int, in_chans: int, dim: int) -> None:
        super().__init__()
        self.img_size = img_size
        self.patch_size = patch_size
        self.in_chans = in_chans
        self.proj = nn.Linear(in_chans * patch_size**2, dim)

    def forward(self, images: Tensor) -> Tensor:
        check_size(images, self.in_chans, self.img_size[0], self.img_size[1])
        size = self.patch_size
        batch, channels, height, width = images.shape
        rows, columns = height // size, width // size
        patches = images.reshape(batch, channels, rows, size, columns, size)
        patches = patches.permute(2, 4, 0, 1, 3, 5)
        patches = patches.reshape(rows * columns, batch, channels * size * size)
        embedded: Tensor = self.proj(patches)
        return embedded.transpose(0, 1)


class Layer(nn.Module):
    """A layer of two residual branches, x + scale * y, with stochastic depth.

    A branch is dropped for each image separately; kept branches are divided by the probability of
    being kept (Huang et al. 2016, arXiv:1603.09382).
    """

    def __init__(
        self,
        dim: int,
        token_mixing: nn.Module | None,
        *,
        drop_path: float,
        norm: str,
        layer_scale_init: float,
    ) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.token_mixing = token_mixing
        if token_mixing is not None:
            self.mixing_pre = create_norm(norm, dim)
            self.mixing_post = Affine(dim, layer_scale_init, bias=False)
        self.ffn_pre = create_norm(norm, dim)
        self.ffn = FeedForward(dim, 4 * dim)
        self.ffn_post = Affine(dim, layer_scale_init, bias=False)

    def residual(self, x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
        """x + drop_path(scale * y) in one pass over (tokens, batch, dim); scale is (dim,)."""
        if self.training and self.drop_path > 0:
            kept = F.dropout(torch.ones_like(x[0, :, :1]), self.drop_path)  # (batch, 1)
            scale = scale * kept
        return torch.addcmul(x, scale, y)


class Block(Layer):
    """Z = X + gamma1 * A norm(X), Y = Z + gamma2 * FeedForward(norm(Z)).

    Shapes: input and output (batch, tokens, dim).
    """

    def __init__(self, dim: int, grid: tuple[int, int], *, mixing: str, **layer: Any) -> None:
        super().__init__(dim, create_mixing(mixing, dim, grid), **layer)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1)
        if self.token_mixing is not None:
            x = self.residual(x, self.token_mixing(self.mixing_pre(x)), self.mixing_post.alpha)
        x = self.residual(x, self.ffn(self.ffn_pre(x)), self.ffn_post.alpha)
        return x.transpose(0, 1)


class ClassBlock(Layer):
    """A layer that reads the patches into a class token and leaves the patches as they are.

    It is a class-attention layer (Touvron et al. 2021, arXiv:2103.17239) with a linear layer over
    the class token and the patches in place of attention.

    Shapes: class token (batch, 1, dim), patches (batch, tokens, dim) -> (batch, 1, dim).
    """

    def __init__(self, dim: int, tokens: int, **layer: Any) -> None:
        super().__init__(dim, nn.Linear(1 + tokens, 1), **layer)
        # optimizers of trainings that go on know parameters by their order
        self._modules = {"mixing_pre": self.mixing_pre, **self._modules}

    def forward(self, class_token: Tensor, patches: Tensor) -> Tensor:
        x = class_token.transpose(0, 1)
        both = self.mixing_pre(torch.cat((x, patches.transpose(0, 1))))
        mixing: nn.Linear = self.token_mixing  # type: ignore[assignment]
        y = torch.addmm(mixing.bias, mixing.weight, both.flatten(1)).view_as(x)
        x = self.residual(x, y, self.mixing_post.alpha)
        x = self.residual(x, self.ffn(self.ffn_pre(x)), self.ffn_post.alpha)
        return x.transpose(0, 1)


def create_norm(norm: str, dim: int) -> nn.Module:
    """The affine map or norm before a sublayer.

    Raises:
        ValueError: if ``norm`` is neither ``"affine"`` nor ``"layernorm"``.
    """
    if norm == "affine":
        return Affine(dim)
    if norm == "layernorm":
        return nn.LayerNorm(dim)
    raise ValueError(f"norm must be one of {', '.join(NORMS)}, but is {norm!r}.")


def create_classifier(dim: int, num_classes: int) -> nn.Module:
    """The last layer, (..., dim) -> (..., num_classes); with 0 classes it changes nothing.

    Raises:
        ValueError: for a negative number of classes.
    """
    if num_classes < 0:
        raise ValueError(f"num_classes must be at least 0, but is {num_classes}.")
    if num_classes == 0:
        return nn.Identity()
    layer = nn.Linear(dim, num_classes)
    with torch.no_grad():
        nn.init.trunc_normal_(layer.weight, std=0.02)
        nn.init.zeros_(layer.bias)
    return layer
