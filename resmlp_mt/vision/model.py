"""The image models of the paper (Touvron et al. 2021, arXiv:2105.03404) and of its ablations.

A linear layer embeds the patches of an image. Then layers mix over patches and over channels, and
the mean over patches is classified. The model has the methods of timm's, under the names in timm's
documentation: its training, validation, feature extraction and optimizers call them.

Two details follow the authors' released code instead of the paper's equations: the scale after a
sublayer has no bias, and stochastic depth has the same rate in all layers.

:mod:`resmlp_mt.vision.factory` makes models by name.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from resmlp_mt.layers import Affine
from resmlp_mt.vision.blocks import Block, ClassBlock, PatchEmbed, create_classifier, create_norm
from resmlp_mt.vision.libraries import timm

POOLINGS = ("mean", "class_mlp")
WITHOUT_DECAY = (Affine, nn.LayerNorm)
feature_take_indices = timm.models._features.feature_take_indices
checkpoint = timm.models.checkpoint


class ResMLP(nn.Module):
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

    if TYPE_CHECKING:  # TorchScript would take them for its own
        default_cfg: dict[str, Any]
        pretrained_cfg: dict[str, Any]

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

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The hidden states after some of the layers.

        Args:
            x: images (batch, channels, height, width).
            indices: this many last layers, or a list of layers (negative ones from the end), or
                None for all.
            norm: apply the final norm to each of them.
            stop_early: do not compute the layers after the last of them.
            output_fmt: ``"NCHW"``: (batch, embed_dim, rows, columns); ``"NLC"``: (batch, tokens,
                embed_dim).
            intermediates_only: leave out the final features.

        Returns:
            the list of hidden states, or (final features, that list); the final features are those
            of ``forward_features``, with the layers that were computed.

        Raises:
            AssertionError: for layers that do not exist, as timm's models.
            ValueError: for a format that does not exist, or images of another size or with other
                channels.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt must be NCHW or NLC, but is {output_fmt}.")
        taken, last = feature_take_indices(len(self.blocks), indices)
        x = self.patch_embed(x)
        found: list[Tensor] = []
        for number, block in enumerate(self.blocks):
            if not stop_early or number <= last:
                if self.grad_checkpointing and not torch.jit.is_scripting():  # type: ignore[attr-defined]
                    x = checkpoint(block, x)
                else:
                    x = block(x)
                if number in taken:
                    state = self.norm(x) if norm else x
                    if output_fmt == "NCHW":
                        state = state.transpose(1, 2).unflatten(2, self.grid)
                    found.append(state.contiguous())
        if intermediates_only:
            return found
        return self.finish(x), found

    def prune_intermediate_layers(
        self,
        indices: int | list[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Remove layers that :meth:`forward_intermediates` does not need; returns its indices.

        ``prune_head`` removes the classifier, the pooling, and layers of a class token.
        """
        taken: list[int]
        taken, last = feature_take_indices(len(self.blocks), indices)
        self.blocks = nn.Sequential(*list(self.blocks)[: last + 1])
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
            if self.class_token is not None:
                self.class_token, self.class_blocks = None, nn.ModuleList()
                self.num_prefix_tokens = 0
        return taken

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the last layer; with 0 classes, remove it.

        Args:
            num_classes: outputs of the layer.
            global_pool: pooling of tokens before it: ``"avg"``, in a model with class layers
                ``"token"``, or ``""`` for no pooling; None keeps the present one.

        Raises:
            ValueError: for a ``global_pool`` that the model cannot have, or a negative number.
        """
        own = "token" if self.num_prefix_tokens else "avg"
        if global_pool not in (None, "", own):
            raise ValueError(f"global_pool must be {own!r} or '' here, but is {global_pool!r}.")
        like = next(self.patch_embed.parameters())
        head = create_classifier(self.embed_dim, num_classes).to(like.device, like.dtype)
        if global_pool is not None:
            self.global_pool = global_pool
        self.num_classes = num_classes
        self.head = head.train(self.training)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the layers in the backward pass instead of keeping their activations."""
        self.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> Callable[[str], float]:
        """A function from parameter name to group number, for layer-wise learning rate decay."""
        depth = len(self.blocks)
        fixed = {"patch_embed": 0.0, "class_token": 0.0, "class_blocks": depth, "norm": depth}

        def group(name: str) -> float:
            part, *rest = name.split(".")
            return float(rest[0]) + 1 if part == "blocks" else fixed.get(part, float("inf"))

        return group

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that are not decayed."""
        names = {
            f"{name}.{parameter}"
            for name, module in self.named_modules()
            if isinstance(module, WITHOUT_DECAY)
            for parameter, _ in module.named_parameters()
        }
        return names if self.class_token is None else names | {"class_token"}
