"""The encoder equals the equations; a sentence's states do not depend on padding or neighbours."""

from types import SimpleNamespace

import pytest
import torch
from fairseq.models.transformer import TransformerModel, base_architecture
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import reference
from models import PAD, build, padded, sentences, task
from resmlp_mt.layers import Affine

TOLERANCE = {"rtol": 0.0, "atol": 1e-12}


def affine_as_numbers(affine: Affine) -> tuple[list[float], list[float]]:
    return affine.alpha.tolist(), affine.beta.tolist()


def linear_as_numbers(linear: nn.Linear) -> tuple[list[list[float]], list[float]]:
    return linear.weight.tolist(), linear.bias.tolist()


def encode_by_loops(encoder: nn.Module, tokens: Tensor) -> reference.Matrix:
    """The whole encoder on one sentence, (length, dim), from the equations."""
    scale = encoder.embed_tokens.embedding_dim**0.5
    x = (scale * encoder.embed_tokens.weight[tokens]).tolist()
    for layer in encoder.layers:
        y = reference.affine(x, *affine_as_numbers(layer.mixing_pre))
        mixing = layer.token_mixing
        y = reference.mix(y, mixing.weight.tolist(), mixing.bias.tolist(), causal=False)
        x = reference.add(x, reference.affine(y, *affine_as_numbers(layer.mixing_post)))
        y = reference.affine(x, *affine_as_numbers(layer.ffn_pre))
        y = reference.feed_forward(
            y, *linear_as_numbers(layer.ffn.fc1), *linear_as_numbers(layer.ffn.fc2)
        )
        x = reference.add(x, reference.affine(y, *affine_as_numbers(layer.ffn_post)))
    return reference.affine(x, *affine_as_numbers(encoder.final_affine))


def states_of(encoder: nn.Module, batch: Tensor, row: int) -> Tensor:
    """The encoder's states at the tokens of one row, (tokens, dim)."""
    states = encoder(batch)["encoder_out"][0][:, row]
    return states[batch[row].ne(PAD)]


@pytest.mark.parametrize("left", [False, True])
def test_encoder_equals_the_equations(left: bool) -> None:
    encoder = build().encoder
    rows = sentences([1, 5, 3, 12])
    batch = padded(rows, left=left)
    for index, tokens in enumerate(rows):
        expected = torch.tensor(encode_by_loops(encoder, tokens), dtype=torch.float64)
        torch.testing.assert_close(states_of(encoder, batch, index), expected, **TOLERANCE)


@settings(deadline=None, max_examples=50)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=5),
    left=st.booleans(),
    extra=st.integers(0, 5),
    seed=st.integers(0, 100),
)
def test_states_do_not_depend_on_neighbours_padding_or_side(
    lengths: list[int], left: bool, extra: int, seed: int
) -> None:
    encoder = build().encoder
    rows = sentences(lengths, seed=seed)
    batch = padded(rows, left=left, extra=extra)
    for index, tokens in enumerate(rows):
        alone = encoder(tokens.unsqueeze(0))["encoder_out"][0][:, 0]
        torch.testing.assert_close(states_of(encoder, batch, index), alone, **TOLERANCE)


def test_padding_mask_and_all_hidden_states_follow_the_given_tokens() -> None:
    encoder = build().encoder
    batch = padded(sentences([2, 4]), left=True, extra=1)
    out = encoder(batch, return_all_hiddens=True)
    assert torch.equal(out["encoder_padding_mask"][0], batch.eq(PAD))
    assert [tuple(s.shape) for s in out["encoder_states"]] == [(5, 2, 8)] * 3
    embedded = 8**0.5 * encoder.embed_tokens(batch[1, 1:])
    torch.testing.assert_close(out["encoder_states"][0][1:, 1], embedded, **TOLERANCE)


def test_more_padding_than_positions_is_no_longer_sentence() -> None:
    encoder = build().encoder
    assert encoder.max_positions() == 12
    batch = padded(sentences([12, 3]), extra=4)
    assert encoder(batch)["encoder_out"][0].shape == (16, 2, 8)


def test_a_sentence_longer_than_the_matrix_is_refused() -> None:
    with pytest.raises(ValueError, match=r"13 tokens.*at most 12.*--max-source-positions"):
        build().encoder(padded(sentences([3, 13])))


