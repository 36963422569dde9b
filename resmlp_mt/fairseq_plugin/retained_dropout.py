"""``--retain-dropout``: modules that keep dropout on while the model translates or scores."""

from collections.abc import Iterator, Sequence

from fairseq.models import FairseqEncoderDecoderModel
from torch import nn

from resmlp_mt.errors import UserError
from resmlp_mt.layers import FeedForward
from resmlp_mt.model.attention import CrossAttention
from resmlp_mt.model.decoder import DecoderLayer
from resmlp_mt.model.encoder import EncoderLayer

# The Transformer's modules with dropout in the same places have these names.
TRANSFORMER_NAMES = {
    "ResMLPEncoder": "TransformerEncoder",
    "ResMLPDecoder": "TransformerDecoder",
    "EncoderLayer": "TransformerEncoderLayer",
    "DecoderLayer": "TransformerDecoderLayer",
    "CrossAttention": "MultiheadAttention",
}


def retain(model: FairseqEncoderDecoderModel, names: str | Sequence[str] | None) -> None:
    """Put modules of a model in evaluation mode back into training mode.

    Args:
        names: names of modules, ours or the Transformer's, as a list or, from the command line,
            separated by commas; None for all.

    Raises:
        UserError: if the model has no module with a name.
    """
    if isinstance(names, str):
        names = [name.strip() for name in names.split(",")]
    for name in names or ():
        if name not in {*TRANSFORMER_NAMES, *TRANSFORMER_NAMES.values()}:
            raise UserError(
                f"--retain-dropout-modules {name} is none of {', '.join(TRANSFORMER_NAMES)}."
            )
    for owner, module in dropping(model):
        if names is None or owner in names or TRANSFORMER_NAMES[owner] in names:
            module.training = True


def dropping(model: FairseqEncoderDecoderModel) -> Iterator[tuple[str, nn.Module]]:
    """All dropout modules, each with the name of the module that it belongs to."""
    yield "ResMLPEncoder", model.encoder.dropout
    yield "ResMLPDecoder", model.decoder.dropout
    for module in model.modules():
        if isinstance(module, CrossAttention):
            yield "CrossAttention", module
        elif isinstance(module, EncoderLayer | DecoderLayer):
            for inner in (module.dropout, module.ffn, module.ffn.activation_dropout):
                assert isinstance(inner, FeedForward | nn.Dropout)
                yield type(module).__name__, inner
