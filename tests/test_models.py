"""Registration, presets and options: what is named is what is built, trained and loaded."""

import math
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import fairseq
import pytest
import torch
from fairseq import options
from fairseq.data import Dictionary
from fairseq.dataclass.initialize import add_defaults, hydra_init
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.models import ARCH_MODEL_REGISTRY
from fairseq.optim import FP16Optimizer
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig
from torch import nn

import models
import reference
from conftest import ROOT
from models import build, config, dictionary, padded, sentences, shifted, task
from resmlp_mt.errors import UserError
from resmlp_mt.fairseq_plugin import vectors
from resmlp_mt.layers import Affine
from resmlp_mt.mixing import MixingConfig
from resmlp_mt.model.config import ACTIVATIONS
from resmlp_mt.models.resmlp_mt import ResMLPModel

# name: (encoder layers, decoder layers, dim, hidden, heads); section 3.5 of the paper for the first
# two, docs/quality.md for plus
PRESETS = {
    "resmlp_mt_6l": (6, 6, 512, 2048, 8),
    "resmlp_mt_12l": (12, 12, 512, 2048, 8),
    "resmlp_mt_plus_6l": (6, 6, 512, 2048, 8),
    "resmlp_mt_plus_12l": (12, 12, 512, 2048, 8),
    "resmlp_mt_plus_6_2": (6, 2, 512, 2048, 8),
    "resmlp_mt_tiny": (2, 2, 128, 256, 4),
}
PLUS = MixingConfig(heads=8, relative="alone", decay=True, values=True, gate=True)


def from_command_line(*arguments: str) -> DictConfig:
    """The model options that fairseq-train resolves."""
    parser = options.get_training_parser()
    args = options.parse_args_and_arch(parser, ["data", *arguments])
    return convert_namespace_to_omegaconf(args).model


def from_hydra(*overrides: str) -> DictConfig:
    """The model options that fairseq-hydra-train resolves."""
    GlobalHydra.instance().clear()
    hydra_init("config")
    folder = str(Path(fairseq.__file__).parent / "config")
    with initialize_config_dir(folder, version_base="1.1"):  # fairseq relies on this version
        cfg = compose("config", overrides=["task=translation", *overrides])
    add_defaults(cfg)
    return cfg.model


def built(cfg: DictConfig, vocabulary: int = 20) -> ResMLPModel:
    with torch.device("meta"):  # shapes are enough
        model: ResMLPModel = ARCH_MODEL_REGISTRY[cfg._name].build_model(cfg, task(vocabulary))
    return model


def test_every_preset_is_tested() -> None:
    assert set(models.PRESETS) == set(PRESETS)


@pytest.mark.parametrize(
    ("flags", "sides"),
    [(["--mixing-values"], (True, True)), (["--mixing-values", "none"], (False, False)),
     (["--mixing-values", "encoder"], (True, False)), ([], (True, True))],
)  # fmt: skip
def test_a_preset_is_changed_by_flags_without_or_with_a_value(
    flags: list[str], sides: tuple[bool, bool]
) -> None:
    config = built(from_command_line("--arch", "resmlp_mt_plus_6l", *flags)).encoder.config
    assert (config.encoder_mixing.values, config.decoder_mixing.values) == sides


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_right_on_the_command_line_and_through_hydra(name: str) -> None:
    encoder_layers, decoder_layers, dim, hidden, heads = PRESETS[name]
    is_plus = "plus" in name
    lengths = ("--max-source-positions", "64", "--max-target-positions", "48")
    hydra_lengths = ("task.max_source_positions=64", "task.max_target_positions=48")
    for cfg in (
        from_command_line("--arch", name, *lengths),
        from_hydra(f"+model._name={name}", *hydra_lengths),
        from_hydra(f"model={name}", *hydra_lengths),
        pickle.loads(pickle.dumps(from_command_line("--arch", name, *lengths))),
    ):
        assert cfg.layer_scale_init == (1.0 if is_plus else 0.2)
        model = built(cfg)
        assert type(model) is ARCH_MODEL_REGISTRY[name]
        depths = (len(model.encoder.layers), len(model.decoder.layers))
        assert depths == (encoder_layers, decoder_layers)
        for mixing in (model.encoder.config.encoder_mixing, model.encoder.config.decoder_mixing):
            assert mixing == (PLUS if is_plus else MixingConfig())
        for layer in (*model.encoder.layers, *model.decoder.layers):
            assert layer.ffn.fc1.weight.shape == (hidden, dim)
            assert layer.ffn.activation is ACTIVATIONS["gelu"]
        assert model.decoder.layers[0].encoder_attn.heads == heads
        unlimited = 2**31 - 1, 2**31 - 1  # the decay knows every distance
        assert model.max_positions() == (unlimited if is_plus else (64, 48))


