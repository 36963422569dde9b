"""Padding is moved to the end of the sentence and back without touching a token."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import PAD, padded, sentences
from resmlp_mt.padding import Layout, left_aligned, realigned


@settings(deadline=None, max_examples=50)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5), extra=st.integers(0, 3))
def test_left_padding_becomes_right_padding_and_back(lengths: list[int], extra: int) -> None:
    rows = sentences(lengths)
    given_tokens = padded(rows, left=True, extra=extra)
    tokens, shift = left_aligned(given_tokens, PAD)
    assert torch.equal(tokens, padded(rows, extra=extra))
    if shift is None:
        assert torch.equal(tokens, given_tokens)
    else:
        states = tokens.t().unsqueeze(2).double()
        assert torch.equal(realigned(states, shift)[:, :, 0].t().long(), given_tokens)


def test_right_padding_is_left_alone() -> None:
    tokens = padded(sentences([3, 5]), extra=1)
    aligned, shift = left_aligned(tokens, PAD)
    assert aligned is tokens
    assert shift is None


def test_a_row_of_pads_stays_a_row_of_pads() -> None:
    tokens = torch.tensor([[PAD, PAD, PAD], [PAD, 5, 2]])
    aligned, _ = left_aligned(tokens, PAD)
    assert aligned.tolist() == [[PAD, PAD, PAD], [5, 2, PAD]]


@settings(deadline=None, max_examples=50)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5), extra=st.integers(0, 3))
def test_tokens_are_taken_out_of_the_padding_and_put_back(lengths: list[int], extra: int) -> None:
    is_pad = padded(sentences(lengths), extra=extra).t().eq(PAD)
    layout = Layout.of(is_pad)
    assert (layout.rows is None) == (not is_pad.any())
    x = torch.randn(*is_pad.shape, 3, dtype=torch.double, requires_grad=True)
    tokens = layout.pack(x)
    assert torch.equal(tokens, x[~is_pad])
    y = layout.pad(tokens)
    expected = x.masked_fill(is_pad.unsqueeze(2), 0.0)
    assert torch.equal(y, expected)
    factor = torch.randn_like(y)
    (ours,) = torch.autograd.grad((y * factor).sum(), x)
    (naive,) = torch.autograd.grad((expected * factor).sum(), x)
    assert torch.equal(ours, naive)
