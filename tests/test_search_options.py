"""Options of the search beside a naive greedy search and fairseq's generator."""

import math
import pickle
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fairseq.sequence_generator import SequenceGenerator
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom
from torch import Tensor

from models import EOS, PAD, build, padded, sentences, translation_model
from resmlp_mt.engine import forced_decoding as forced
from resmlp_mt.engine import restrictions
from resmlp_mt.engine.beam_search import beam_search
from resmlp_mt.engine.folding import fold
from resmlp_mt.engine.forced_decoding import forced_attention, forced_decoding
from resmlp_mt.engine.options import SearchOptions, StepResult
from resmlp_mt.engine.restrictions import forbid_repeated_ngrams
from resmlp_mt.engine.translator import Translator
from resmlp_mt.errors import UserError
from resmlp_mt.model.encoder_decoder import EncoderDecoder

UNK = 3
LONGEST = 9
Pairs = Sequence[tuple[list[int], list[int]]]


def translator(seed: int = 0, **options: object) -> Translator:
    """Of a model with random parameters whose words are w0, w1, ..."""
    loaded = translation_model(fold(build(seed)))
    return Translator(loaded, SearchOptions(**options))  # type: ignore[arg-type]


def ngrams(tokens: list[int], size: int) -> list[list[int]]:
    return [tokens[i : i + size] for i in range(len(tokens) - size + 1)]


def repeats(tokens: list[int], size: int) -> bool:
    found = ngrams(tokens, size)
    return any(found.count(ngram) > 1 for ngram in found)


@torch.inference_mode()
def greedy(
    model: EncoderDecoder, source: list[int], options: SearchOptions, prefix: list[int]
) -> list[int]:
    """The likeliest token after the other, by the definitions."""
    found: list[int] = []
    while len(found) < LONGEST:
        logits = model(torch.tensor([source]), torch.tensor([[EOS, *found]]))[0, -1].float()
        for token in set(found):
            penalty = options.repetition_penalty
            logits[token] = (
                logits[token] * penalty if logits[token] < 0 else logits[token] / penalty
            )
        logits[PAD] = -torch.inf
        if options.disable_unk:
            logits[UNK] = -torch.inf
        if len(found) < options.min_len:
            logits[EOS] = -torch.inf
        size = options.no_repeat_ngram_size
        for token in range(len(logits)):
            last = [*found, token][-size:]
            if size and len(last) == size and last in ngrams(found, size):
                logits[token] = -torch.inf
        best = prefix[len(found)] if len(found) < len(prefix) else int(logits.argmax())
        found.append(best)
        if best == EOS:
            return found
    return [*found, EOS]


@settings(max_examples=40, deadline=None)
@given(
    st.builds(
        SearchOptions,
        beam=st.just(1),
        no_repeat_ngram_size=st.integers(0, 3),
        repetition_penalty=st.sampled_from([1.0, 1.5, 0.7]),
        disable_unk=st.booleans(),
        min_len=st.sampled_from([1, 6]),
    ),
    st.lists(st.integers(4, 19), max_size=4),
    st.integers(0, 1000),
)
def test_a_beam_of_one_is_the_naive_greedy_search(
    options: SearchOptions, prefix: list[int], seed: int
) -> None:
    model = fold(build(seed))
    rows = [row.tolist() for row in sentences([4, 9, 2], seed=seed)]
    prefixes = [prefix, [], prefix[:1]]
    found = beam_search(model, rows, options, prefixes=prefixes)
    expected = [greedy(model, row, options, own) for row, own in zip(rows, prefixes, strict=True)]
    assert [hypotheses[0].tokens for hypotheses in found] == expected


@pytest.mark.parametrize("size", [1, 2, 3])
def test_no_ngram_comes_twice_in_any_hypothesis(size: int) -> None:
    model = fold(build(5))
    rows = [row.tolist() for row in sentences([5, 9, 12], seed=5)]
    free = SearchOptions(beam=4, min_len=8)
    found = beam_search(model, rows, free.changed(no_repeat_ngram_size=size))
    assert not any(repeats(h.tokens, size) for h in chain(*found))
    assert any(repeats(h.tokens, 1) for h in chain(*beam_search(model, rows, free)))


