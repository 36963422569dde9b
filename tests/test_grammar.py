"""The demo grammar against the paradigms of German school grammar (Duden, Die Grammatik)."""

from __future__ import annotations

import pytest

from data_scripts.english_german.clauses import (
    BE,
    PLACE,
    Clause,
    noun_argument,
    predicate,
    preposition_argument,
)
from data_scripts.english_german.lexicon import ADJECTIVES, FRAMES, NOUN, NOUNS, VERBS
from data_scripts.english_german.morphology import (
    PRONOUNS,
    RELATIVE,
    Phrase,
    Verb,
    english_ing,
    english_s,
    noun_phrase,
    number_words,
    with_possessor,
    with_preposition,
)

ADJECTIVE = {adjective.en: adjective for adjective in ADJECTIVES}


def verb(infinitive: str, prefix: str = "") -> Verb:
    """The verb of the lexicon with this infinitive."""
    return next(v for v in VERBS if v.infinitive == infinitive and v.prefix == prefix)


# --- declension -------------------------------------------------------------------------------

# Nominative, accusative, dative, genitive; from the paradigms "starke, gemischte, schwache
# Deklination" of the adjective, here with `klein` and `alt`.
DECLENSION = {
    ("the", "dog", "small"): "der kleine Hund/den kleinen Hund/dem kleinen Hund/des kleinen Hundes",
    (
        "the",
        "cat",
        "small",
    ): "die kleine Katze/die kleine Katze/der kleinen Katze/der kleinen Katze",
    (
        "the",
        "house",
        "small",
    ): "das kleine Haus/das kleine Haus/dem kleinen Haus/des kleinen Hauses",
    ("the", "dogs", "small"): (
        "die kleinen Hunde/die kleinen Hunde/den kleinen Hunden/der kleinen Hunde"
    ),
    ("a", "dog", "small"): (
        "ein kleiner Hund/einen kleinen Hund/einem kleinen Hund/eines kleinen Hundes"
    ),
    ("a", "cat", "small"): (
        "eine kleine Katze/eine kleine Katze/einer kleinen Katze/einer kleinen Katze"
    ),
    ("a", "house", "small"): (
        "ein kleines Haus/ein kleines Haus/einem kleinen Haus/eines kleinen Hauses"
    ),
    ("a", "dogs", "small"): "kleine Hunde/kleine Hunde/kleinen Hunden/kleiner Hunde",
    ("my", "dog", "small"): (
        "mein kleiner Hund/meinen kleinen Hund/meinem kleinen Hund/meines kleinen Hundes"
    ),
    ("our", "cat", "small"): (
        "unsere kleine Katze/unsere kleine Katze/unserer kleinen Katze/unserer kleinen Katze"
    ),
    ("her", "house", "small"): (
        "ihr kleines Haus/ihr kleines Haus/ihrem kleinen Haus/ihres kleinen Hauses"
    ),
    ("his", "dogs", "small"): (
        "seine kleinen Hunde/seine kleinen Hunde/seinen kleinen Hunden/seiner kleinen Hunde"
    ),
    ("this", "dog", "small"): (
        "dieser kleine Hund/diesen kleinen Hund/diesem kleinen Hund/dieses kleinen Hundes"
    ),
    ("which", "cat", "small"): (
        "welche kleine Katze/welche kleine Katze/welcher kleinen Katze/welcher kleinen Katze"
    ),
    ("every", "house", "small"): (
        "jedes kleine Haus/jedes kleine Haus/jedem kleinen Haus/jedes kleinen Hauses"
    ),
    ("this", "dogs", "small"): (
        "diese kleinen Hunde/diese kleinen Hunde/diesen kleinen Hunden/dieser kleinen Hunde"
    ),
    ("a", "coffee", "hot"): "heißer Kaffee/heißen Kaffee/heißem Kaffee/heißen Kaffees",
    ("a", "milk", "cold"): "kalte Milch/kalte Milch/kalter Milch/kalter Milch",
    ("a", "water", "cold"): "kaltes Wasser/kaltes Wasser/kaltem Wasser/kalten Wassers",
    # n-declension
    ("the", "student", "old"): (
        "der alte Student/den alten Studenten/dem alten Studenten/des alten Studenten"
    ),
    ("a", "boy", "clever"): "ein kluger Junge/einen klugen Jungen/einem klugen Jungen/"
    "eines klugen Jungen",
    ("my", "neighbor", "old"): (
        "mein alter Nachbar/meinen alten Nachbarn/meinem alten Nachbarn/meines alten Nachbarn"
    ),
    # stems that lose their e
    ("the", "room", "dark"): (
        "das dunkle Zimmer/das dunkle Zimmer/dem dunklen Zimmer/des dunklen Zimmers"
    ),
    (
        "a",
        "hat",
        "expensive",
    ): "ein teurer Hut/einen teuren Hut/einem teuren Hut/eines teuren Hutes",
}
PLURALS = {noun.en_plural: noun for noun in NOUNS}


