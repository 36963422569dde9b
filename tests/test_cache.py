"""The cache follows hypotheses wherever they go: histories in place equal histories copied."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models import EOS, build, padded, sentences
from resmlp_mt.model.attention import Source
from resmlp_mt.model.cache import Cache
from resmlp_mt.model.decoder import Decoder
from test_mixing import ALL, MixingConfig, options

TOLERANCE = {"rtol": 0.0, "atol": 1e-12}
CONFIGS = [MixingConfig(), ALL[-1]]


def start(decoder: Decoder, source: Tensor, model: torch.nn.Module, beam: int) -> Cache:
    encoded = model.encoder(source)
    (states,), (is_pad,) = encoded["encoder_out"], encoded["encoder_padding_mask"]
    return decoder.cache(decoder.memory(Source.of(states, is_pad)), beam)


@settings(deadline=None, max_examples=25)
@given(
    batch=st.integers(1, 4),
    beam=st.integers(1, 3),
    data=st.data(),
    config=st.sampled_from(CONFIGS),
    gradients=st.booleans(),
)
def test_any_choice_of_hypotheses_equals_all_at_once(
    batch: int, beam: int, data: st.DataObject, config: MixingConfig, gradients: bool
) -> None:
    """Across sentences, repeated, fewer or more: what fairseq's reordering may ask for."""
    with torch.set_grad_enabled(gradients):
        model = build(**options(config))
        source = padded(sentences([3 + row for row in range(batch)]))
        cache = start(model.decoder, source, model, beam)
        of = torch.arange(batch).repeat_interleave(beam)  # the sentence of each hypothesis
        words = torch.full((batch * beam, 1), EOS)
        for _ in range(5):
            hidden, cache, _ = model.decoder.advance(words[:, -1].view(-1, cache.beam), cache)
            full, _ = model.decoder(
                words, model.encoder.reorder_encoder_out(model.encoder(source), of)
            )
            found = model.decoder.output_projection(hidden).flatten(0, 1)
            torch.testing.assert_close(found, full[:, -1], **TOLERANCE)
            count = len(of)
            order = torch.tensor(
                data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=2 * count))
            )
            cache, of = cache.reordered(order), of[order]
            new = torch.tensor(data.draw(st.lists(st.integers(4, 19), min_size=len(order),
                                                  max_size=len(order))))  # fmt: skip
            words = torch.cat([words[order], new.unsqueeze(1)], dim=1)


def test_moves_within_sentences_copy_nothing() -> None:
    model = build()
    with torch.no_grad():
        cache = start(model.decoder, padded(sentences([3, 5])), model, 3)
        _, cache, _ = model.decoder.advance(torch.full((2, 3), EOS), cache)
        moved = cache.reordered(torch.tensor([2, 0, 0, 4, 5, 5]))
        assert moved.history is cache.history
        assert moved.memory is cache.memory
        _, after, _ = model.decoder.advance(torch.full((2, 3), 7), moved)
        assert after.history is cache.history
        left = after.reordered(torch.tensor([4, 3, 3]))
        assert left.memory.keys.size(1) == 1


@pytest.mark.parametrize("config", CONFIGS, ids=["paper", "all"])
def test_sentences_that_leave_are_replaced_by_the_last_ones(config: MixingConfig) -> None:
    model = build(**options(config))
    with torch.no_grad():
        whole = start(model.decoder, padded(sentences([3, 5, 4, 6])), model, 2)
        _, whole, _ = model.decoder.advance(torch.full((4, 2), EOS), whole)
        expected = whole.reordered(torch.tensor([6, 7, 2, 3]))
        tokens = torch.tensor([[5, 6], [7, 8]])
        wanted, *_ = model.decoder.advance(tokens, expected)
        moved = whole.moved([3], [0], 2)  # the sentences 3 and 1 are left
        found, *_ = model.decoder.advance(tokens, moved)
    torch.testing.assert_close(found, wanted, **TOLERANCE)
