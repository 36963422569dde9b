"""Weights are not taken for those of another model, in which they fit all the same."""

from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fairseq.models import MODEL_DATACLASS_REGISTRY
from fairseq.models.ema import EMA
from omegaconf import OmegaConf

from conftest import Corpus, train
from models import build, config
from resmlp_mt.command_line import flag
from resmlp_mt.errors import UserError
from resmlp_mt.fairseq_plugin import checkpoints, resuming
from resmlp_mt.fairseq_plugin.config import ResMLPConfig

ARCH = "resmlp_mt_plus_6l"
OTHERS: dict[str, Any] = {
    "encoder_embed_dim": 16,
    "encoder_ffn_embed_dim": 16,
    "encoder_layers": 3,
    "decoder_embed_dim": 16,
    "decoder_ffn_embed_dim": 16,
    "decoder_layers": 3,
    "decoder_attention_heads": 4,
    "activation_fn": "relu",
    "mixing_heads": 4,
    "encoder_mixing_heads": 4,
    "decoder_mixing_heads": 4,
    "mixing_relative": "none",
    "encoder_mixing_relative": "none",
    "decoder_mixing_relative": "none",
    "mixing_decay": "both",
    "mixing_values": "decoder",
    "mixing_gate": "none",
    "share_all_embeddings": True,
    "share_decoder_input_output_embed": True,
    "max_source_positions": 20,
    "max_target_positions": 20,
}
"""Another value of every option on which the function depends that the model computes."""

FREE = {
    # where the training begins
    "encoder_embed_path", "decoder_embed_path", "layer_scale_init",
    # what is dropped in training
    "dropout", "attention_dropout", "activation_dropout", "encoder_layerdrop", "decoder_layerdrop",
    # how much memory it takes
    "checkpoint_activations", "offload_activations",
    # which layers are loaded, and then the number of layers
    "encoder_layers_to_keep", "decoder_layers_to_keep",
    # what is reported as an alignment
    "alignment_layer", "alignment_heads",
}  # fmt: skip
"""All others, which a training may change."""


def options(**changes: Any) -> Any:
    """A model's options as a training has them; small."""
    plain = {field.name: getattr(config(ARCH), field.name) for field in fields(ResMLPConfig)}
    return OmegaConf.create({**plain, "_name": ARCH, **changes})


def shapes(**changes: Any) -> dict[str, torch.Size]:
    """Of the weights of a model, by name."""
    model = build(**{"preset": ARCH, "mixing_decay": "none", **changes})
    return {name: weight.shape for name, weight in model.state_dict().items()}


def state(**changes: Any) -> dict[str, Any]:
    """A checkpoint with these options."""
    stored = OmegaConf.to_container(options(**changes))
    return {"model": {}, "cfg": {"model": stored}}


def test_every_option_is_shown_by_weights_or_compared_or_free() -> None:
    """A new option is to be put into one of the tables."""
    known = {field.name for field in fields(ResMLPConfig) if field.name != "_name"}
    assert known == OTHERS.keys() | FREE
    assert not OTHERS.keys() & FREE
    for name, value in OTHERS.items():
        is_compared = name in (*checkpoints.HIDDEN, *checkpoints.SHARED)
        assert (shapes(**{name: value}) == shapes()) == is_compared, name


@pytest.mark.parametrize(
    ("name", "before", "now"),
    [("decoder_attention_heads", 2, 4), ("activation_fn", "gelu", "relu")],
)
def test_other_options_that_no_weight_shows_are_refused(name: str, before: Any, now: Any) -> None:
    path = Path("x.pt")
    told = f"^{flag(name)} is {now}, but x.pt was trained with {before}: give {before}\\.$"
    with pytest.raises(UserError, match=told):
        resuming.check_model(options(**{name: now}), state(**{name: before}), path)
    resuming.check_model(options(**{name: now}), state(**{name: now}), path)
    without = state()
    del without["cfg"]["model"][name]  # then it is the preset's
    preset = getattr(MODEL_DATACLASS_REGISTRY[ARCH], name)
    resuming.check_model(options(**{name: preset}), without, path)
    with pytest.raises(UserError, match=f"x.pt was trained with {preset}"):
        resuming.check_model(options(**{name: now}), without, path)


def test_two_names_of_one_activation_are_one() -> None:
    resuming.check_model(
        options(activation_fn="gelu_fast"), state(activation_fn="gelu_accurate"), Path("x.pt")
    )


@pytest.mark.parametrize("name", checkpoints.SHARED)
def test_embeddings_that_differ_are_not_shared(name: str) -> None:
    with pytest.raises(UserError, match=f"^{flag(name)}: x.pt was trained without it: drop it"):
        resuming.check_model(options(**{name: True}), state(), Path("x.pt"))
    resuming.check_model(options(**{name: True}), state(**{name: True}), Path("x.pt"))
    resuming.check_model(options(**{name: True}), state(share_all_embeddings=True), Path("x.pt"))
    resuming.check_model(options(), state(**{name: True}), Path("x.pt"))


def test_models_of_fairseq_are_left_to_it() -> None:
    theirs = {"model": {}, "cfg": {"model": {"_name": "transformer", "activation_fn": "relu"}}}
    resuming.check_model(options(), theirs, Path("x.pt"))
    resuming.check_model(OmegaConf.create(theirs["cfg"]["model"]), state(), Path("x.pt"))


def test_averages_begin_with_those_of_the_same_model(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save(state() | {"extra_state": {"ema": {}}}, path)
    model = SimpleNamespace(cfg=options(activation_fn="relu"))
    with pytest.raises(UserError, match=r"^--activation-fn is relu, but .*x\.pt was trained with"):
        EMA(model, SimpleNamespace(ema_seed_model=str(path)))


def test_a_training_with_other_options_is_told(
    corpus: Corpus, trained: Path, tmp_path: Path
) -> None:
    path = trained / "checkpoint_best.pt"
    log = train(
        corpus, tmp_path, "--finetune-from-model", path, "--decoder-attention-heads", 2, expect=1
    )
    assert log.endswith(f"--decoder-attention-heads is 2, but {path} was trained with 4: give 4.\n")
    assert not list(tmp_path.glob("*.pt"))
