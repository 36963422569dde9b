"""The layers equal the paper's equations (tolerance 1e-12 in float64) and keep their contracts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import reference
from resmlp_mt.layers import Affine, FeedForward
from resmlp_mt.mixing import AbsoluteMixing

TOLERANCE = {"rtol": 0.0, "atol": 1e-12}
sizes = st.integers(min_value=1, max_value=7)


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """In float64, with every parameter drawn from N(0, 1): no zero bias can hide a mistake."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return module


def states(length: int, batch: int, dim: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(length, batch, dim, generator=generator, dtype=torch.float64)


@settings(deadline=None, max_examples=25)
@given(length=sizes, batch=sizes, dim=sizes, seed=st.integers(0, 1000))
def test_affine_is_diag_alpha_x_plus_beta(length: int, batch: int, dim: int, seed: int) -> None:
    affine = randomised(Affine(dim), seed)
    x = states(length, batch, dim)
    for b in range(batch):
        expected = reference.affine(x[:, b].tolist(), affine.alpha.tolist(), affine.beta.tolist())
        torch.testing.assert_close(
            affine(x)[:, b], torch.tensor(expected, dtype=torch.float64), **TOLERANCE
        )


@settings(deadline=None, max_examples=40)
@given(
    length=sizes,
    spare=st.integers(0, 4),
    batch=sizes,
    dim=sizes,
    causal=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_token_mixing_is_a_sum_over_positions(
    length: int, spare: int, batch: int, dim: int, causal: bool, seed: int
) -> None:
    mixing = randomised(AbsoluteMixing(length + spare, causal), seed)
    x = states(length, batch, dim)
    for b in range(batch):
        expected = reference.mix(
            x[:, b].tolist(), mixing.weight.tolist(), mixing.bias.tolist(), causal
        )
        torch.testing.assert_close(
            mixing(x)[:, b], torch.tensor(expected, dtype=torch.float64), **TOLERANCE
        )


@settings(deadline=None, max_examples=25)
@given(length=sizes, batch=sizes, dim=sizes, hidden=sizes, seed=st.integers(0, 1000))
def test_feed_forward_is_c_gelu_b(
    length: int, batch: int, dim: int, hidden: int, seed: int
) -> None:
    ffn = randomised(FeedForward(dim, hidden), seed)
    x = states(length, batch, dim)
    for b in range(batch):
        expected = reference.feed_forward(
            x[:, b].tolist(),
            ffn.fc1.weight.tolist(),
            ffn.fc1.bias.tolist(),
            ffn.fc2.weight.tolist(),
            ffn.fc2.bias.tolist(),
        )
        torch.testing.assert_close(
            ffn(x)[:, b], torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12
        )


def test_causal_mixing_never_sees_or_trains_what_comes_later() -> None:
    mixing = randomised(AbsoluteMixing(6, causal=True))
    optimizer = torch.optim.Adam(mixing.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        x = states(6, 2, 3)
        for t in range(6):
            changed = x.clone()
            changed[t] += 100.0
            assert torch.equal(mixing(changed)[:t], mixing(x)[:t])
            assert not torch.equal(mixing(changed)[t], mixing(x)[t])
        optimizer.zero_grad()
        mixing(x).square().sum().backward()
        assert mixing.weight.grad.triu(1).abs().max() == 0
        assert (mixing.weight.grad.tril() != 0).equal(torch.ones(6, 6).tril().bool())
        optimizer.step()


def test_initial_values_are_those_of_the_paper_and_the_authors_code() -> None:
    before, after = Affine(5), Affine(5, 0.2)
    assert torch.equal(before.alpha, torch.ones(5))
    assert torch.equal(after.alpha, torch.full((5,), 0.2))
    assert torch.equal(before.beta, torch.zeros(5))
    assert torch.equal(after.beta, torch.zeros(5))
    torch.manual_seed(0)
    mixing = AbsoluteMixing(200)
    assert mixing.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert mixing.bias.abs().max() == 0


def test_affine_without_bias_is_a_layer_scale() -> None:
    scale = Affine(3, 0.1, bias=False)
    assert [name for name, _ in scale.named_parameters()] == ["alpha"]
    x = states(2, 2, 3).float()
    assert torch.equal(scale(x), 0.1 * x)


def test_an_input_longer_than_the_matrix_is_refused() -> None:
    mixing = AbsoluteMixing(4)
    with pytest.raises(ValueError, match="has 5 positions but the mixing matrix has 4"):
        mixing(torch.zeros(5, 1, 2))
