"""Every way to make a mixing matrix: the equations, causality, steps, folding, and its options."""

import math
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from models import EOS, PRESETS, build, padded, sentences, shifted
from resmlp_mt.engine.folding import fold
from resmlp_mt.errors import UserError
from resmlp_mt.layers import Affine
from resmlp_mt.materialised_mixing import MaterialisedMixing
from resmlp_mt.mixing import (
    VARIANTS,
    AbsoluteMixing,
    MixingConfig,
    TokenMixing,
    create_mixing,
)
from resmlp_mt.model.config import ModelConfig
from resmlp_mt.model.encoder_decoder import EncoderDecoder
from test_folding import forced, relative_error, step_by_step
from test_layers import randomised, states

TOLERANCE = {"rtol": 0.0, "atol": 1e-12}
PLAIN = [
    MixingConfig(heads=heads, relative=relative, decay=decay)
    for heads, relative, decay in product((1, 2), VARIANTS, (False, True))
    if relative != "none" or not decay
]
ALL = [
    MixingConfig(**{**vars(plain), "values": values, "gate": gate})
    for plain, values, gate in product(PLAIN, (False, True), (False, True))
]


def named(config: MixingConfig) -> str:
    """For the tests' names."""
    extras = [name for name in ("decay", "values", "gate") if getattr(config, name)]
    return "-".join([f"{config.heads}", config.relative, *extras])


def options(config: MixingConfig) -> dict[str, Any]:
    """The training options of a mixing on both sides."""
    sides = {True: "both", False: "none"}
    return {
        f"mixing_{name}": sides[value] if name in ("decay", "values", "gate") else value
        for name, value in vars(config).items()
    }


every_variant = pytest.mark.parametrize("config", ALL, ids=named)
MODELS: dict[str, dict[str, Any]] = {
    **{named(config): options(config) for config in ALL},
    **{name: {"preset": name} for name in PRESETS},
}
every_model = pytest.mark.parametrize("changes", MODELS.values(), ids=MODELS)


def entry(mixing: TokenMixing, head: int, t: int, s: int) -> float:
    """A_ts, from the parameters."""
    value = 0.0
    distance, longest = t - s, mixing.max_positions - 1
    if mixing.causal and distance < 0:
        return value
    if hasattr(mixing, "weight"):
        weight = mixing.weight if mixing.weight.dim() == 3 else mixing.weight.unsqueeze(0)
        value += weight[head, t, s].item()
    if hasattr(mixing, "relative"):
        index = max(min(distance, longest), -longest) + (0 if mixing.causal else longest)
        relative = mixing.relative[head, index].item()
        if mixing.decay is not None:
            rate = math.log1p(math.exp(mixing.decay[head].item()))
            relative /= 1 + rate * abs(distance)
        value += relative
    return value


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("config", PLAIN, ids=named)
def test_the_matrix_is_made_as_documented(config: MixingConfig, causal: bool) -> None:
    mixing = randomised(create_mixing(config, 4, 6, causal))
    lengths = (1, 2, 5, 6, 9) if mixing.longest > 6 else (1, 2, 5, 6)
    for length in lengths:
        matrix = mixing.matrix(length)
        expected = [
            [[entry(mixing, head, t, s) for s in range(length)] for t in range(length)]
            for head in range(config.heads)
        ]
        torch.testing.assert_close(matrix, torch.tensor(expected).to(matrix), rtol=0, atol=1e-6)
        if causal:
            assert torch.equal(matrix, matrix.tril())


@every_variant
def test_a_sublayer_is_gate_times_mixed_values_projected(config: MixingConfig) -> None:
    mixing = randomised(create_mixing(config, 4, 6))
    x = states(5, 3, 4)
    values = x if mixing.v_proj is None else mixing.v_proj(x)
    mixed = torch.empty_like(x)
    width = 4 // config.heads
    offset = mixing.offset(5)
    for channel in range(4):
        head = channel // width
        mixed[..., channel] = mixing.matrix(5)[head] @ values[..., channel]
        if offset is not None:
            mixed[..., channel] += offset[:, head]
    if mixing.gate_proj is not None:
        mixed = mixed / (1 + torch.exp(-mixing.gate_proj(x)))
    expected = mixed if mixing.out_proj is None else mixing.out_proj(mixed)
    torch.testing.assert_close(mixing(x), expected, **TOLERANCE)


@every_model
@settings(deadline=None, max_examples=5)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    left=st.booleans(),
    seed=st.integers(0, 100),
)
def test_a_sentence_does_not_depend_on_neighbours_or_padding(
    changes: dict[str, Any], lengths: list[int], left: bool, seed: int
) -> None:
    encoder = build(**changes).encoder
    rows = sentences(lengths, seed=seed)
    batch = padded(rows, left=left, extra=2)
    found = encoder(batch)["encoder_out"][0]
    for index, tokens in enumerate(rows):
        alone = encoder(tokens.unsqueeze(0))["encoder_out"][0][:, 0]
        torch.testing.assert_close(found[batch[index].ne(1), index], alone, **TOLERANCE)


