"""Registration, presets and options: what is named is what is built, trained and loaded."""

from pathlib import Path
from types import SimpleNamespace

import fairseq
import pytest
import torch
from fairseq import options
from fairseq.dataclass.initialize import add_defaults, hydra_init
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.models import ARCH_MODEL_REGISTRY
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from models import build, config, dictionary, padded, sentences
from omegaconf import DictConfig

from resmlp_mt.models.resmlp_mt import ResMLPModel
from resmlp_mt.translation.config import OptionError

# name: (layers, dim, hidden, heads), the issue of record being section 3.5 of the paper
PRESETS = {
    "resmlp_mt_6l": (6, 512, 2048, 8),
    "resmlp_mt_12l": (12, 512, 2048, 8),
    "resmlp_mt_tiny": (2, 128, 256, 4),
}


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
    words = dictionary(vocabulary)
    task = SimpleNamespace(source_dictionary=words, target_dictionary=words)
    with torch.device("meta"):  # shapes are enough
        model: ResMLPModel = ARCH_MODEL_REGISTRY[cfg._name].build_model(cfg, task)
    return model


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_right_on_the_command_line_and_through_hydra(name: str) -> None:
    layers, dim, hidden, heads = PRESETS[name]
    lengths = ("--max-source-positions", "64", "--max-target-positions", "48")
    hydra_lengths = ("task.max_source_positions=64", "task.max_target_positions=48")
    for cfg in (
        from_command_line("--arch", name, *lengths),
        from_hydra(f"+model._name={name}", *hydra_lengths),
        from_hydra(f"model={name}", *hydra_lengths),
    ):
        assert cfg.layer_scale_init == 0.2
        model = built(cfg)
        assert type(model) is ARCH_MODEL_REGISTRY[name]
        assert len(model.encoder.layers) == len(model.decoder.layers) == layers
        for layer in (*model.encoder.layers, *model.decoder.layers):
            assert layer.ffn.fc1.weight.shape == (hidden, dim)
            assert layer.ffn.activation is torch.nn.functional.gelu
        assert model.decoder.layers[0].encoder_attn.heads == heads
        assert model.max_positions() == (64, 48)


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
        assert cfg.decoder_layers == PRESETS[name][0]


def expected_parameters(layers: int, dim: int, hidden: int, positions: int, vocabulary: int) -> int:
    """Counted from the equations; embeddings all shared, both sides of one length."""
    affine = 2 * dim
    mixing = positions * positions + positions + 2 * affine
    feed_forward = dim * hidden + hidden + hidden * dim + dim + 2 * affine
    attention = 4 * (dim * dim + dim) + 2 * affine
    encoder = layers * (mixing + feed_forward) + affine
    decoder = layers * (mixing + attention + feed_forward) + affine
    return vocabulary * dim + encoder + decoder


@pytest.mark.parametrize("name", PRESETS)
def test_parameter_count_follows_from_the_equations(name: str) -> None:
    layers, dim, hidden, _ = PRESETS[name]
    flags = ("--max-source-positions", "256", "--max-target-positions", "256")
    model = built(from_command_line("--arch", name, "--share-all-embeddings", *flags), 100)
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert counted == expected_parameters(layers, dim, hidden, 256, 100)


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
    with pytest.raises(OptionError) as caught:
        build(**changes)
    assert str(caught.value) == sentence
    assert isinstance(caught.value, ValueError)


def test_sharing_different_dictionaries_is_refused() -> None:
    task = SimpleNamespace(source_dictionary=dictionary(20), target_dictionary=dictionary(21))
    with pytest.raises(OptionError, match="--share-all-embeddings needs one dictionary"):
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