def test_reordering_selects_sentences() -> None:
    encoder = build().encoder
    batch = padded(sentences([2, 4, 3]))
    order = torch.tensor([2, 0, 0, 1])
    reordered = encoder.reorder_encoder_out(encoder(batch, return_all_hiddens=True), order)
    expected = encoder(batch[order], return_all_hiddens=True)
    assert torch.equal(reordered["encoder_padding_mask"][0], expected["encoder_padding_mask"][0])
    for name in ("encoder_out", "encoder_states"):
        for ours, theirs in zip(reordered[name], expected[name], strict=True):
            torch.testing.assert_close(ours, theirs, **TOLERANCE)


def test_a_pad_inside_a_sentence_cuts_nothing_off() -> None:
    encoder = build().encoder
    tokens = torch.tensor([[5, PAD, 6, 7, 2]])
    out = encoder(tokens)
    states = out["encoder_out"][0]
    changed = encoder(torch.tensor([[5, PAD, 6, 7, 9]]))["encoder_out"][0]
    assert states.shape == (5, 1, 8)
    assert not torch.equal(states[4], changed[4])
    assert torch.equal(out["encoder_padding_mask"][0], tokens.eq(PAD))
    full = torch.full((1, 12), 5)
    full[0, 3] = PAD
    assert encoder(full)["encoder_out"][0].shape == (12, 1, 8)
    with pytest.raises(ValueError, match="13 tokens"):
        encoder(torch.cat([full, torch.tensor([[2]])], dim=1))


@pytest.mark.parametrize("left", [False, True])
def test_the_output_has_what_fairseqs_transformer_fills(left: bool) -> None:
    """The same fields of the same shapes and types; the mask also without pads."""
    args = SimpleNamespace(
        encoder_embed_dim=8, encoder_ffn_embed_dim=12, encoder_layers=2, encoder_attention_heads=2,
        decoder_embed_dim=8, decoder_ffn_embed_dim=12, decoder_layers=2, decoder_attention_heads=2,
        max_source_positions=12, max_target_positions=10,
    )  # fmt: skip
    base_architecture(args)
    theirs = TransformerModel.build_model(args, task(20)).double().eval()
    ours = build()
    for lengths in ([5, 5], [5, 3]):
        source = padded(sentences(lengths), left=left)
        target = padded(sentences([4, 2]))
        for hiddens in (False, True):
            found = ours.encoder(source, return_all_hiddens=hiddens)
            expected = theirs.encoder(source, return_all_hiddens=hiddens)
            for name in ("encoder_padding_mask", "src_lengths"):
                assert torch.equal(found[name][0], expected[name][0])
            for name in ("encoder_out", "encoder_embedding"):
                assert found[name][0].shape == expected[name][0].shape
            states = zip(found["encoder_states"], expected["encoder_states"], strict=True)
            assert all(a.shape == b.shape for a, b in states)
        embedded = 8**0.5 * ours.encoder.embed_tokens(source)
        torch.testing.assert_close(found["encoder_embedding"][0], embedded, **TOLERANCE)
        order = torch.tensor([1, 1, 0])
        moved = ours.encoder.reorder_encoder_out(found, order)
        moved_by_theirs = theirs.encoder.reorder_encoder_out(expected, order)
        assert torch.equal(moved["src_lengths"][0], moved_by_theirs["src_lengths"][0])
        inner = ours(source, None, target)[1]["inner_states"]
        assert [s.shape for s in inner] == [
            s.shape for s in theirs(source, None, target)[1]["inner_states"]
        ]


def test_the_longest_sentence_of_the_training_is_remembered(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """In the state dict, without pads; a longer one is warned of once, but not while training."""
    encoder = build().encoder.train()
    encoder(padded(sentences([4, 7]), left=True, extra=2))
    encoder(padded(sentences([5])))
    encoder.eval()(padded(sentences([9])))
    assert caplog.messages == []
    state = encoder.state_dict()
    assert state["longest_trained"].item() == 7
    loaded = build().encoder
    loaded.load_state_dict(state)
    for length in (7, 8, 9):
        loaded(padded(sentences([length, 2])))
    (message,) = caplog.messages
    assert "has 8 tokens, but the longest one of the training had 7" in message


def test_a_state_dict_from_before_there_was_a_trained_length_loads(
    caplog: pytest.LogCaptureFixture,
) -> None:
    state = build().encoder.state_dict()
    del state["longest_trained"]
    encoder = build().encoder
    encoder.load_state_dict(state)
    encoder(padded(sentences([12])))
    assert encoder.longest_trained_source == 0
    assert caplog.messages == []