@every_model
def test_the_decoder_is_causal_and_steps_equal_all_at_once(changes: dict[str, Any]) -> None:
    model = build(**changes)
    source = padded(sentences([4, 6]))
    target = padded([shifted(t) for t in sentences([10, 10], seed=1)])
    encoder_out, state = model.encoder(source), {}
    scores, _ = model.decoder(target, encoder_out)
    for t in range(10):
        changed = target.clone()
        changed[:, t] = (target[:, t] - 3) % 16 + 4
        assert torch.equal(model.decoder(changed, encoder_out)[0][:, :t], scores[:, :t])
        step, _ = model.decoder(target[:, : t + 1], encoder_out, state)
        torch.testing.assert_close(step[:, 0], scores[:, t], **TOLERANCE)
        model.decoder.reorder_incremental_state_scripting(state, torch.tensor([0, 1]))


@every_model
@settings(deadline=None, max_examples=5)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    target_length=st.integers(1, 10),
    seed=st.integers(0, 100),
)
def test_folding_changes_no_score(
    changes: dict[str, Any], lengths: list[int], target_length: int, seed: int
) -> None:
    """Step by step, and all at once with padding on both sides; float64."""
    model = build(seed, encoder_embed_dim=16, **changes)
    folded = fold(model)
    rows = sentences(lengths, seed=seed)
    source = padded(rows)
    targets = [shifted(t) for t in sentences([target_length] * len(rows), seed=seed + 1)]
    found = step_by_step(folded, source, torch.tensor(lengths), torch.stack(targets))
    assert relative_error(found, forced(model, source, torch.stack(targets))) < 1e-12
    target = padded([row[: 1 + index] for index, row in enumerate(targets)])
    with torch.no_grad():
        assert relative_error(folded(source, target), model(source, None, target)[0]) < 1e-12


@every_variant
def test_folding_leaves_affine_maps_only_where_they_must_stay(config: MixingConfig) -> None:
    folded = fold(build(**options(config)))
    left = [name for name, module in folded.named_modules() if isinstance(module, Affine)]
    kept = ["mixing_pre", "mixing_post"] if config.gate else ["mixing_pre"]
    kept = [] if config.values else kept
    assert {name.split(".")[-1] for name in left} == set(kept)
    for layer in (*folded.encoder.layers, *folded.decoder.layers):
        assert type(layer.token_mixing) is MaterialisedMixing


class Squared(TokenMixing):
    """A mixing of squares, into which no affine map can be merged."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.weight = nn.Parameter(torch.randn(self.heads, self.max_positions, self.max_positions))

    def matrix(self, length: int) -> Tensor:
        matrix = self.weight[:, :length, :length]
        return matrix.tril() if self.causal else matrix

    def entries(self, x: Tensor) -> Tensor:
        return x.square()


class Softmax(AbsoluteMixing):
    """Rows that add up to 1, and so depend on the length in an encoder."""

    def matrix(self, length: int) -> Tensor:
        scores = super().matrix(length)
        return scores.masked_fill(scores == 0, -torch.inf).softmax(2)


def test_a_matrix_that_cannot_be_cut_is_not_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VARIANTS, "none", Softmax)
    with pytest.raises(TypeError, match=r"Softmax.* set merges_affines = False in the class"):
        fold(build())
    monkeypatch.setattr(Softmax, "merges_affines", False)
    model = build()
    source, target = padded(sentences([5, 3])), torch.tensor([[EOS, 5, 6], [EOS, 8, 9]])
    found = step_by_step(fold(model), source, torch.tensor([5, 3]), target)
    assert relative_error(found, forced(model, source, target)) < 1e-12


def test_a_change_by_another_base_class_is_seen() -> None:
    class Bounded:
        def output(self, mixed: Tensor, x: Tensor) -> Tensor:
            return mixed.tanh()

    class BoundedMixing(Bounded, AbsoluteMixing):
        pass

    assert not BoundedMixing.merges_affines
    assert AbsoluteMixing.merges_affines


@pytest.mark.parametrize("parent", [AbsoluteMixing, Squared, MaterialisedMixing])
def test_a_subclass_that_changes_nothing_is_merged_as_its_parent(parent: type[TokenMixing]) -> None:
    """PyTorch's exporter makes such subclasses."""
    assert type("Same", (parent,), {}).merges_affines is parent.merges_affines


@pytest.mark.parametrize("name", ["mix", "forward"])
def test_a_variant_that_would_decode_otherwise_than_it_trains_is_refused(name: str) -> None:
    changed = {name: lambda self, x, layout=None: x}
    with pytest.raises(TypeError, match=r"Odd changes mix or forward.* change step as well"):
        type("Odd", (AbsoluteMixing,), changed)
    with pytest.raises(TypeError, match="Odd changes mix or forward"):
        type("Odd", (AbsoluteMixing,), {**changed, "merges_affines": False})
    type("Even", (AbsoluteMixing,), {**changed, "step": lambda self, *args: args})


