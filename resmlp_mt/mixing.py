"""Mixing over positions: a learned matrix A, and the ways to make it from parameters.

To add a variant, write one subclass of :class:`TokenMixing` with :meth:`TokenMixing.matrix`, and
add a line to :data:`VARIANTS`. Training, decoding, folding and export need no change. The paper's
model (section 3.5) is :class:`AbsoluteMixing` with one head and no projections.

A sublayer has three parts. :meth:`TokenMixing.entries` acts on every token,
:meth:`TokenMixing.mix` acts over positions, and :meth:`TokenMixing.output` acts on every token
again. Step-by-step decoding caches the entries.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resmlp_mt.layers import Affine, merged_after, merged_before, projection
from resmlp_mt.mixing_products import Past, mix, toeplitz
from resmlp_mt.padding import Layout


@dataclass(frozen=True)
class MixingConfig:
    """The options ``--mixing-...`` of one side of the model; the defaults are the paper's."""

    heads: int = 1
    """Groups of neighbouring channels; each has its own matrix."""
    relative: str = "none"
    """A key of :data:`VARIANTS`: whether the matrix depends on distances."""
    decay: bool = False
    """Relative weights shrink exponentially with the distance, at a learned rate."""
    values: bool = False
    """Linear maps over channels before and after the matrix."""
    gate: bool = False
    """The mixed states are multiplied by sigma(G x)."""
    dropout: float = 0.0
    """Dropout probability of the entries of the matrix."""


PAPER = MixingConfig()
"""The mixing of the paper's model."""


