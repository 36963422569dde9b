"""torch.export and one compiled graph give what the eager model gives."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.export import Dim

from models import build, padded, sentences
from resmlp_mt.engine.folding import fold
from resmlp_mt.mixing import MixingConfig
from resmlp_mt.model.encoder_decoder import EncoderDecoder
from test_mixing import options

CONFIGS = [MixingConfig(), MixingConfig(2, "alone", decay=True, values=True, gate=True)]
CLOSE: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-10}


class Scores(torch.nn.Module):
    """A model without what it returns beside the scores."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        scores: Tensor = self.model(source, None, target)[0]
        return scores


@pytest.mark.parametrize("config", CONFIGS, ids=["paper", "all"])
@pytest.mark.parametrize("left", [False, True])
def test_fairseqs_model_is_one_graph(config: MixingConfig, left: bool) -> None:
    model = build(**options(config))
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    source, target = padded(sentences([4, 12]), left=left), padded(sentences([10, 3], seed=1))
    torch.testing.assert_close(
        compiled(source, None, target)[0], model(source, None, target)[0], **CLOSE
    )
    model.train()
    (compiled(source, None, target)[0].square().sum()).backward()
    found = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    (model(source, None, target)[0].square().sum()).backward()
    for ours, parameter in zip(found, model.parameters(), strict=True):
        torch.testing.assert_close(ours, parameter.grad, **CLOSE)


LAYERDROP = {"encoder_layerdrop": 0.5, "decoder_layerdrop": 0.5}


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("given", "record"),
    [
        ({"checkpoint_activations": True}, "compile"),
        ({"offload_activations": True}, "export"),
        (LAYERDROP, "compile"),
        (LAYERDROP, "export"),
        (LAYERDROP, "trace"),
    ],
    ids=str,
)
def test_options_of_training_are_recorded(given: dict[str, Any], record: str) -> None:
    """A graph draws the layers to drop anew each time, as the eager model."""
    model = build(**given, encoder_layers=1).train()
    batch = padded(sentences([4, 12])), padded(sentences([10, 3], seed=1))
    scores = Scores(model).train()
    recorded: Any
    if record == "compile":
        recorded = torch.compile(scores, backend="eager", fullgraph=True)
    elif record == "export":
        recorded = torch.export.export(scores, batch).module()
    else:
        recorded = torch.jit.trace(scores, batch, check_trace=False)
    found = set()
    for seed in range(4):
        torch.manual_seed(seed)
        with torch.jit.optimized_execution(False):  # which draws in another order
            ours = recorded(*batch)
        torch.manual_seed(seed)
        torch.testing.assert_close(ours, scores(*batch), **CLOSE)
        found.add(ours.sum().item())
    assert (len(found) > 1) == ("encoder_layerdrop" in given)


@pytest.mark.parametrize("config", CONFIGS, ids=["paper", "all"])
@pytest.mark.parametrize("folded", [False, True])
def test_the_model_is_exported_with_free_sizes(config: MixingConfig, folded: bool) -> None:
    model = fold(build(**options(config)))
    if not folded:
        trained = build(**options(config))
        model = type(model)(model.config).double().eval()
        model.load_state_dict(dict(trained.named_parameters()))
    batch = Dim("batch", min=1)
    # At its full size a matrix is no longer a view: the exporter makes that a graph of its own.
    free = ({0: batch, 1: Dim("source", max=11)}, {0: batch, 1: Dim("target", max=9)})
    example = padded(sentences([4, 7])), padded(sentences([5, 3]))
    program = torch.export.export(model, example, dynamic_shapes=free).module()
    for lengths, targets in (([4, 7], [5, 3]), ([11, 1, 5], [9, 2, 7])):
        given = padded(sentences(lengths)), padded(sentences(targets, seed=1))
        torch.testing.assert_close(program(*given), model(*given), **CLOSE)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("config", CONFIGS, ids=["paper", "all"])
def test_a_trace_serves_other_batches(config: MixingConfig, training: bool) -> None:
    """Of other sizes, padded elsewhere, and longer than the blocks of the causal product."""
    sizes = {"max_source_positions": 140, "max_target_positions": 140}
    model = build(**options(config) | sizes).train(training)

    class Outputs(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
            scores, extra = self.model(source, None, target)
            return scores, extra["attn"][0]

    outputs = Outputs().train(training)
    example = padded(sentences([4, 7]), left=True), padded(sentences([5, 3]))
    traced = torch.jit.trace(outputs, example, check_trace=False)
    for lengths, targets, left in (
        ([4, 7], [5, 3], True), ([9, 2, 11], [3, 8, 1], False), ([6, 6], [4, 4], True),
        ([135, 3], [2, 139], True),
    ):  # fmt: skip
        given = padded(sentences(lengths), left=left), padded(sentences(targets, seed=1))
        torch.testing.assert_close(traced(*given), outputs(*given), **CLOSE)


def test_torchscript_is_refused_in_a_sentence() -> None:
    model = build()
    whole = EncoderDecoder(model.encoder.config)
    for part in (model, model.encoder, model.decoder, whole, whole.decoder):
        with pytest.raises(NotImplementedError, match=r"^TorchScript is not .* torch\.export"):
            torch.jit.script(part)
