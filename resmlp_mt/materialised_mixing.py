"""The folded form of a mixing: its matrix as numbers, with the affine maps around it merged in."""

import torch
from torch import Tensor, nn

from resmlp_mt.layers import Affine, merged_after, merged_before
from resmlp_mt.mixing import MixingConfig, TokenMixing


class MaterialisedMixing(TokenMixing):
    """The folded form of every variant: its matrix and its offset as numbers.

    Parameters: ``weight``, (heads, positions, positions), and ``constant``, (positions, heads,
    dim / heads), which is left out if it is zero.
    """

    merges_affines = False

    def __init__(self, mixing: TokenMixing, dim: int) -> None:
        super().__init__(mixing.max_positions, mixing.causal, MixingConfig(heads=mixing.heads))
        positions, heads = mixing.max_positions, mixing.heads
        matrix, offset = mixing.matrix(positions), mixing.offset(positions)
        self.weight = nn.Parameter(matrix.clone())
        self.constant: nn.Parameter | None = None
        if offset is not None or not mixing.is_projected:  # takes the affine map after the mixing
            constant = matrix.new_zeros(positions, heads, dim // heads)
            self.constant = nn.Parameter(constant if offset is None else constant + offset)

    def matrix(self, length: int) -> Tensor:
        return self.weight[:, :length, :length]

    def offset(self, length: int) -> Tensor | None:
        return None if self.constant is None else self.constant[:length]

    step = TokenMixing.step  # mix, below, computes the same in another way

    def mix(self, entries: Tensor) -> Tensor:
        if self.heads > 1 or self.constant is None:
            return super().mix(entries)
        length = entries.size(0)
        self.check(length)
        # a plain product has less overhead than a batched one
        mixed = torch.mm(self.weight[0, :length, :length], entries.reshape(length, -1))
        return mixed.view(entries.shape) + self.constant[:length]


@torch.no_grad()
def merged(
    pre: Affine, mixing: TokenMixing, post: Affine
) -> tuple[Affine | None, TokenMixing, Affine | None]:
    """A mixing with its matrix as numbers, and the affine maps around it merged into it.

    With projections, the affine maps become part of them. Without, A acts over positions and
    the affine maps act over channels, so they commute:

        post(A pre(x) + b) = A (s x + h) + c,
        s = alpha_post alpha_pre,  h = alpha_post beta_pre,  c_t = b_t alpha_post + beta_post

    h stays before A, where pads are zeroed. An affine map that cannot be merged is returned
    unchanged.
    """
    if not mixing.merges_affines:
        return pre, mixing, post
    folded = MaterialisedMixing(mixing, pre.alpha.numel())
    if mixing.v_proj is not None:
        assert mixing.out_proj is not None
        folded.v_proj = merged_before(pre, mixing.v_proj)
        folded.out_proj = merged_after(mixing.out_proj, post)
        if mixing.gate_proj is not None:
            folded.gate_proj = merged_before(pre, mixing.gate_proj)
        return None, folded, None
    if mixing.gate_proj is not None:  # the gate multiplies between the two affine maps
        folded.gate_proj = mixing.gate_proj
        return pre, folded, post
    one = Affine(pre.alpha.numel(), device=pre.alpha.device).to(pre.alpha.dtype)
    one.alpha.copy_(post.alpha * pre.alpha)
    if pre.beta is not None:
        assert one.beta is not None
        one.beta.copy_(post.alpha * pre.beta)
    assert folded.constant is not None
    constant = folded.constant * post.alpha.view(mixing.heads, -1)
    if post.beta is not None:
        constant = constant + post.beta.view(mixing.heads, -1)
    folded.constant = nn.Parameter(constant)
    return one, folded, None


@torch.no_grad()
def check_leading_parts(mixing: TokenMixing) -> None:
    """Refuse a mixing whose matrix cannot be stored once and cut for shorter inputs.

    Raises:
        TypeError: if the matrix of a short input is not the leading part of that of the longest
            one, and it is causal or its class does not say so.
    """
    if not mixing.merges_affines and not mixing.causal:
        return
    longest = mixing.max_positions
    matrix, offset = mixing.matrix(longest), mixing.offset(longest)
    for length in {1, (longest + 1) // 2}:
        part, its_offset = mixing.matrix(length), mixing.offset(length)
        if not torch.allclose(part, matrix[:, :length, :length], equal_nan=True) or (
            its_offset is not None
            and offset is not None
            and not torch.allclose(its_offset, offset[:length], equal_nan=True)
        ):
            told = (
                f"{type(mixing).__name__}: matrix({length}) is not the leading part of "
                f"matrix({longest})"
            )
            if mixing.causal:
                raise TypeError(
                    f"{told}, so it cannot decode step by step: make rows that do not depend on "
                    "the length of the input."
                )
            raise TypeError(
                f"{told}, so it cannot be stored: set merges_affines = False in the class."
            )