@pytest.mark.parametrize(("words", "forms"), DECLENSION.items(), ids=" ".join)
def test_articles_adjectives_and_nouns_decline(words: tuple[str, str, str], forms: str) -> None:
    determiner, noun, adjective = words
    phrase = noun_phrase(
        NOUN.get(noun) or PLURALS[noun],
        determiner,
        plural=noun not in NOUN,
        adjectives=[ADJECTIVE[adjective]],
    )
    assert "/".join(phrase.de[case] for case in "NADG") == forms


def test_kein_declines_like_ein_and_has_a_plural() -> None:
    adjectives = [ADJECTIVE["small"]]
    one = noun_phrase(NOUN["dog"], "a", adjectives=adjectives)
    assert [one.kein[case] for case in "NADG"] == [
        "kein kleiner Hund",
        "keinen kleinen Hund",
        "keinem kleinen Hund",
        "keines kleinen Hundes",
    ]
    many = noun_phrase(NOUN["dog"], "a", plural=True, adjectives=adjectives)
    assert [many.kein[case] for case in "NADG"] == [
        "keine kleinen Hunde",
        "keine kleinen Hunde",
        "keinen kleinen Hunden",
        "keiner kleinen Hunde",
    ]


def test_dative_plural_takes_n_unless_it_ends_in_n_or_s() -> None:
    nouns = ["child", "apple", "brother", "woman", "radio", "museum"]
    datives = "Kindern Äpfeln Brüdern Frauen Radios Museen"
    assert " ".join(NOUN[noun].form("D", True) for noun in nouns) == datives


def test_relative_pronouns() -> None:
    assert RELATIVE["N"] == ("der", "die", "das", "die")
    assert RELATIVE["A"] == ("den", "die", "das", "die")
    assert RELATIVE["D"] == ("dem", "der", "dem", "denen")


def test_contractions_and_the_ones_that_do_not_exist() -> None:
    contracted = {
        **{"in dem Haus": "im Haus", "in das Haus": "ins Haus", "an dem See": "am See"},
        **{"zu dem See": "zum See", "zu der Frau": "zur Frau", "von dem Hund": "vom Hund"},
        **{"an das Bett": "ans Bett"},
    }
    full = ["in den Garten", "auf dem Tisch", "in diesem Haus", "von der Frau", "durch das Dorf"]
    for text, expected in (contracted | {text: text for text in full}).items():
        assert with_preposition(*text.split(" ", 1)) == expected


def test_possessor_is_genitive() -> None:
    car = noun_phrase(NOUN["car"], "the")
    brother = noun_phrase(NOUN["brother"], "my")
    neighbor = noun_phrase(NOUN["neighbor"], "the")
    assert with_possessor(car, brother).en == "my brother's car"
    assert with_possessor(car, brother).de["N"] == "das Auto meines Bruders"
    assert with_possessor(car, neighbor).de["D"] == "dem Auto des Nachbarn"


# --- conjugation ------------------------------------------------------------------------------

CONJUGATION = {
    "kaufen": "kaufe kaufst kauft kaufen kaufen gekauft",
    "arbeiten": "arbeite arbeitest arbeitet arbeiten arbeiten gearbeitet",
    "zeichnen": "zeichne zeichnest zeichnet zeichnen zeichnen gezeichnet",
    "wohnen": "wohne wohnst wohnt wohnen wohnen gewohnt",
    "sitzen": "sitze sitzt sitzt sitzen sitzen gesessen",
    "lesen": "lese liest liest lesen lesen gelesen",
    "geben": "gebe gibst gibt geben geben gegeben",
    "waschen": "wasche wäschst wäscht waschen waschen gewaschen",
    "haben": "habe hast hat haben haben gehabt",
    "besuchen": "besuche besuchst besucht besuchen besuchen besucht",
    "verkaufen": "verkaufe verkaufst verkauft verkaufen verkaufen verkauft",
    "reparieren": "repariere reparierst repariert reparieren reparieren repariert",
    "gehören": "gehöre gehörst gehört gehören gehören gehört",
}


