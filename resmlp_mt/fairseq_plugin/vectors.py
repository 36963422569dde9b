"""Embeddings: random, or with the vectors of ``--encoder-embed-path``, ``--decoder-embed-path``."""

import logging
import re
from collections.abc import Sequence

import torch
from fairseq.data import Dictionary
from fairseq.models.transformer import Embedding
from torch import Tensor, nn

from resmlp_mt.errors import UserError, reason

logger = logging.getLogger(__name__)

SPACE = "\u2581"
"""What sentencepiece's pieces have for the space before a word."""

NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


def build_embedding(
    dictionary: Dictionary, dim: int, path: str | None, option: str
) -> nn.Embedding:
    """An embedding, initialized as in fairseq or from a file of vectors.

    Raises:
        UserError: if the file of ``option`` is missing, or its vectors are of other words or have
            another width.
    """
    embed_tokens: nn.Embedding = Embedding(len(dictionary), dim, dictionary.pad())
    if path is not None:
        fill(embed_tokens, dictionary, path, option)
    return embed_tokens


def read_vectors(path: str, dim: int, option: str) -> dict[str, Tensor]:
    """The vectors of a text file, whatever the locale is, by their words.

    A line is a word, which may hold spaces, and its numbers, separated by spaces. The first may be
    the number of words and of dimensions, as word2vec and fastText write it.

    Raises:
        UserError: if the file of ``option`` cannot be read, or has vectors of another width.
    """
    vectors: dict[str, Tensor] = {}
    widths: set[int] = set()
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file):
                parts = line.rstrip().split(" ")
                if number == 0 and len(parts) == 2 and "".join(parts).isdecimal():
                    continue
                word = parts[:-dim]
                fits = len(word) == 1 or (len(word) > 1 and not NUMBER.fullmatch(word[-1]))
                widths.add(dim if fits else len(parts) - 1)
                if fits:
                    vectors[" ".join(word)] = torch.tensor(list(map(float, parts[-dim:])))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{option} {path} cannot be read as GloVe text: {reason(error)}."
        ) from error
    if widths != {dim}:
        raise UserError(f"{option} {path} has vectors of width {sorted(widths)}, not {dim}.")
    return vectors


def fill(embedding: nn.Embedding, dictionary: Dictionary, path: str, option: str) -> None:
    """Give the words of a dictionary the vectors of a file; the others keep what they have.

    Raises:
        UserError: as :func:`read_vectors`, and if the file is of other words.
    """
    vectors = read_vectors(path, embedding.embedding_dim, option)
    words: Sequence[str] = dictionary.symbols[dictionary.nspecial :]
    found = [word for word in words if word in vectors]
    without = sum(word.removeprefix(SPACE) in vectors for word in words)
    told = f"{option} {path} has vectors of {len(found):,} of the {len(words):,} words"
    if len(found) < without / 2:
        raise UserError(
            f"{told} of the dictionary, and of {without:,} without the sign {SPACE} before them: "
            "give vectors of the pieces that the dictionary has."
        )
    if not found:
        raise UserError(f"{told} of the dictionary: give vectors of its words.")
    logger.info(told)
    with torch.no_grad():
        for word in found:
            embedding.weight[dictionary.index(word)] = vectors[word]
