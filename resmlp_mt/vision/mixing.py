"""The mixing over patches: the paper's linear layer, and its ablation (table 3).

All take and return hidden states (tokens, batch, dim). The tokens are the patches of an image, row
by row.
"""

import torch
from torch import Tensor, nn

MIXINGS = ("linear", "none", "mlp", "conv", "depthwise", "separable")


class LinearMixing(nn.Module):
    """A x + b over positions, the same for every channel.

    Shapes: input and output (tokens, batch, dim).
    """

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(tokens, tokens))
        self.bias = nn.Parameter(torch.zeros(tokens))
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias.unsqueeze(1), self.weight, x.flatten(1)).view_as(x)


class TokenMLP(nn.Module):
    """Two linear layers over positions with GELU between them, the same for every channel.

    The hidden layer is four times as wide as the input, as in the mixing over channels.

    Shapes: input and output (tokens, batch, dim).
    """

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(tokens, 4 * tokens)
        self.fc2 = nn.Linear(4 * tokens, tokens)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.addmm(self.fc1.bias.unsqueeze(1), self.fc1.weight, x.flatten(1))
        hidden = nn.functional.gelu(hidden)
        return torch.addmm(self.fc2.bias.unsqueeze(1), self.fc2.weight, hidden).view_as(x)


class ConvMixing(nn.Module):
    """A 3 x 3 convolution over the grid of patches, zeros around it.

    Shapes: input and output (tokens, batch, dim).

    Args:
        dim: number of channels.
        grid: rows and columns of patches.
        kind: ``"conv"`` mixes all channels; ``"depthwise"`` mixes none; ``"separable"`` mixes none
            in the 3 x 3 convolution and all in a 1 x 1 convolution after it.
    """

    def __init__(self, dim: int, grid: tuple[int, int], kind: str) -> None:
        super().__init__()
        self.grid = grid
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, groups=1 if kind == "conv" else dim)
        self.pointwise = nn.Linear(dim, dim) if kind == "separable" else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        images = x.permute(1, 2, 0).unflatten(2, self.grid)
        output: Tensor = self.pointwise(self.conv(images).flatten(2).permute(2, 0, 1))
        return output


def create_mixing(mixing: str, dim: int, grid: tuple[int, int]) -> nn.Module | None:
    """The mixing over patches named ``mixing``; None for ``"none"``.

    Raises:
        ValueError: if ``mixing`` is not one of :data:`MIXINGS`.
    """
    if mixing not in MIXINGS:
        raise ValueError(f"mixing must be one of {', '.join(MIXINGS)}, but is {mixing!r}.")
    tokens = grid[0] * grid[1]
    if mixing == "linear":
        return LinearMixing(tokens)
    if mixing == "mlp":
        return TokenMLP(tokens)
    return None if mixing == "none" else ConvMixing(dim, grid, mixing)
