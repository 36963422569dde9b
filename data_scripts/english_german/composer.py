"""Chooses words at random that make sense together: phrases, clauses and their times."""

import random
from collections.abc import Sequence
from functools import cache
from typing import TypeVar

from data_scripts.english_german.clauses import (
    LAST,
    PLACE,
    Argument,
    Clause,
    noun_argument,
    preposition_argument,
)
from data_scripts.english_german.lexicon import (
    ADJECTIVES,
    MODALS,
    NAMES,
    NOUN,
    NOUNS,
    PLACES,
    TIMES,
    VERBS,
)
from data_scripts.english_german.morphology import (
    POSSESSIVES,
    PRONOUNS,
    Adjective,
    Noun,
    Phrase,
    Verb,
    name_phrase,
    noun_phrase,
    number_words,
)

Item = TypeVar("Item")
OWN = {"I": "my", "you": "your", "he": "his", "she": "her", "we": "our"}
TENSE_WEIGHTS = {"present": 2.0, "past": 1.2, "future": 0.7}
OWNED = {"own", "pet", "clothes", "small", "machine", "owned", "furniture", "room"}


@cache
def nouns_of(classes: tuple[str, ...]) -> list[Noun]:
    """The nouns of at least one of the classes."""
    return [noun for noun in NOUNS if not set(classes).isdisjoint(noun.classes)]


@cache
def suiting(noun: Noun) -> list[Adjective]:
    """Every adjective that suits the noun."""
    return [a for a in ADJECTIVES if not set(a.classes).isdisjoint(noun.classes)]


@cache
def tenses_of(flags: str, time: str, negated: bool = False) -> list[str]:
    """Tenses that suit verbs with these flags: a state is neither willed nor promised.

    For `time` see `Composer.clause`.
    """
    stative = "s" in flags
    found = [] if "d" in flags or (stative and time == "front") else ["present"]
    if "p" not in flags and ("t" not in flags or time == "front"):
        found.append("past")
    if not stative and "f" not in flags:
        found.append("future")
    if not stative and "n" not in flags:
        found += [m for m in MODALS if not negated or m not in ("must", "would like to")]
    return found


