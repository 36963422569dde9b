"""Residual branches equal their modules called one by one, keep less, and leave room for hooks."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from models import PAD, build, padded, sentences
from resmlp_mt.layers import Affine, FeedForward
from resmlp_mt.mixing import AbsoluteMixing, TokenMixing
from resmlp_mt.mixing_products import CAUSAL_ROWS
from resmlp_mt.model import residual
from resmlp_mt.model.attention import CrossAttention, Memory, Source
from resmlp_mt.model.gradients import ActivatedLinear, AffineMixing
from resmlp_mt.model.residual import (
    add_branch,
    attention_branch,
    feed_forward_branch,
    keep_mask,
    mixing_branch,
)
from resmlp_mt.padding import Layout

ACTIVATIONS = {"gelu": F.gelu, "relu": F.relu, "tanh": torch.tanh}


def randomised(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    return module.double()


def layout_of(lengths: list[int]) -> Layout:
    return Layout.of(padded(sentences(lengths)).t().eq(PAD))


class Branches(nn.Module):
    """All three, one after another."""

    def __init__(self, dim: int, positions: int, causal: bool, activation: str, p: float) -> None:
        super().__init__()
        self.pre, self.post, self.ffn_pre, self.ffn_post, self.last = (
            Affine(dim) for _ in range(5)
        )
        self.mixing = AbsoluteMixing(positions, causal)
        self.ffn = FeedForward(dim, 2 * dim + 1, ACTIVATIONS[activation])
        self.dropout = nn.Dropout(p)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        y = mixing_branch(x, layout, self.pre, self.mixing, self.post, self.dropout)
        z = feed_forward_branch(y, self.ffn_pre, self.ffn, self.ffn_post, self.dropout)
        return add_branch(z, y, self.last, self.dropout)

    def one_by_one(self, x: Tensor, layout: Layout) -> Tensor:
        y = x + self.post(layout.pack(self.mixing(layout.pad(self.pre(x)))))
        z = y + self.ffn_post(self.ffn(self.ffn_pre(y)))
        return z + self.last(y)


def gradients(run: Callable[[], Tensor], module: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    y = run()
    factor = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view_as(y)
    wanted = [p for p in (x, *module.parameters()) if p.requires_grad]
    return (y, *torch.autograd.grad((y * factor).sum(), wanted))


@settings(deadline=None, max_examples=40)
@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    dim=st.integers(1, 5),
    spare=st.integers(0, 2),
    causal=st.booleans(),
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    seed=st.integers(0, 1000),
)
def test_values_and_gradients_are_those_of_the_modules(
    lengths: list[int], dim: int, spare: int, causal: bool, activation: str, seed: int
) -> None:
    torch.manual_seed(seed)
    module = randomised(Branches(dim, max(lengths) + spare, causal, activation, 0.3)).eval()
    layout = layout_of(lengths)
    x = torch.randn(sum(lengths), dim, dtype=torch.double, requires_grad=True)
    ours = gradients(lambda: module(x, layout), module, x)
    naive = gradients(lambda: module.one_by_one(x, layout), module, x)
    for a, b in zip(ours, naive, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        torch.testing.assert_close(module(x, layout), naive[0].detach())


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("lengths", [[4, 4, 4], [5, 2, 3]])
def test_attention_and_its_gradients_are_those_of_the_modules(
    lengths: list[int], need_weights: bool
) -> None:
    torch.manual_seed(1)
    pre, attention, post = (randomised(m) for m in (Affine(8), CrossAttention(8, 6, 2), Affine(8)))
    module = nn.ModuleList([pre, attention, post])
    layout, of_source = layout_of(lengths), layout_of([3, 6, 1])
    x = torch.randn(sum(lengths), 8, dtype=torch.double, requires_grad=True)
    states = torch.randn(10, 6, dtype=torch.double)
    is_pad = padded(sentences([3, 6, 1])).eq(PAD)
    source = Source(states, of_source, is_pad)
    found: list[Tensor | None] = []

    def attend(branch: bool) -> Tensor:
        read = Memory(*attention.keys_and_values(source), source.mask())
        if branch:
            arguments = pre, attention, post, nn.Dropout(0.3).eval(), read, need_weights
            y, weights = attention_branch(x, layout, *arguments)
            found.append(weights)
            return y
        y, weights = attention(pre(x), read, layout, need_weights)
        found.append(weights)
        return x + post(y)

    ours = gradients(lambda: attend(True), module, x)
    naive = gradients(lambda: attend(False), module, x)
    for a, b in zip(ours, naive, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    if need_weights:
        torch.testing.assert_close(*found)
    else:
        assert found == [None, None]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("length", [CAUSAL_ROWS, CAUSAL_ROWS + 1, 3 * CAUSAL_ROWS - 1])
def test_gradients_of_long_inputs_by_finite_differences(length: int, causal: bool) -> None:
    torch.manual_seed(length)
    module = randomised(Branches(2, length + 3, causal, "tanh", 0.0))
    with torch.no_grad():
        module.mixing.weight /= length
    layout = layout_of([length, 2])
    x = torch.randn(length + 2, 2, dtype=torch.double, requires_grad=True)
    y, *found = gradients(lambda: module(x, layout), module, x)
    factor = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view_as(y)
    step = 1e-6
    for tensor, gradient in zip((x, *module.parameters()), found, strict=True):
        direction = torch.randn_like(tensor)
        with torch.no_grad():
            ends = []
            for sign in (1, -1):
                tensor += sign * step * direction
                ends.append(float((module.one_by_one(x, layout) * factor).sum()))
                tensor -= sign * step * direction
        assert float((gradient * direction).sum()) == pytest.approx(
            (ends[0] - ends[1]) / (2 * step), rel=1e-5, abs=1e-5
        )


def test_frozen_parts_get_no_gradient_and_change_no_other() -> None:
    torch.manual_seed(0)
    layout = layout_of([3, 5])
    for frozen in ("pre", "mixing", "post", "ffn", "ffn_post", "last"):
        module = randomised(Branches(3, 6, True, "gelu", 0.0))
        getattr(module, frozen).requires_grad_(False)
        for needs in (True, False):
            x = torch.randn(8, 3, dtype=torch.double, requires_grad=needs)
            ours = gradients(lambda m=module, x=x: m(x, layout), module, x)
            naive = gradients(lambda m=module, x=x: m.one_by_one(x, layout), module, x)
            for a, b in zip(ours, naive, strict=True):
                torch.testing.assert_close(a, b)


def is_likely(mask: Tensor, share: float) -> bool:
    """Whether independent draws give so many ones but for one time in 10**9, exactly."""
    low, high = binom.interval(1 - 1e-9, mask.numel(), share)
    return bool(low <= int(mask.sum()) <= high)


@settings(deadline=None, max_examples=15)
@given(
    p=st.floats(0.01, 0.99) | st.just(1 - 1e-7), size=st.integers(1, 9), seed=st.integers(0, 1000)
)
def test_dropout_keeps_the_share_it_says(p: float, size: int, seed: int) -> None:
    torch.manual_seed(seed)
    mask, share = keep_mask(torch.zeros(4001, size), p)
    assert share == pytest.approx(1 - p, abs=2**-16)
    assert set(mask.unique().tolist()) <= {0, 1}
    assert is_likely(mask, share)
    for column in mask.unbind(1):  # four neighbours share a draw
        assert is_likely(column, share)


def test_neighbours_are_dropped_independently_and_draws_follow_the_seed() -> None:
    torch.manual_seed(3)
    mask, share = keep_mask(torch.zeros(200_000), 0.3)
    for apart in range(1, 9):
        pairs = mask[: len(mask) // (2 * apart) * 2 * apart].view(-1, 2, apart)
        assert is_likely(pairs[:, 0] & pairs[:, 1], share**2)  # each element is in one pair
    torch.manual_seed(3)
    assert torch.equal(keep_mask(torch.zeros(200_000), 0.3)[0], mask)


def test_dropout_leaves_out_and_scales_up_what_the_branch_adds() -> None:
    torch.manual_seed(0)
    post, dropout = randomised(Affine(7)), nn.Dropout(0.25)
    x = torch.randn(300, 7, dtype=torch.double)
    y = torch.randn(300, 7, dtype=torch.double, requires_grad=True)
    added = add_branch(x, y, post, dropout) - x
    dropped = added == 0
    assert is_likely(dropped, 0.25)
    torch.testing.assert_close(added, (post(y) / 0.75).masked_fill(dropped, 0.0))
    ours = torch.autograd.grad(added.square().sum(), (y, post.alpha, post.beta))
    naive = (post(y) / 0.75).masked_fill(dropped, 0.0).square().sum()
    for a, b in zip(ours, torch.autograd.grad(naive, (y, post.alpha, post.beta)), strict=True):
        torch.testing.assert_close(a, b)
    dropout.eval()
    torch.testing.assert_close(add_branch(x, y, post, dropout), x + post(y))


def test_dropout_on_another_device_is_pytorchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(residual, "keep_mask")  # its draws are those of a CPU
    x = torch.randn(3, 7, device="meta", requires_grad=True)
    assert add_branch(x, 2 * x, None, nn.Dropout(0.25)).is_meta


@pytest.mark.parametrize("sentences_of_each_length", [1, 3])  # 28 and 84 tokens, fc1 has 65 rows
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_no_more_than_the_modules(
    dtype: torch.dtype, sentences_of_each_length: int
) -> None:
    torch.manual_seed(0)
    exact = Branches(32, 12, True, "gelu", 0.0)
    lengths = [12, 7, 9] * sentences_of_each_length
    layout = layout_of(lengths)
    x = torch.randn(sum(lengths), 32, requires_grad=True)
    expected = gradients(lambda: exact.one_by_one(x, layout), exact, x)

    def distance(found: tuple[Tensor, ...]) -> list[float]:
        return [
            float((a.float() - b).detach().norm() / b.detach().norm().clamp_min(1e-6))
            for a, b in zip(found, expected, strict=True)
        ]

    half, half_x = copy.deepcopy(exact).to(dtype), x.detach().to(dtype).requires_grad_()
    variants: list[tuple[Any, Tensor, bool]] = [(half, half_x, False), (exact, x, True)]
    for module, given_x, autocast in variants:

        def run(
            call: Callable[..., Tensor], given_x: Tensor = given_x, autocast: bool = autocast
        ) -> Tensor:
            with torch.autocast("cpu", dtype=dtype, enabled=autocast):
                return call(given_x, layout)

        ours = gradients(lambda m=module: run(m), module, given_x)
        naive = gradients(lambda m=module: run(m.one_by_one), module, given_x)
        for a, b in zip(ours, naive, strict=True):
            assert a.dtype == b.dtype
        for a, b in zip(distance(ours), distance(naive), strict=True):
            assert a < 1.5 * b + 1e-3


def test_hooks_and_subclasses_are_called() -> None:
    layout = layout_of([2, 3])
    x = torch.randn(5, 3, dtype=torch.double)
    names = ("pre", "mixing", "post", "ffn_pre", "ffn", "ffn.fc1", "ffn.fc2", "ffn_post", "dropout")
    for name in names:
        module = randomised(Branches(3, 6, False, "gelu", 0.0))
        hooked, seen = module.get_submodule(name), []
        hooked.register_forward_hook(lambda *_, seen=seen: seen.append(1))
        module(x, layout)
        assert seen, name

    handle = nn.modules.module.register_module_forward_hook(lambda m, *_: seen.append(type(m)))
    seen.clear()
    randomised(Branches(3, 6, False, "gelu", 0.0))(x, layout)
    handle.remove()
    assert seen.count(Affine) == 5
    assert {AbsoluteMixing, FeedForward} < set(seen)


@pytest.mark.parametrize("name", ["ffn.fc1", "mixing", "pre"])
def test_forward_methods_of_ones_own_are_called(name: str) -> None:
    layout = layout_of([2, 3])
    x = torch.randn(5, 3, dtype=torch.double)
    for of_instance in (True, False):
        module = randomised(Branches(3, 6, True, "gelu", 0.0))
        before = module(x, layout)
        changed = module.get_submodule(name)
        original = changed.forward
        if of_instance:
            changed.forward = lambda *y, original=original: 2 * original(*y)
        else:
            kind = type(changed)
            own = {"forward": lambda self, *y, kind=kind: 2 * kind.forward(self, *y)}
            if isinstance(changed, TokenMixing):  # refuses to train otherwise than it decodes
                own["step"] = lambda self, *y: None
            changed.__class__ = type("Doubled", (kind,), own)
        assert not torch.allclose(module(x, layout), before)
        torch.testing.assert_close(module(x, layout), module.one_by_one(x, layout))


def test_activations_that_are_modules_and_scales_without_bias_are_trained() -> None:
    layout = layout_of([2, 3])
    x = torch.randn(5, 3, dtype=torch.double, requires_grad=True)
    module = Branches(3, 6, True, "gelu", 0.0)
    module.ffn.activation = nn.PReLU()
    module.ffn_pre, module.post = Affine(3, bias=False), Affine(3, bias=False)
    module = randomised(module)
    ours = gradients(lambda: module(x, layout), module, x)
    naive = gradients(lambda: module.one_by_one(x, layout), module, x)
    for a, b in zip(ours, naive, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("how", ["no gradients", "checkpoint, reentrant", "checkpoint"])
def test_dropout_draws_the_same_where_the_forward_pass_is_repeated(how: str) -> None:
    layout = layout_of([4, 3])
    module = randomised(Branches(3, 6, True, "gelu", 0.4))
    x = torch.randn(7, 3, dtype=torch.double, requires_grad=True)

    def seeded(call: Callable[[], Tensor]) -> tuple[Tensor, ...]:
        torch.manual_seed(5)
        return gradients(call, module, x)

    expected = seeded(lambda: module(x, layout))
    if how == "no gradients":
        torch.manual_seed(5)
        with torch.no_grad():
            torch.testing.assert_close(module(x, layout), expected[0].detach())
        return
    reentrant = "reentrant" in how
    y = checkpoint(module, x, layout, use_reentrant=reentrant)
    assert not torch.equal(y, expected[0])  # another seed: dropout is on
    module.zero_grad()
    torch.manual_seed(5)
    y = checkpoint(module, x, layout, use_reentrant=reentrant)
    torch.testing.assert_close(y, expected[0])
    factor = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view_as(y)
    (y * factor).sum().backward()
    found = [x.grad, *(p.grad for p in module.parameters())]
    for a, b in zip(found, expected[1:], strict=True):
        torch.testing.assert_close(a, b)


def test_functional_gradients_are_those_of_autograd() -> None:
    layout = layout_of([4, 3])
    module = randomised(Branches(3, 6, True, "gelu", 0.0))
    x = torch.randn(7, 3, dtype=torch.double)
    parameters = dict(module.named_parameters())

    def loss(values: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(module, values, (x, layout)).square().sum()

    found = torch.func.grad(loss)({name: value.detach() for name, value in parameters.items()})
    expected = torch.autograd.grad(loss(parameters), list(parameters.values()))
    for name, gradient in zip(parameters, expected, strict=True):
        torch.testing.assert_close(found[name], gradient)


def test_a_backward_pass_under_autocast_keeps_the_types_of_the_forward_pass() -> None:
    length = CAUSAL_ROWS + 5
    module = Branches(4, length, True, "gelu", 0.2)
    x = torch.randn(length, 4, requires_grad=True)
    matrix, offset = module.mixing.matrix(length), module.mixing.offset(length)
    pre, post, last, fc2 = module.pre, module.post, module.last, module.ffn.fc2
    affines = pre.alpha, pre.beta, matrix, offset, post.alpha, post.beta
    hidden = torch.randn(length, 9, requires_grad=True)
    linear = fc2.weight, fc2.bias, last.alpha, last.beta
    for y, inputs in (
        (AffineMixing.apply(x, *affines, layout_of([length]), True), (x, *affines)),
        (ActivatedLinear.apply(hidden, *linear, F.gelu), (hidden, *linear)),
    ):
        grad = torch.randn_like(y)
        expected = torch.autograd.grad(y, inputs, grad, retain_graph=True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = torch.autograd.grad(y, inputs, grad)
        for a, b in zip(found, expected, strict=True):
            assert torch.equal(a, b)


def test_a_layer_keeps_little_for_its_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    widths = {
        f"{side}_{name}": size
        for side in ("encoder", "decoder")
        for name, size in (("embed_dim", 16), ("ffn_embed_dim", 64))
    }
    model = build(**widths, dropout=0.1).train()
    source, target = padded(sentences([9, 5, 7])), padded(sentences([8, 6, 3]))

    def kept() -> int:
        seen: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = model(source, None, target)[0].sum()
        loss.backward()
        parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
        return sum(size for pointer, size in seen.items() if pointer not in parameters)

    less = kept()
    monkeypatch.setattr(residual, "_are_plain", lambda *_: False)
    assert less < 0.6 * kept()
