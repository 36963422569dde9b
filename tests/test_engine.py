"""The engine beside fairseq-generate on the same text: the same hypotheses and scores."""

import logging
import math
import re
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from conftest import Corpus, fairseq
from resmlp_mt.engine.model_folder import TranslationModel
from resmlp_mt.engine.options import SearchOptions
from resmlp_mt.engine.translator import Translator
from resmlp_mt.engine.weights import prepared
from resmlp_mt.errors import UserError
from resmlp_mt.fairseq_plugin.conversion import load_trained
from resmlp_mt.models import resmlp_mt  # noqa: F401  registers the architectures


@pytest.fixture(scope="module")
def loaded(corpus: Corpus, trained: Path) -> TranslationModel:
    """The trained model, folded and packed."""
    translation = load_trained(trained / "checkpoint_best.pt", corpus.data, corpus.spm)
    translation.model = prepared(translation.model, "float32")
    return translation


def generated(output: str) -> dict[int, list[tuple[float, str, str]]]:
    """Scores to base e, pieces and texts of fairseq's output, by sentence."""
    found: dict[int, list[tuple[float, str, str]]] = defaultdict(list)
    pieces = re.findall(r"^H-(\d+)\t(\S+)\t(.*)$", output, re.MULTILINE)
    texts = re.findall(r"^D-\d+\t\S+\t(.*)$", output, re.MULTILINE)
    for (number, score, piece), text in zip(pieces, texts, strict=True):
        found[int(number)].append((float(score) * math.log(2), piece, text))
    return found


def test_hypotheses_and_scores_are_those_of_fairseq_generate(
    corpus: Corpus, trained: Path, loaded: TranslationModel
) -> None:
    options = SearchOptions(beam=4, lenpen=0.6, min_len=2, unkpen=1.0, temperature=1.5)
    output = fairseq(
        "generate", corpus.data, "--user-dir", "resmlp_mt", "--cpu",
        "--path", trained / "checkpoint_best.pt", "--gen-subset", "test",
        "--bpe", "sentencepiece", "--sentencepiece-model", corpus.spm,
        "--beam", options.beam, "--nbest", options.beam, "--lenpen", options.lenpen,
        "--unkpen", options.unkpen, "--temperature", options.temperature,
        "--min-len", options.min_len,
    ).stdout  # fmt: skip
    expected = generated(output)
    lines = corpus.sentences("test", "en")
    found = Translator(loaded, options, batch_size=5).translate(lines)
    assert len(found) == len(expected) == len(lines)
    for number, translations in enumerate(found):
        assert [(t.pieces, t.text) for t in translations] == [h[1:] for h in expected[number]]
        scores = [t.score for t in translations]
        assert scores == pytest.approx([h[0] for h in expected[number]], abs=1e-5)


def test_translations_are_mostly_right(corpus: Corpus, loaded: TranslationModel) -> None:
    """The equality above would hold for a broken model too."""
    found = Translator(loaded, SearchOptions(beam=4)).translate(corpus.sentences("valid", "en"))
    right = [
        t[0].text == line for t, line in zip(found, corpus.sentences("valid", "de"), strict=True)
    ]
    assert sum(right) >= 0.6 * len(right)


def test_lines_keep_their_order_and_do_not_depend_on_the_batch(
    corpus: Corpus, loaded: TranslationModel
) -> None:
    lines = corpus.sentences("test", "en")
    together = Translator(loaded, SearchOptions()).translate(lines)
    for limits in ({"batch_size": 1}, {"max_tokens": 30}):
        found = Translator(loaded, SearchOptions(), **limits).translate(lines)
        assert [[t.text for t in line] for line in found] == [
            [t.text for t in line] for line in together
        ]


def test_empty_lines_have_empty_translations(loaded: TranslationModel) -> None:
    first, second, third = Translator(loaded, SearchOptions()).translate(["", "one two", "  "])
    assert [t.text for t in first + third] == ["", ""]
    assert second[0].text
    assert Translator(loaded, SearchOptions()).translate([]) == []


@pytest.mark.parametrize(
    ("max_tokens", "limit", "remedy"),
    [(None, 40, "train with a larger --max-source-positions"), (12, 12, "raise --max-tokens")],
)
def test_a_line_that_is_too_long_is_answered_with_a_message(
    loaded: TranslationModel,
    caplog: pytest.LogCaptureFixture,
    max_tokens: int | None,
    limit: int,
    remedy: str,
) -> None:
    lines = ["one two", "seven " * 60, "three"]
    translator = Translator(loaded, SearchOptions(), max_tokens=max_tokens)
    with caplog.at_level(logging.ERROR):
        found = translator.translate(lines)
    assert [bool(t[0].text) for t in found] == [True, False, True]
    assert found[1][0].score == -math.inf
    (message,) = caplog.messages
    assert f"at most {limit} are allowed" in message
    assert remedy in message