@pytest.mark.parametrize("name", PRESETS)
def test_flags_win_over_the_preset_even_at_the_base_default(name: str) -> None:
    flags = ("--encoder-layers", "6", "--decoder-embed-dim", "512", "--dropout", "0.15")
    for cfg in (
        from_command_line("--arch", name, *flags),
        from_hydra(
            f"model={name}",
            "model.encoder_layers=6",
            "model.decoder_embed_dim=512",
            "model.dropout=0.15",
        ),
    ):
        assert (cfg.encoder_layers, cfg.decoder_embed_dim, cfg.dropout) == (6, 512, 0.15)
        assert cfg.decoder_layers == PRESETS[name][1]


def expected_parameters(
    layers: int,
    dim: int,
    hidden: int,
    positions: int,
    vocabulary: int,
    decoder_layers: int | None = None,
    plus_heads: int = 0,
) -> int:
    """Counted from the equations; embeddings all shared, both sides of one length."""
    affine, projections = 2 * dim, 3 * (dim * dim + dim)  # values, gate and output
    encoder_mixing = decoder_mixing = positions * positions + positions
    if plus_heads:
        rates = plus_heads
        encoder_mixing = plus_heads * (2 * positions - 1) + rates + projections
        decoder_mixing = plus_heads * positions + rates + projections
    feed_forward = dim * hidden + hidden + hidden * dim + dim + 2 * affine
    attention = 4 * (dim * dim + dim) + 2 * affine
    encoder = layers * (encoder_mixing + 2 * affine + feed_forward) + affine
    layers = decoder_layers or layers
    decoder = layers * (decoder_mixing + 2 * affine + attention + feed_forward) + affine
    return vocabulary * dim + encoder + decoder


@pytest.mark.parametrize("name", PRESETS)
def test_parameter_count_follows_from_the_equations(name: str) -> None:
    layers, decoder_layers, dim, hidden, _ = PRESETS[name]
    flags = ("--max-source-positions", "256", "--max-target-positions", "256")
    model = built(from_command_line("--arch", name, "--share-all-embeddings", *flags), 100)
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert counted == expected_parameters(
        layers, dim, hidden, 256, 100, decoder_layers, 8 if "plus" in name else 0
    )


@pytest.mark.parametrize(
    "sharing", [{}, {"share_all_embeddings": True}, {"share_decoder_input_output_embed": True}]
)
def test_every_parameter_receives_a_gradient(sharing: dict[str, bool]) -> None:
    model = build(**sharing).train()
    source = padded(sentences([12, 5]))
    target = padded(sentences([10, 10], seed=1))
    scores, _ = model(source, None, target)
    (scores * torch.randn_like(scores)).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
        if name.endswith("token_mixing.weight") and name.startswith("encoder"):
            assert (parameter.grad != 0).all(), name


def test_sharing_ties_what_it_names() -> None:
    model = build(share_all_embeddings=True)
    assert model.encoder.embed_tokens is model.decoder.embed_tokens
    assert model.decoder.output_projection.weight is model.decoder.embed_tokens.weight
    model = build(share_decoder_input_output_embed=True)
    assert model.encoder.embed_tokens is not model.decoder.embed_tokens
    assert model.decoder.output_projection.weight is model.decoder.embed_tokens.weight
    model = build()
    assert model.decoder.output_projection.weight is not model.decoder.embed_tokens.weight


