"""The search that fits a model: over modules of PyTorch, or over ONNX graphs without it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import chain
from typing import Any

import numpy as np

from resmlp_mt.engine import onnx_search
from resmlp_mt.engine.model_folder import TranslationModel
from resmlp_mt.engine.onnx_model import OnnxModel
from resmlp_mt.engine.options import Hypothesis, SearchOptions, StepResult
from resmlp_mt.errors import UserError
from resmlp_mt.machine import as_usual

Batch = list[list[int]]
"""The tokens of some sentences."""
Callback = Callable[[StepResult], bool | None]
Check = Callable[[], None]
WordsOf = Callable[[Batch], Any]
"""The words that a batch may use, as the model's search takes them."""
Search = Callable[[Batch, list[int], Batch | None, Check], list[list[Hypothesis]]]
"""Given a batch, the numbers of its lines, the tokens that their translations begin with, and what
to call at every step; threads may search at the same time."""


def search_of(
    loaded: TranslationModel,
    options: SearchOptions,
    words: WordsOf | None,
    callback: Callback | None,
    is_scored: bool,
) -> Search:
    """The search for the translations of one call.

    Args:
        words: the target words that a batch may use; None for all.
        callback: called with every token, by one thread at a time.
        is_scored: whether the scores of a greedy search are wanted.

    Raises:
        TypeError: if ``callback`` is no function.
        UserError: if it is given with a larger beam, or the model's search lacks an option.
    """
    if callback is not None and not callable(callback):
        raise TypeError(f"callback must be a function, but is {callback!r:.80}.")
    if callback is not None and options.beam != 1:
        raise UserError("callback needs a beam of 1: give beam_size=1.")
    model = loaded.model
    if isinstance(model, OnnxModel):
        lacking = options.of_pytorch + ["callback"] * (callback is not None)
        if lacking:
            raise UserError(
                f"ONNX graphs do not support {' and '.join(lacking)}: export the model without "
                "--format onnx."
            )

        def search_graphs(
            batch: Batch, numbers: list[int], prefixes: Batch | None, check: Check
        ) -> list[list[Hypothesis]]:
            # int8 graphs round the inputs of a product with one scale for a batch, and a
            # sentence's translation must not depend on its neighbours
            parts = [[sentence] for sentence in batch] if model.is_int8 else [batch]
            searched = (
                onnx_search.beam_search(
                    model, part, options, words and words(part), is_scored, check
                )
                for part in parts
            )
            return list(chain.from_iterable(searched))

        return search_graphs
    import torch

    from resmlp_mt.engine.beam_search import beam_search

    symbols = loaded.target.symbols
    one_at_a_time = threading.Lock()

    def draws(numbers: list[int]) -> torch.Generator | None:
        """A batch's own, so that it draws the same whenever its turn comes."""
        if not options.sampling:
            return None
        # mixed, because on a CPU the generator takes the lowest 32 bits of its seed alone
        mixed = np.random.SeedSequence([options.seed % 2**64, numbers[0] % 2**64])
        return torch.Generator(model.device).manual_seed(int(mixed.generate_state(1)[0]))

    def told(numbers: list[int]) -> Callback | None:
        """Call back with the line's number and the token's symbol."""
        if callback is None:
            return None

        def tell(step: StepResult) -> bool | None:
            line, token = numbers[step.batch_id], symbols[step.token_id]
            with one_at_a_time:
                return callback(step._replace(batch_id=line, token=token))

        return tell

    return lambda batch, numbers, prefixes, check: beam_search(
        model,
        batch,
        options,
        words and words(batch),
        prefixes,
        draws(numbers),
        told(numbers),
        is_scored,
        check,
    )


def chosen_words(loaded: TranslationModel, options: SearchOptions) -> WordsOf:
    """The words that the sentences of a batch may use, by the model's shortlist.

    Raises:
        UserError: if the model has no shortlist, or the beam is too large for it.
    """
    if loaded.shortlist is None:
        raise UserError("--shortlist: this model has none; export it with --shortlist DATA-BIN.")
    options.check_beam(len(loaded.shortlist.always), "shortlist", ", or leave out --shortlist")
    if isinstance(loaded.model, OnnxModel):
        return loaded.model.choose
    import torch

    from resmlp_mt.engine.beam_search import WordChoice
    from resmlp_mt.packed_linear import selector

    shortlist, device = loaded.shortlist, loaded.model.device
    select = selector(loaded.model.decoder.output_projection)

    @as_usual()
    def choose(batch: Batch) -> WordChoice:
        found, permitted = shortlist.words(batch)
        words = torch.from_numpy(found).to(device)
        allowed = None if permitted.all() else torch.from_numpy(permitted).to(device)
        return WordChoice(words, allowed, select(words))

    return choose
