"""Mixing over positions: a learned matrix A, and the ways to make it from parameters.

To add a variant, write one subclass of :class:`TokenMixing` with ``make_parameters``, ``matrix``
and ``sized``, and add a line to :data:`VARIANTS`. Training, decoding, folding and export need no
change; they refuse what they cannot do with a variant. The paper's model (section 3.5) is
:class:`AbsoluteMixing` with one head and no projections.

A sublayer has three parts. :meth:`TokenMixing.entries` acts on every token,
:meth:`TokenMixing.mix` acts over positions, and :meth:`TokenMixing.output` acts on every token
again. Step-by-step decoding caches the entries.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resmlp_mt.layers import projection
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
    """Relative weights shrink with the distance, at a learned rate."""
    values: bool = False
    """Linear maps over channels before and after the matrix."""
    gate: bool = False
    """The mixed states are multiplied by sigma(G x)."""


PAPER = MixingConfig()
"""The mixing of the paper's model."""


class TokenMixing(nn.Module):
    """A linear map over positions, one matrix for each head of channels.

    A variant makes its parameters in :meth:`make_parameters` and its matrix in :meth:`matrix`, and
    may add a constant for every position in :meth:`offset`. A variant that also changes another
    part of the sublayer keeps the affine maps around it when the model is folded. A change of
    :meth:`mix` or :meth:`forward` needs a :meth:`step` that does the same, else the class is
    refused with a ``TypeError``.

    Args:
        max_positions: the longest input.
        causal: position t receives only positions <= t; :meth:`matrix` is lower triangular.
        config: heads, projections and gate.
        dim: number of channels; needed only for projections and the gate.
    """

    uses_distances = False
    """Whether the matrix depends on the distances of positions."""
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
        self.v_proj = projection(dim) if config.values else None
        self.out_proj = projection(dim) if config.values else None
        self.gate_proj = projection(dim) if config.gate else None
        self.make_parameters(config)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        parent = next(kind for kind in cls.__mro__[1:] if issubclass(kind, TokenMixing))
        changed = {
            name
            for name in ("entries", "mix", "output", "forward", "step")
            if getattr(cls, name) is not getattr(parent, name)
        }
        if {"mix", "forward"} & changed and "step" not in changed | cls.__dict__.keys():
            raise TypeError(
                f"{cls.__name__} changes mix or forward, which decoding step by step does not "
                "call: change step as well, or express the variant by matrix and offset."
            )
        if changed and cls.__dict__.get("merges_affines"):
            raise TypeError(
                f"{cls.__name__} changes {', '.join(sorted(changed))}, which its folded form does "
                "not have: it cannot set merges_affines = True."
            )
        if changed:
            cls.merges_affines = False

    def make_parameters(self, config: MixingConfig) -> None:
        """Make the parameters of :meth:`matrix` and :meth:`offset`."""

    @classmethod
    def sized(cls, stored: Mapping[str, Tensor], causal: bool) -> Self | None:
        """A mixing with the sizes of these parameters; None if they are another variant's."""
        return None

    def matrix(self, length: int) -> Tensor:
        """A for an input of ``length`` positions, (heads, length, length).

        A folded model stores the matrix of the longest input, and uses the leading part of it for a
        shorter one. A variant for which these differ sets ``merges_affines = False``. Rows of a
        causal matrix must not depend on ``length``: decoding adds one row after the other.
        """
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
        self.check(length)
        return mix(self.matrix(length), self.offset(length), entries, self.causal)

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


class AbsoluteMixing(TokenMixing):
    """The paper's mixing: a matrix with ``max_positions`` rows, and a bias for every position.

    An input of n positions uses the leading n x n submatrix (section 3.5 of the paper).
    Parameters: ``weight`` (positions, positions) and ``bias`` (positions,), each with a leading
    axis of heads if there are several.

    They are initialized as in the authors' image code: N(0, 0.02) truncated at two units, zero
    bias.
    """

    def make_parameters(self, config: MixingConfig) -> None:
        heads = () if config.heads == 1 else (config.heads,)
        positions = self.max_positions
        self.weight = nn.Parameter(torch.empty(*heads, positions, positions))
        self.bias = nn.Parameter(torch.zeros(*heads, positions))
        nn.init.trunc_normal_(self.weight, std=0.02)

    @classmethod
    def sized(cls, stored: Mapping[str, Tensor], causal: bool) -> Self | None:
        if (weight := stored.get("weight")) is None:
            return None
        heads = len(weight) if weight.dim() == 3 else 1
        return cls(weight.size(-1), causal, MixingConfig(heads=heads))

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

        A_ts = r_(t - s) / (1 + softplus(decay) |t - s|)     (a power law; KERPLE, arXiv:2205.09921)

    The rates softplus(decay) start as 2^(-4 k / heads), k = 1 ... heads. r starts as N(0, 0.02).
    There is no bias. Few sentences are long, so Adam moves the weights of large distances by large
    steps on little evidence; the decay makes these steps small too.

    With decay, the input may be longer than ``max_positions``: a larger distance has the r of the
    largest distance, and its own decay. Without decay, a longer input is refused. Distances that no
    training sentence had keep their initial r, times the decay.
    """

    uses_distances = True

    def make_parameters(self, config: MixingConfig) -> None:
        distances = self.max_positions if self.causal else 2 * self.max_positions - 1
        self.relative = nn.Parameter(torch.empty(config.heads, distances))
        nn.init.trunc_normal_(self.relative, std=0.02)
        self.decay: nn.Parameter | None = None
        if config.decay:
            rates = torch.tensor([2 ** (-4 * (k + 1) / config.heads) for k in range(config.heads)])
            self.decay = nn.Parameter(rates.expm1().log())  # softplus gives the rates back

    @classmethod
    def sized(cls, stored: Mapping[str, Tensor], causal: bool) -> Self | None:
        if (relative := stored.get("relative")) is None:
            return None
        heads, distances = len(relative), relative.size(1)
        config = MixingConfig(heads=heads, decay="decay" in stored)
        return cls(distances if causal else (distances + 1) // 2, causal, config)

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
            weights = weights / (1 + F.softplus(self.decay).unsqueeze(1) * distances)
        return toeplitz(weights)


VARIANTS: dict[str, type[TokenMixing]] = {
    "none": AbsoluteMixing,
    "alone": RelativeMixing,
}
"""The mixing for each value of ``--mixing-relative``."""


def create_mixing(
    config: MixingConfig, dim: int, max_positions: int, causal: bool = False
) -> TokenMixing:
    """The variant that the options name."""
    return VARIANTS[config.relative](max_positions, causal, config, dim)


def stored_mixing(parameters: Mapping[str, Tensor], causal: bool) -> TokenMixing | None:
    """The mixing that has these parameters, without its projections; None if there is no matrix.

    Raises:
        ValueError: if no variant has them, or their shapes do not fit.
    """
    stored = {name: value for name, value in parameters.items() if "proj." not in name}
    sized = (variant.sized(stored, causal) for variant in VARIANTS.values())
    variants = [mixing for mixing in sized if mixing is not None]
    of_matrix = stored.keys() - {"bias"}
    for mixing in variants:
        own = mixing.state_dict()
        if own.keys() - {"bias"} == of_matrix:
            try:
                mixing.load_state_dict({name: stored.get(name, own[name]) for name in own})
            except RuntimeError as error:
                raise ValueError("the mixing matrices have shapes that do not fit.") from error
            return mixing
    if variants:
        names = ", ".join(sorted(of_matrix))
        raise ValueError(
            f"the mixing has the parameters {names}, which no variant of this version has."
        )
    return None
