"""Our image models behave as timm's: names, methods, tracing, and timm's own tools."""

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from conftest import ROOT
from resmlp_mt.errors import UserError
from resmlp_mt.vision import create_model, timm_models, timm_registration
from resmlp_mt.vision.libraries import timm, torchvision
from resmlp_mt.vision.mixing import MIXINGS
from resmlp_mt.vision.model import ResMLP
from resmlp_mt.vision.presets import HUB_NAMES, MODELS
from resmlp_mt.vision.weights import load_weights


def small(**kwargs: Any) -> ResMLP:
    sizes: dict[str, Any] = {"num_classes": 5, "img_size": (8, 12), "patch_size": 4}
    torch.manual_seed(0)
    model = create_model("resmlp_tiny", **sizes | kwargs)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(scope="module")
def pair() -> tuple[nn.Module, ResMLP]:
    """timm's model and ours with the same weights."""
    theirs = timm.create_model("resmlp_12_224", num_classes=7, img_size=64).eval()
    ours = create_model("resmlp_12_224", num_classes=7, img_size=64).eval()
    load_weights(ours, theirs.state_dict())
    return theirs, ours


def images(model: ResMLP, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, *model.img_size, generator=torch.Generator().manual_seed(1))


def test_features_and_heads_equal_timms(pair: tuple[Any, ResMLP]) -> None:
    theirs, ours = pair
    x = images(ours)
    with torch.no_grad():
        expected, found = theirs.forward_features(x), ours.forward_features(x)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        for pre_logits in (False, True):
            torch.testing.assert_close(
                ours.forward_head(found, pre_logits=pre_logits),
                theirs.forward_head(expected, pre_logits=pre_logits),
                rtol=1e-4,
                atol=1e-4,
            )
    for name in ("num_features", "head_hidden_size", "embed_dim", "num_classes", "in_chans"):
        assert getattr(ours, name) == getattr(theirs, name), name


@pytest.mark.parametrize("indices", [None, 2, (0, 3, -1)])
@pytest.mark.parametrize("options", [{}, {"norm": True}, {"output_fmt": "NLC"},
                                     {"stop_early": True, "intermediates_only": True}])  # fmt: skip
def test_intermediates_equal_timms(
    pair: tuple[Any, ResMLP], indices: Any, options: dict[str, Any]
) -> None:
    theirs, ours = pair
    x = images(ours)
    with torch.no_grad():
        expected = theirs.forward_intermediates(x, indices=indices, **options)
        found = ours.forward_intermediates(x, indices=indices, **options)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    states = found if isinstance(found, list) else [found[0], *found[1]]
    assert all(state.is_contiguous() for state in states)  # so that views of them are possible
    assert [info["module"] for info in ours.feature_info] == [f"blocks.{i}" for i in range(12)]


@pytest.mark.parametrize("kind", ["hook", "graph", "torchvision"])
def test_outputs_of_layers_equal_timms(pair: tuple[Any, ResMLP], kind: str) -> None:
    """Whoever looks into the model finds (batch, tokens, dim)."""
    x = images(pair[1])
    nets: dict[str, Any] = {
        "hook": lambda model: timm.models.FeatureHookNet(model, (2, 11), flatten_sequential=True),
        "graph": lambda model: timm.models._features_fx.FeatureGraphNet(model, (2, 11)),
        "torchvision": lambda model: torchvision.models.feature_extraction.create_feature_extractor(
            model, ["blocks.2", "norm", "head"]
        ),
    }
    with torch.no_grad():
        expected, found = (nets[kind](copy.deepcopy(model))(x) for model in pair)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_layers_and_formats_that_do_not_exist_are_refused() -> None:
    model = small()
    for indices in (0, 5, [4]):
        with pytest.raises(AssertionError, match="out of range"):
            model.forward_intermediates(images(model), indices)
    with pytest.raises(ValueError, match="must be NCHW or NLC"):
        model.forward_intermediates(images(model), output_fmt="NHWC")
    for run in (model, model.forward_features, model.forward_intermediates):
        with pytest.raises(ValueError, match="images of 3 channels, but these have 1: convert"):
            run(images(model)[:, :1])
        with pytest.raises(ValueError, match="images of 8 x 12 pixels, but these have 8 x 8"):
            run(images(model)[..., :8])
        with pytest.raises(ValueError, match="these have 3 dimensions: stack them, also a single"):
            run(images(model)[0])


