"""The demo corpus: reproducible, without repeats, well formed, and nothing in it missing."""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from scipy.stats import hypergeom

from conftest import ROOT
from data_scripts import grammar
from data_scripts.english_german.complex_sentences import OUTDOORS
from data_scripts.english_german.lexicon import (
    ADJECTIVES,
    MODALS,
    NAMES,
    NOUNS,
    TIMES,
    VERBS,
)
from data_scripts.grammar import SentencePair
from resmlp_mt.preparation import corpus

# The six files in the order valid, test, train, English before German.
GOLDEN_SHA256 = "a1af6032a5dfdd136cbd3b03b411e0af406a2bf49f91eb5feb7ca1d17277f187"


@pytest.fixture(scope="module")
def pairs() -> list[SentencePair]:
    """The default corpus: 500 for valid, 500 for test, the rest for train."""
    return grammar.generate()


def test_default_corpus_has_the_golden_digest(pairs: list[SentencePair]) -> None:
    digest = hashlib.sha256()
    parts = {"valid": pairs[:500], "test": pairs[500:1000], "train": pairs[1000:]}
    for split, part in parts.items():
        for side in ("en", "de"):
            text = "".join(f"{getattr(pair, side)}\n" for pair in part).encode()
            digest.update(text)
            packed = (corpus.FOLDER / f"demo/{split}.{side}.gz").read_bytes()
            assert gzip.decompress(packed) == text
    assert digest.hexdigest() == GOLDEN_SHA256


def test_command_writes_the_same_in_a_process_with_another_hash_seed(tmp_path: Path) -> None:
    size = ["--pairs", "1500"]
    command = [sys.executable, "-m", "data_scripts.grammar", "--output", str(tmp_path), *size]
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": "12345"})
    expected = grammar.generate(1500)
    splits = {"valid": expected[:500], "test": expected[500:1000], "train": expected[1000:]}
    assert len(list(tmp_path.iterdir())) == 6
    for split, part in splits.items():
        for side in ("en", "de"):
            written = (tmp_path / f"{split}.{side}").read_bytes()
            assert written == "".join(f"{getattr(pair, side)}\n" for pair in part).encode()


def test_other_seed_other_corpus() -> None:
    assert grammar.generate(200, seed=2) != grammar.generate(200, seed=1)


@pytest.mark.parametrize("side", ["en", "de"])
def test_no_sentence_occurs_twice_so_splits_are_disjoint(
    pairs: list[SentencePair], side: str
) -> None:
    sentences = [getattr(pair, side).casefold() for pair in pairs]
    assert len(set(sentences)) == len(sentences) == 20_000
    assert not set(sentences[:1000]) & set(sentences[1000:])


def test_sentences_are_well_formed(pairs: list[SentencePair]) -> None:
    for pair in pairs:
        for text in (pair.en, pair.de):
            assert re.fullmatch(r"[A-ZÄÖÜ][A-Za-zÄÖÜäöüß0-9', -]*[a-zäöüßA-Z][.?]", text), text
            assert not re.search("  | ,", text)
            assert grammar.MIN_WORDS <= len(text.split()) <= grammar.MAX_WORDS
        assert pair.en.endswith("?") == pair.de.endswith("?")
        assert pair.en.count(" not ") + pair.en.count("cannot") == len(
            re.findall(r"\b(?:nicht|kein(?:e[nmrs]?)?)\b", pair.de, re.IGNORECASE)
        ), pair


def test_genders_and_dative_verbs_of_the_lexicon() -> None:
    genders = {
        "m": "Mann Junge Freund Nachbar Kollege Student Polizist Bäcker Vater Großvater Bruder "
        "Onkel Sohn Hund Vogel Bär Affe Elefant Brief Apfel Kuchen Reis Käse Tee Kaffee Saft "
        "Mantel Hut Handschuh Pullover Tisch Stuhl Schrank Computer Fernseher Schlüssel Teller "
        "Regenschirm Koffer Ball Bus Zug Garten Bahnhof Park Wald See Markt Baum",
        "f": "Frau Lehrerin Ärztin Ingenieurin Künstlerin Mutter Großmutter Schwester Tante "
        "Tochter Katze Maus Kuh Zeitung Geschichte Birne Banane Orange Tomate Kartoffel Karotte "
        "Suppe Milch Jacke Mütze Uhr Lampe Tasche Tasse Flasche Blume Tür Küche Schule Kirche "
        "Bibliothek Bäckerei Stadt Brücke",
        "n": "Mädchen Kind Pferd Kaninchen Buch Gedicht Ei Brot Fleisch Wasser Hemd Bett Sofa "
        "Radio Messer Bild Geschenk Fenster Auto Fahrrad Schiff Haus Zimmer Büro Museum Hotel "
        "Dorf",
    }
    for gender, words in genders.items():
        assert sorted(noun.de for noun in NOUNS if noun.gender == gender) == sorted(words.split())
    dative = {v.prefix + v.infinitive for v in VERBS if v.slots[:1] == ("D:person",)}
    giving = {"geben", "zeigen", "schicken", "leihen", "bringen"}
    assert dative == giving | {"helfen", "danken", "antworten", "zuhören", "gehören"}


