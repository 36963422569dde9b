"""The image models of the paper (Touvron et al. 2021, arXiv:2105.03404) and of its ablations.

A linear layer embeds the patches of an image. Then layers mix over patches and over channels, and
the mean over patches is classified. Every layer takes and returns hidden states (batch, tokens,
dim), as in timm, whose conventions the model follows. In memory the tokens come first, and the
layers compute with that view, so that mixing over patches is one matrix product.

Two details follow the authors' released code instead of the paper's equations: the scale after a
sublayer has no bias, and stochastic depth has the same rate in all layers.

:mod:`resmlp_mt.vision.factory` makes models by name.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resmlp_mt.layers import Affine, FeedForward
from resmlp_mt.vision.libraries import timm
from resmlp_mt.vision.mixing import create_mixing
from resmlp_mt.vision.timm_conventions import TimmConventions, create_classifier

POOLINGS = ("mean", "class_mlp")
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


class Branch(nn.Module):
    """Base class of layers with residual branches, x + scale * y, and stochastic depth.

    A branch is dropped for each image separately; kept branches are divided by the probability of
    being kept (Huang et al. 2016, arXiv:1603.09382).
    """

    def __init__(self, drop_path: float) -> None:
        super().__init__()
        self.drop_path = drop_path

    def residual(self, x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
        """x + drop_path(scale * y) in one pass over (tokens, batch, dim); scale is (dim,)."""
        if self.training and self.drop_path > 0:
            kept = F.dropout(torch.ones_like(x[0, :, :1]), self.drop_path)  # (batch, 1)
            scale = scale * kept
        return torch.addcmul(x, scale, y)


class Block(Branch):
    """Z = X + gamma1 * A norm(X), Y = Z + gamma2 * FeedForward(norm(Z)).

    Shapes: input and output (batch, tokens, dim).
    """

    def __init__(
        self,
        dim: int,
        grid: tuple[int, int],
        *,
        drop_path: float,
        mixing: str,
        norm: str,
        layer_scale_init: float,
    ) -> None:
        super().__init__(drop_path)
        self.token_mixing = create_mixing(mixing, dim, grid)
        if self.token_mixing is not None:
            self.mixing_pre = create_norm(norm, dim)
            self.mixing_post = Affine(dim, layer_scale_init, bias=False)
        self.ffn_pre = create_norm(norm, dim)
        self.ffn = FeedForward(dim, 4 * dim)
        self.ffn_post = Affine(dim, layer_scale_init, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1)
        if self.token_mixing is not None:
            x = self.residual(x, self.token_mixing(self.mixing_pre(x)), self.mixing_post.alpha)
        x = self.residual(x, self.ffn(self.ffn_pre(x)), self.ffn_post.alpha)
        return x.transpose(0, 1)


class ClassBlock(Branch):
    """A layer that reads the patches into a class token and leaves the patches as they are.

    It is a class-attention layer (Touvron et al. 2021, arXiv:2103.17239) with a linear layer over
    the class token and the patches in place of attention.

    Shapes: class token (batch, 1, dim), patches (batch, tokens, dim) -> (batch, 1, dim).
    """

    def __init__(
        self, dim: int, tokens: int, *, drop_path: float, norm: str, layer_scale_init: float
    ) -> None:
        super().__init__(drop_path)
        self.mixing_pre = create_norm(norm, dim)
        self.token_mixing = nn.Linear(1 + tokens, 1)
        self.mixing_post = Affine(dim, layer_scale_init, bias=False)
        self.ffn_pre = create_norm(norm, dim)
        self.ffn = FeedForward(dim, 4 * dim)
        self.ffn_post = Affine(dim, layer_scale_init, bias=False)

    def forward(self, class_token: Tensor, patches: Tensor) -> Tensor:
        x = class_token.transpose(0, 1)
        both = self.mixing_pre(torch.cat((x, patches.transpose(0, 1))))
        mixing = self.token_mixing
        y = torch.addmm(mixing.bias, mixing.weight, both.flatten(1)).view_as(x)
        x = self.residual(x, y, self.mixing_post.alpha)
        x = self.residual(x, self.ffn(self.ffn_pre(x)), self.ffn_post.alpha)
        return x.transpose(0, 1)


class ResMLP(TimmConventions):
    """ResMLP as an image classifier; see :func:`resmlp_mt.vision.factory.create_model`.

    Weights are initialized as in the authors' code: linear layers N(0, 0.02) with zero biases, the
    patch embedding as in PyTorch.

    Args:
        img_size: height and width of the images, in pixels, multiples of ``patch_size``.
        embed_dim: channels of the hidden states.
        depth: number of layers.

    The other arguments are as in ``create_model``.

    Raises:
        ValueError: for an impossible value.
    """

    def __init__(
        self,
        *,
        img_size: tuple[int, int],
        patch_size: int,
        in_chans: int,
        num_classes: int,
        embed_dim: int,
        depth: int,
        drop_rate: float = 0.0,
        drop_path: float = 0.0,
        pooling: str = "mean",
        mixing: str = "linear",
        norm: str = "affine",
        layer_scale_init: float,
    ) -> None:
        super().__init__()
        sizes = {"in_chans": in_chans, "patch_size": patch_size, "img_size": min(img_size)}
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, but is {value}.")
        if img_size[0] % patch_size or img_size[1] % patch_size:
            raise ValueError(
                f"img_size must be a multiple of patch_size {patch_size} in both directions, "
                f"but is {img_size[0]} x {img_size[1]}."
            )
        if not 0 <= drop_path < 1:
            raise ValueError(f"drop_path must be at least 0 and below 1, but is {drop_path}.")
        if pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, but is {pooling!r}.")
        self.img_size = img_size
        self.patch_size = patch_size
        self.in_chans = in_chans
        self.num_classes = num_classes
        # timm's three names for the width of the classifier's input
        self.embed_dim = self.num_features = self.head_hidden_size = embed_dim
        self.grid = (img_size[0] // patch_size, img_size[1] // patch_size)
        self.num_prefix_tokens = 1 if pooling == "class_mlp" else 0
        self.global_pool = "token" if pooling == "class_mlp" else "avg"
        self.grad_checkpointing = False
        self.feature_info = [
            {"module": f"blocks.{i}", "num_chs": embed_dim, "reduction": patch_size}
            for i in range(depth)
        ]
        tokens = self.grid[0] * self.grid[1]

        self.patch_embed = PatchEmbed(img_size, patch_size, in_chans, embed_dim)
        layer: dict[str, Any] = {
            "drop_path": drop_path,
            "norm": norm,
            "layer_scale_init": layer_scale_init,
        }
        self.blocks = nn.Sequential(
            *(Block(embed_dim, self.grid, mixing=mixing, **layer) for _ in range(depth))
        )
        self.class_token = None
        if pooling == "class_mlp":
            self.class_token = nn.Parameter(torch.empty(1, 1, embed_dim))
            nn.init.trunc_normal_(self.class_token, std=0.02)
            self.class_blocks = nn.ModuleList(
                ClassBlock(embed_dim, tokens, **layer) for _ in range(2)
            )
        self.norm = create_norm(norm, embed_dim)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = create_classifier(embed_dim, num_classes)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear) and name not in ("patch_embed.proj", "head"):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward_features(self, images: Tensor) -> Tensor:
        """The normalised hidden states of all tokens.

        Args:
            images: (batch, channels, height, width).

        Returns:
            (batch, tokens, embed_dim), the patches row by row; with ``pooling="class_mlp"`` the
            class token comes first.

        Raises:
            ValueError: if the images have another size than ``img_size``, or other channels.
        """
        x = self.patch_embed(images)
        if self.grad_checkpointing and not torch.jit.is_scripting():  # type: ignore[attr-defined]
            x = timm.models.checkpoint_seq(self.blocks, x)
        else:
            x = self.blocks(x)
        return self.finish(x)

    def finish(self, x: Tensor) -> Tensor:
        """Class layers and final norm, on the hidden states after the last layer.

        Shapes: (batch, tokens, embed_dim); with class layers, the output has one token more.
        """
        if self.class_token is not None:
            token = self.class_token.expand(x.size(0), 1, -1)
            for class_block in self.class_blocks:
                token = class_block(token, x)
            x = torch.cat((token, x), 1)
        features: Tensor = self.norm(x)
        return features.contiguous()  # a caller may want a view

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The output of :meth:`forward_features` -> pooled features or, with the head, logits.

        Shapes: (batch, tokens, embed_dim) -> (batch, embed_dim) if ``pre_logits``, else
        (batch, num_classes); with ``global_pool`` "" there is one for every token.
        """
        pooled = x
        if self.global_pool != "":
            pooled = x[:, 0] if self.class_token is not None else x.mean(1)
        pooled = self.head_drop(pooled)
        output: Tensor = pooled if pre_logits else self.head(pooled)
        return output

    def forward(self, images: Tensor) -> Tensor:
        """(batch, channels, height, width) -> (batch, num_classes), logits.

        Raises:
            ValueError: if the images have another size than ``img_size``, or other channels.
        """
        return self.forward_head(self.forward_features(images))


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