def test_a_batch_may_be_empty() -> None:
    assert small()(torch.zeros(0, 3, 8, 12)).shape == (0, 5)


@pytest.mark.parametrize("options", [{}, {"prune_norm": True}, {"prune_head": False}])
def test_pruned_models_equal_timms(pair: tuple[Any, ResMLP], options: dict[str, bool]) -> None:
    theirs, ours = (copy.deepcopy(model) for model in pair)
    x = images(ours)
    for model in (theirs, ours):
        assert model.prune_intermediate_layers([1, -9], **options) == [1, 3]
    assert len(ours.blocks) == 4
    with torch.no_grad():
        for name in ("forward", "forward_features", "forward_intermediates"):
            found, expected = getattr(ours, name)(x), getattr(theirs, name)(x)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    for name in ("num_classes", "global_pool"):
        assert getattr(ours, name) == getattr(theirs, name)


@pytest.mark.parametrize("pooling", ["mean", "class_mlp"])
def test_features_only_has_no_parameters_that_nobody_uses(pooling: str) -> None:
    """DistributedDataParallel would refuse them."""
    model = timm.create_model("resmlp_tiny", pooling=pooling, features_only=True)
    x = torch.randn(2, 3, 32, 32)
    sum(feature.sum() for feature in model(x)).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    torch.testing.assert_close(torch.jit.script(model)(x), model(x))


@pytest.mark.parametrize("pooling", ["mean", "class_mlp"])
def test_the_classifier_is_replaced(pooling: str) -> None:
    model = small(pooling=pooling)
    features = model.forward_head(model.forward_features(images(model)), pre_logits=True)
    assert model.get_classifier() is model.head
    model.reset_classifier(9)
    assert model(images(model)).shape == (2, 9)
    assert model.num_classes == 9
    model.reset_classifier(0)
    torch.testing.assert_close(model(images(model)), features)
    torch.testing.assert_close(small(pooling=pooling, num_classes=0)(images(model)).shape, (2, 64))
    with pytest.raises(ValueError, match="global_pool must be"):
        model.reset_classifier(3, "max")


@pytest.mark.parametrize("pooling", ["mean", "class_mlp"])
def test_without_pooling_every_token_is_classified(pooling: str) -> None:
    model = small(pooling=pooling)
    own = model.global_pool
    x = images(model)
    features = model.forward_features(x)
    model.reset_classifier(3, "")
    torch.testing.assert_close(model(x), model.head(features))
    torch.testing.assert_close(torch.jit.script(model)(x), model.head(features))
    model.reset_classifier(0)
    torch.testing.assert_close(model(x), features)
    model.reset_classifier(3, own)
    assert model(x).shape == (2, 3)
    made = timm.create_model("resmlp_tiny", num_classes=0, global_pool="", pooling=pooling).eval()
    x = images(made)
    torch.testing.assert_close(made(x), made.forward_features(x))
    with pytest.raises(ValueError, match="global_pool must be 'avg', 'token' or '', but is 'max'"):
        timm.create_model("resmlp_tiny", global_pool="max")


def test_checkpointed_gradients_are_the_same() -> None:
    gradients = []
    for enable in (False, True):
        model = small(drop_path=0.3).train()
        model.set_grad_checkpointing(enable)
        torch.manual_seed(3)
        model(images(model, 4)).square().sum().backward()
        final, layers = model.forward_intermediates(images(model, 4))
        (final.sum() + sum(layer.square().sum() for layer in layers)).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("pooling", ["mean", "class_mlp"])