def test_pretrained_embeddings_are_loaded(tmp_path: Path) -> None:
    vectors = tmp_path / "vectors.txt"
    vectors.write_text("1 8\nw3 " + " ".join(str(value) for value in range(8)) + "\n")
    words = dictionary(20)
    task = SimpleNamespace(source_dictionary=words, target_dictionary=words)
    cfg = config(encoder_embed_path=str(vectors), decoder_embed_path=str(vectors))
    model = ResMLPModel.build_model(cfg, task)
    for side in (model.encoder, model.decoder):
        assert torch.equal(side.embed_tokens.weight[words.index("w3")], torch.arange(8.0))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"max_target_positions": 0}, "--max-target-positions must be at least 1, but is 0."),
        ({"encoder_layers": -1}, "--encoder-layers must be at least 1, but is -1."),
        ({"layer_scale_init": math.nan}, "--layer-scale-init must be a finite number, but is nan."),
        ({"layer_scale_init": 1e39}, "--layer-scale-init must be at most 3.4e+38, but is 1e+39."),
        ({"dropout": 1.5}, "--dropout must be at least 0 and below 1, but is 1.5."),
        (
            {"decoder_attention_heads": 3},
            "--decoder-attention-heads must divide --decoder-embed-dim, but 8 is not a multiple "
            "of 3.",
        ),
        (
            {"share_all_embeddings": True, "decoder_embed_dim": 16},
            "--share-all-embeddings needs --encoder-embed-dim equal to --decoder-embed-dim, but "
            "they are 8 and 16.",
        ),
        (
            {"share_all_embeddings": True, "decoder_embed_path": "other.txt"},
            "--share-all-embeddings takes its vectors from --encoder-embed-path: drop "
            "--decoder-embed-path or give the same file.",
        ),
    ],
)
def test_wrong_options_are_named_in_one_sentence(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        build(**changes)
    assert str(caught.value) == sentence
    assert isinstance(caught.value, ValueError)


def test_sharing_different_dictionaries_is_refused() -> None:
    task = SimpleNamespace(source_dictionary=dictionary(20), target_dictionary=dictionary(21))
    with pytest.raises(UserError, match="--share-all-embeddings needs one dictionary"):
        ResMLPModel.build_model(config(share_all_embeddings=True), task)


def test_half_precision_forward_is_finite_and_close() -> None:
    model = build()
    source, target = padded(sentences([4, 12])), padded(sentences([10, 3], seed=1))
    exact, _ = model(source, None, target)
    rounded, _ = model.bfloat16()(source, None, target)
    assert rounded.dtype == torch.bfloat16
    assert (rounded.double() - exact).abs().max() < 0.1 * exact.abs().max()


def test_compiled_model_equals_eager() -> None:
    model = build().float()
    source, target = padded(sentences([4, 12])), padded(sentences([10, 3], seed=1))
    compiled = torch.compile(model, backend="aot_eager")
    torch.testing.assert_close(
        compiled(source, None, target)[0], model(source, None, target)[0], rtol=1e-5, atol=1e-5
    )


def as_built(**changes: object) -> ResMLPModel:
    """A model with its own starting values."""
    return ResMLPModel.build_model(config(**changes), task(20))


def test_affine_maps_start_at_one_before_and_at_layer_scale_behind_every_sublayer() -> None:
    affines = {
        name: module
        for name, module in as_built(layer_scale_init=0.3).named_modules()
        if isinstance(module, Affine)
    }
    assert len(affines) == 2 * 4 + 2 * 6 + 2
    for name, affine in affines.items():
        start = 0.3 if name.endswith("_post") else 1.0
        assert torch.equal(affine.alpha, torch.full((8,), start)), name
        assert torch.equal(affine.beta, torch.zeros(8)), name


def test_weights_start_with_the_documented_deviations() -> None:
    torch.manual_seed(0)
    wide = {"encoder_embed_dim": 64, "decoder_embed_dim": 64, "encoder_ffn_embed_dim": 192}
    model = ResMLPModel.build_model(config(**wide), task(3000))
    layer, attn = model.encoder.layers[0], model.decoder.layers[0].encoder_attn
    for weight, deviation in (
        (layer.ffn.fc1.weight, (2 / (64 + 192)) ** 0.5),  # Glorot and Bengio 2010
        (layer.ffn.fc2.weight, (2 / (64 + 192)) ** 0.5),
        (attn.q_proj.weight, (0.5 * 2 / (64 + 64)) ** 0.5),
        (attn.out_proj.weight, (2 / (64 + 64)) ** 0.5),
        (model.decoder.output_projection.weight, 64**-0.5),
        (model.encoder.embed_tokens.weight, 64**-0.5),
    ):
        assert weight.std().item() == pytest.approx(deviation, rel=0.05)


@pytest.mark.parametrize("option", ["dropout", "attention_dropout", "activation_dropout"])
def test_every_dropout_acts_while_training_and_only_then(option: str) -> None:
    source, target = padded(sentences([4, 12])), padded(sentences([10, 3], seed=1))

    def scores(training: bool, value: float) -> torch.Tensor:
        model = build(**{option: value}).train(training)
        torch.manual_seed(1)
        result: torch.Tensor = model(source, None, target)[0]
        return result

    exact = scores(training=False, value=0.0)
    torch.testing.assert_close(scores(training=True, value=0.0), exact, rtol=0, atol=1e-12)
    assert torch.equal(scores(training=False, value=0.9), exact)
    assert (scores(training=True, value=0.9) - exact).abs().max() > 1e-3


def test_dropout_stands_behind_the_embedding_and_every_sublayer() -> None:
    model = build(dropout=0.5).train()
    calls: dict[str, int] = {}
    for name, module in model.named_modules():
        if name.endswith(".dropout"):
            count = lambda *_, name=name: calls.update({name: calls.get(name, 0) + 1})  # noqa: E731
            module.register_forward_hook(count)
    model(padded(sentences([4])), None, padded(sentences([5])))
    expected = {"encoder.dropout": 1, "decoder.dropout": 1}
    for index in range(2):
        expected |= {f"encoder.layers.{index}.dropout": 2, f"decoder.layers.{index}.dropout": 3}
    assert calls == expected


def model_layers(model: ResMLPModel) -> list[torch.nn.Module]:
    return [*model.encoder.layers, *model.decoder.layers]


@pytest.mark.parametrize(
    ("name", "function"),
    [("gelu", reference.gelu), ("relu", lambda x: max(x, 0.0)), ("tanh", math.tanh)],
)
def test_activation_fn_is_the_named_function(name: str, function: Callable[[float], float]) -> None:
    for layer in model_layers(build(activation_fn=name)):
        values = [-2.0, -0.3, 0.0, 0.7, 3.0]
        found = layer.ffn.activation(torch.tensor(values, dtype=torch.float64))
        assert found.tolist() == pytest.approx([function(value) for value in values], abs=1e-12)


def test_wrong_embedding_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--encoder-embed-path .*none\.txt cannot be read"):
        as_built(encoder_embed_path=str(tmp_path / "none.txt"))
    narrow = tmp_path / "narrow.txt"
    narrow.write_text("1 2\nw3 1 2\n")
    with pytest.raises(UserError, match=r"--decoder-embed-path .* width \[2\], not 8"):
        as_built(decoder_embed_path=str(narrow))


@pytest.mark.parametrize("header", ["", "2 2\n"], ids=["GloVe", "word2vec"])
def test_vectors_are_of_the_words_of_the_dictionary(
    header: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    words = Dictionary()
    for word in ("\u2581f\xfcr", "\u2581Hund", "s", "\u2581x"):
        words.add_symbol(word)
    embedding = nn.Embedding(len(words), 2)
    before = embedding.weight.detach().clone()
    path = tmp_path / "vectors.txt"
    path.write_text(f"{header}\u2581f\xfcr 1 2\ns 3 4\n", encoding="utf-8")
    vectors.fill(embedding, words, str(path), "--encoder-embed-path")
    assert f"{path} has vectors of 2 of the 4 words" in caplog.text
    for word, row in (("\u2581f\xfcr", [1.0, 2.0]), ("s", [3.0, 4.0])):
        assert embedding.weight[words.index(word)].tolist() == row
    rest = [words.index(word) for word in ("\u2581Hund", "\u2581x", "<unk>")]
    assert torch.equal(embedding.weight[rest], before[rest])
    path.write_text(f"{header}f\xfcr 1 2\ns 3 4\nHund 5 6\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"of 1 of the 4 words .*, and of 3 without the sign"):
        vectors.fill(embedding, words, str(path), "--encoder-embed-path")
    path.write_text(f"{header}cat 1 2\n", encoding="utf-8")
    with pytest.raises(UserError, match="of 0 of the 4 words of the dictionary: give vectors of"):
        vectors.fill(embedding, words, str(path), "--encoder-embed-path")


def test_words_of_vectors_may_hold_spaces(tmp_path: Path) -> None:
    """As in glove.840B; but a line with more numbers is a vector of another width."""
    path = tmp_path / "vectors.txt"
    path.write_text("cat 1 2\n. . . 3 4\nat name@domain.com 5 6\n2000 7 8\n", encoding="utf-8")
    found = vectors.read_vectors(str(path), 2, "--encoder-embed-path")
    assert {word: vector.tolist() for word, vector in found.items()} == {
        "cat": [1, 2], ". . .": [3, 4], "at name@domain.com": [5, 6], "2000": [7, 8],
    }  # fmt: skip
    for text, widths in (("cat 1 2\ndog 1 2 3\n", "[2, 3]"), ("cat 1 2 3\n", "[3]"), ("", "[]")):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=rf"has vectors of width {re.escape(widths)}, not 2"):
            vectors.read_vectors(str(path), 2, "--encoder-embed-path")


def test_vectors_are_utf8_whatever_the_locale_is(tmp_path: Path) -> None:
    (tmp_path / "vectors").write_text("\u2581f\xfcr 1\n", encoding="utf-8")
    program = (
        "import sys; from resmlp_mt.fairseq_plugin.vectors import read_vectors\n"
        "print(ascii([*read_vectors(sys.argv[1], 1, '')]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "vectors"], cwd=ROOT, capture_output=True,
        env={**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    )  # fmt: skip
    assert done.stdout.decode().strip() == ascii(["\u2581f\xfcr"]), done.stderr


def test_adagrad_with_the_papers_settings_learns_in_float16() -> None:
    """fairseq's --fp16 (half weights, float32 copies, loss scale), which runs without a GPU too."""
    parser = options.get_training_parser()
    flags = [
        "--fp16",
        "--fp16-no-flatten-grads",
        "--optimizer",
        "adagrad",
        "--lr",
        "0.2",
        "--arch",
        "resmlp_mt_tiny",
    ]
    cfg = convert_namespace_to_omegaconf(options.parse_args_and_arch(parser, ["data", *flags]))
    torch.manual_seed(0)
    model = as_built(share_all_embeddings=True).half().train()
    optimizer = FP16Optimizer.build_optimizer(cfg, list(model.parameters()))
    source = padded(sentences([12, 7, 5]), left=True)
    target = padded(sentences([10, 6, 8], seed=1))
    previous = padded([shifted(row[row.ne(1)]) for row in target])
    losses = []
    for update in range(40):
        optimizer.set_lr(0.2 * min(1.0, (update + 1) / 20))
        scores = model(source, None, previous)[0].float()
        loss = torch.nn.functional.cross_entropy(scores.transpose(1, 2), target, ignore_index=1)
        losses.append(loss.item())
        optimizer.zero_grad()
        optimizer.backward(loss)
        try:
            optimizer.clip_grad_norm(0.0)
        except OverflowError:  # the loss scale begins high and halves, as in fairseq's trainer
            continue
        optimizer.step()
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < 0.5 * losses[0]
    assert all(parameter.dtype == torch.float16 for parameter in model.parameters())
