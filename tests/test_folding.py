"""The folded model computes what the trained one computes, with fewer operations."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models import EOS, build, padded, sentences, shifted
from resmlp_mt.engine.folding import fold
from resmlp_mt.model.encoder_decoder import EncoderDecoder
from resmlp_mt.models.resmlp_mt import ResMLPModel

LENGTHS = st.lists(st.integers(1, 12), min_size=1, max_size=4)


@torch.no_grad()
def step_by_step(folded: EncoderDecoder, source: Tensor, lengths: Tensor, target: Tensor) -> Tensor:
    """Scores of every next token with ``target`` forced, one hypothesis per sentence."""
    memory = folded.encode(source, lengths)
    cfg = folded.config
    dtype = folded.decoder.kv_proj.weight.dtype
    heads = cfg.decoder_mixing.heads
    shape = (cfg.decoder_layers, len(target), heads, 0, 1, cfg.decoder_embed_dim // heads)
    history = torch.empty(shape, dtype=dtype)
    scores = []
    for position in range(target.size(1)):
        ancestors = torch.zeros(len(target), 1, position, dtype=torch.long)
        score, entries = folded.step(target[:, position : position + 1], history, ancestors, memory)
        history = torch.cat([history, entries.unsqueeze(3)], dim=3)
        scores.append(score)
    return torch.cat(scores, dim=1)


@torch.no_grad()
def forced(model: ResMLPModel, source: Tensor, target: Tensor) -> Tensor:
    """The same from the trained model, all positions at once."""
    scores, _ = model.decoder(target, encoder_out=model.encoder(source))
    return scores


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)], ids=str
)
@settings(max_examples=25, deadline=None)
@given(LENGTHS, st.integers(1, 10), st.integers(0, 5), st.integers(0, 3))
def test_scores_equal_those_of_the_trained_model(
    dtype: torch.dtype,
    tolerance: float,
    lengths: list[int],
    target_length: int,
    seed: int,
    extra: int,
) -> None:
    model = build(seed, encoder_embed_dim=6).to(dtype)
    rows = sentences(lengths, seed=seed)
    source = padded(rows, extra=min(extra, 12 - max(lengths)))
    target = torch.stack(
        [shifted(row) for row in sentences([target_length] * len(rows), seed=seed + 1)]
    )
    found = step_by_step(fold(model), source, torch.tensor(lengths), target)
    assert found.dtype == dtype
    assert relative_error(found, forced(model, source, target)) < tolerance


def test_a_batch_without_pads_needs_no_lengths() -> None:
    folded = fold(build())
    source = torch.stack(sentences([5, 5]))
    target = torch.tensor([[EOS, 7], [EOS, 9]])
    memory = folded.encode(source)
    assert memory.mask is None
    with_lengths = folded.encode(source, torch.tensor([5, 5]))
    assert torch.equal(memory.keys, with_lengths.keys)
    assert torch.equal(memory.values, with_lengths.values)
    assert step_by_step(folded, source, torch.tensor([5, 5]), target).isfinite().all()


@pytest.mark.parametrize(
    "activation", ["relu", "gelu", "gelu_fast", "gelu_accurate", "tanh", "linear"]
)
def test_every_activation_of_fairseq_is_recognised(activation: str) -> None:
    model = build(activation_fn=activation)
    source = padded(sentences([5, 3]))
    target = torch.tensor([[EOS, 5, 6], [EOS, 8, 9]])
    folded = fold(model)
    found = step_by_step(folded, source, torch.tensor([5, 3]), target)
    assert relative_error(found, forced(model, source, target)) < 1e-9
    assert folded.config.activation_fn == activation.replace("fast", "accurate")


def test_shared_embeddings_stay_shared() -> None:
    folded = fold(build(share_all_embeddings=True))
    assert folded.decoder.embed_tokens is folded.encoder.embed_tokens


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(1, 6), st.integers(0, 1000))
def test_hypotheses_go_back_to_their_ancestors(beam: int, positions: int, seed: int) -> None:
    """Histories in place, read through ancestors, equal histories moved with the hypotheses."""
    generator = torch.Generator().manual_seed(seed)
    folded = fold(build())
    memory = folded.encode(padded(sentences([5, 3])), torch.tensor([5, 3]))
    layers, dim = folded.config.decoder_layers, folded.config.decoder_embed_dim
    history = torch.randn(layers, 2, 1, positions, beam, dim, generator=generator).double()
    ancestors = torch.randint(beam, (2, beam, positions), generator=generator)
    tokens = torch.randint(4, 20, (2, beam), generator=generator)
    found, entries = folded.step(tokens, history, ancestors, memory)

    index = ancestors.transpose(1, 2)[None, :, None, ..., None].expand_as(history)
    moved = history.gather(4, index)
    in_order = torch.arange(beam)[None, :, None].expand_as(ancestors)
    expected, expected_entries = folded.step(tokens, moved, in_order, memory)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(entries, expected_entries, rtol=1e-12, atol=1e-12)


def test_sentences_beyond_the_matrices_are_refused() -> None:
    folded = fold(build())
    with pytest.raises(ValueError, match="13 tokens, but this model was trained for at most 12"):
        folded.encode(torch.full((1, 13), 5))
    memory = folded.encode(torch.full((1, 3), 5))
    history = torch.zeros(2, 1, 1, 10, 1, 8).double()
    with pytest.raises(ValueError, match="11 tokens, but this model was trained for at most 10"):
        folded.step(torch.tensor([[5]]), history, torch.zeros(1, 1, 10).long(), memory)


def test_folding_leaves_the_model_alone() -> None:
    model = build()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fold(model)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
