"""Scores and attention of given translations, beside fairseq's scorer and the search."""

import pytest
import torch
from fairseq.sequence_scorer import SequenceScorer
from hypothesis import given, settings
from hypothesis import strategies as st

from models import build, padded, sentences, shifted
from resmlp_mt.engine.beam_search import beam_search
from resmlp_mt.engine.folding import fold
from resmlp_mt.engine.forced_decoding import forced_attention, forced_decoding
from resmlp_mt.engine.options import SearchOptions


@settings(max_examples=10, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 12), st.integers(1, 10)), min_size=1, max_size=5),
    st.integers(0, 1000),
)
def test_scores_and_attention_equal_fairseqs_scorer(
    lengths: list[tuple[int, int]], seed: int
) -> None:
    model = build(seed)
    sources = sentences([source for source, _ in lengths], seed=seed)
    targets = sentences([target for _, target in lengths], seed=seed + 1)
    inputs = [shifted(row) for row in targets]
    sample = {
        "net_input": {
            "src_tokens": padded(sources),
            "src_lengths": torch.tensor([len(row) for row in sources]),
            "prev_output_tokens": padded(inputs),
        },
        "target": padded(targets),
    }
    expected = SequenceScorer(model.decoder.dictionary).generate([model], sample)
    pairs = [(s.tolist(), t.tolist()) for s, t in zip(sources, targets, strict=True)]
    found = forced_decoding(fold(model), pairs)
    alone = forced_attention(fold(model), pairs)
    assert all(map(torch.equal, alone, [ours.attention for ours in found]))
    for ours, (theirs,), (source, target) in zip(found, expected, pairs, strict=True):
        assert ours.log_probs == pytest.approx(theirs["positional_scores"].tolist(), abs=1e-4)
        assert ours.attention.shape == (len(target), len(source))
        attention = theirs["attention"][: len(target), : len(source)].float()
        torch.testing.assert_close(ours.attention, attention, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(ours.attention.sum(1), torch.ones(len(target)))


def test_scores_are_those_of_the_search() -> None:
    model = fold(build(3))
    rows = [row.tolist() for row in sentences([3, 9, 12, 5], seed=3)]
    found = beam_search(model, rows, SearchOptions(beam=3))
    pairs = [(row, h.tokens) for row, hs in zip(rows, found, strict=True) for h in hs]
    searched = [h.positional_scores for hs in found for h in hs]
    for forced, scores in zip(forced_decoding(model, pairs), searched, strict=True):
        assert forced.log_probs == pytest.approx(scores, abs=1e-4)
