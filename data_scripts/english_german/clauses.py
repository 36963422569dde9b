"""Clauses: one subject, one verb, its arguments, rendered side by side in English and German.

German word order has one rule: front field, finite verb, middle field, verbs at the end. The middle
field is sorted by rank: pronouns, time, dative, accusative, `nicht`, place, and last what is
closest to the verb: prepositional object, goal or predicate.
"""

from dataclasses import dataclass, replace
from typing import Literal

from data_scripts.english_german.lexicon import MODALS
from data_scripts.english_german.morphology import (
    IRREGULAR_PRESENT,
    WAR,
    Phrase,
    Verb,
    english_ing,
    english_s,
    with_preposition,
)

Order = Literal["main", "question", "final"]
PRONOUN, TIME, DATIVE, ACCUSATIVE, NICHT, PLACE, LAST = range(7)
MODAL_VERBS = {
    name: Verb("", "", "", "", german, "", "", "", "", "", (), (), "")
    for name, german in MODALS.items()
}
WERDEN = Verb("", "", "", "", "werden", "", "", "", "", "", (), (), "")
BE = Verb("be", "", "", "was", "sein", "", "", "", "gewesen", "sein", (), (), "s")


@dataclass(frozen=True)
class Argument:
    """Object or complement; `kein` is its German form under negation, if that is with kein."""

    rank: int
    en: str
    de: str
    kein: str = ""


def noun_argument(phrase: Phrase, case: str) -> Argument:
    """Accusative (A) or dative (D) object."""
    rank = PRONOUN if phrase.pronoun else DATIVE if case == "D" else ACCUSATIVE
    return Argument(rank, phrase.en_object, phrase.de[case], phrase.kein.get(case, ""))


def preposition_argument(
    english: str, german: str, phrase: Phrase, case: str, rank: int = LAST
) -> Argument:
    """Prepositional object, goal or (rank PLACE) place, with the contractions im, zur and so on."""
    german = with_preposition(german, phrase.de[case])
    return Argument(rank, f"{english} {phrase.en_object}", german)


def predicate(english: str, german: str) -> Argument:
    """Predicate after `to be`."""
    return Argument(LAST, english, german)


@dataclass(frozen=True)
class Clause:
    """`tense` is present, progressive, past, future, infinitive or the English name of a modal.

    `time` and `front_time` hold an English and a German adverbial each; the second one opens the
    main clause.
    """

    subject: Phrase
    verb: Verb
    arguments: tuple[Argument, ...] = ()
    tense: str = "present"
    negated: bool = False
    time: tuple[str, str] = ("", "")
    front_time: tuple[str, str] = ("", "")

    def english(self, order: Order = "main", front: str = "") -> str:
        """English words; `front` is a question word or relative pronoun that is not the subject."""
        aux, verb = _english_verb(self, order == "question")
        first = [self.subject.en, aux]
        if order == "question":
            first.reverse()
        negation = "not" if self.negated else ""
        if aux == "can" and self.negated and order != "question":
            first, negation = [self.subject.en, "cannot"], ""
        if order == "question" and self.negated:
            raise ValueError("negative questions are not part of this grammar")
        objects = [argument.en for argument in self.arguments]
        particle = self.verb.particle
        if particle and self.arguments and self.arguments[0].rank == PRONOUN:
            objects.insert(1, particle)
        else:
            objects.insert(0, particle)
        opening = self.front_time[0] if order != "final" else ""
        words = [opening, front, *first, negation, verb, self.verb.preposition, *objects]
        return _join([*words, self.time[0]])

    def german(self, order: Order = "main", front: str = "") -> str:
        """German words; a main clause with `front` or `front_time` inverts subject and verb."""
        subject = self.subject.de["N"]
        front = front or (self.front_time[1] if order != "final" else "")
        finite, end = _german_verb(self)
        middle = self._german_middle()
        if order == "final":
            if end and end == self.verb.prefix:
                finite, end = end + finite, ""
            return _join([front, subject, *middle, end, finite])
        if order == "question" or front:
            return _join([front, finite, subject, *middle, end])
        return _join([subject, finite, *middle, end])

    def _german_middle(self) -> list[str]:
        with_kein = self.negated and any(argument.kein for argument in self.arguments)
        ranked = [
            (argument.rank, argument.kein if with_kein and argument.kein else argument.de)
            for argument in self.arguments
        ]
        ranked.append((TIME, self.time[1]))
        if self.negated and not with_kein:
            ranked.append((NICHT, "nicht"))
        return [text for _, text in sorted(ranked, key=lambda item: item[0])]

    def zu_infinitive(self) -> tuple[str, str]:
        """The clause as `to open the door` and `die Tür aufzumachen`."""
        english = replace(self, tense="infinitive").english()
        zu = f"{self.verb.prefix}zu{self.verb.infinitive}"
        if not self.verb.prefix:
            zu = f"zu {self.verb.infinitive}"
        return english.removeprefix(f"{self.subject.en} "), _join([*self._german_middle(), zu])


def _join(words: list[str]) -> str:
    return " ".join(word for word in words if word)


def _english_verb(clause: Clause, question: bool) -> tuple[str, str]:
    """Auxiliary (or "") and full verb."""
    verb, person = clause.verb, clause.subject.person
    third = person == 2
    tense = clause.tense
    be = "am" if person == 0 else "is" if third else "are"
    was = "was" if person in (0, 2) else "were"
    if tense == "infinitive":
        return "to", verb.en
    if tense == "progressive":
        return be, english_ing(verb.en)
    if tense == "future":
        return "will", verb.en
    if tense in ("can", "must", "should"):
        return tense, verb.en
    if tense == "would like to":
        return "would", f"like to {verb.en}"
    if verb.en == "be":
        return (was if tense == "past" else be), ""
    support = question or clause.negated
    if tense == "past":
        return ("did", verb.en) if support else ("", verb.en_past)
    head, tail = ("want", f" to {verb.en}") if tense == "want to" else (verb.en, "")
    if support:
        return ("does" if third else "do"), head + tail
    return "", (english_s(head) if third else head) + tail


def _german_verb(clause: Clause) -> tuple[str, str]:
    """Finite verb and what stands at the end of the clause."""
    verb, person, tense = clause.verb, clause.subject.person, clause.tense
    infinitive = verb.prefix + verb.infinitive
    if tense in MODAL_VERBS:
        return MODAL_VERBS[tense].present(person), infinitive
    if tense == "future":
        return WERDEN.present(person), infinitive
    if tense == "past" and verb.infinitive == "sein":
        return WAR[person], ""
    if tense == "past":
        return IRREGULAR_PRESENT[verb.auxiliary][person], verb.participle
    return verb.present(person), verb.prefix
