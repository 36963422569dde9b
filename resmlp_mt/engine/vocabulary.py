"""Dictionaries of fairseq, read without fairseq."""

import operator
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from resmlp_mt.errors import UserError, reason

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
BOS, PAD, EOS, UNK = range(4)
"""Their indices, and their columns among the words of a shortlist, which begin with them."""
OVERWRITE = " #fairseq:overwrite"  # follows a symbol that may occur twice


class Vocabulary:
    """Symbols and their indices; the first four are fairseq's special symbols.

    Args:
        symbols: all symbols in the order of their indices. If one occurs twice, text is encoded
            with its last index.

    Attributes:
        tags: symbols that were put before the pieces of a sentence though the sentencepiece model
            has them.
    """

    def __init__(self, symbols: Iterable[str]) -> None:
        self.symbols = list(symbols)
        self.tags: frozenset[str] = frozenset()
        self.indices = {symbol: index for index, symbol in enumerate(self.symbols)}

    def __len__(self) -> int:
        return len(self.symbols)

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read a file of lines "symbol count", as fairseq-preprocess writes it.

        Raises:
            UserError: if the file is missing or has other lines.
        """
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeError) as error:
            raise UserError(f"{path} cannot be read as a dictionary: {reason(error)}.") from error
        symbols = list(SPECIAL)
        known = set(symbols)
        for number, line in enumerate(text.removesuffix("\n").split("\n"), start=1):
            entry = line.rstrip().removesuffix(OVERWRITE)
            symbol, space, count = entry.rpartition(" ")
            if not (space and count.isdecimal()):
                raise UserError(f"{path}, line {number}: expected 'symbol count', got '{line}'.")
            if symbol in known and not line.rstrip().endswith(OVERWRITE):
                raise UserError(f"{path}, line {number}: the symbol '{symbol}' comes twice.")
            symbols.append(symbol)
            known.add(symbol)
        return cls(symbols)

    def write(self, path: str | Path) -> None:
        """Write a file that :meth:`read` reads; all counts are 1."""
        known = set(SPECIAL)
        with Path(path).open("w", encoding="utf-8") as file:
            for symbol in self.symbols[len(SPECIAL) :]:
                file.write(f"{symbol} 1{OVERWRITE if symbol in known else ''}\n")
                known.add(symbol)

    def encode(self, pieces: Iterable[str]) -> list[int]:
        """Indices of the pieces, with end-of-sentence."""
        return [self.indices.get(piece, UNK) for piece in pieces] + [EOS]

    def decode(self, tokens: Iterable[int]) -> str:
        """The symbols of tokens, separated by spaces, without sentence marks.

        Raises:
            TypeError: if a token is not a whole number.
            UserError: if no symbol has this number.
        """
        numbers = list(map(operator.index, tokens))
        for number in numbers:
            if not 0 <= number < len(self.symbols):
                raise UserError(
                    f"token {number} is not in the dictionary: it has 0 to {len(self.symbols) - 1}."
                )
        return " ".join(self.symbols[number] for number in numbers if number not in (BOS, EOS))
