"""What fairseq asks of a model beside its forward pass: every hook does what the options say."""

import copy
from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.criterions.label_smoothed_cross_entropy_with_alignment import (
    LabelSmoothedCrossEntropyCriterionWithAlignment,
)
from fairseq.models.transformer import TransformerModel, base_architecture
from fairseq.sequence_generator import SequenceGenerator
from torch import Tensor, nn
from torch.nn import functional as F

from models import build, config, dictionary, padded, sentences, task
from resmlp_mt.errors import UserError
from resmlp_mt.fairseq_plugin import pruning
from resmlp_mt.fairseq_plugin.model import TRANSFORMER_NAMES, dropping
from resmlp_mt.model import stack
from resmlp_mt.models.resmlp_mt import ResMLPModel
from test_mixing import MODELS

DROPOUT = {
    "dropout": 0.5,
    "attention_dropout": 0.5,
    "activation_dropout": 0.5,
}
SOURCE, TARGET = padded(sentences([4, 7, 5])), padded(sentences([6, 3, 6], seed=1))


def whole(model: ResMLPModel) -> Tensor:
    """Features of all positions at once."""
    features: Tensor = model(SOURCE, None, TARGET, features_only=True)[0]
    return features


def step_by_step(model: ResMLPModel) -> Tensor:
    """The same, one position after the other."""
    encoder_out = model.encoder(SOURCE)
    state: dict[str, Any] = {}
    steps = [
        model.decoder(TARGET[:, : end + 1], encoder_out, state, features_only=True)[0]
        for end in range(TARGET.size(1))
    ]
    return torch.cat(steps, dim=1)


# --- --retain-dropout ---


@pytest.mark.parametrize("read", [whole, step_by_step])
@pytest.mark.parametrize("name", [None, *TRANSFORMER_NAMES, *TRANSFORMER_NAMES.values()])
def test_retained_dropout_draws_again_each_time(name: str | None, read: Any) -> None:
    model = build(**DROPOUT)
    with torch.no_grad():
        model.make_generation_fast_(retain_dropout=True, retain_dropout_modules=name)
        model.eval()  # as fairseq's generator does
        torch.manual_seed(1)
        first, second = read(model), read(model)
        torch.manual_seed(1)
        again = read(model)
    assert not torch.equal(first, second)
    torch.testing.assert_close(again, first, rtol=0, atol=0)


@pytest.mark.parametrize("read", [whole, step_by_step])
def test_without_the_option_nothing_is_dropped(read: Any) -> None:
    model, plain = build(**DROPOUT), build()
    with torch.no_grad():
        model.make_generation_fast_()
        torch.testing.assert_close(read(model), read(plain), rtol=0, atol=0)


def test_every_module_with_dropout_can_be_named() -> None:
    """None beside those that :func:`dropping` finds is active in training mode."""
    model = build(**DROPOUT).train()
    for _, module in dropping(model):
        module.training = False
    with torch.no_grad():
        torch.testing.assert_close(whole(model), whole(build()))


def test_only_the_named_modules_drop() -> None:
    model = build(**DROPOUT)
    model.make_generation_fast_(
        retain_dropout=True, retain_dropout_modules=["TransformerEncoder", "CrossAttention"]
    )
    active = {id(module) for module in model.modules() if module.training}
    named = {
        id(module)
        for name, module in dropping(model)
        if name in ("ResMLPEncoder", "CrossAttention")
    }
    assert active == named


def test_a_module_that_is_not_there_is_refused() -> None:
    with pytest.raises(UserError, match="--retain-dropout-modules Encoder is none of ResMLPEnc"):
        build().make_generation_fast_(retain_dropout=True, retain_dropout_modules="Encoder")


# --- LayerDrop, pruning ---


def without(model: ResMLPModel, encoder: list[int], decoder: list[int]) -> ResMLPModel:
    """The model with these layers alone."""
    for side, kept in ((model.encoder, encoder), (model.decoder, decoder)):
        side.layers = torch.nn.ModuleList([side.layers[index] for index in kept])
    return model


def test_layers_are_dropped_in_training_alone() -> None:
    sizes = {"encoder_layers": 3, "decoder_layers": 3}
    model = build(encoder_layerdrop=0.5, decoder_layerdrop=0.4, **sizes)
    torch.testing.assert_close(whole(model), whole(build(**sizes)))
    model.train()
    for seed in range(5):
        torch.manual_seed(seed)
        found = whole(model)
        torch.manual_seed(seed)
        encoder, decoder = (torch.empty(3).uniform_() for _ in range(2))
        kept = [
            [index for index, draw in enumerate(draws.tolist()) if draw > share]
            for draws, share in ((encoder, 0.5), (decoder, 0.4))
        ]
        torch.testing.assert_close(found, whole(without(build(**sizes), *kept)))


