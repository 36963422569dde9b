"""The image models of the paper (Touvron et al. 2021, arXiv:2105.03404) and of its ablations.

An image becomes a sequence of patches, embedded by a linear layer; layers that mix over patches and
over channels follow; their mean is classified. The hidden states are (tokens, batch, dim), so that
mixing over patches is one matrix product (:mod:`resmlp_mt.layers`).

Two details follow the authors' released code where the paper's equations differ: the scale behind a
sublayer has no bias, and stochastic depth has the same rate in all layers.
"""

from dataclasses import dataclass

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from resmlp_mt.layers import Affine, FeedForward
from resmlp_mt.vision.mixing import create_mixing

POOLINGS = ("mean", "class_mlp")
NORMS = ("affine", "layernorm")


@dataclass(frozen=True)
class Preset:
    """The sizes of a named model."""

    embed_dim: int
    depth: int
    patch_size: int
    layer_scale_init: float
    img_size: int = 224


# Sizes: table 1 of the paper. LayerScale: the authors' code.
MODELS = {
    "resmlp_s12": Preset(384, 12, 16, 0.1),
    "resmlp_s24": Preset(384, 24, 16, 1e-5),
    "resmlp_s36": Preset(384, 36, 16, 1e-6),
    "resmlp_b24": Preset(768, 24, 16, 1e-6),
    "resmlp_tiny": Preset(64, 4, 4, 0.1, img_size=32),
}