@given(st.lists(st.integers(0, 3), max_size=9), st.integers(1, 4))
def test_forbidden_words_are_those_that_would_repeat(past: list[int], size: int) -> None:
    logits = torch.zeros(1, 1, 5)
    forbid_repeated_ngrams(logits, torch.tensor([[past]], dtype=torch.long), size)
    for word in range(5):
        last = [*past, word][-size:]
        is_repeated = len(last) == size and last in ngrams(past, size)
        assert bool(logits[0, 0, word].isinf()) == is_repeated


@pytest.mark.parametrize("beam", [1, 4])
def test_prefixes_are_those_of_fairseq(beam: int) -> None:
    model = build(7)
    rows = sentences([5, 9, 12], seed=7)
    prefix = torch.tensor([[5, 6], [7, 7], [12, 4]])
    generator = SequenceGenerator(
        [model], model.decoder.dictionary, beam_size=beam, max_len_a=0, max_len_b=200
    )
    lengths = torch.tensor([len(row) for row in rows])
    sample = {"net_input": {"src_tokens": padded(rows), "src_lengths": lengths}}
    expected = generator.generate([model], sample, prefix_tokens=prefix)
    source = [row.tolist() for row in rows]
    options = SearchOptions(beam=beam)
    found = beam_search(fold(model), source, options, prefixes=prefix.tolist())
    for ours, theirs in zip(found, expected, strict=True):
        assert [h.tokens for h in ours] == [h["tokens"].tolist() for h in theirs]
        assert [h.score for h in ours] == pytest.approx([float(h["score"]) for h in theirs])


def test_samples_among_the_best_are_the_greedy_search() -> None:
    lines = ["w1 w2 w3", "w4"]
    plain = translator(beam=1).translate(lines)
    samples = translator(sampling=True, sampling_topk=1, beam=3).translate(lines)
    for found, best in zip(samples, plain, strict=True):
        assert [t.pieces for t in found] == [best[0].pieces] * 3
    narrow = translator(sampling=True, sampling_topp=1e-9, beam=3).translate(lines)
    assert narrow == samples