@pytest.mark.parametrize(
    ("keep", "layers"),
    [
        ({"encoder_layers_to_keep": "0,2"}, ([0, 2], [0, 1, 2])),
        ({"decoder_layers_to_keep": "1"}, ([0, 1, 2], [1])),
        ({"encoder_layers_to_keep": "1", "decoder_layers_to_keep": "0,1"}, ([1], [0, 1])),
    ],
    ids=str,
)
def test_a_checkpoint_is_pruned(keep: dict[str, str], layers: tuple[list[int], list[int]]) -> None:
    large = build(encoder_layers=3, decoder_layers=3)
    cfg = config(encoder_layers=3, decoder_layers=3, **keep)
    small = ResMLPModel.build_model(copy.copy(cfg), task(20)).double().eval()  # as fairseq does
    small.load_state_dict(large.state_dict(), model_cfg=cfg)
    torch.testing.assert_close(whole(small), whole(without(large, *layers)))
    # what is saved then needs no pruning
    assert (cfg.encoder_layers, cfg.decoder_layers) == tuple(map(len, layers))
    assert cfg.encoder_layers_to_keep is None
    assert cfg.decoder_layers_to_keep is None


@pytest.mark.parametrize("kept", ["2", "1,0", "0,0", "x", "-1"])
def test_layers_that_are_not_there_are_refused(kept: str) -> None:
    cfg = config(encoder_layers_to_keep=kept)
    state = build().state_dict()

    def load() -> None:
        ResMLPModel.build_model(cfg, task(20)).load_state_dict(state, model_cfg=cfg)

    with pytest.raises(UserError, match="--encoder-layers-to-keep"):
        load()


@pytest.mark.parametrize("side", ["encoder", "decoder"])
@pytest.mark.parametrize(
    ("given", "stored", "is_refused"),
    [("1,2", None, True), ("0,1", None, False), ("1", None, False), ("1,2", "1,2", False)],
)
def test_overrides_name_layers_of_the_checkpoint(
    side: str, given: str, stored: str | None, is_refused: bool
) -> None:
    """Also if as many are named as there are; that of a pruned checkpoint names older layers."""
    option = f"{side}_layers_to_keep"
    names = [f"{side}.layers.{number}.fc1.weight" for number in range(2)]
    with (
        pytest.raises(UserError, match=f"--{side}-layers-to-keep names layer 2, but m.pt has 2")
        if is_refused
        else nullcontext()
    ):
        pruning.check_overrides({option: given}, {option: stored}, names, Path("m.pt"))


def test_overrides_are_checked_when_a_checkpoint_is_read(trained: Path) -> None:
    checkpoint_utils.load_checkpoint_to_cpu(
        str(trained / "checkpoint_best.pt"), {"encoder_layers_to_keep": "0"}
    )
    with pytest.raises(UserError, match=r"names layer 1, but .*best.pt has 1 encoder layers"):
        checkpoint_utils.load_checkpoint_to_cpu(
            str(trained / "checkpoint_best.pt"), {"encoder_layers_to_keep": "1"}
        )


# --- memory ---


@pytest.mark.parametrize("name", MODELS)
def test_gradients_do_not_depend_on_what_is_kept(name: str) -> None:
    """For every variant of the mixing and every preset, with dropout."""

    def gradients(**changes: object) -> dict[str, Tensor]:
        model = build(**{**MODELS[name], "dropout": 0.3, **changes}).train()
        torch.manual_seed(0)
        whole(model).square().sum().backward()
        return {key: p.grad for key, p in model.named_parameters() if p.grad is not None}

    expected = gradients()
    assert expected
    for option in ("checkpoint_activations", "offload_activations"):
        found = gradients(**{option: True})
        assert found.keys() == expected.keys()
        for key, gradient in expected.items():
            torch.testing.assert_close(found[key], gradient, rtol=0.0, atol=0.0, msg=key)