@pytest.mark.parametrize("name", ["entries", "output", "step"])
def test_what_a_folded_mixing_does_not_have_is_not_merged(name: str) -> None:
    changed = {name: lambda self, x, *args: x, "merges_affines": True}
    with pytest.raises(TypeError, match=f"Odd changes {name}, .* cannot set merges_affines"):
        type("Odd", (AbsoluteMixing,), changed)


@pytest.mark.parametrize("merges", [True, False])
def test_rows_of_a_decoder_do_not_depend_on_the_length(
    monkeypatch: pytest.MonkeyPatch, merges: bool
) -> None:
    class Mean(AbsoluteMixing):
        merges_affines = merges

        def matrix(self, length: int) -> Tensor:
            return super().matrix(length) / (length if self.causal else 1)

    monkeypatch.setitem(VARIANTS, "none", Mean)
    with pytest.raises(TypeError, match=r"Mean.* make rows that do not depend on the length"):
        fold(build())


def test_a_variant_that_cannot_be_merged_keeps_its_affine_maps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert not Squared.merges_affines
    monkeypatch.setitem(VARIANTS, "none", Squared)
    model = build()
    folded = fold(model)
    source = padded(sentences([5, 3]))
    target = torch.tensor([[EOS, 5, 6], [EOS, 8, 9]])
    found = step_by_step(folded, source, torch.tensor([5, 3]), target)
    assert relative_error(found, forced(model, source, target)) < 1e-12
    assert isinstance(folded.encoder.layers[0].mixing_post, Affine)


@every_model
def test_every_parameter_receives_a_gradient(changes: dict[str, Any]) -> None:
    model = build(**changes).train()
    scores, _ = model(padded(sentences([12, 5])), None, padded(sentences([10, 10], seed=1)))
    (scores * torch.randn_like(scores)).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_starting_values() -> None:
    torch.manual_seed(0)
    for causal in (False, True):
        absolute = create_mixing(MixingConfig(heads=4), 16, 200, causal)
        assert absolute.weight.shape == (4, 200, 200)
        assert absolute.bias.shape == (4, 200)
        config = MixingConfig(heads=4, relative="alone", decay=True, values=True, gate=True)
        mixing = create_mixing(config, 16, 200, causal)
        assert mixing.relative.shape == (4, 200 if causal else 399)
        for start in (absolute.weight, mixing.relative):
            assert start.std().item() == pytest.approx(0.02, rel=0.1)
        rates = nn.functional.softplus(mixing.decay)
        torch.testing.assert_close(rates, torch.tensor([2**-1, 2**-2, 2**-3, 2**-4]))
        for linear in (mixing.v_proj, mixing.out_proj, mixing.gate_proj):
            assert linear.weight.std().item() == pytest.approx(16**-0.5, rel=0.15)
            assert linear.bias.abs().max() == 0


def test_options_of_one_side_win() -> None:
    model = build(
        mixing_heads=2, decoder_mixing_heads=4, encoder_mixing_relative="alone",
        mixing_decay="both", mixing_values="decoder", mixing_gate="encoder",
    )  # fmt: skip
    config: ModelConfig = model.encoder.config
    assert config.encoder_mixing == MixingConfig(2, "alone", True, False, True)
    assert config.decoder_mixing == MixingConfig(4, "none", False, True, False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixing_heads": 3}, "--mixing-heads must be at least 1 and divide --encoder-embed-dim"),
        ({"decoder_mixing_heads": 0}, "--mixing-heads .* --decoder-embed-dim, but is 0 with 8"),
        ({"mixing_decay": "both"}, "--mixing-decay.* add --mixing-relative alone"),
    ],
)
def test_wrong_options_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(**changes)


def test_the_model_trains_without_fairseq() -> None:
    """Copying three tokens: the loss falls, in torch alone."""
    torch.manual_seed(0)
    config = ModelConfig(
        source_vocabulary=8, target_vocabulary=8, share_all_embeddings=True,
        encoder_embed_dim=16, encoder_ffn_embed_dim=32, encoder_layers=1,
        decoder_embed_dim=16, decoder_ffn_embed_dim=32, decoder_layers=1,
        decoder_attention_heads=2, max_source_positions=5, max_target_positions=5,
        layer_scale_init=1.0, encoder_mixing=MixingConfig(heads=2, values=True),
    )  # fmt: skip
    model = EncoderDecoder(config)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(150):
        words = torch.randint(4, 8, (32, 3))
        source = torch.cat([words, torch.full((32, 1), EOS)], dim=1)
        scores = model(source, torch.cat([source[:, -1:], source[:, :-1]], dim=1))
        loss = nn.functional.cross_entropy(scores.transpose(1, 2), source)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.3
