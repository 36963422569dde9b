"""A hand-written English-German grammar.

    python -m data_scripts.grammar --output DIR

The corpus ``demo`` of the package is its text, packed by gzip.

Every English sentence has exactly one German translation, chosen by rule: simple past is Perfekt,
the progressive form is the plain present, `will` is `werden`, `you` is `du`, an indefinite object
is negated with `kein` and everything else with `nicht`. No sentence of either language occurs
twice.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from data_scripts.english_german import complex_sentences, main_clauses
from data_scripts.english_german.composer import Composer
from resmlp_mt.command_line import Parser, command, flags
from resmlp_mt.files import write_text
from resmlp_mt.option_types import POSITIVE, number

MIN_WORDS, MAX_WORDS = 4, 16


class SentencePair(NamedTuple):
    """A sentence, its translation and the name of the template that made them."""

    en: str
    de: str
    template: str = ""


TEMPLATES: dict[Callable[[Composer], main_clauses.Texts | None], int] = {
    main_clauses.statement: 14,
    main_clauses.fronted: 12,
    main_clauses.negation: 10,
    main_clauses.modal: 6,
    main_clauses.future: 4,
    main_clauses.yes_no_question: 7,
    main_clauses.who_question: 3,
    main_clauses.object_question: 3,
    main_clauses.adverb_question: 5,
    main_clauses.which_question: 4,
    complex_sentences.because: 7,
    complex_sentences.that_clause: 5,
    complex_sentences.whether_clause: 3,
    complex_sentences.if_clause: 5,
    complex_sentences.relative_clause: 8,
    main_clauses.predicate_adjective: 7,
    main_clauses.age_or_price: 4,
    main_clauses.contrast: 4,
    complex_sentences.coordination: 5,
    complex_sentences.zu_infinitive: 4,
}


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + ("" if text.endswith("?") else ".")


def generate(pairs: int = 20_000, seed: int = 1) -> list[SentencePair]:
    """`pairs` sentence pairs in random order, distinct on both sides.

    Raises:
        ValueError: if the grammar does not reach that many distinct pairs.
    """
    make = Composer(seed)
    templates, weights = list(TEMPLATES), list(TEMPLATES.values())
    found: list[SentencePair] = []
    english_seen: set[str] = set()
    german_seen: set[str] = set()
    tries = 0
    while len(found) < pairs:
        tries += 1
        if tries > 20 * pairs:
            raise ValueError(
                f"pairs: expected at most the {len(found)} that the grammar found, got {pairs}"
            )
        template = make.pick(templates, weights)
        texts = template(make)
        if texts is None:
            continue
        english, german = map(_sentence, texts)
        words = len(english.split()), len(german.split())
        if min(words) < MIN_WORDS or max(words) > MAX_WORDS:
            continue
        if english not in english_seen and german not in german_seen:
            english_seen.add(english)
            german_seen.add(german)
            found.append(SentencePair(english, german, template.__name__))
    return make.shuffled(found)


def write_corpus(
    folder: Path, *, pairs: int = 20_000, valid: int = 500, test: int = 500, seed: int = 1
) -> None:
    """Writes {train,valid,test}.{en,de}; `pairs` counts all three splits together.

    Raises:
        ValueError: if `pairs` leaves nothing for the training split.
    """
    if pairs <= valid + test:
        raise ValueError(f"pairs: expected more than valid + test = {valid + test}, got {pairs}")
    corpus = generate(pairs, seed)
    splits = {
        "valid": corpus[:valid],
        "test": corpus[valid : valid + test],
        "train": corpus[valid + test :],
    }
    folder.mkdir(parents=True, exist_ok=True)
    for split, part in splits.items():
        for language in ("en", "de"):
            text = "".join(f"{getattr(pair, language)}\n" for pair in part)
            path = folder / f"{split}.{language}"
            write_text(path, text)


@command
def main() -> None:
    parser = Parser("", "Write the English-German demo corpus.", prog="grammar.py")
    parser.add_argument(*flags("output"), type=Path, required=True, help="folder for the six files")
    parser.add_argument(
        "--pairs", type=POSITIVE, default=20_000, help="size of all splits together"
    )
    parser.add_argument("--seed", type=number(int), default=1, help="of the random numbers")
    arguments = parser.parse_args()
    try:
        write_corpus(arguments.output, pairs=arguments.pairs, seed=arguments.seed)
    except (OSError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