def test_learning_rates_decay_by_layer(pooling: str) -> None:
    model = small(pooling=pooling)
    optimizer = timm.optim.create_optimizer_v2(model, "adamw", lr=1.0, layer_decay=0.5)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    scales = {
        names[id(p)]: group["lr_scale"] for group in optimizer.param_groups for p in group["params"]
    }
    for name, scale in scales.items():
        part = name.split(".")[0]
        group = {"patch_embed": 0, "class_token": 0, "norm": 4, "class_blocks": 4, "head": 5}
        number = int(name.split(".")[1]) + 1 if part == "blocks" else group[part]
        assert scale == 0.5 ** (5 - number), name


@pytest.mark.parametrize("mixing", MIXINGS)
@pytest.mark.parametrize(("norm", "pooling"), [("affine", "mean"), ("layernorm", "class_mlp")])
def test_every_variant_is_scripted_traced_and_exported(
    mixing: str, norm: str, pooling: str
) -> None:
    model = small(mixing=mixing, norm=norm, pooling=pooling, drop_path=0.1)
    x = images(model, 3)
    expected = model(x)
    scripted, traced = torch.jit.script(model), fx.symbolic_trace(model)
    exported = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    for found in (scripted, traced, exported.module()):
        torch.testing.assert_close(found(x), expected)
        torch.testing.assert_close(found(x[:2]), expected[:2])
    for found in (scripted, traced):
        with pytest.raises(Exception, match="takes images of 8 x 12 pixels"):
            found(x[:, :, :4])


def test_the_addresses_of_weights_do_not_depend_on_what_is_registered() -> None:
    """A second import finds our own models among timm's."""
    assert timm.is_model("resmlp_tiny")
    for name in ("resmlp_tiny", "resmlp_b24"):
        assert timm_registration._weights_of(name) == {name: {}}
        assert not timm_registration.default_cfgs[name].is_pretrained
    found = timm_registration._weights_of("resmlp_s12")
    assert found["resmlp_s12.fb_dino"]["hf_hub_id"] == "timm/resmlp_12_224.fb_dino"


def test_our_models_are_registered() -> None:
    assert timm.is_model("resmlp_s12")
    assert timm_registration.default_cfgs["resmlp_s12"].is_pretrained
    model = timm.create_model(
        "resmlp_tiny", num_classes=3, drop_path_rate=0.1, drop_rate=0.2, global_pool="avg"
    )
    assert isinstance(model, ResMLP)
    assert {block.drop_path for block in model.blocks} == {0.1}
    assert model.head_drop.p == 0.2
    assert model.num_classes == model.get_classifier().out_features == 3
    assert model.default_cfg["input_size"] == (3, 32, 32)
    config = timm.data.resolve_model_data_config(timm.create_model("resmlp_s12", num_classes=0))
    assert config["input_size"] == (3, 224, 224)
    assert (config["crop_pct"], config["interpolation"]) == (0.9, "bicubic")


