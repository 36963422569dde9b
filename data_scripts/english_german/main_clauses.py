"""Templates of sentences with one main clause (and `contrast`, which is two short ones)."""

from collections.abc import Callable

from data_scripts.english_german.clauses import BE, Clause, noun_argument, predicate
from data_scripts.english_german.composer import Composer, suiting
from data_scripts.english_german.lexicon import FRAMES, MODALS, VERBS
from data_scripts.english_german.morphology import (
    PRONOUNS,
    Phrase,
    Verb,
    noun_phrase,
    with_possessor,
)

Texts = tuple[str, str]
BLAME = {"old", "expensive", "dirty", "heavy", "small", "tired", "hungry", "dark"}
PRAISE = {"beautiful", "new", "fast", "big", "famous", "friendly", "clever", "funny", "happy"}
PRAISE |= {"interesting", "cheap", "quiet"}
MISMATCHES = {("old", "new"), ("small", "big"), ("expensive", "cheap")}
MISMATCHES |= {("tired", "big"), ("hungry", "big")}
WHO = Phrase("who", {"N": "wer"})


def _asked(compose: Callable[[], Clause]) -> Clause:
    """A clause to ask for: not about the speaker."""
    while True:
        clause = compose()
        if clause.subject.en != "I":
            return clause


def both(clause: Clause) -> Texts:
    """English and German main clause."""
    return clause.english(), clause.german()


def statement(make: Composer) -> Texts:
    """Verb second: My aunt is buying a coat. Meine Tante kauft einen Mantel."""
    return both(make.clause())


def fronted(make: Composer) -> Texts:
    """Inversion: Yesterday Anna slept. Gestern hat Anna geschlafen."""
    return both(make.clause(time="front"))


def negation(make: Composer) -> Texts:
    """Nicht or kein."""
    if make.chance(0.3):
        return both(make.clause(negated=True, time="front", tenses=["past", "future"]))
    return both(make.clause(negated=True))


def modal(make: Composer) -> Texts:
    """Modal verb with the infinitive at the end."""
    return both(make.clause(tenses=list(MODALS)))


def future(make: Composer) -> Texts:
    """Werden with the infinitive at the end."""
    return both(make.clause(tenses=["future"]))


def yes_no_question(make: Composer) -> Texts:
    """Verb first."""
    clause = _asked(make.clause)
    return clause.english("question") + "?", clause.german("question") + "?"


def who_question(make: Composer) -> Texts:
    """Question for the subject."""
    verbs = [verb for verb in VERBS if "person" in verb.subjects]
    clause = make.clause(verbs=verbs, subject=WHO)
    return clause.english() + "?", clause.german() + "?"


def object_question(make: Composer) -> Texts:
    """What, whom: was, wen, wem."""
    slots: dict[Verb, str] = {}
    for verb in VERBS:
        for slot in verb.slots:
            case, _, classes = slot.partition(":")
            if case in "AD" and ("person" in classes) == (classes == "person"):
                slots[verb] = slot
    verb = make.pick([v for v in slots if v.en not in ("put", "love")])
    person = slots[verb].endswith(":person")
    english = "whom" if person else "what"
    german = {"A": "wen" if person else "was", "D": "wem"}[slots[verb][0]]
    clause = _asked(lambda: make.clause(verbs=[verb], skip=slots[verb], sure=True))
    return clause.english("question", english) + "?", clause.german("main", german) + "?"


def adverb_question(make: Composer) -> Texts:
    """Where, when, why: wo or wohin, wann, warum."""
    kind = make.pick(["where", "when", "why"])
    if kind == "where":
        placed = [v for v in VERBS if any("at:" in s or "to:" in s for s in v.slots)]
        verb = make.pick([v for v in placed if v.en != "come"])
        slot = next(s for s in verb.slots if "at:" in s or "to:" in s)
        clause = _asked(lambda: make.clause(verbs=[verb], skip=slot, sure=True))
        german = "wohin" if slot.startswith("to:") else "wo"
    elif kind == "when":
        clause = _asked(lambda: make.clause(tenses=["past", "future"], time="none", sure=True))
        german = "wann"
    else:
        reasoned = [verb for verb in VERBS if verb.en != "belong"]
        clause = _asked(lambda: make.clause(verbs=reasoned, time="none", sure=True))
        german = "warum"
    return clause.english("question", kind) + "?", clause.german("main", german) + "?"