class PatchEmbed(nn.Module):
    """A linear layer over the pixels of each patch; patches do not overlap.

    Shapes: (batch, channels, height, width) -> (tokens, batch, dim), the patches row by row.

    The pixels of a patch are ordered (channel, row, column), so that ``proj.weight`` is the
    flattened kernel of the equal convolution.
    """

    def __init__(self, patch_size: int, in_chans: int, dim: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Linear(in_chans * patch_size**2, dim)

    def forward(self, images: Tensor) -> Tensor:
        size = self.patch_size
        batch, channels, height, width = images.shape
        rows, columns = height // size, width // size
        patches = images.reshape(batch, channels, rows, size, columns, size)
        patches = patches.permute(2, 4, 0, 1, 3, 5).reshape(rows * columns, batch, -1)
        embedded: Tensor = self.proj(patches)
        return embedded


class Branch(nn.Module):
    """What residual branches share: x + scale * y, with stochastic depth.

    A dropped branch is left out of one image; kept branches are divided by the probability of
    being kept (Huang et al. 2016, arXiv:1603.09382).
    """

    def __init__(self, drop_path: float) -> None:
        super().__init__()
        self.drop_path = DropPath(drop_path)

    def residual(self, x: Tensor, y: Tensor, post: Affine) -> Tensor:
        """x + drop_path(post(y)) in one pass over (tokens, batch, dim)."""
        scale = post.alpha
        if self.training and self.drop_path.drop_prob:
            scale = scale * self.drop_path(x.new_ones(x.size(1), 1))  # (batch, dim)
        return torch.addcmul(x, scale, y)


class Block(Branch):
    """Z = X + gamma1 * A norm(X), Y = Z + gamma2 * FeedForward(norm(Z)).

    Shapes: input and output (tokens, batch, dim).
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
        if self.token_mixing is not None:
            x = self.residual(x, self.token_mixing(self.mixing_pre(x)), self.mixing_post)
        return self.residual(x, self.ffn(self.ffn_pre(x)), self.ffn_post)


class ClassBlock(Branch):
    """A layer that reads the patches into a class token and leaves the patches as they are.

    A class-attention layer (Touvron et al. 2021, arXiv:2103.17239) with a linear layer over the
    class token and the patches in the place of attention.

    Shapes: class token (1, batch, dim), patches (tokens, batch, dim) -> (1, batch, dim).
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
        x = self.mixing_pre(torch.cat((class_token, patches)))
        mixing = self.token_mixing
        y = torch.addmm(mixing.bias, mixing.weight, x.flatten(1)).view_as(class_token)
        class_token = self.residual(class_token, y, self.mixing_post)
        return self.residual(class_token, self.ffn(self.ffn_pre(class_token)), self.ffn_post)


class ResMLP(nn.Module):
    """ResMLP as an image classifier; see :func:`create_model`.

    Weights start as in the authors' code: linear layers N(0, 0.02) with zero biases, the patch
    embedding as PyTorch's.

    Args:
        img_size: height and width of the images, in pixels.
        patch_size: side of a patch, in pixels; divides both.
        in_chans: channels of the images.
        num_classes: outputs of the classifier.
        embed_dim: channels of the hidden states.
        depth: number of layers.
        drop_path: probability that a residual branch is left out in training.
        pooling: ``"mean"``, or ``"class_mlp"``: two class layers behind the others.
        mixing: one of :data:`resmlp_mt.vision.mixing.MIXINGS`.
        norm: ``"affine"`` or ``"layernorm"`` in front of the sublayers and at the end.
        layer_scale_init: start of the scale behind every sublayer.

    Raises:
        ValueError: for a value that cannot be.
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
        drop_path: float = 0.0,
        pooling: str = "mean",
        mixing: str = "linear",
        norm: str = "affine",
        layer_scale_init: float,
    ) -> None:
        super().__init__()
        for name, value in {
            "num_classes": num_classes,
            "in_chans": in_chans,
            "patch_size": patch_size,
            "img_size": min(img_size),
        }.items():
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
        self.num_classes = num_classes
        self.embed_dim = embed_dim
        self.grid = (img_size[0] // patch_size, img_size[1] // patch_size)
        tokens = self.grid[0] * self.grid[1]

        self.patch_embed = PatchEmbed(patch_size, in_chans, embed_dim)
        self.blocks = nn.ModuleList(
            Block(
                embed_dim,
                self.grid,
                drop_path=drop_path,
                mixing=mixing,
                norm=norm,
                layer_scale_init=layer_scale_init,
            )
            for _ in range(depth)
        )
        self.class_token = None
        if pooling == "class_mlp":
            self.class_token = nn.Parameter(torch.empty(1, 1, embed_dim))
            nn.init.trunc_normal_(self.class_token, std=0.02)
            self.class_blocks = nn.ModuleList(
                ClassBlock(
                    embed_dim,
                    tokens,
                    drop_path=drop_path,
                    norm=norm,
                    layer_scale_init=layer_scale_init,
                )
                for _ in range(2)
            )
        self.norm = create_norm(norm, embed_dim)
        self.head = nn.Linear(embed_dim, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Linear) and module is not self.patch_embed.proj:
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward_features(self, images: Tensor) -> Tensor:
        """(batch, channels, height, width) -> (batch, embed_dim), what the classifier sees.

        Raises:
            ValueError: if the images have another size than ``img_size``.
        """
        if images.shape[-2:] != self.img_size:
            height, width = images.shape[-2:]
            raise ValueError(
                f"this model takes images of {self.img_size[0]} x {self.img_size[1]} pixels, but "
                f"these have {height} x {width}: resize them, or create the model with their size "
                "and adapt its weights with load_weights."
            )
        x = self.patch_embed(images)
        for block in self.blocks:
            x = block(x)
        if self.class_token is not None:
            token = self.class_token.expand(1, x.size(1), -1)
            for block in self.class_blocks:
                token = block(token, x)
            features: Tensor = self.norm(token[0])
        elif isinstance(self.norm, Affine):
            features = self.norm(x.mean(0))  # an affine map of the mean is the mean of the maps
        else:
            features = self.norm(x).mean(0)
        return features

    def forward(self, images: Tensor) -> Tensor:
        """(batch, channels, height, width) -> (batch, num_classes), logits.

        Raises:
            ValueError: if the images have another size than ``img_size``.
        """
        logits: Tensor = self.head(self.forward_features(images))
        return logits

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that are not decayed (timm's optimizers ask for them)."""
        names = {
            f"{name}.{parameter}"
            for name, module in self.named_modules()
            if isinstance(module, Affine | nn.LayerNorm)
            for parameter, _ in module.named_parameters()
        }
        return names if self.class_token is None else names | {"class_token"}


def create_norm(norm: str, dim: int) -> nn.Module:
    """What stands in front of a sublayer.

    Raises:
        ValueError: if ``norm`` is neither ``"affine"`` nor ``"layernorm"``.
    """
    if norm == "affine":
        return Affine(dim)
    if norm == "layernorm":
        return nn.LayerNorm(dim)
    raise ValueError(f"norm must be one of {', '.join(NORMS)}, but is {norm!r}.")


def create_model(
    name: str,
    num_classes: int = 1000,
    img_size: int | tuple[int, int] | None = None,
    patch_size: int | None = None,
    in_chans: int = 3,
    drop_path: float = 0.0,
    pooling: str = "mean",
    mixing: str = "linear",
    norm: str = "affine",
    layer_scale_init: float | None = None,
) -> ResMLP:
    """A model of :data:`MODELS` with random weights.

    Args:
        name: ``resmlp_s12``, ``resmlp_s24``, ``resmlp_s36``, ``resmlp_b24`` or ``resmlp_tiny``.
        num_classes: outputs of the classifier.
        img_size: side, or (height, width), of the images in pixels; 224 unless given, 32 for
            ``resmlp_tiny``.
        patch_size: side of a patch in pixels; 16 unless given, 4 for ``resmlp_tiny``.
        in_chans: channels of the images.
        drop_path: probability that a residual branch is left out in training, for all layers.
        pooling: ``"mean"`` or ``"class_mlp"``.
        mixing: ``"linear"``, ``"none"``, ``"mlp"``, ``"conv"``, ``"depthwise"`` or
            ``"separable"``.
        norm: ``"affine"`` or ``"layernorm"``.
        layer_scale_init: start of the scale behind every sublayer; the authors' unless given.

    Raises:
        ValueError: for an unknown name or a value that cannot be.
    """
    if name not in MODELS:
        raise ValueError(f"there is no model {name!r}: choose one of {', '.join(MODELS)}.")
    preset = MODELS[name]
    size = preset.img_size if img_size is None else img_size
    if not isinstance(size, int) and len(size) != 2:
        raise ValueError(f"img_size must be a side, or height and width, but is {size}.")
    return ResMLP(
        img_size=(size, size) if isinstance(size, int) else (size[0], size[1]),
        patch_size=preset.patch_size if patch_size is None else patch_size,
        in_chans=in_chans,
        num_classes=num_classes,
        embed_dim=preset.embed_dim,
        depth=preset.depth,
        drop_path=drop_path,
        pooling=pooling,
        mixing=mixing,
        norm=norm,
        layer_scale_init=(
            preset.layer_scale_init if layer_scale_init is None else layer_scale_init
        ),
    )
