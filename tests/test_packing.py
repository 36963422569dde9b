"""Linear layers that keep packed weights: the product of the weights that they have now."""

import copy
from types import SimpleNamespace

import pytest
import torch
from fairseq.data import Dictionary
from fairseq.dataclass.configs import GenerationConfig
from fairseq.sequence_generator import SequenceGenerator
from torch import nn
from torch.nn import functional as F

from models import PAD, build, padded, sentences
from resmlp_mt import packed_linear
from resmlp_mt.engine.folding import fold
from resmlp_mt.engine.weights import prepared
from resmlp_mt.model.config import ACTIVATIONS, FEW_NUMBERS
from resmlp_mt.packed_linear import PackedLinear, PackingLinear

needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="packs for oneDNN"
)


@pytest.fixture(autouse=True)
def small_weights_are_packed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_linear, "LARGEST_UNPACKED", 0)


@pytest.fixture
def layer() -> PackingLinear:
    torch.manual_seed(0)
    return PackingLinear(nn.Linear(12, 20))


X = torch.linspace(-1, 1, 60).view(5, 12)


def check(layer: PackingLinear, x: torch.Tensor = X) -> None:
    with torch.no_grad():
        assert torch.allclose(layer(x), F.linear(x, layer.weight, layer.bias), atol=1e-6)


@needs_onednn
def test_weights_are_packed_once_and_again_when_they_change(layer: PackingLinear) -> None:
    check(layer)
    first = layer._packed
    assert first is not None
    check(layer, X.view(5, 1, 12))
    assert layer._packed is first
    with torch.no_grad():
        layer.weight.mul_(2)
    check(layer)
    assert layer._packed is not first
    layer.load_state_dict({"weight": torch.ones(20, 12), "bias": torch.zeros(20)})
    check(layer)
    layer.weight.data = torch.full((20, 12), 3.0)
    check(layer)


@needs_onednn
def test_gelu_and_an_addend_are_part_of_the_product() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(12, 20).requires_grad_(False)
    packed, product, addend = PackedLinear(linear), linear(X), torch.randn(5, 20)
    torch.testing.assert_close(packed.gelu(X), F.gelu(product), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(packed.plus(X, addend), product + addend, rtol=1e-5, atol=1e-6)
    linear.bias = None
    product = linear(X)
    torch.testing.assert_close(PackedLinear(linear).plus(X, addend), product + addend)


@needs_onednn
def test_large_weights_are_packed_and_small_ones_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = 8 * 12  # of the layers, but not of the output projection
    monkeypatch.setattr(packed_linear, "LARGEST_UNPACKED", largest)
    source, target = torch.tensor([[5, 6, 2]]), torch.tensor([[2, 7, 8]])
    for kind, model in (
        (PackedLinear, prepared(fold(build().float()), "float32")),
        (PackingLinear, build().float()),
    ):
        if kind is PackingLinear:
            model.prepare_for_inference_(SimpleNamespace(generation=GenerationConfig()))
            with torch.inference_mode(False), torch.no_grad():
                model(source, None, target)
        layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear | kind)}
        for name, found in layers.items():
            is_packed = found._packed is not None if kind is PackingLinear else type(found) is kind
            weight = found.weight.to_dense() if type(found) is PackedLinear else found.weight
            assert is_packed == (weight.numel() > largest), name
        assert {layer.weight.numel() > largest for layer in layers.values()} == {True, False}


def test_weights_may_change_behind_the_back_in_training(layer: PackingLinear) -> None:
    check(layer)
    layer(X).sum().backward()
    assert layer.weight.grad is not None
    layer.weight.data.add_(layer.weight.grad)  # no new version of the parameter
    check(layer)


def test_other_types_and_autocast_are_computed_as_they_would_be(layer: PackingLinear) -> None:
    check(layer)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert layer(X).dtype == torch.bfloat16
    with torch.no_grad():
        assert layer.double()(X.double()).dtype == torch.float64
        assert layer.bfloat16()(X.bfloat16()).dtype == torch.bfloat16
    check(layer.float())


def test_a_model_that_is_prepared_keeps_its_parameters() -> None:
    model = build().float()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    names = [name for name, _ in model.named_parameters()]
    tied = model.decoder.output_projection.weight is model.decoder.embed_tokens.weight
    for _ in range(2):
        model.prepare_for_inference_(SimpleNamespace(generation=GenerationConfig()))
    assert isinstance(model.decoder.output_projection, PackingLinear)
    assert [name for name, _ in model.named_parameters()] == names
    weights = model.decoder.output_projection.weight, model.decoder.embed_tokens.weight
    assert (weights[0] is weights[1]) == tied
    after = copy.deepcopy(model).state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("beam", [1, 3])
def test_a_prepared_model_finds_the_same(beam: int) -> None:
    model = build(share_all_embeddings=True).float()
    rows = sentences([5, 9, 12], seed=3)
    words: Dictionary = model.decoder.dictionary
    sample = {
        "net_input": {
            "src_tokens": padded(rows),
            "src_lengths": torch.tensor([len(row) for row in rows]),
        }
    }
    found = []
    for _ in range(2):
        generator = SequenceGenerator([model], words, beam_size=beam)
        found.append(generator.generate([model], sample))
        model.prepare_for_inference_(SimpleNamespace(generation=GenerationConfig()))
    assert words.pad() == PAD
    for first, second in zip(*found, strict=True):
        assert [h["tokens"].tolist() for h in first] == [h["tokens"].tolist() for h in second]
        for a, b in zip(first, second, strict=True):
            assert torch.allclose(a["positional_scores"], b["positional_scores"], atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_part_of_a_prepared_model_that_is_replaced_is_used(dtype: str) -> None:
    """Though its attributes are found at once."""
    model = prepared(fold(build()), dtype)
    layer = model.decoder.layers[0]
    layer.ffn.fc2 = nn.Identity()
    layer.ffn.fc1 = nn.Identity()
    layer.ffn.activation = torch.neg
    assert torch.equal(layer.ffn(X), -X)
    embedding = model.encoder.embed_tokens
    changed = torch.ones_like(embedding.weight)
    if dtype == "float32":
        embedding.weight = nn.Parameter(changed)
        assert torch.equal(embedding(torch.tensor([3])), changed[:1])


@pytest.mark.parametrize("count", [1, FEW_NUMBERS, FEW_NUMBERS + 1])
def test_gelu_of_few_numbers_is_pytorchs(count: int) -> None:
    x = torch.linspace(-6.0, 6.0, count, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(ACTIVATIONS["gelu"](x), F.gelu(x), rtol=1e-12, atol=1e-14)
        x = x.float()
        torch.testing.assert_close(ACTIVATIONS["gelu"](x), F.gelu(x), rtol=1e-5, atol=1e-6)