@pytest.mark.parametrize("infinitive", CONJUGATION)
def test_present_and_participle(infinitive: str) -> None:
    entry = verb(infinitive)
    forms = [entry.present(person) for person in range(5)] + [entry.participle]
    assert " ".join(forms) == CONJUGATION[infinitive]


def test_participles_of_separable_verbs() -> None:
    expected = {
        ("auf", "machen"): "aufgemacht",
        ("zu", "hören"): "zugehört",
        ("an", "probieren"): "anprobiert",
        ("auf", "stehen"): "aufgestanden",
        ("mit", "nehmen"): "mitgenommen",
    }
    assert {key: verb(key[1], key[0]).participle for key in expected} == expected


def test_perfect_with_sein_for_motion_and_change_of_state() -> None:
    moving = "gehen kommen laufen fliegen schwimmen aufstehen einschlafen ankommen abfahren"
    assert {v.prefix + v.infinitive for v in VERBS if v.auxiliary == "sein"} == {*moving.split()}


def test_english_inflection() -> None:
    words = ["go", "watch", "tidy", "play", "have", "wash"]
    assert [english_s(word) for word in words] == [
        *("goes", "watches", "tidies", "plays", "has", "washes"),
    ]
    words = ["lie", "write", "sit", "read", "see", "forget", "draw", "visit", "put", "open"]
    assert [english_ing(word) for word in words] == [
        *("lying", "writing", "sitting", "reading", "seeing"),
        *("forgetting", "drawing", "visiting", "putting", "opening"),
    ]


def test_number_words() -> None:
    assert number_words(1) == ("one", "eins")
    assert number_words(12) == ("twelve", "zwölf")
    assert number_words(17) == ("seventeen", "siebzehn")
    assert number_words(30) == ("thirty", "dreißig")
    assert number_words(21) == ("twenty-one", "einundzwanzig")
    assert number_words(99) == ("ninety-nine", "neunundneunzig")


# --- sentences --------------------------------------------------------------------------------


def the(noun: str, determiner: str = "the", *, plural: bool = False) -> Phrase:
    """Noun phrase without adjectives."""
    return noun_phrase(NOUN[noun], determiner, plural=plural)


DOOR = noun_argument(the("door"), "A")
COAT = noun_argument(the("coat", "a"), "A")
ANNA = Phrase("Anna", dict.fromkeys("NAD", "Anna"), en_object="Anna")
BUY, OPEN, SLEEP = verb("kaufen"), verb("machen", "auf"), verb("schlafen")
IN_GARDEN = preposition_argument("in", "in", the("garden"), "D", PLACE)
YESTERDAY = ("yesterday", "gestern")
ME, YOU, SHE, WE = (PRONOUNS[name] for name in ("I", "you", "she", "we"))

MAIN = [
    # verb second, with the subject and with something else in front
    (Clause(ANNA, BUY, (COAT,), "progressive"), "Anna is buying a coat", "Anna kauft einen Mantel"),
    (
        Clause(ANNA, BUY, (COAT,), "past", front_time=YESTERDAY),
        "yesterday Anna bought a coat",
        "gestern hat Anna einen Mantel gekauft",
    ),
    (
        Clause(ANNA, BUY, (COAT,), "past", time=YESTERDAY),
        "Anna bought a coat yesterday",
        "Anna hat gestern einen Mantel gekauft",
    ),
    # modal and future: infinitive at the end
    (
        Clause(ME, OPEN, (DOOR,), "want to"),
        "I want to open the door",
        "ich will die Tür aufmachen",
    ),
    (Clause(SHE, OPEN, (DOOR,), "future"), "she will open the door", "sie wird die Tür aufmachen"),
    # separable verb
    (Clause(YOU, OPEN, (DOOR,)), "you open the door", "du machst die Tür auf"),
    (Clause(YOU, OPEN, (DOOR,), "past"), "you opened the door", "du hast die Tür aufgemacht"),
    (
        Clause(ANNA, BUY, (noun_argument(the("coat"), "A"),), "past", True),
        "Anna did not buy the coat",
        "Anna hat den Mantel nicht gekauft",
    ),
    # nicht after objects, before places, predicates, infinitives and particles; kein
    (
        Clause(ANNA, OPEN, (DOOR,), "progressive", True),
        "Anna is not opening the door",
        "Anna macht die Tür nicht auf",
    ),
    (
        Clause(ANNA, OPEN, (DOOR,), "can", True),
        "Anna cannot open the door",
        "Anna kann die Tür nicht aufmachen",
    ),
    (
        Clause(the("cat"), SLEEP, (IN_GARDEN,), "past", True),
        "the cat did not sleep in the garden",
        "die Katze hat nicht im Garten geschlafen",
    ),
    (
        Clause(the("house"), BE, (predicate("old", "alt"),), "past", True),
        "the house was not old",
        "das Haus war nicht alt",
    ),
    (
        Clause(ANNA, BUY, (COAT,), "past", True),
        "Anna did not buy a coat",
        "Anna hat keinen Mantel gekauft",
    ),
    (
        Clause(WE, BUY, (noun_argument(the("apple", "a", plural=True), "A"),), "want to", True),
        "we do not want to buy apples",
        "wir wollen keine Äpfel kaufen",
    ),
    # pronoun objects first, and before the particle in English
    (
        Clause(SHE, verb("holen", "ab"), (noun_argument(ME, "A"),), "past", time=YESTERDAY),
        "she picked me up yesterday",
        "sie hat mich gestern abgeholt",
    ),
    # place before prepositional object
    (
        Clause(
            ME,
            verb("warten"),
            (
                preposition_argument("for", "auf", the("bus"), "A"),
                preposition_argument("at", "an", the("station"), "D", PLACE),
            ),
            "progressive",
        ),
        "I am waiting for the bus at the station",
        "ich warte am Bahnhof auf den Bus",
    ),
    # dative verb, n-declension
    (
        Clause(ME, verb("helfen"), (noun_argument(the("student"), "D"),), "future"),
        "I will help the student",
        "ich werde dem Studenten helfen",
    ),
]


