"""Turns the output of a model into plain text: joins subwords and detokenizes, once."""

from dataclasses import dataclass

from resmlp_mt.errors import UserError
from resmlp_mt.scoring.lines import Sentences
from resmlp_mt.text import SUBWORD_MARK, join_pieces, looks_split, looks_tokenized

# fairseq's names of subword symbols. Joining schemes separate all pieces by blanks and mark where
# words begin (or end); the others mark what continues.
JOINING = {"sentencepiece": "\u2581", "wordpiece": "_", "letter": "|", "_EOW": "_EOW"}
CONTINUING = {"subword_nmt": "@@ ", "@@ ": "@@ ", "@@": "@@"}
SYMBOLS = (*JOINING, *CONTINUING, "none")


def remove_subwords(sentence: str, symbol: str) -> str:
    """Join subwords as ``fairseq-generate --remove-bpe SYMBOL`` does."""
    if symbol == "sentencepiece":
        return join_pieces(sentence.split(" ")).strip()
    if symbol in JOINING:
        return sentence.replace(" ", "").replace(JOINING[symbol], " ").strip()
    if symbol in CONTINUING:
        return (sentence + " ").replace(CONTINUING[symbol], "").rstrip()
    return sentence


def moses_language(code: str) -> str:
    """Moses' code of a language that it has rules for, however the code is spelt.

    Raises:
        UserError: for any other language.
    """
    from resmlp_mt import language_codes  # its tables are slow to load

    code, known = language_codes.moses(code), language_codes.moses_languages()
    if code not in known:
        raise UserError(
            f"Moses has no rules for the language {code!r}, only for {', '.join(known)}: "
            f"correct it, or do without --detokenize and tokenized BLEU"
        )
    return code


@dataclass(frozen=True)
class Cleaning:
    """How to clean the system's text, with checks that the cleaning was needed and sufficient.

    Attributes:
        remove_bpe: one of ``SYMBOLS``.
        detokenize: language whose Moses tokenization is undone, or None.
        force: accept text that still looks like subwords or tokens.
    """

    remove_bpe: str = "none"
    detokenize: str | None = None
    force: bool = False

    def joined(self, sentences: Sentences) -> Sentences:
        """Join subwords.

        Raises:
            UserError: if there are none, because joining would run all words into one.
        """
        mark = JOINING.get(self.remove_bpe)
        text = [line for line in sentences.lines if line.strip()]
        if mark is not None and text and not any(mark in line for line in text):
            raise UserError(
                f"{sentences.origin} holds no {mark!r}, so its subwords were removed before: "
                f"drop --remove-bpe {self.remove_bpe}"
            )
        lines = [remove_subwords(line, self.remove_bpe) for line in sentences.lines]
        return Sentences(lines, sentences.origin, sentences.unit)

    def plain(self, sentences: Sentences) -> Sentences:
        """Join subwords, detokenize, and check the result.

        Raises:
            UserError: as in :meth:`joined` and :meth:`check`.
        """
        sentences = self.joined(sentences)
        if self.detokenize is not None:
            from sacremoses import MosesDetokenizer

            detokenizer = MosesDetokenizer(lang=moses_language(self.detokenize))
            lines = [detokenizer.detokenize(line.split()) for line in sentences.lines]
            sentences = Sentences(lines, sentences.origin, sentences.unit)
        joined = "give --remove-bpe, or text whose subwords are joined"
        self.check(sentences, joined, "give --detokenize LANG")
        return sentences

    def check(self, sentences: Sentences, subword_remedy: str, token_remedy: str) -> None:
        """Refuse text that is not plain, unless forced.

        Raises:
            UserError: naming the first sentence with a subword mark, or saying that the text
                looks split or tokenized, and the remedy.
        """
        if self.force:
            return
        for index, line in enumerate(sentences.lines):
            if mark := SUBWORD_MARK.search(line):
                raise UserError(
                    f"{sentences.place(index)} still carries subword marks ({mark.group()!r}): "
                    f"{subword_remedy}, or insist with --force"
                )
        if shown := looks_split(sentences.lines):
            raise UserError(
                f"{sentences.origin} was split into subwords ({shown}): {subword_remedy}, or "
                "insist with --force"
            )
        if shown := looks_tokenized(sentences.lines):
            raise UserError(
                f"{sentences.origin} looks tokenized ({shown}): {token_remedy}, or insist with "
                "--force"
            )
