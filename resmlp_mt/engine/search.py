"""The search that fits a model: over modules of PyTorch, or over ONNX graphs without it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from resmlp_mt.engine import onnx_search
from resmlp_mt.engine.model_folder import TranslationModel
from resmlp_mt.engine.onnx_model import OnnxModel
from resmlp_mt.engine.options import Hypothesis, SearchOptions, SpecialTokens, StepResult
from resmlp_mt.engine.vocabulary import EOS, PAD, UNK
from resmlp_mt.errors import UserError

if TYPE_CHECKING:
    from resmlp_mt.engine.beam_search import WordChoice
    from resmlp_mt.engine.shortlist import Shortlist
    from resmlp_mt.model.encoder_decoder import EncoderDecoder

SPECIAL = SpecialTokens(PAD, EOS, UNK)

Batch = list[list[int]]
"""The tokens of some sentences."""
Callback = Callable[[StepResult], bool | None]
Search = Callable[[Batch, list[int], Batch | None], list[list[Hypothesis]]]
"""Given a batch, the numbers of its lines and the tokens that their translations begin with."""


def search_of(
    loaded: TranslationModel,
    options: SearchOptions,
    words: Callable[[Batch], WordChoice] | None,
    callback: Callback | None,
) -> Search:
    """The search for the translations of one call.

    Args:
        words: the target words that a batch may use; None for all.
        callback: called with every token.

    Raises:
        UserError: if the model's search does not have the options.
    """
    model = loaded.model
    if isinstance(model, OnnxModel):
        if callback is not None or options.need_pytorch:
            raise UserError(
                "ONNX graphs do not support penalties, n-gram blocking, sampling and callback: "
                "export the model without --format onnx."
            )
        return lambda batch, numbers, prefixes: onnx_search.beam_search(
            model, batch, options, SPECIAL
        )
    import torch

    from resmlp_mt.engine.beam_search import beam_search

    generator = torch.Generator(model.device).manual_seed(options.seed)
    symbols = loaded.target.symbols

    def told(numbers: list[int]) -> Callback | None:
        """Call back with the line's number and the token's symbol."""
        if callback is None:
            return None
        return lambda step: callback(
            step._replace(batch_id=numbers[step.batch_id], token=symbols[step.token_id])
        )

    return lambda batch, numbers, prefixes: beam_search(
        model,
        batch,
        options,
        SPECIAL,
        words and words(batch),
        prefixes,
        generator if options.sampling else None,
        told(numbers),
    )


def chosen_words(shortlist: Shortlist, model: EncoderDecoder) -> Callable[[Batch], WordChoice]:
    """The words that the sentences of a batch may use, by the shortlist."""
    from resmlp_mt.engine.beam_search import WordChoice
    from resmlp_mt.packed_linear import selector

    select = selector(model.decoder.output_projection)

    def choose(batch: Batch) -> WordChoice:
        words, allowed = shortlist.words(batch)
        return WordChoice(words, allowed, select(words))

    return choose
