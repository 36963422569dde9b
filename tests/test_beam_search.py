"""The search finds the hypotheses and scores of fairseq's generator."""

import math
from itertools import chain

import pytest
import torch
from fairseq.sequence_generator import SequenceGenerator
from hypothesis import given, settings
from hypothesis import strategies as st

from models import EOS, build, padded, sentences
from resmlp_mt.engine import beam_search as search
from resmlp_mt.engine.beam_search import _top, beam_search
from resmlp_mt.engine.folding import fold
from resmlp_mt.engine.options import Hypothesis, SearchOptions
from resmlp_mt.model import attention
from resmlp_mt.models.resmlp_mt import ResMLPModel


def by_fairseq(
    model: ResMLPModel, rows: list[torch.Tensor], options: SearchOptions
) -> list[list[Hypothesis]]:
    """What fairseq's generator finds."""
    generator = SequenceGenerator(
        [model],
        model.decoder.dictionary,
        beam_size=options.beam,
        max_len_a=options.max_len_a,
        max_len_b=options.max_len_b,
        min_len=options.min_len,
        normalize_scores=not options.unnormalized,
        len_penalty=options.lenpen,
        unk_penalty=options.unkpen,
        temperature=options.temperature,
    )
    source = padded(rows)
    lengths = torch.tensor([len(row) for row in rows])
    sample = {"net_input": {"src_tokens": source, "src_lengths": lengths}}
    return [
        [
            Hypothesis(h["tokens"].tolist(), float(h["score"]), h["positional_scores"].tolist())
            for h in found
        ]
        for found in generator.generate([model], sample)
    ]


def assert_same(found: list[list[Hypothesis]], expected: list[list[Hypothesis]]) -> None:
    assert [[h.tokens for h in s] for s in found] == [[h.tokens for h in s] for s in expected]
    for ours, theirs in zip(chain(*found), chain(*expected), strict=True):
        assert ours.score == pytest.approx(theirs.score, abs=1e-5)
        # differences of float32 sums of up to some hundreds
        assert ours.positional_scores == pytest.approx(theirs.positional_scores, abs=1e-4)


OPTIONS = st.builds(
    SearchOptions,
    beam=st.integers(1, 6),
    lenpen=st.sampled_from([0.0, 0.6, 1.0, 2.0]),
    unnormalized=st.booleans(),
    unkpen=st.sampled_from([-1.0, 0.0, 2.0]),
    temperature=st.sampled_from([0.5, 1.0, 3.0]),
    min_len=st.integers(0, 3),
    max_len_b=st.sampled_from([3, 6, 200]),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=5), OPTIONS, st.integers(0, 1000))
def test_every_option_finds_what_fairseq_finds(
    lengths: list[int], options: SearchOptions, seed: int
) -> None:
    model = build(seed)
    rows = sentences(lengths, seed=seed)
    found = beam_search(fold(model), [row.tolist() for row in rows], options)
    assert_same(found, by_fairseq(model, rows, options))


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 12), st.sampled_from([0.3, 0.5, 1.2]), st.integers(0, 1000))
def test_maximum_length_follows_the_source(length: int, max_len_a: float, seed: int) -> None:
    """Alone in its batch, where fairseq counts no padding of neighbours."""
    model = build(seed)
    rows = sentences([length], seed=seed)
    options = SearchOptions(max_len_a=max_len_a, max_len_b=2)
    found = beam_search(fold(model), [rows[0].tolist()], options)
    assert_same(found, by_fairseq(model, rows, options))


def test_every_sentence_of_a_batch_keeps_its_own_limit() -> None:
    """Also where a longer one takes the place of a sentence that has left the batch."""
    model = fold(build(seed=5))
    rows = [row.tolist() for row in sentences([1, 2, 12, 3, 9], seed=5)]
    options = SearchOptions(beam=3, max_len_a=1.0, max_len_b=0)
    together = beam_search(model, rows, options)
    assert_same(together, [beam_search(model, [row], options)[0] for row in rows])


def test_long_translations_outgrow_the_first_room() -> None:
    model = build(max_target_positions=120)
    rows = sentences([4, 7, 9], seed=1)
    options = SearchOptions(beam=3, min_len=90)
    found = beam_search(fold(model), [row.tolist() for row in rows], options)
    assert_same(found, by_fairseq(model, rows, options))
    assert min(len(h.tokens) for h in chain(*found)) > 90


@pytest.mark.parametrize("vocabulary", [20, 3 * 64, 40 * 64, 40 * 64 + 1, 40 * 64 + 63])
def test_the_best_of_large_vocabularies(vocabulary: int) -> None:
    generator = torch.Generator().manual_seed(vocabulary)
    logits = torch.randn(3, 4, vocabulary, generator=generator)
    logits[0, 0, -3:] = 9.0 + torch.arange(3)
    logits[1, :, 100:] = -torch.inf
    for count in (2, 8):
        found, index = _top(logits, count)
        expected = logits.topk(count)
        assert torch.equal(found, expected.values)
        finite = found.isfinite()
        assert torch.equal(index[finite], expected.indices[finite])


@pytest.mark.parametrize("is_large", [False, True], ids=["small", "large"])
def test_a_sentence_does_not_depend_on_its_neighbours(
    is_large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a large batch, a few sentences at a time are encoded and attended to."""
    folded = fold(build(5))
    rows = [row.tolist() for row in sentences([3, 12, 1, 8, 8, 5], seed=5)]
    alone = [beam_search(folded, [row], SearchOptions())[0] for row in rows]
    if is_large:
        monkeypatch.setattr(search, "ENCODED_TOKENS", 16)
        monkeypatch.setattr(attention, "FEW_KEYS", 0)
        monkeypatch.setattr(attention, "SENTENCES", 2)
    together = beam_search(folded, rows, SearchOptions())
    assert_same(together, alone)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beam": 0}, "--beam must be at least 1, but is 0"),
        ({"min_len": -1}, "--min-len must be at least 0"),
        ({"temperature": 0.0}, "--temperature must be above 0"),
        ({"temperature": math.nan}, "--temperature must be a finite number"),
        ({"lenpen": math.nan}, "--lenpen must be a finite number"),
        ({"repetition_penalty": 1e39}, "--repetition-penalty must be at most 3.4e"),  # of 32 bits
        ({"max_len_a": math.inf}, "--max-len-a must be a finite number"),
        ({"max_len_a": math.nan}, "--max-len-a must be a finite number"),
    ],
)
def test_wrong_options_are_named(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SearchOptions(**changes)


def test_options_that_do_not_fit_the_model_are_named() -> None:
    folded = fold(build())
    with pytest.raises(ValueError, match="--min-len 10 is above the longest translation, 9"):
        beam_search(folded, [[EOS]], SearchOptions(min_len=10))
    with pytest.raises(ValueError, match="--beam 10 is too large for a vocabulary of 20"):
        beam_search(folded, [[EOS]], SearchOptions(beam=10))
