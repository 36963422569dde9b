"""Inflection of English and German words and noun phrases, for the words of the demo lexicon.

Cases are N A D G (nominative, accusative, dative, genitive); genders are m f n. Persons of the
German verb are numbered 0 to 4: ich, du, er/sie/es, wir, sie.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

CASES = "NADG"

# Endings by case (rows N A D G), for m f n and plural.
STRONG_DETERMINER = {
    "N": ("er", "e", "es", "e"),
    "A": ("en", "e", "es", "e"),
    "D": ("em", "er", "em", "en"),
    "G": ("es", "er", "es", "er"),
}
EIN_DETERMINER = STRONG_DETERMINER | {"N": ("", "e", "", "e"), "A": ("en", "e", "", "e")}
DEFINITE = {
    "N": ("der", "die", "das", "die"),
    "A": ("den", "die", "das", "die"),
    "D": ("dem", "der", "dem", "den"),
    "G": ("des", "der", "des", "der"),
}
RELATIVE = DEFINITE | {"D": ("dem", "der", "dem", "denen")}
STRONG_ADJECTIVE = STRONG_DETERMINER | {"G": ("en", "er", "en", "er")}
MIXED_ADJECTIVE = {
    "N": ("er", "e", "es", "en"),
    "A": ("en", "e", "es", "en"),
    "D": ("en", "en", "en", "en"),
    "G": ("en", "en", "en", "en"),
}
WEAK_ADJECTIVE = MIXED_ADJECTIVE | {"N": ("e", "e", "e", "en"), "A": ("en", "e", "e", "en")}

POSSESSIVES = {"my": "mein", "your": "dein", "his": "sein", "her": "ihr", "our": "unser"}
# English determiner, its plural, German stem.
DEMONSTRATIVES = {"this": ("these", "dies"), "which": ("which", "welch"), "every": ("", "jed")}
CONTRACTIONS = {
    "in dem": "im",
    "in das": "ins",
    "an dem": "am",
    "an das": "ans",
    "zu dem": "zum",
    "zu der": "zur",
    "von dem": "vom",
}

# ich, du, er/sie/es, wir, sie; the infinitive is the wir form.
IRREGULAR_PRESENT = {
    "sein": ("bin", "bist", "ist", "sind", "sind"),
    "haben": ("habe", "hast", "hat", "haben", "haben"),
    "werden": ("werde", "wirst", "wird", "werden", "werden"),
    "wissen": ("weiß", "weißt", "weiß", "wissen", "wissen"),
    "können": ("kann", "kannst", "kann", "können", "können"),
    "müssen": ("muss", "musst", "muss", "müssen", "müssen"),
    "sollten": ("sollte", "solltest", "sollte", "sollten", "sollten"),
    "wollen": ("will", "willst", "will", "wollen", "wollen"),
    "möchten": ("möchte", "möchtest", "möchte", "möchten", "möchten"),
}
WAR = ("war", "warst", "war", "waren", "waren")


@dataclass(frozen=True)
class Noun:
    """A noun; `gender` is m, f or n, `plural` is "" for nouns that are never counted."""

    en: str
    en_plural: str
    de: str
    gender: str
    plural: str
    weak: bool
    classes: tuple[str, ...]

    def form(self, case: str, plural: bool) -> str:
        """German form; `case` is one of N A D G."""
        if plural:
            needs_n = case == "D" and self.plural[-1] not in "ns"
            return self.plural + "n" if needs_n else self.plural
        if self.weak:
            return self.de if case == "N" else self.plural
        if case == "G" and self.gender != "f":
            one_syllable = len(re.findall("[aeiouyäöü]+", self.de.lower())) == 1
            return self.de + ("es" if one_syllable or self.de[-1] in "sßxz" else "s")
        return self.de


@dataclass(frozen=True)
class Adjective:
    """An adjective; `stem` takes the endings, `de` stands alone after the verb."""

    en: str
    de: str
    stem: str
    colour: bool
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Verb:
    """A verb with its subject classes, the slots it opens and its flags (see VERB_TABLE)."""

    en: str
    particle: str
    preposition: str
    en_past: str
    infinitive: str
    prefix: str
    du: str
    er: str
    participle: str
    auxiliary: str
    subjects: tuple[str, ...]
    slots: tuple[str, ...]
    flags: str

    def present(self, person: int) -> str:
        """German present without the prefix; persons 0 to 4: ich, du, er, wir, sie."""
        if self.infinitive in IRREGULAR_PRESENT:
            return IRREGULAR_PRESENT[self.infinitive][person]
        stem = self.infinitive.removesuffix("en")
        link = "e" if _needs_e(stem) else ""
        du = self.du or (stem + "t" if stem[-1] in "sßxz" else stem + link + "st")
        return (stem + "e", du, self.er or stem + link + "t", self.infinitive, self.infinitive)[
            person
        ]


def _needs_e(stem: str) -> bool:
    return re.search("[td]$|(ch|[^aeiouäöürlhmn])[mn]$", stem) is not None


def participle(infinitive: str, prefix: str = "") -> str:
    """Partizip II of a regular verb: gekauft, besucht, repariert, aufgemacht."""
    stem = infinitive.removesuffix("en")
    bare = stem.endswith("ier") or re.match("be|ver|ge[^b]", stem) is not None
    return prefix + ("" if bare else "ge") + stem + ("et" if _needs_e(stem) else "t")


def english_s(word: str) -> str:
    """Third person or regular plural: goes, watches, tidies, plays."""
    if word == "have":
        return "has"
    if re.search("[^aeiou]y$", word):
        return word[:-1] + "ies"
    return word + ("es" if re.search("(s|x|z|ch|sh|go)$", word) else "s")


def english_ing(word: str) -> str:
    """Present participle: lying, writing, sitting, reading."""
    if word.endswith("ie"):
        return word[:-2] + "ying"
    if re.search("[^e]e$", word):
        return word[:-1] + "ing"
    doubled = re.fullmatch("[^aeiou]*[aeiou][^aeiouwxy]|forget", word)
    return word + (word[-1] if doubled else "") + "ing"


NUMBER_TABLE = """
zero one two three four five six seven eight nine ten eleven twelve
thirteen fourteen fifteen sixteen seventeen eighteen nineteen
twenty thirty forty fifty sixty seventy eighty ninety
null eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf
dreizehn vierzehn fünfzehn sechzehn siebzehn achtzehn neunzehn
zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig
""".strip()
NUMBERS = NUMBER_TABLE.split()
UNITS_EN, TENS_EN, UNITS_DE, TENS_DE = NUMBERS[:20], NUMBERS[20:28], NUMBERS[28:48], NUMBERS[48:]


def number_words(number: int) -> tuple[str, str]:
    """English and German words of 0 to 99."""
    if number < 20:
        return UNITS_EN[number], UNITS_DE[number]
    tens, unit = divmod(number, 10)
    if unit == 0:
        return TENS_EN[tens - 2], TENS_DE[tens - 2]
    unit_de = "ein" if unit == 1 else UNITS_DE[unit]
    return f"{TENS_EN[tens - 2]}-{UNITS_EN[unit]}", f"{unit_de}und{TENS_DE[tens - 2]}"


@dataclass(frozen=True)
class Phrase:
    """A noun phrase or pronoun.

    `de` maps case to form; `kein` does the same under negation and is empty for definite phrases.
    `back` is the key in PRONOUNS of the pronoun that refers back to the phrase, if there is one.
    """

    en: str
    de: dict[str, str]
    person: int = 2
    en_object: str = ""
    kein: dict[str, str] = field(default_factory=dict)
    back: str = ""
    noun: Noun | None = None
    pronoun: bool = False

    @property
    def column(self) -> int:
        """Column of gender and number in the ending tables."""
        return 3 if self.person > 2 or self.noun is None else "mfn".index(self.noun.gender)


def _pronoun(row: str, person: int) -> Phrase:
    en, en_object, nominative, accusative, dative = row.split()
    forms = {"N": nominative, "A": accusative, "D": dative}
    return Phrase(en, forms, person, en_object, pronoun=True)


PRONOUNS = {
    "I": _pronoun("I me ich mich mir", 0),
    "you": _pronoun("you you du dich dir", 1),
    "he": _pronoun("he him er ihn ihm", 2),
    "she": _pronoun("she her sie sie ihr", 2),
    "it m": _pronoun("it it er ihn ihm", 2),
    "it f": _pronoun("it it sie sie ihr", 2),
    "it n": _pronoun("it it es es ihm", 2),
    "we": _pronoun("we us wir uns uns", 3),
    "they": _pronoun("they them sie sie ihnen", 4),
}


def noun_phrase(
    noun: Noun,
    determiner: str,
    *,
    plural: bool = False,
    adjectives: Sequence[Adjective] = (),
    number: tuple[str, str] = ("", ""),
) -> Phrase:
    """Noun phrase with every case.

    `determiner` is `the`, `a` (in the plural and for masses: no article), a possessive, a
    demonstrative or `number`, which takes the English and German word from `number`.
    """
    head_en = noun.en_plural if plural else noun.en
    words_en = " ".join([*(adjective.en for adjective in adjectives), head_en])
    bare = determiner == "a" and (plural or "mass" in noun.classes)
    if determiner == "number":
        words_en = f"{number[0]} {words_en}"
    elif determiner in DEMONSTRATIVES and plural:
        words_en = f"{DEMONSTRATIVES[determiner][0]} {words_en}"
    elif not bare:
        article = "an" if determiner == "a" and words_en[0] in "aeiou" else determiner
        words_en = f"{article} {words_en}"

    column = 3 if plural else "mfn".index(noun.gender)

    def decline(stem: str, article: Mapping[str, Sequence[str]], endings: str) -> dict[str, str]:
        tables = {"weak": WEAK_ADJECTIVE, "mixed": MIXED_ADJECTIVE, "strong": STRONG_ADJECTIVE}
        return {
            case: " ".join(
                [
                    *([stem + article[case][column]] if article else [stem] if stem else []),
                    *(adj.stem + tables[endings][case][column] for adj in adjectives),
                    noun.form(case, plural),
                ]
            )
            for case in CASES
        }

    kein: dict[str, str] = {}
    if determiner == "the":
        de = decline("", DEFINITE, "weak")
    elif determiner in DEMONSTRATIVES:
        de = decline(DEMONSTRATIVES[determiner][1], STRONG_DETERMINER, "weak")
    elif determiner in POSSESSIVES:
        de = decline(POSSESSIVES[determiner], EIN_DETERMINER, "mixed")
    elif determiner == "number":
        de = decline(number[1], {}, "strong")
    else:
        kein = decline("kein", EIN_DETERMINER, "mixed")
        de = decline("", {}, "strong") if bare else decline("ein", EIN_DETERMINER, "mixed")
    return Phrase(words_en, de, 4 if plural else 2, words_en, kein, _back(noun, plural), noun)


def _back(noun: Noun, plural: bool) -> str:
    if plural:
        return "they"
    if "person" not in noun.classes:
        return "it " + noun.gender
    # A neuter person (das Mädchen) is `es` by grammar and `sie` by sex: no pronoun refers to it.
    return {"m": "he", "f": "she", "n": ""}[noun.gender]


def name_phrase(name: str, gender: str) -> Phrase:
    """A first name, which has the same form in every case but the genitive."""
    return Phrase(name, dict.fromkeys("NAD", name), 2, name, back="he" if gender == "m" else "she")


def with_possessor(phrase: Phrase, possessor: Phrase) -> Phrase:
    """`the car` and `my brother` to `my brother's car`, `das Auto meines Bruders`."""
    en = f"{possessor.en}'s {phrase.en.removeprefix('the ')}"
    de = {case: f"{form} {possessor.de['G']}" for case, form in phrase.de.items()}
    return Phrase(en, de, phrase.person, en, back=phrase.back, noun=phrase.noun)


def with_preposition(preposition: str, form: str) -> str:
    """`in` and `dem Garten` to `im Garten`."""
    article, _, tail = form.partition(" ")
    contracted = CONTRACTIONS.get(f"{preposition} {article}")
    return f"{contracted} {tail}" if contracted else f"{preposition} {form}"