@pytest.mark.parametrize(
    ("topk", "topp"), [(-1, -1.0), (4, -1.0), (-1, 0.6)], ids=["all", "top-k", "top-p"]
)
def test_samples_are_drawn_by_their_probabilities(topk: int, topp: float) -> None:
    """The first words of 4000 samples: each one's count is binomial."""
    model = fold(build(11))
    source = [sentences([6], seed=3)[0].tolist()]
    count = 4000
    options = SearchOptions(
        beam=count, sampling=True, sampling_topk=topk, sampling_topp=topp, temperature=2.0,
        max_len_b=1, min_len=0,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    (found,) = beam_search(model, source, options, generator=generator)
    firsts = torch.tensor([h.tokens[0] for h in found])
    with torch.inference_mode():
        logits = model(torch.tensor(source), torch.tensor([[EOS]]))[0, 0] / 2.0
        logits[PAD] = -torch.inf
    probs, order = logits.softmax(0).sort(descending=True)
    allowed = 4 if topk == 4 else int((probs.cumsum(0) - probs < (topp if topp > 0 else 2)).sum())
    assert allowed > 2
    probs = probs[:allowed] / probs[:allowed].sum()
    drawn = torch.bincount(firsts, minlength=20)[order]
    assert len(found) == count
    assert int(drawn[allowed:].sum()) == 0
    low, high = binom.interval(1 - 1e-5, count, probs.double().numpy())
    seen = drawn[:allowed].numpy()
    assert ((low <= seen) & (seen <= high)).all()


def test_scores_of_samples_are_the_models() -> None:
    """Also of those that ended early while others went on."""
    model = fold(build(2))
    rows = [row.tolist() for row in sentences([3, 8], seed=2)]
    options = SearchOptions(beam=6, sampling=True)
    generator = torch.Generator().manual_seed(4)
    found = beam_search(model, rows, options, generator=generator)
    pairs = [(row, h.tokens) for row, hs in zip(rows, found, strict=True) for h in hs]
    assert [len(hypotheses) for hypotheses in found] == [6, 6]
    assert len({len(h.tokens) for h in chain(*found)}) > 1
    for scored, hypothesis in zip(forced_decoding(model, pairs), chain(*found), strict=True):
        assert hypothesis.positional_scores == pytest.approx(scored.log_probs, abs=1e-4)


def test_samples_repeat_with_their_seed() -> None:
    draw = translator().translate
    first, again = (draw(["w1 w2"], sampling_topk=0, num_hypotheses=3) for _ in range(2))
    assert first == again
    assert len({t.pieces for t in first[0]}) > 1
    other = translator(seed=1)  # of the model
    other.options = SearchOptions(seed=7)
    assert len(draw(["w1 w2"], sampling_topp=0.9)[0]) == 1


def test_a_sample_is_not_the_best_of_several() -> None:
    lines, ours = ["w1 w2", "w4"] * 6, translator(beam=5, sampling=True)
    single = translator(beam=1, sampling=True).translate(lines)
    assert ours.translate(lines, num_hypotheses=1) == single
    assert ours.translate(lines, beam_size=1) == single
    assert {len(found) for found in ours.translate(lines)} == {5}
    assert {len(found) for found in ours.translate(lines, num_hypotheses=8)} == {8}
    heard: list[StepResult] = []
    ours.translate(lines, num_hypotheses=1, callback=heard.append)
    assert heard
    with pytest.raises(UserError, match="beam_size 3 is for a search, and this call draws"):
        ours.translate(lines, beam_size=3)


def test_a_beam_above_the_vocabulary_is_refused_at_once() -> None:
    translator(beam=9)
    with pytest.raises(UserError, match=r"--beam 10 .* vocabulary of 20 words: choose at most 9"):
        translator(beam=10)
    translator(beam=10, sampling=True)


def test_a_limit_that_fits_every_sentence_is_taken() -> None:
    """A sentence has two tokens or more; an empty line is none, whatever its prefix is."""
    ours = translator(max_len_a=0.9, max_len_b=0)
    for prefixes in (None, ["w5", "w6", None]):
        found = ours.translate(["w1", "", "w2 w3 w4"], target_prefix=prefixes)
        assert len(found[0][0].pieces.split()) == 1
        assert found[1][0].pieces == ""
        assert 1 <= len(found[2][0].pieces.split()) <= 3
    with pytest.raises(UserError, match="--min-len 1 is above the longest translation, 0 tokens"):
        translator(max_len_a=0.4, max_len_b=0)


def test_a_top_k_of_one_searches_though_the_translator_samples() -> None:
    lines = ["w1 w2 w3", "w4 w5"]
    sampling = translator(beam=3, sampling=True, sampling_topp=0.9)
    assert sampling.translate(lines, sampling_topk=1) == translator(beam=3).translate(lines)
    assert sampling.translate(lines) != translator(beam=3).translate(lines)


def test_the_defaults_of_ctranslate2_search() -> None:
    lines, ours = ["w1 w2 w3", "w4 w5"], translator(beam=3)
    given = {"sampling_topk": 1, "sampling_topp": 1.0, "sampling_temperature": 1.0}
    assert ours.translate(lines, **given) == ours.translate(lines)
    assert ours.translate(lines, beam_size=2, **given) == translator(beam=2).translate(lines)


def test_every_buffer_has_draws_of_its_own() -> None:
    ours, lines = translator(beam=1, sampling=True), ["w1 w2"] * 6
    first, again = (list(ours.translate_iterable(lines, buffer_size=1)) for _ in range(2))
    assert first == again
    assert len({found[0].pieces for found in first}) > 1


def test_lines_may_come_from_a_generator() -> None:
    lines, prefixes = ["w1 w2", "", "w4"], ["w9", None, "w7"]
    ours = translator()
    assert ours.translate(iter(lines)) == ours.translate(lines)
    found = ours.translate(iter(lines), target_prefix=iter(prefixes))
    assert found == ours.translate(lines, target_prefix=prefixes)
    assert ours.score_batch(iter(lines), iter(lines)) == ours.score_batch(lines, lines)


@pytest.mark.parametrize("wrong", [b"w1", None, 5, ["w1"], 1.5, Path("w1")])
def test_an_item_that_is_no_text_is_named(wrong: Any) -> None:
    ours, lines = translator(), ["w1", wrong]
    told = f"expected a list of str, but item 1 is {type(wrong).__name__}"
    calls: list[Callable[[], Any]] = [
        lambda: ours.translate(lines),
        lambda: list(ours.translate_iterable(lines, buffer_size=1)),
        lambda: ours.score_batch(lines, ["w1", "w2"]),
        lambda: ours.score_batch(["w1", "w2"], lines),
    ]
    if wrong is not None:
        calls.append(lambda: ours.translate(["w1", "w2"], target_prefix=lines))
    for call in calls:
        with pytest.raises(TypeError, match=told):
            call()


@pytest.mark.parametrize("wrong", ["w1", b"w1", None, 5, {"w1": "w2"}, {"w1"}])
def test_what_is_no_list_is_refused_at_once(wrong: Any) -> None:
    ours = translator()
    calls = (
        *(ours.translate, ours.translate_iterable),
        *(lambda w: ours.score_batch(["w1"], w), lambda w: ours.score_batch(w, ["w1"])),
    )
    for call in calls:
        with pytest.raises(TypeError, match=f"a list of str, but got a {type(wrong).__name__}"):
            call(wrong)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"beam": "4"}, TypeError, "beam must be a whole number, but is '4'"),
        ({"beam": 2.5}, TypeError, "beam must be a whole number, but is 2.5"),
        ({"beam": True}, TypeError, "beam must be a whole number, but is True"),
        ({"lenpen": "1"}, TypeError, "lenpen must be a number, but is '1'"),
        ({"sampling": 1}, TypeError, "sampling must be True or False, but is 1"),
    ],
)
def test_options_have_types(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        SearchOptions(**options)


def test_numbers_of_numpy_are_numbers() -> None:
    options = SearchOptions(
        beam=np.int64(3),  # type: ignore[arg-type]
        lenpen=np.float32(1),  # type: ignore[arg-type]
        sampling=np.bool_(False),  # type: ignore[arg-type]
    )
    assert options == SearchOptions(beam=3)
    assert type(options.beam) is int  # twice as many candidates fit into no byte
    drawing = SearchOptions(sampling=True, beam=1, seed=np.int64(7))  # type: ignore[arg-type]
    drawn = Translator(translator().loaded, drawing)
    assert drawn.translate(["w1"], first_line=np.int64(2))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["return_scores", "return_attention"])
