"""The methods that timm's tools call on an image model, besides its forward pass."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from resmlp_mt.layers import Affine
from resmlp_mt.vision.libraries import timm

feature_take_indices = timm.models._features.feature_take_indices
checkpoint = timm.models.checkpoint
WITHOUT_DECAY = (Affine, nn.LayerNorm)


class TimmConventions(nn.Module):
    """The methods of timm's models, for :class:`resmlp_mt.vision.model.ResMLP`.

    timm's documentation lists them under these names. timm's training, validation, feature
    extraction and optimizers use them.
    """

    if TYPE_CHECKING:  # attributes of ResMLP; TorchScript would take them for its own
        default_cfg: dict[str, Any]
        pretrained_cfg: dict[str, Any]
        blocks: nn.Sequential
        patch_embed: nn.Module
        norm: nn.Module
        head: nn.Module
        class_token: nn.Parameter | None
        grid: tuple[int, int]
        embed_dim: int
        num_prefix_tokens: int
        global_pool: str
        grad_checkpointing: bool
        finish: Callable[[Tensor], Tensor]

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