def test_lines_longer_than_those_of_the_training_are_told_once(
    corpus: Corpus, loaded: TranslationModel, caplog: pytest.LogCaptureFixture
) -> None:
    """They are translated; the checkpoint knows the longest line, and so does the export."""
    pieces = Translator(loaded, SearchOptions())
    trained = max(len(pieces.encode(line)) for line in corpus.sentences("train", "en"))
    assert loaded.model.config.longest_trained_source == trained
    longest = "seven " * ((trained + 4) // len(pieces.pieces("seven")))
    with caplog.at_level(logging.WARNING):
        short, long, _ = pieces.translate(["one two", longest, longest])
    assert short[0].text
    assert long[0].text
    length = len(pieces.encode(longest))
    (message,) = caplog.messages
    assert message == (
        f"2 of the lines have up to {length} tokens, but the longest one of the training had "
        f"{trained}: their translations may be poor"
    )


def test_words_outside_the_vocabulary_are_unknown(loaded: TranslationModel) -> None:
    (found,) = Translator(loaded, SearchOptions()).translate(["one \u4e2d two"])
    assert found[0].text


def test_attention_and_scores_of_given_translations(
    corpus: Corpus, loaded: TranslationModel
) -> None:
    lines = corpus.sentences("test", "en")
    translator = Translator(loaded, SearchOptions(beam=3), batch_size=4)
    plain = translator.translate(lines)
    found = translator.translate(lines, return_attention=True, num_hypotheses=2)
    for line, ours, theirs in zip(lines, found, plain, strict=True):
        assert [t.text for t in ours] == [t.text for t in theirs[:2]]
        for translation in ours:
            assert translation.attention is not None
            size = len(translation.positional_scores), len(translator.encode(line))
            assert translation.attention.shape == size
    best = [translations[0] for translations in plain]
    scored = translator.score_batch(lines, [t.text for t in best])
    for given, translation in zip(scored, best, strict=True):
        if given.tokens == [*translation.pieces.split(), "</s>"]:  # as sentencepiece divides it
            assert given.log_probs == pytest.approx(translation.positional_scores, abs=1e-4)
    assert any(g.tokens[:-1] == t.pieces.split() for g, t in zip(scored, best, strict=True))


def test_scores_of_references_are_those_of_fairseq_generate(
    corpus: Corpus, trained: Path, loaded: TranslationModel
) -> None:
    output = fairseq(
        "generate", corpus.data, "--user-dir", "resmlp_mt", "--cpu", "--score-reference",
        "--path", trained / "checkpoint_best.pt", "--gen-subset", "test",
    ).stdout  # fmt: skip
    expected = dict(re.findall(r"^P-(\d+)\t(.*)$", output, re.MULTILINE))
    lines = corpus.sentences("test", "en")
    found = Translator(loaded, SearchOptions()).score_batch(lines, corpus.sentences("test", "de"))
    for number, given in enumerate(found):
        base_2 = [score / math.log(2) for score in given.log_probs]
        assert base_2 == pytest.approx([float(s) for s in expected[str(number)].split()], abs=2e-4)


def test_threads_share_a_translator(corpus: Corpus, loaded: TranslationModel) -> None:
    lines = corpus.sentences("train", "en")[:60]
    translator = Translator(loaded, SearchOptions(beam=2))
    parts = [lines[start::6] for start in range(6)]
    with ThreadPoolExecutor(6) as executor:
        found = list(executor.map(translator.translate, parts))
    for part, translations in zip(parts, found, strict=True):
        alone = translator.translate(part)
        assert [[t.text for t in line] for line in translations] == [
            [t.text for t in line] for line in alone
        ]


def test_lines_are_read_only_as_far_as_they_are_translated(
    corpus: Corpus, loaded: TranslationModel
) -> None:
    lines = corpus.sentences("test", "en")
    read = []

    def reading() -> Iterator[str]:
        for line in lines:
            read.append(line)
            yield line

    translator = Translator(loaded, SearchOptions(beam=2))
    stream = translator.translate_iterable(reading(), buffer_size=3)
    first = next(stream)
    assert len(read) == 3
    assert [t.text for t in first] == [t.text for t in translator.translate(lines[:1])[0]]
    assert len([first, *stream]) == len(lines)


def test_wrong_use_is_refused(loaded: TranslationModel) -> None:
    translator = Translator(loaded, SearchOptions(beam=2))
    with pytest.raises(UserError, match="1 lines have 2 translations"):
        translator.score_batch(["a"], ["b", "c"])
    with pytest.raises(UserError, match="has 81 tokens, but at most 40 are allowed"):
        translator.score_batch(["one"], ["acht " * 80])