def test_what_is_neither_true_nor_false_is_refused(name: str) -> None:
    for value in (1, "no", None):
        with pytest.raises(TypeError, match=f"{name} must be True or False, but is {value!r}"):
            translator().translate(["w1"], **{name: value})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="use_shortlist must be True or False, but is 'no'"):
        Translator(translator().loaded, SearchOptions(), use_shortlist="no")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["workers", "threads"])
def test_threads_that_would_fill_the_machine_are_refused(name: str, tmp_path: Path) -> None:
    """PyTorch ends the process without a word if it cannot start them."""
    given: dict[str, Any] = {name: 1_000_000}
    with pytest.raises(UserError, match=f"{name} must be at most 1024, but is 1000000"):
        Translator(translator().loaded, SearchOptions(), **given)
    with pytest.raises(UserError, match=f"{name} must be at most 1024"):
        Translator.load(tmp_path, **given)


def test_a_layer_or_length_that_is_not_there_is_refused() -> None:
    ours = translator()
    config = ours.loaded.model.config
    assert ours.mixing_matrix(config.encoder_layers - 1, 3).shape[1:] == (3, 3)
    for layer in (-1, config.encoder_layers):
        with pytest.raises(UserError, match=f"layer must be .*, but is {layer}"):
            ours.mixing_matrix(layer, 3)
    for length in (0, config.max_source_positions + 1):
        with pytest.raises(UserError, match=f"length must be at .*, but is {length}"):
            ours.mixing_matrix(0, length)
    with pytest.raises(TypeError, match="length must be a whole number, but is 'a'"):
        ours.mixing_matrix(0, "a")  # type: ignore[arg-type]


def test_what_load_did_not_make_cannot_be_pickled() -> None:
    with pytest.raises(TypeError, match=r"only a Translator from Translator\.load can be copied"):
        pickle.dumps(translator())


@pytest.mark.parametrize("name", ["batch_size", "max_tokens", "workers", "threads"])
def test_sizes_of_a_translator_are_checked(name: str, tmp_path: Path) -> None:
    loaded = translator().loaded
    wrong = [(0, UserError), (-1, UserError), ("8", TypeError), (2.0, TypeError), (None, TypeError)]
    if name == "max_tokens":
        wrong.pop()  # without a limit
    for value, error in wrong:
        given: dict[str, Any] = {name: value}
        with pytest.raises(error, match=f"{name} must be "):
            Translator(loaded, SearchOptions(), **given)
        if given != {"threads": None}:
            with pytest.raises(error, match=f"{name} must be "):
                Translator.load(tmp_path, **given)