class Composer:
    """Draws from one random stream, using only `random()`, whose values never change."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed).random

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self._random() < probability

    def pick(self, items: Sequence[Item], weights: Sequence[float] = ()) -> Item:
        """One item, with equal or given weights."""
        if not weights:
            return items[int(self._random() * len(items))]
        point = self._random() * sum(weights)
        for item, weight in zip(items, weights, strict=True):
            point -= weight
            if point < 0:
                return item
        return items[-1]

    def shuffled(self, items: Sequence[Item]) -> list[Item]:
        """The items in random order."""
        keys = [self._random() for _ in items]
        return [items[i] for i in sorted(range(len(items)), key=keys.__getitem__)]

    def number(self, low: int, high: int) -> tuple[str, str]:
        """English and German number.

        Numbers up to twelve are words, tens and 21 to 29 are words or digits, others are digits, so
        that each number word is frequent enough to be learnt.
        """
        number = low + int(self._random() * (high - low + 1))
        spelled = number % 10 == 0 or 20 < number < 30
        if number <= 12 or (spelled and self.chance(0.5)):
            return number_words(number)
        return str(number), str(number)

    def noun(self, classes: Sequence[str], used: Sequence[Noun] = ()) -> Noun:
        """A noun of one of the classes that is not used already."""
        return self.pick([noun for noun in nouns_of(tuple(classes)) if noun not in used])

    def adjectives(self, noun: Noun, probability: float = 0.4) -> list[Adjective]:
        """No, one or two adjectives that suit the noun, in the order that both languages share."""
        found: list[Adjective] = []
        for colour, share in ((False, probability), (True, probability / 2)):
            suited = [a for a in suiting(noun) if a.colour == colour]
            if suited and self.chance(share):
                found.append(self.pick(suited))
        return found

    def phrase(
        self,
        noun: Noun,
        owner: Phrase | None = None,
        *,
        definite: bool = False,
        counted: bool = True,
        singular: bool = False,
        plain: bool = False,
    ) -> Phrase:
        """Noun phrase with a fitting determiner; `owner` is the subject, if this is another phrase.

        `definite` excludes articles that would need kein, `counted=False` excludes numbers,
        `singular` the plural, and `plain` adjectives.
        """
        if "mass" in noun.classes:
            determiner = "the" if definite or self.chance(0.4) else "a"
            return noun_phrase(noun, determiner, adjectives=self.adjectives(noun))
        plural = bool(noun.plural) and self.chance(0.25) and not singular
        if "kin" in noun.classes:
            determiner = self._possessive(owner)
        else:
            options = {"the": 10.0, "this": 2.0}
            if OWNED & set(noun.classes):
                options["possessive"] = 5.0
            if not definite:
                options |= {"a": 7.0, "number": 4.0 if plural and counted else 0.0}
                if owner is None and "person" in noun.classes and not plural:
                    options["every"] = 1.0
            determiner = self.pick(list(options), list(options.values()))
            if determiner == "possessive":
                determiner = self._possessive(owner)
        number = self.number(2, 40 if {"food", "plant"} & set(noun.classes) else 12)
        probability = 0.0 if plain else 0.15 if "kin" in noun.classes else 0.4
        adjectives = self.adjectives(noun, probability)
        return noun_phrase(noun, determiner, plural=plural, adjectives=adjectives, number=number)

    def _possessive(self, owner: Phrase | None) -> str:
        if owner is None:
            return self.pick(list(POSSESSIVES))
        own = OWN.get(owner.back or owner.en)
        return own if own and self.chance(0.7) else self.pick(["my", "your", "our"])

    def subject(
        self, classes: Sequence[str], *, definite: bool = False, plain: bool = False
    ) -> Phrase:
        """Subject: a pronoun, a name or a noun for persons, else a noun."""
        if {"person", "adult"} & set(classes):
            kind = self.pick(["pronoun", "name", "noun"], [4, 2, 5])
            if kind == "pronoun":
                return PRONOUNS[
                    self.pick(["I", "you", "he", "she", "we", "they"], [2, 2, 1, 1, 1, 1])
                ]
            if kind == "name":
                return name_phrase(*self.pick(list(NAMES.items())))
        noun = self.noun(classes)
        if not {"person", "animal"} & set(noun.classes):
            plural = self.chance(0.25)
            adjectives = self.adjectives(noun)
            determiner = self.pick(["the", "this"], [4, 1])
            return noun_phrase(noun, determiner, plural=plural, adjectives=adjectives)
        return self.phrase(noun, definite=definite, plain=plain)

    def _object(
        self, classes: Sequence[str], subject: Phrase, used: list[Noun], **choice: bool
    ) -> Phrase:
        if "person" in classes and self.chance(0.3):
            mine = {"I": "I we", "we": "I we", "you": "you", "he": "he", "she": "she"}
            barred = [*mine.get(subject.en, "").split(), subject.en]
            free = [p for p in ("I", "you", "he", "she", "we", "they") if p not in barred]
            return PRONOUNS[self.pick(free)]
        noun = self.noun(classes, used)
        used.append(noun)
        return self.phrase(noun, subject, **choice)

    def place(self, kind: str, spot: str, used: list[Noun], *, definite: bool) -> Argument:
        """Place of a class of PLACES: `at` is where something happens, `to` is where it goes."""
        rows = [row for row in PLACES if row[0] == spot]
        _, english, german, nouns = self.pick(rows, [len(row[3]) for row in rows])
        noun = NOUN[self.pick([n for n in nouns if NOUN[n] not in used])]
        determiner = "the" if definite else self.pick(["the", "this", "a", "our"], [8, 1, 1, 1])
        if determiner == "our" and not {"room", "furniture"} & set(noun.classes):
            determiner = "the"
        phrase = noun_phrase(noun, determiner, adjectives=self.adjectives(noun, 0.25))
        rank = PLACE if kind == "at" else LAST
        directed = german in ("durch", "um") or (kind == "to" and german != "zu")
        return preposition_argument(english, german, phrase, "A" if directed else "D", rank)

    def arguments(
        self,
        verb: Verb,
        subject: Phrase,
        *,
        negated: bool = False,
        skip: str = "",
        given: Phrase | None = None,
    ) -> tuple[Argument, ...]:
        """Fills the slots of the verb.

        The slot `skip` stays empty (a question or relative pronoun stands for it); `given` fills
        the accusative.
        """
        used = [subject.noun] if subject.noun else []
        if given and given.noun:
            used.append(given.noun)
        found: list[Argument] = []
        for slot in verb.slots:
            optional = slot.startswith("?")
            if slot == skip or (optional and (negated or skip or self.chance(0.6))):
                continue
            kind, _, classes = slot.removeprefix("?").partition(":")
            if kind in ("at", "to"):
                found.append(self.place(kind, classes, used, definite=negated))
                continue
            frame, _, case = kind.rpartition("/")
            if case == "A" and given:
                found.append(noun_argument(given, "A"))
                continue
            sure = negated and (case != "A" or bool(frame))
            phrase = self._object(
                classes.split(","), subject, used, definite=sure, counted=not negated
            )
            english, _, german = frame.partition("=")
            if frame:
                found.append(preposition_argument(english, german, phrase, case))
            else:
                found.append(noun_argument(phrase, case))
        return tuple(found)

    def clause(
        self,
        *,
        verbs: Sequence[Verb] = (),
        subject: Phrase | None = None,
        negated: bool = False,
        tenses: Sequence[str] = (),
        time: str = "maybe",
        skip: str = "",
        given: Phrase | None = None,
        sure: bool = False,
    ) -> Clause:
        """A clause with a verb of `verbs` (all by default) that allows one of `tenses`.

        `time` is the place of an adverbial of time: `maybe` (in the middle field or nowhere),
        `front` or `none`. `sure` asks for a definite subject.
        """
        tenses = tenses or ["present", "past", "future", *MODALS]
        if "progressive" in tenses:
            tenses = [*tenses, "present"]
        wanted = [
            v
            for v in verbs or VERBS
            if not set(tenses).isdisjoint(tenses_of(v.flags, time, negated))
        ]
        if subject:
            kinds = set(subject.noun.classes) if subject.noun else {"person", "adult"}
            wanted = [v for v in wanted if kinds & set(v.subjects)]
        verb = self.pick(wanted)
        subject = subject or self.subject(verb.subjects, definite=negated or sure)
        possible = [t for t in tenses_of(verb.flags, time, negated) if t in tenses]
        if subject.noun and "person" not in subject.noun.classes:
            unwilled = ("must", "should", "would like to")
            possible = [t for t in possible if t not in unwilled] or possible
        tense = self.pick(possible, [TENSE_WEIGHTS.get(t, 0.35) for t in possible])
        adverbial = ("", "")
        if not negated or time == "front":
            adverbial, tense = self._adverbial(verb, tense, time)
        elif tense == "present" and "s" not in verb.flags:
            tense = "progressive"
        arguments = self.arguments(verb, subject, negated=negated, skip=skip, given=given)
        front = adverbial if time == "front" else ("", "")
        middle = ("", "") if time == "front" else adverbial
        return Clause(subject, verb, arguments, tense, negated, middle, front)

    def _adverbial(self, verb: Verb, tense: str, time: str) -> tuple[tuple[str, str], str]:
        kinds = {"past": "past", "future": "coming"} | dict.fromkeys(MODALS, "coming")
        kind = kinds.get(tense, "habit")
        if tense == "present" and "s" in verb.flags:
            kind = ""
        elif tense == "present" and (time == "none" or "e" in verb.flags or self.chance(0.6)):
            kind, tense = "now", "progressive"
        if kind != "habit" and (time == "none" or (time == "maybe" and self.chance(0.6))):
            return ("", ""), tense
        if "c" in verb.flags and tense != "progressive" and self.chance(0.6):
            english, german = number_words(2 + int(self._random() * 11))
            return (f"at {english} o'clock", f"um {german} Uhr"), tense
        options = [(english, german) for row, english, german in TIMES if row == kind]
        return (self.pick(options) if options else ("", "")), tense
