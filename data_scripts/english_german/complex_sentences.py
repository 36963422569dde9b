"""Templates of sentences with a subordinate clause, an infinitive or two main clauses."""

from dataclasses import replace

from data_scripts.english_german.clauses import BE, Clause, noun_argument, predicate
from data_scripts.english_german.composer import Composer, suiting
from data_scripts.english_german.lexicon import FRAMES, VERBS
from data_scripts.english_german.main_clauses import Texts, both
from data_scripts.english_german.morphology import (
    PRONOUNS,
    RELATIVE,
    Noun,
    Phrase,
    noun_phrase,
)

ACTIVE = [verb for verb in VERBS if not {"s", "n"} & set(verb.flags) and verb.en != "put"]
FAIR = [("the weather is good", "das Wetter gut ist"), ("the sun is shining", "die Sonne scheint")]
FOUL = [
    ("it is raining", "es regnet"),
    ("it is snowing", "es schneit"),
    ("the weather is bad", "das Wetter schlecht ist"),
]
OUTDOORS = {"swim", "run", "go", "come", "dance", "play", "stand", "wait", "draw", "fly", "read"}
OUTDOORS |= {"eat", "drink", "write", "sing"}
# Adjectives that give a reason to want a thing.
MERITS = {"new", "beautiful", "cheap", "fast", "interesting", "famous", "funny", "fresh", "sweet"}
MERITS |= {"red", "blue", "green", "white"}


def _state(make: Composer, clause: Clause, who: Phrase) -> Clause:
    """A reason for the clause, or against it if negated: somebody has time, somebody is tired."""
    verb = clause.verb.en
    if verb == "buy" or make.chance(0.4):
        have = next(verb for verb in VERBS if verb.en == "have")
        english, german, kein = ("time", "Zeit", "keine Zeit")
        if verb == "buy":
            english, german, kein = ("money", "Geld", "kein Geld")
        thing = Phrase(english, {"A": german}, en_object=english, kein={"A": kein})
        return Clause(who, have, (noun_argument(thing, "A"),), negated=clause.negated)
    states = [("happy", "glücklich")]
    if clause.negated:
        states = [("tired", "müde"), ("ill", "krank")]
    elif verb in ("eat", "cook"):
        states = [("hungry", "hungrig")]
    return Clause(who, BE, (predicate(*make.pick(states)),))


def _referable(make: Composer, classes: tuple[str, ...] = ("person",)) -> Phrase:
    """A subject that a pronoun can stand for."""
    while True:
        subject = make.subject(classes, definite=True, plain=True)
        if subject.back or subject.pronoun:
            return subject


def because(make: Composer) -> Texts | None:
    """Verb final after weil."""
    if make.chance(0.5):
        return _because_of_object(make)
    negated = make.chance(0.4)
    going = [verb for verb in ACTIVE if verb.en in ("go", "come", "get")]
    main = make.clause(
        verbs=going if make.chance(0.3) else ACTIVE,
        subject=_referable(make, ("adult",)),
        negated=negated,
        tenses=["progressive", "present", "future", "can", "want to"],
        time="none",
    )
    who = PRONOUNS.get(main.subject.back, main.subject)
    if main.verb.en in ("go", "come", "get") and not negated:
        helping = [verb for verb in VERBS if verb.en in ("help", "visit", "call", "work", "wait")]
        reason = make.clause(
            verbs=helping, subject=who, tenses=["want to", "must", "would like to"], time="none"
        )
    else:
        reason = _state(make, main, who)
    return (
        f"{main.english()} because {reason.english()}",
        f"{main.german()}, weil {reason.german('final')}",
    )


def _because_of_object(make: Composer) -> Texts | None:
    verbs = ("buy", "wear", "take", "visit", "look", "draw", "need")
    verb = make.pick([v for v in VERBS if v.en in verbs and v.slots[0] != "A:small,person"])
    classes = [c for c in verb.slots[0].removeprefix("A:").split(",") if c != "person"]
    noun = make.noun(classes)
    plural = make.chance(0.25)
    thing = noun_phrase(noun, make.pick(["the", "this"]), plural=plural)
    main = make.clause(verbs=[verb], given=thing, sure=True)
    merits = [adjective for adjective in suiting(noun) if adjective.en in MERITS]
    if not merits:
        return None
    adjective = make.pick(merits)
    reason = Clause(
        PRONOUNS[thing.back],
        BE,
        (predicate(adjective.en, adjective.de),),
        "past" if main.tense == "past" else "present",
    )
    return (
        f"{main.english()} because {reason.english()}",
        f"{main.german()}, weil {reason.german('final')}",
    )


def that_clause(make: Composer) -> Texts:
    """Verb final after dass."""
    verb = make.pick(["know", "say", "hope", "believe"])
    frame = Clause(make.subject(["person"], definite=True), FRAMES[verb])
    tenses = ["past", "future"] if verb == "hope" else []
    inner = make.clause(negated=make.chance(0.2), tenses=tenses)
    return (
        f"{frame.english()} that {inner.english()}",
        f"{frame.german()}, dass {inner.german('final')}",
    )


def whether_clause(make: Composer) -> Texts:
    """Verb final after ob."""
    knows = make.chance(0.5)
    asker = make.subject(["person"], definite=True)
    frame = Clause(asker, FRAMES["know" if knows else "ask"], negated=knows)
    inner = make.clause(sure=True)
    return (
        f"{frame.english()} whether {inner.english()}",
        f"{frame.german()}, ob {inner.german('final')}",
    )