def test_wrong_arguments_are_one_sentence() -> None:
    ours = translator()
    options: Any = {"beam": 3}
    with pytest.raises(TypeError, match="options must be SearchOptions, but is "):
        Translator(ours.loaded, options)
    for value in (0, -1):
        with pytest.raises(UserError, match="buffer_size must be at least 1"):
            ours.translate_iterable(["w1"], buffer_size=value)
        with pytest.raises(UserError, match="num_hypotheses must be at least 1"):
            ours.translate(["w1"], num_hypotheses=value)
    with pytest.raises(TypeError, match="loaded must be TranslationModel, but is 'MODEL'"):
        Translator("MODEL", SearchOptions())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="callback must be a function, but is 'print'"):
        ours.translate(["w1"], callback="print", beam_size=1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="words must be Vocabulary, but is 'de'"):
        ours.pieces("w1", "de")  # type: ignore[arg-type]
    for tokens in ("12", [1.5], ["5"]):
        with pytest.raises(TypeError, match="cannot be interpreted as an integer"):
            ours.decode(tokens)  # type: ignore[arg-type]
    for device in (None, ["cpu"]):
        with pytest.raises(TypeError, match="device must be str, but is "):
            ours.loaded.move(device)  # type: ignore[arg-type]
    for folder in (b"model", 5):
        with pytest.raises(TypeError, match="must be str or Path, but is"):
            Translator.load(folder)  # type: ignore[arg-type]


def test_coverage_ranks_by_equation_14_of_wu_et_al() -> None:
    lines = ["w1 w2 w3 w4", "w5 w6"]
    plain = translator(beam=4).translate(lines, return_attention=True)
    found = translator(beam=4).translate(lines, coverage_penalty=0.7)
    for ours, theirs in zip(found, plain, strict=True):
        expected = {}
        for translation in theirs:
            attention: Tensor = translation.attention
            total = sum(min(1.0, float(column)) and _log(column) for column in attention.sum(0))
            expected[translation.pieces] = translation.score + 0.7 * total
        assert [t.pieces for t in ours] == sorted(expected, key=lambda p: -expected[p])
        assert [t.score for t in ours] == pytest.approx(sorted(expected.values(), reverse=True))
        assert all(t.attention is None for t in ours)


def _log(column: Tensor) -> float:
    return float(column.clamp(max=1.0).log())


def test_a_callback_hears_every_token_and_may_end_a_line() -> None:
    heard: list[StepResult] = []
    lines = ["w1 w2 w3", "", "w4"]
    found = translator(beam=1).translate(lines, callback=heard.append)
    for number in (0, 2):
        steps = [step for step in heard if step.batch_id == number]
        assert [step.step for step in steps] == list(range(len(steps)))
        assert [step.is_last for step in steps] == [False] * (len(steps) - 1) + [True]
        assert " ".join(step.token for step in steps[:-1]) == found[number][0].pieces
        scores = [step.log_prob for step in steps]
        assert scores == pytest.approx(found[number][0].positional_scores, abs=1e-5)
    assert {step.batch_id for step in heard} == {0, 2}
    stopped = translator(beam=1).translate(lines, callback=lambda step: step.step == 1)
    assert [len(t[0].positional_scores) for t in stopped if t[0].text] == [3, 3]


@pytest.mark.parametrize(
    ("min_len", "prefix"), [(6, None), (1, "w9 w8 w7")], ids=["min_len", "prefix"]
)
def test_a_callback_ends_a_line_that_would_have_to_go_on(min_len: int, prefix: str | None) -> None:
    ours, lines = translator(beam=1, min_len=min_len), ["w1 w2 w3", "w4"]
    whole = ours.translate(lines, target_prefix=[prefix] * 2)
    stopped = ours.translate(lines, target_prefix=[prefix] * 2, callback=lambda s: s.step == 0)
    for (found,), (full,) in zip(stopped, whole, strict=True):
        assert found.pieces == full.pieces.split()[0]
        assert found.positional_scores[0] == pytest.approx(full.positional_scores[0], abs=1e-5)
        assert len(found.positional_scores) == 2
        assert all(map(math.isfinite, found.positional_scores))


def test_lines_of_a_longer_text_keep_their_numbers() -> None:
    heard: set[int] = set()
    ours = translator(beam=1)
    ours.translate(["w1", "w2"], first_line=7, callback=lambda step: heard.add(step.batch_id))
    assert heard == {7, 8}
    with pytest.raises(TypeError, match="first_line must be a whole number"):
        ours.translate(["w1"], first_line="7")  # type: ignore[arg-type]