def test_offloaded_layers_keep_the_random_state_of_their_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Their inputs wait on the CPU, and PyTorch looks at nothing else for devices."""
    given: list[Any] = []
    monkeypatch.setattr(stack, "checkpoint", lambda _, *args, **__: given.extend(args))
    layer = nn.Linear(1, 1, device="meta")
    stack.run_layer(layer, SimpleNamespace(offload_activations=True), torch.ones(1), None)
    assert {value.device.type for value in given if isinstance(value, Tensor)} == {"meta", "cpu"}


# --- alignments that are supervised ---


def test_attention_in_training_is_that_of_the_named_layer_and_heads() -> None:
    model = build(alignment_layer=0, alignment_heads=1)
    expected = model(SOURCE, None, TARGET, alignment_layer=0, alignment_heads=1)[1]["attn"][0]
    assert not torch.equal(expected, build()(SOURCE, None, TARGET)[1]["attn"][0])
    for training in (False, True):
        found = model.train(training)(SOURCE, None, TARGET)[1]["attn"][0]
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("left", [False, True])
def test_attention_is_one_block_of_memory(left: bool, training: bool) -> None:
    """The criterion of guided alignments looks at it as a matrix."""
    source, target = (
        padded(sentences(lengths), left=left, extra=1) for lengths in ([4, 7, 5], [6, 3, 6])
    )
    attention = build().train(training)(source, None, target)[1]["attn"][0]
    assert attention.is_contiguous()


def test_supervised_attention_follows_the_alignments() -> None:
    words = dictionary(20)
    task: Any = SimpleNamespace(source_dictionary=words, target_dictionary=words)
    torch.manual_seed(0)
    model = ResMLPModel.build_model(config(), task).double().train()
    criterion = LabelSmoothedCrossEntropyCriterionWithAlignment(task, False, 0.1, 1.0)
    rows, columns = torch.meshgrid(torch.arange(3), torch.arange(2), indexing="ij")
    target = (rows * TARGET.size(1) + columns).flatten()  # word t is aligned to word t
    batch = {
        "net_input": {"src_tokens": SOURCE, "src_lengths": None, "prev_output_tokens": TARGET},
        "target": TARGET,
        "ntokens": int(TARGET.ne(1).sum()),
        "alignments": torch.stack([columns.flatten(), target], dim=1),
        "align_weights": torch.ones(6),
    }
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(60):
        loss, _, logged = criterion(model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(logged["alignment_loss"])
    attention = model.eval()(SOURCE, None, TARGET)[1]["attn"][0]
    assert losses[-1] < 0.3 * losses[0]
    assert (attention[:, :2, :2].diagonal(dim1=1, dim2=2) > 0.5).all()


def test_attention_to_later_words_is_refused() -> None:
    model = build()
    with pytest.raises(ValueError, match="causal"):
        model.decoder(TARGET, model.encoder(SOURCE), full_context_alignment=True)


# --- beside a stock Transformer ---


def transformer(layers: int = 1, dim: int = 12) -> TransformerModel:
    args = Namespace(
        encoder_layers=layers, decoder_layers=2, encoder_embed_dim=dim, decoder_embed_dim=dim,
        encoder_ffn_embed_dim=8, decoder_ffn_embed_dim=8, encoder_attention_heads=2,
        decoder_attention_heads=2, max_source_positions=12, max_target_positions=10,
    )  # fmt: skip
    base_architecture(args)
    torch.manual_seed(3)
    return TransformerModel.build_model(args, task(20)).double().eval()


def form(output: Any) -> Any:
    """The same, with each tensor's type and shape in its place."""
    if isinstance(output, Tensor):
        return output.dtype, output.shape
    if isinstance(output, dict):
        return {name: form(value) for name, value in output.items()}
    return [form(value) for value in output] if isinstance(output, Sequence) else output


LENGTHS = SOURCE.ne(1).sum(1)
ORDER = torch.tensor([2, 0, 0, 1])


def after_a_step(model: Any) -> Any:
    encoder_out, state = model.encoder(SOURCE, LENGTHS), {}
    model.decoder(TARGET[:, :1], encoder_out, state)
    model.decoder.reorder_incremental_state_scripting(state, ORDER[:3])
    encoder_out = model.encoder.reorder_encoder_out(encoder_out, ORDER[:3])
    return model.decoder(TARGET[:, :2], encoder_out, incremental_state=state)