class TokenMixing(nn.Module):
    """A linear map over positions, one matrix for each head of channels.

    A variant makes its matrix in :meth:`matrix`, and may add a constant for every position in
    :meth:`offset`. A variant that also changes :meth:`entries` or :meth:`output` keeps the affine
    maps around it when the model is folded, unless it sets ``merges_affines``.

    Args:
        max_positions: the longest input.
        causal: position t receives only positions <= t; :meth:`matrix` is lower triangular.
        config: heads, projections, gate and dropout.
        dim: number of channels; needed only for projections and the gate.
    """

    merges_affines = True
    """Whether affine maps before and after may become part of the projections, or of A x + b."""

    def __init__(
        self,
        max_positions: int,
        causal: bool = False,
        config: MixingConfig = PAPER,
        dim: int = 0,
    ) -> None:
        super().__init__()
        self.max_positions = max_positions
        self.causal = causal
        self.heads = config.heads
        self.dropout = config.dropout
        self.v_proj = projection(dim) if config.values else None
        self.out_proj = projection(dim) if config.values else None
        self.gate_proj = projection(dim) if config.gate else None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own = cls.__dict__
        if {"entries", "mix", "output"} & own.keys() and "merges_affines" not in own:
            cls.merges_affines = False

    def matrix(self, length: int) -> Tensor:
        """A for an input of ``length`` positions, (heads, length, length)."""
        raise NotImplementedError

    def offset(self, length: int) -> Tensor | None:
        """What is added after A: (length, heads, 1 or dim / heads), or None."""
        return None

    @property
    def longest(self) -> int:
        """The longest input that :meth:`matrix` can be made for."""
        return self.max_positions

    @property
    def is_projected(self) -> bool:
        """Whether there are projections or a gate besides the matrix."""
        return self.v_proj is not None or self.gate_proj is not None

    def check(self, length: int) -> None:
        """Refuse inputs that are too long.

        Raises:
            ValueError: if ``length`` exceeds :attr:`longest`.
        """
        if length > self.longest:
            raise ValueError(
                f"the input has {length} positions but the mixing matrix has {self.longest}"
            )

    def matrix_with_dropout(self, length: int) -> Tensor:
        """:meth:`matrix`, with some entries dropped in training mode.

        Raises:
            ValueError: if ``length`` exceeds :attr:`longest`.
        """
        self.check(length)
        return self.dropped(self.matrix(length))

    def dropped(self, matrix: Tensor) -> Tensor:
        """The matrix with some entries dropped, while the module is in training mode."""
        return F.dropout(matrix, self.dropout) if self.training and self.dropout else matrix

    def entries(self, x: Tensor) -> Tensor:
        """The input of A for each token; (..., dim) both."""
        if self.v_proj is None:
            return x
        return cast(Tensor, self.v_proj(x))

    def mix(self, entries: Tensor) -> Tensor:
        """Apply A over positions, and add the offset; (length, batch, dim) both.

        Raises:
            ValueError: if ``length`` exceeds :attr:`longest`.
        """
        length = entries.size(0)
        return mix(self.matrix_with_dropout(length), self.offset(length), entries, self.causal)

    def output(self, mixed: Tensor, x: Tensor) -> Tensor:
        """The output for each token, from its mixed state and its input; (..., dim) all."""
        if self.gate_proj is not None:
            mixed = mixed * torch.sigmoid(self.gate_proj(x))
        if self.out_proj is None:
            return mixed
        return cast(Tensor, self.out_proj(mixed))

    def forward(self, x: Tensor, layout: Layout | None = None) -> Tensor:
        """Mix all positions.

        Args:
            x: (length, batch, dim), or (tokens, dim) with a layout.
            layout: where the tokens stand; pads are zeroed before A.

        Raises:
            ValueError: if there are more positions than :attr:`longest`.
        """
        entries = self.entries(x)
        if layout is None:
            return self.output(self.mix(entries), x)
        return self.output(layout.pack(self.mix(layout.pad(entries))), x)

    def step(
        self,
        x: Tensor,
        pre: nn.Module | None,
        post: nn.Module | None,
        past: Past,
        own: Tensor,
        offset: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """The newest position of post(mixing(pre(x))).

        Args:
            x: (batch, beam, dim).
            pre: affine map before the mixing.
            post: affine map after the mixing.
            past: the earlier positions.
            own: diagonal entry of A, (dim,) or (1,): every hypothesis has its own newest position,
                which needs no history.
            offset: of the newest position, (dim,) or (1,).

        Returns:
            The position and its entry for the history, (batch, beam, dim) each.
        """
        y = x if pre is None else pre(x)
        entry = self.entries(y)
        mixed = entry * own if offset is None else torch.addcmul(offset, entry, own)
        mixed = self.output(past.added_to(mixed), y)
        return (mixed if post is None else post(mixed)), entry

    @torch.no_grad()
    def folded(
        self, pre: Affine, post: Affine
    ) -> tuple[Affine | None, "TokenMixing", Affine | None]:
        """This mixing with its matrix as numbers and the affine maps around it merged into it.

        With projections, the affine maps become part of them. Without, A acts over positions and
        the affine maps act over channels, so they commute:

            post(A pre(x) + b) = A (s x + h) + c,
            s = alpha_post alpha_pre,  h = alpha_post beta_pre,  c_t = b_t alpha_post + beta_post

        h stays before A, where pads are zeroed. An affine map that cannot be merged is returned
        unchanged.
        """
        if not self.merges_affines:
            return pre, self, post
        folded = MaterialisedMixing(self, pre.alpha.numel())
        if self.v_proj is not None:
            assert self.out_proj is not None
            folded.v_proj = merged_before(pre, self.v_proj)
            folded.out_proj = merged_after(self.out_proj, post)
            if self.gate_proj is not None:
                folded.gate_proj = merged_before(pre, self.gate_proj)
            return None, folded, None
        if self.gate_proj is not None:  # the gate multiplies between the two affine maps
            folded.gate_proj = self.gate_proj
            return pre, folded, post
        one = Affine(pre.alpha.numel(), device=pre.alpha.device).to(pre.alpha.dtype)
        one.alpha.copy_(post.alpha * pre.alpha)
        if pre.beta is not None:
            assert one.beta is not None
            one.beta.copy_(post.alpha * pre.beta)
        assert folded.constant is not None
        constant = folded.constant * post.alpha.view(self.heads, -1)
        if post.beta is not None:
            constant = constant + post.beta.view(self.heads, -1)
        folded.constant = nn.Parameter(constant)
        return one, folded, None


class AbsoluteMixing(TokenMixing):
    """The paper's mixing: a matrix with ``max_positions`` rows, and a bias for every position.

    An input of n positions uses the leading n x n submatrix (section 3.5 of the paper).
    Parameters: ``weight`` (positions, positions) and ``bias`` (positions,), each with a leading
    axis of heads if there are several.

    They are initialized as in the authors' image code: N(0, 0.02) truncated at two units, zero
    bias.
    """

    def __init__(
        self,
        max_positions: int,
        causal: bool = False,
        config: MixingConfig = PAPER,
        dim: int = 0,
    ) -> None:
        super().__init__(max_positions, causal, config, dim)
        heads = () if config.heads == 1 else (config.heads,)
        self.weight = nn.Parameter(torch.empty(*heads, max_positions, max_positions))
        self.bias = nn.Parameter(torch.zeros(*heads, max_positions))
        nn.init.trunc_normal_(self.weight, std=0.02)

    def matrix(self, length: int) -> Tensor:
        matrix = self.weight[..., :length, :length]
        if self.causal:
            matrix = matrix.tril()
        return matrix if matrix.dim() == 3 else matrix.unsqueeze(0)

    def offset(self, length: int) -> Tensor | None:
        return self.bias[..., :length].view(self.heads, length).t().unsqueeze(2)


class RelativeMixing(TokenMixing):
    """A Toeplitz matrix: A_ts = r_(t - s), where r has one number for each distance and head.

    Parameters: ``relative``, (heads, 2 max_positions - 1), distances from 1 - max_positions on;
    (heads, max_positions) if causal, distances from 0 on; with ``decay`` also ``decay``, (heads,):

        A_ts = exp(-softplus(decay) |t - s|) r_(t - s)     (as in TNN, arXiv:2305.04749)

    The decay starts with the slopes 2^(-8 k / heads), k = 1 ... heads (ALiBi, arXiv:2108.12409).
    r starts as N(0, 0.02). There is no bias.

    With decay, the input may be longer than ``max_positions``: a larger distance has the r of the
    largest distance, and its own decay. Without decay, a longer input is refused. Distances that no
    training sentence had keep their initial r, times the decay.
    """

    def __init__(
        self,
        max_positions: int,
        causal: bool = False,
        config: MixingConfig = PAPER,
        dim: int = 0,
    ) -> None:
        super().__init__(max_positions, causal, config, dim)
        distances = max_positions if causal else 2 * max_positions - 1
        self.relative = nn.Parameter(torch.empty(config.heads, distances))
        nn.init.trunc_normal_(self.relative, std=0.02)
        self.decay: nn.Parameter | None = None
        if config.decay:
            slopes = torch.tensor([2 ** (-8 * (k + 1) / config.heads) for k in range(config.heads)])
            self.decay = nn.Parameter(slopes.expm1().log())  # softplus gives the slopes back

    @property
    def longest(self) -> int:
        return self.max_positions if self.decay is None else 2**31 - 1

    def matrix(self, length: int) -> Tensor:
        # weights of the distances length - 1, ..., 1 - length
        relative, beyond = self.relative, length - self.max_positions
        largest = length if beyond <= 0 else self.max_positions
        if self.causal:
            weights = F.pad(relative[:, :largest].flip(1), (0, length - 1))
        else:
            zero = self.max_positions - 1
            weights = relative[:, zero - largest + 1 : zero + largest].flip(1)
        if beyond > 0:
            first = weights[:, :1].expand(-1, beyond)
            last = weights[:, -1:].expand(-1, 0 if self.causal else beyond)
            weights = torch.cat([first, weights, last], dim=1)
        if self.decay is not None:
            distances = torch.arange(1 - length, length, device=weights.device).abs()
            weights = weights * torch.exp(-F.softplus(self.decay).unsqueeze(1) * distances)
        return toeplitz(weights)


class AbsoluteAndRelativeMixing(RelativeMixing):
    """The sum of an absolute and a Toeplitz matrix, and a bias for every position.

    Parameters: those of :class:`RelativeMixing` and of :class:`AbsoluteMixing`.
    """

    def __init__(
        self,
        max_positions: int,
        causal: bool = False,
        config: MixingConfig = PAPER,
        dim: int = 0,
    ) -> None:
        super().__init__(max_positions, causal, config, dim)
        absolute = AbsoluteMixing(max_positions, causal, MixingConfig(heads=config.heads))
        self.weight, self.bias = absolute.weight, absolute.bias

    longest = TokenMixing.longest

    def matrix(self, length: int) -> Tensor:
        return AbsoluteMixing.matrix(cast(AbsoluteMixing, self), length) + super().matrix(length)

    def offset(self, length: int) -> Tensor | None:
        return AbsoluteMixing.offset(cast(AbsoluteMixing, self), length)


VARIANTS: dict[str, type[TokenMixing]] = {
    "none": AbsoluteMixing,
    "beside": AbsoluteAndRelativeMixing,
    "alone": RelativeMixing,
}
"""The mixing for each value of ``--mixing-relative``."""


class MaterialisedMixing(TokenMixing):
    """The folded form of every variant: its matrix and its offset as numbers.

    Parameters: ``weight``, (heads, positions, positions), and ``constant``, (positions, heads,
    dim / heads), which is left out if it is zero.
    """

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

    def mix(self, entries: Tensor) -> Tensor:
        if self.heads > 1 or self.constant is None:
            return super().mix(entries)
        length = entries.size(0)
        self.check(length)
        # a plain product has less overhead than a batched one
        mixed = torch.mm(self.weight[0, :length, :length], entries.reshape(length, -1))
        return mixed.view(entries.shape) + self.constant[:length]


def create_mixing(
    config: MixingConfig, dim: int, max_positions: int, causal: bool = False
) -> TokenMixing:
    """The variant that the options name."""
    return VARIANTS[config.relative](max_positions, causal, config, dim)