@pytest.mark.parametrize("name", MODELS)
def test_the_configuration_names_parts_of_the_model(name: str) -> None:
    """timm's own test of default_cfg."""
    model = timm.create_model(name, device="meta", dtype=torch.float64)
    assert all(p.is_meta and p.dtype == torch.float64 for p in model.parameters())
    assert {f"{model.default_cfg[key]}.weight" for key in ("first_conv", "classifier")} <= set(
        model.state_dict()
    )
    theirs = HUB_NAMES.get(name)
    tags = [tagged.partition(".")[2] for tagged in timm.list_pretrained(f"{theirs}.*")]
    assert tags == [tagged.partition(".")[2] for tagged in timm.list_pretrained(f"{name}.*")]
    for tag in tags:
        ours, same = (timm.models.get_pretrained_cfg(f"{n}.{tag}") for n in (name, theirs))
        assert (ours.hf_hub_id, ours.url) == (same.hf_hub_id, same.url)
    model.train(False).requires_grad_(False).reset_classifier(7)
    assert (model.head.weight.is_meta, model.head.weight.dtype) == (True, torch.float64)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"not_an_argument": 1}, TypeError),
        ({"global_pool": "avg", "pooling": "class_mlp"}, ValueError),
        ({"num_classes": -1}, ValueError),
    ],
)
def test_arguments_are_not_ignored(options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        timm.create_model("resmlp_tiny", **options)
    with pytest.raises(ValueError, match="at least 0"):
        small().reset_classifier(-1)


def test_a_refused_classifier_leaves_the_model_as_it_was() -> None:
    model = small()
    expected = model(images(model))
    with pytest.raises(ValueError, match="at least 0"):
        model.reset_classifier(-1, "")
    assert (model.num_classes, model.global_pool) == (5, "avg")
    assert torch.equal(model(images(model)), expected)


def test_models_are_saved_and_made_again(tmp_path: Path) -> None:
    """As a folder of the hub, which is read without it."""
    model = timm.create_model("resmlp_tiny", pooling="class_mlp", img_size=(8, 16), num_classes=4)
    timm.models.save_for_hf(model, str(tmp_path), safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    x = torch.randn(2, 3, 8, 16)
    torch.testing.assert_close(again.eval()(x), model.eval()(x))


def test_features_only() -> None:
    model = timm.create_model("resmlp_tiny", features_only=True, out_indices=(1, 3))
    assert [x.shape for x in model(torch.zeros(2, 3, 32, 32))] == [(2, 64, 8, 8)] * 2
    assert model.feature_info.channels() == [64, 64]
    assert model.feature_info.reduction() == [4, 4]


def test_timms_weights_are_loaded_under_our_names(tmp_path: Path) -> None:
    theirs = timm.create_model("resmlp_12_224", num_classes=1000).eval()
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "w.pth")
    x = torch.randn(1, 3, 224, 224)
    overlay = {"file": str(tmp_path / "w.pth")}
    for options in (
        {"pretrained": True, "pretrained_cfg_overlay": overlay},
        {"checkpoint_path": str(tmp_path / "w.pth")},  # --checkpoint, --initial-checkpoint
    ):
        ours = timm.create_model("resmlp_s12", **options).eval()
        with torch.no_grad():
            torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)
    average = timm.utils.ModelEmaV3(ours)  # a copy
    average.module.load_state_dict(theirs.state_dict())


def test_pretrained_weights_are_adapted_to_channels_and_grid(tmp_path: Path) -> None:
    theirs = timm.create_model("resmlp_12_224", img_size=32).eval()
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    options = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(tmp_path / "w.pth")}}
    grey = timm.create_model("resmlp_s12", in_chans=1, img_size=32, num_classes=5, **options)
    x = torch.randn(1, 1, 32, 32)
    with torch.no_grad():
        expected = theirs.forward_features(x.expand(-1, 3, -1, -1))
        torch.testing.assert_close(grey.eval().forward_features(x), expected, rtol=1e-4, atol=1e-4)
    larger = timm.create_model("resmlp_s12", img_size=64, **options)
    again = create_model("resmlp_s12", img_size=64)
    load_weights(again, tmp_path / "w.pth")
    for name, value in again.state_dict().items():
        assert torch.equal(larger.state_dict()[name], value), name


def test_timms_scripts_find_our_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What timm's train.py and validate.py do with --model."""
    script = tmp_path / "validate.py"
    script.write_text(
        "import sys, timm, torch, beside\n"
        "model = timm.create_model(sys.argv[2], drop_rate=0.0, drop_block_rate=None)\n"
        "config = timm.data.resolve_data_config({}, model=model)\n"
        "print(__name__, sys.argv[1:], *model(torch.zeros(1, *config['input_size'])).shape)\n"
    )
    (tmp_path / "beside.py").touch()
    command = [sys.executable, "-m", "resmlp_mt.vision.timm_models"]
    words = [*command, str(script), "--model", "resmlp_tiny"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "__main__ ['--model', 'resmlp_tiny'] 1 1000\n"
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.endswith("the following arguments are required: SCRIPT.py\n")
    for missing in (tmp_path / "nowhere/train.py", tmp_path / "folder.py"):
        (tmp_path / "folder.py").mkdir(exist_ok=True)
        monkeypatch.setattr(sys, "argv", ["timm_models", str(missing)])
        with pytest.raises(UserError, match=f"{missing.name} is not a Python file here: give"):
            timm_models.main()