@pytest.mark.parametrize(("clause", "english", "german"), MAIN, ids=[row[2] for row in MAIN])
def test_main_clause(clause: Clause, english: str, german: str) -> None:
    assert (clause.english(), clause.german()) == (english, german)


FINAL = [
    (Clause(ANNA, OPEN, (DOOR,)), "Anna die Tür aufmacht"),
    (Clause(ANNA, OPEN, (DOOR,), "past"), "Anna die Tür aufgemacht hat"),
    (Clause(ANNA, OPEN, (DOOR,), "must"), "Anna die Tür aufmachen muss"),
    (Clause(ME, BUY, (COAT,), "past", True, YESTERDAY), "ich gestern keinen Mantel gekauft habe"),
    (
        Clause(SHE, BE, (predicate("tired", "müde"),), front_time=YESTERDAY),
        "sie müde ist",
    ),
]


@pytest.mark.parametrize(("clause", "german"), FINAL, ids=[row[1] for row in FINAL])
def test_subordinate_clause_has_its_verb_at_the_end(clause: Clause, german: str) -> None:
    assert clause.german("final") == german


def test_questions() -> None:
    asks = Clause(the("boy"), verb("essen"), (noun_argument(the("apple"), "A"),), "past")
    assert asks.english("question") == "did the boy eat the apple"
    assert asks.german("question") == "hat der Junge den Apfel gegessen"
    where = Clause(SHE, verb("gehen"), (), "would like to")
    assert where.english("question", "where") == "where would she like to go"
    assert where.german("main", "wohin") == "wohin möchte sie gehen"
    know = Clause(YOU, FRAMES["know"])
    assert know.english("question", "what") == "what do you know"
    with pytest.raises(ValueError, match="negative questions"):
        Clause(SHE, SLEEP, (), "past", True).english("question")


def test_zu_stands_between_prefix_and_verb() -> None:
    assert Clause(ME, OPEN, (DOOR,)).zu_infinitive() == ("to open the door", "die Tür aufzumachen")
    assert Clause(ME, BUY, (COAT,)).zu_infinitive() == ("to buy a coat", "einen Mantel zu kaufen")


def test_numbers_take_the_strong_plural() -> None:
    phrase = noun_phrase(
        NOUN["dog"],
        "number",
        plural=True,
        adjectives=[ADJECTIVE["small"]],
        number=("three", "drei"),
    )
    assert (phrase.en, phrase.de["A"]) == ("three small dogs", "drei kleine Hunde")
    assert phrase.de["D"] == "drei kleinen Hunden"


def test_indefinite_article_before_a_vowel() -> None:
    assert [the(noun, "a").en for noun in ("apple", "umbrella", "hat", "engineer")] == [
        *("an apple", "an umbrella", "a hat", "an engineer"),
    ]
    assert noun_phrase(NOUN["apple"], "a", adjectives=[ADJECTIVE["red"]]).en == "a red apple"
    assert noun_phrase(NOUN["hat"], "a", adjectives=[ADJECTIVE["old"]]).en == "an old hat"