def which_question(make: Composer) -> Texts | None:
    """Which coat, how many coats: welchen Mantel, wie viele Mäntel."""
    verb = make.pick([v for v in VERBS if any(s.startswith("A:") for s in v.slots)])
    slot = next(s for s in verb.slots if s.startswith("A:"))
    noun = make.noun(slot.removeprefix("A:").split(","))
    if "kin" in noun.classes or "mass" in noun.classes:
        return None
    counted = bool(noun.plural) and make.chance(0.5)
    asked = noun_phrase(
        noun,
        "number" if counted else "which",
        plural=counted or (bool(noun.plural) and make.chance(0.2)),
        adjectives=make.adjectives(noun, 0.3),
        number=("how many", "wie viele"),
    )
    clause = _asked(lambda: make.clause(verbs=[verb], skip=slot, sure=True))
    if clause.subject.noun == noun:
        return None
    return (
        clause.english("question", asked.en) + "?",
        clause.german("main", asked.de["A"]) + "?",
    )


def predicate_adjective(make: Composer) -> Texts:
    """My brother's car was not new. Das Auto meines Bruders war nicht neu."""
    noun = make.noun(["person", "pet", "text", "clothes", "furniture", "vehicle", "place", "wild"])
    subject = make.phrase(noun, definite=True, plain=True)
    owned = set(noun.classes) & {"pet", "clothes", "furniture", "owned", "room"}
    if owned and make.chance(0.6):
        plural = make.chance(0.2)
        head = noun_phrase(noun, "the", plural=plural)
        person = make.noun(["person"])
        determiner = make.pick(["my", "your", "our"] if "kin" in person.classes else ["the", "my"])
        if "own" not in person.classes and "kin" not in person.classes:
            determiner = make.pick(["the", "this"])
        subject = with_possessor(head, noun_phrase(person, determiner))
    tense = make.pick(["present", "past"])
    adjective = make.pick(suiting(noun))
    complement = predicate(adjective.en, adjective.de)
    clause = Clause(subject, BE, (complement,), tense, negated=make.chance(0.3))
    if not clause.negated and make.chance(0.2):
        return clause.english("question") + "?", clause.german("question") + "?"
    return both(clause)


def age_or_price(make: Composer) -> Texts:
    """Numbers: The coat costs 85 euros. My uncle is forty-two years old."""
    if make.chance(0.5):
        noun = make.noun(["goods"])
        subject = make.phrase(noun, definite=True)
        price = (20, 99) if {"clothes", "furniture", "machine"} & set(noun.classes) else (3, 30)
        euros = make.number(*((2, 9) if "food" in noun.classes else price))
        amount = Phrase("", {"A": f"{euros[1]} Euro"}, en_object=f"{euros[0]} euros")
        return both(Clause(subject, FRAMES["cost"], (noun_argument(amount, "A"),)))
    ages = {"grandmother": (60, 95), "grandfather": (60, 95), "student": (19, 29)}
    ages |= dict.fromkeys(("boy", "girl", "child", "son", "daughter"), (4, 16))
    ages |= dict.fromkeys(("mother", "father", "uncle", "aunt"), (35, 70))
    noun = make.noun(["person"])
    subject = make.phrase(noun, definite=True, singular=True, plain=True)
    years = make.number(*ages.get(noun.en, (22, 65)))
    text = predicate(f"{years[0]} years old", f"{years[1]} Jahre alt")
    return both(Clause(subject, BE, (text,)))


def contrast(make: Composer) -> Texts | None:
    """Pronoun that agrees with its noun: The lamp is old, but it is beautiful."""
    noun = make.noun(["clothes", "furniture", "vehicle", "pet", "building", "room", "other"])
    subject = make.phrase(noun, definite=True, plain=True)
    suited = suiting(noun)
    pairs = [
        (blame, praise)
        for blame in suited
        for praise in suited
        if blame.en in BLAME and praise.en in PRAISE and (blame.en, praise.en) not in MISMATCHES
    ]
    if not subject.back or not pairs:
        return None
    first, second = make.pick(pairs)
    if make.chance(0.4):
        first, second = second, first
    left = Clause(subject, BE, (predicate(first.en, first.de),))
    right = Clause(PRONOUNS[subject.back], BE, (predicate(second.en, second.de),))
    return (
        f"{left.english()}, but {right.english()}",
        f"{left.german()}, aber {right.german()}",
    )