def test_prefixes_of_lines() -> None:
    lines, prefixes = ["w1 w2 w3", "w4", ""], ["w9 w8", None, "w7"]
    free = translator(beam=3).translate(lines)
    found = translator(beam=3).translate(lines, target_prefix=prefixes)
    assert all(t.text.startswith("w9 w8") for t in found[0])
    assert [t.text for t in found[1]] == [t.text for t in free[1]]
    assert found[2] == free[2]
    best = translator(beam=3).translate(lines, target_prefix=prefixes, num_hypotheses=1)
    assert len(found[0]) > 1
    assert best == [these[:1] for these in found]


def test_a_prefix_is_as_long_as_its_own_line_allows() -> None:
    ours = translator(beam=2, max_len_a=1.0, max_len_b=0)
    found = ours.translate(["w1", "w1 w2 w3 w4"], target_prefix=["w9", "w9 w8 w7 w6"])
    assert [translations[0].text.split()[0] for translations in found] == ["w9", "w9"]
    assert found[1][0].text.startswith("w9 w8 w7 w6")
    with pytest.raises(
        UserError, match="has 3 tokens, but the translation of its line has at most 2"
    ):
        ours.translate(["w1", "w1 w2 w3 w4"], target_prefix=["w9 w8 w7", None])


def test_an_unknown_piece_of_a_prefix_wins() -> None:
    ours = translator(beam=3, disable_unk=True)
    (found,) = ours.translate(["w1 w2"], target_prefix=["w9 nonsense w8"])
    assert len(found) == 3
    for translation in found:
        assert translation.pieces.startswith("w9 <unk> w8")
        assert translation.pieces.count("<unk>") == 1
        assert math.isfinite(translation.score)
    both = ours.translate(["w1 w2", "w3"], target_prefix=["nonsense", None])
    assert [t.pieces.count("<unk>") for t in chain(*both)] == [1, 1, 1, 0, 0, 0]


def test_attention_needs_no_scores_and_no_more_hypotheses_than_are_returned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, lines = translator(beam=4), ["w1 w2 w3", "w4 w5"]
    attended: list[int] = []

    def counting(model: EncoderDecoder, pairs: Pairs) -> list[Tensor]:
        attended.append(len(pairs))
        return forced_attention(model, pairs)

    monkeypatch.setattr(forced, "forced_attention", counting)
    products = 0

    def count(*_: object) -> None:
        nonlocal products
        products += 1

    ours.loaded.model.decoder.output_projection.register_forward_hook(count)
    plain = ours.translate(lines, num_hypotheses=1)
    searching, products = products, 0
    found = ours.translate(lines, num_hypotheses=1, return_attention=True)
    assert products == searching
    assert attended == [2]
    assert [[t._replace(attention=None) for t in these] for these in found] == plain
    ours.translate(lines, num_hypotheses=1, coverage_penalty=0.5)
    assert attended == [2, 8]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"callback": print}, "callback needs a beam of 1"),
        ({"target_prefix": ["w1"]}, "2 lines have 1 prefixes"),
        (
            {"target_prefix": ["w1 " * 10, None]},
            "has 10 tokens, but the translation of its line has",
        ),
        ({"beam_size": 4, "sampling_topk": 5}, "beam_size 4 is for a search"),
        ({"beam_size": 2, "sampling_topp": 0.5}, "beam_size 2 is for a search"),
        ({"sampling_topk": -5}, "--sampling-topk must be above 0"),
        ({"sampling_topp": 1.5}, r"--sampling-topp must be in \(0, 1\]"),
        ({"repetition_penalty": 0.0}, "--repetition-penalty must be above 0"),
        ({"no_repeat_ngram_size": -1}, "--no-repeat-ngram-size must be at least 0"),
        ({"coverage_penalty": -1.0}, "--coverage-penalty must be at least 0"),
        ({"num_hypotheses": 9}, "num_hypotheses must be between 1 and the beam, 3"),
    ],
)
def test_options_that_do_not_fit_are_named(call: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        translator(beam=3).translate(["w1", "w2"], **call)  # type: ignore[arg-type]


@settings(deadline=None)
@given(st.lists(st.integers(1, 9), min_size=3, max_size=3), st.integers(1, 40))
def test_the_denominator_of_many_scores_is_that_of_few(shape: list[int], cached: int) -> None:
    logits = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    logits[..., 1:].masked_fill_(logits[..., 1:] < -1, -torch.inf)  # words that are not allowed
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(restrictions, "CACHED_SCORES", cached)
        found = restrictions._log_total(logits)
    torch.testing.assert_close(found, logits.exp().sum(2, keepdim=True).log())