def if_clause(make: Composer) -> Texts:
    """Verb final after wenn, before or after the main clause."""
    subject = _referable(make, ("adult",))
    who = PRONOUNS.get(subject.back, subject)
    main = make.clause(
        verbs=ACTIVE,
        subject=subject,
        tenses=["future", "can", "want to", "should"],
        time="none",
        negated=make.chance(0.2),
    )
    last = make.chance(0.3)
    if make.chance(0.6):
        fair = (main.verb.en in OUTDOORS) != main.negated
        english, german = make.pick(FAIR if fair else FOUL)
    else:
        state = _state(make, main, who if last else subject)
        english, german = state.english(), state.german("final")
        main = main if last else replace(main, subject=who)
    if last:
        return f"{main.english()} if {english}", f"{main.german()}, wenn {german}"
    return f"if {english}, {main.english()}", f"wenn {german}, {main.german('question')}"


def relative_clause(make: Composer) -> Texts | None:
    """Relative pronoun with the gender of its noun and the case of its clause; verb final."""
    noun = make.noun(["other", "animal", "vehicle", "goods"])
    plural = make.chance(0.25)
    person = "person" in noun.classes
    roles = ["N"] if person else []
    fitting = [
        (verb, slot)
        for verb in VERBS
        for slot in verb.slots
        if slot[:2] in ("A:", "D:")
        and set(slot[2:].split(",")) & set(noun.classes)
        and {"person", "adult"} & set(verb.subjects)
    ]
    subject_verbs = [verb for verb in VERBS if set(verb.subjects) & set(noun.classes)]
    if subject_verbs:
        roles += ["N"]
    if fitting:
        roles += ["O"]
    described = make.chance(0.5)
    adjectives = [] if described else make.adjectives(noun, 0.3)
    antecedent = noun_phrase(noun, "the", plural=plural, adjectives=adjectives)
    if make.pick(roles) == "N":
        pronoun = Phrase(
            "who" if person else "that",
            {"N": RELATIVE["N"][antecedent.column]},
            antecedent.person,
            noun=noun,
        )
        inner = make.clause(verbs=subject_verbs, subject=pronoun)
        texts = inner.english(), inner.german("final")
    else:
        verb, slot = make.pick(fitting)
        subject = _short_subject(make, noun)
        inner = make.clause(verbs=[verb], subject=subject, skip=slot)
        texts = (
            inner.english("final", "whom" if person else "that"),
            inner.german("final", RELATIVE[slot[0]][antecedent.column]),
        )
    if described:
        adjective = make.pick(suiting(noun))
        verb_en, verb_de = ("are", "sind") if plural else ("is", "ist")
        return (
            f"{antecedent.en} {texts[0]} {verb_en} {adjective.en}",
            f"{antecedent.de['N']}, {texts[1]}, {verb_de} {adjective.de}",
        )
    outer_verbs = [
        verb
        for verb in VERBS
        if verb.en in ("know", "see", "draw", "find", "need")
        and verb != inner.verb
        and set(verb.slots[0][2:].split(",")) & set(noun.classes)
    ]
    if not outer_verbs:
        return None
    outer = make.clause(
        verbs=outer_verbs, subject=_short_subject(make, noun), given=antecedent, time="none"
    )
    return f"{outer.english()} {texts[0]}", f"{outer.german()}, {texts[1]}"


def _short_subject(make: Composer, avoid: Noun) -> Phrase:
    while True:
        subject = make.subject(["adult"], definite=True)
        if subject.noun != avoid and len(subject.en.split()) < 3:
            return subject


def coordination(make: Composer) -> Texts | None:
    """Two clauses with und or aber; two subjects with und."""
    tense = make.pick(["present", "past"])
    if make.chance(0.5):
        one, two = make.subject(["adult"], definite=True), make.subject(["adult"], definite=True)
        if one.pronoun or two.pronoun or one.en == two.en or (one.noun and one.noun == two.noun):
            return None
        pair = Phrase(
            f"{one.en} and {two.en}", {"N": f"{one.de['N']} und {two.de['N']}"}, 4, back="they"
        )
        return both(make.clause(subject=pair, tenses=[tense]))
    left = make.clause(verbs=ACTIVE, tenses=[tense], time="none", sure=True)
    right = make.clause(verbs=ACTIVE, tenses=[tense], time="none", sure=True)
    if left.subject.en == right.subject.en or left.verb == right.verb:
        return None
    word_en, word_de = make.pick([("and", " und"), ("but", ", aber")])
    return (
        f"{left.english()}, {word_en} {right.english()}",
        f"{left.german()}{word_de} {right.german()}",
    )


def zu_infinitive(make: Composer) -> Texts:
    """Infinitive with zu: She tries to open the door. Sie versucht, die Tür aufzumachen."""
    subject = make.subject(["adult"], definite=True)
    verb = make.pick(["try", "hope"])
    time = "none" if verb == "try" else "maybe"
    verbs = [active for active in ACTIVE if active.en != "get"]
    inner = make.clause(verbs=verbs, subject=subject, tenses=["want to"], time=time)
    english, german = inner.zu_infinitive()
    frame = Clause(subject, FRAMES[verb])
    return f"{frame.english()} {english}", f"{frame.german()}, {german}"