def test_agreement_over_the_whole_corpus(pairs: list[SentencePair]) -> None:
    """Articles of the right gender before every noun, whatever the adjectives between."""
    allowed = {"m": "der den dem des", "f": "die der", "n": "das dem des"}
    articles = re.compile(r"\b(der|die|das|den|dem|des) (?:[a-zäöüß]+ )*?([A-ZÄÖÜ]\w+)")
    singular = {noun.de: noun for noun in NOUNS if not noun.weak and noun.plural != noun.de}
    checked = Counter[str]()
    for pair in pairs:
        # Relative pronouns look like articles but follow a comma.
        for article, word in articles.findall(re.sub(r", \w+", ",", pair.de)):
            if word in singular:
                noun = singular[word]
                assert article in allowed[noun.gender].split(), (article, pair.de)
                checked[word] += 1
    assert len(checked) > 80


def test_every_template_and_every_word_occurs_in_train(pairs: list[SentencePair]) -> None:
    train = pairs[1000:]
    templates = Counter(pair.template for pair in train)
    assert set(templates) == {template.__name__ for template in grammar.TEMPLATES}
    assert min(templates.values()) > 300

    english = Counter(word for pair in train for word in re.findall(r"\w+", pair.en.lower()))
    german = Counter(word for pair in train for word in re.findall(r"\w+", pair.de))
    for noun in NOUNS:
        assert min(german[noun.de], english[noun.en]) >= 10, noun
        if noun.plural:
            assert min(german[noun.plural], english[noun.en_plural]) >= 1, noun
    for adjective in ADJECTIVES:
        forms = [german[adjective.stem + ending] for ending in ("e", "en", "er", "es", "em")]
        assert min(sum(forms), english[adjective.en]) >= 20, adjective
    for entry in VERBS:
        infinitive = entry.prefix + entry.infinitive
        present = german[entry.present(2)] + german[entry.prefix + entry.present(2)]
        assert present + german[entry.participle] + german[infinitive] >= 20, entry
    text = "\n".join(pair.de for pair in train)
    for _, _, time in TIMES:
        assert time in text
    assert all(german[name] >= 20 for name in NAMES)
    assert all(f" {modal} " in "\n".join(pair.en for pair in train) for modal in MODALS)
    assert {entry.en for entry in VERBS} >= OUTDOORS


def test_every_split_has_the_same_distribution(pairs: list[SentencePair]) -> None:
    """Template counts of test, as draws without replacement from the whole corpus give them."""
    everything = Counter(pair.template for pair in pairs)
    held_out = Counter(pair.template for pair in pairs[:1000])
    for template, count in everything.items():
        low, high = hypergeom.interval(1 - 1e-6, len(pairs), count, 1000)
        assert low <= held_out[template] <= high


def test_impossible_sizes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="valid \\+ test = 1000, got 1000"):
        grammar.write_corpus(tmp_path / "out", pairs=1000)
    assert not (tmp_path / "out").exists()


def test_a_german_sentence_is_not_used_for_two_english_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    templates = {
        lambda _: ("I saw her today", "ich habe sie heute gesehen"): 1,
        lambda _: ("I saw them today", "ich habe sie heute gesehen"): 1,
    }
    monkeypatch.setattr(grammar, "TEMPLATES", templates)
    assert len(grammar.generate(1)) == 1
    with pytest.raises(ValueError, match="at most the 1 that the grammar found, got 2"):
        grammar.generate(2)


def test_a_grammar_that_runs_dry_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        grammar, "TEMPLATES", {lambda _: ("the same old sentence", "immer der gleiche Satz"): 1}
    )
    with pytest.raises(ValueError, match="at most the 1 that the grammar found, got 5"):
        grammar.generate(5)


def test_the_output_of_the_commands_is_utf8_whatever_the_locale_is(tmp_path: Path) -> None:
    written = "Straße 東".encode() + b" \xff\n"
    writing = f"import sys; sys.stdout.buffer.write({written!r})"
    program = (
        "import sys; from pathlib import Path; from data_scripts import demo\n"
        f"demo.run([sys.executable, '-c', {writing!r}], Path(sys.argv[1]), quiet=True)"
    )
    legacy = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run(
        [sys.executable, "-c", program, tmp_path / "log.txt"], cwd=ROOT,
        env={**os.environ, **legacy}, check=True,
    )  # fmt: skip
    assert (tmp_path / "log.txt").read_bytes() == written


def test_text_of_other_processes_has_an_encoding() -> None:
    """``text=True`` reads it in that of the locale."""
    for folder in ("resmlp_mt", "data_scripts", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            found = re.search("text=True|universal_newlines", path.read_text(encoding="utf-8"))
            assert found is None, path