CALLS: dict[str, Callable[[Any], Any]] = {
    "model": lambda m: m(SOURCE, LENGTHS, TARGET),
    "model, all arguments": lambda m: m(SOURCE, LENGTHS, TARGET, True, True, 0, 1),
    "model, names": lambda m: m(src_tokens=SOURCE, src_lengths=LENGTHS, prev_output_tokens=TARGET),
    "model, no pads": lambda m: m(SOURCE[1:2], LENGTHS[1:2], TARGET[:1]),
    "model, a sentence of pads": lambda m: m(F.pad(SOURCE, (0, 0, 0, 1), value=1), None, TARGET4),
    "model, no such layer": lambda m: m(SOURCE, LENGTHS, TARGET, alignment_layer=7),
    "features": lambda m: m.extract_features(SOURCE, LENGTHS, TARGET),
    "scores": lambda m: m.output_layer(m.extract_features(SOURCE, LENGTHS, TARGET)[0]),
    "probabilities": lambda m: m.get_normalized_probs(m(SOURCE, LENGTHS, TARGET), False),
    "logarithms": lambda m: m.get_normalized_probs(m(SOURCE, LENGTHS, TARGET), True, {}),
    "encoder": lambda m: m.encoder(SOURCE, LENGTHS),
    "encoder, all states": lambda m: m.encoder(SOURCE, LENGTHS, True),
    "encoder, no pads": lambda m: m.encoder(SOURCE[1:2], return_all_hiddens=True),
    "encoder, embeddings": lambda m: m.encoder(SOURCE, None, False, m.encoder.embed_tokens(SOURCE)),
    "encoder, TorchScript": lambda m: m.encoder.forward_torchscript(
        {"src_tokens": SOURCE, "src_lengths": LENGTHS, "prev_output_tokens": TARGET}
    ),
    "reordered": lambda m: m.encoder.reorder_encoder_out(m.encoder(SOURCE, None, True), ORDER),
    "none left": lambda m: m.encoder.reorder_encoder_out(m.encoder(SOURCE), ORDER[:0]),
    "decoder": lambda m: m.forward_decoder(TARGET, encoder_out=m.encoder(SOURCE)),
    "decoder, all arguments": lambda m: m.decoder(
        TARGET, m.encoder(SOURCE), None, True, False, 0, 1, LENGTHS, True
    ),
    "decoder, features": lambda m: m.decoder.extract_features(
        TARGET, m.encoder(SOURCE), None, False, 0, 1
    ),
    "decoder, no mask": lambda m: m.decoder(
        TARGET, {**m.encoder(SOURCE), "encoder_padding_mask": []}
    ),
    "first step": lambda m: m.decoder(TARGET[:, :1], m.encoder(SOURCE), {}),
    "step, features": lambda m: m.decoder(
        TARGET[:, :1], m.encoder(SOURCE), incremental_state={}, features_only=True
    ),
    "second step": after_a_step,
    "sizes": lambda m: [
        m.max_positions(), m.max_decoder_positions(), m.encoder.max_positions(),
        m.encoder.num_layers, m.encoder.max_source_positions, m.encoder.padding_idx,
        m.decoder.num_layers, m.decoder.max_target_positions, m.decoder.padding_idx,
        m.decoder.embed_dim, m.decoder.output_embed_dim,
    ],
}  # fmt: skip
TARGET4 = torch.cat([TARGET, TARGET[:1]])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("training", [False, True])
def test_outputs_are_of_the_form_of_the_transformers(training: bool, dtype: torch.dtype) -> None:
    """The same names, numbers of tensors, shapes and types."""
    ours, stock = (model.train(training).to(dtype) for model in (build(), transformer(2, 8)))
    for name, call in CALLS.items():
        assert form(call(ours)) == form(call(stock)), name


@pytest.mark.parametrize("source", [SOURCE, padded(sentences([4, 7]), left=True, extra=8)])
def test_embeddings_may_be_given(source: Tensor) -> None:
    """Where fairseq's Transformer takes them; their gradients do not reach pads."""
    encoder = build().encoder
    embeddings = encoder.embed_tokens(source).detach().requires_grad_()
    found = encoder(source, return_all_hiddens=True, token_embeddings=embeddings)
    for name, tensors in encoder(source, return_all_hiddens=True).items():
        for one, other in zip(found[name], tensors, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)
    found["encoder_out"][0].square().sum().backward()
    reached = embeddings.grad.ne(0).any(dim=2)
    assert torch.equal(reached, source.ne(1))


def test_an_ensemble_with_a_transformer_averages_probabilities() -> None:
    models, words = [build(), transformer()], dictionary(20)
    source = padded(sentences([4, 7, 5]), left=True)
    lengths = source.ne(1).sum(1)
    sample = {"net_input": {"src_tokens": source, "src_lengths": lengths}, "id": torch.arange(3)}
    generator = SequenceGenerator(models, words, beam_size=3, max_len_b=7)
    for row, hypotheses in enumerate(generator.generate(models, sample)):
        for hypothesis in hypotheses:
            target = hypothesis["tokens"]
            previous = torch.cat([target[-1:], target[:-1]])[None]
            outputs = [m(source[row : row + 1], lengths[row : row + 1], previous) for m in models]
            mean = torch.stack([scores.softmax(2) for scores, _ in outputs]).mean(0)[0]
            expected = mean.gather(1, target[:, None]).log().squeeze(1)
            scores = hypothesis["positional_scores"].double()
            torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)
            attention = torch.stack([extra["attn"][0] for _, extra in outputs]).mean(0)[0]
            found = hypothesis["attention"].transpose(0, 1)
            torch.testing.assert_close(found, attention, atol=1e-5, rtol=0, check_dtype=False)
