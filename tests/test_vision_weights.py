"""Weights of timm's and the authors' ResMLP give timm's outputs and gradients here."""

import argparse
import functools
import gzip
import logging
import random
import subprocess
import sys
from collections import defaultdict, deque
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks.cifar10 import timm_names
from conftest import ROOT
from resmlp_mt.errors import UserError
from resmlp_mt.vision import create_model, load_weights
from resmlp_mt.vision.factory import build_model
from resmlp_mt.vision.libraries import timm
from resmlp_mt.vision.model import ResMLP
from resmlp_mt.vision.state_dicts import own_names
from resmlp_mt.vision.weights import adapt_mixing
from vision_checkpoints import Malicious


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter far from its start, scaled so that all layers count for the output."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1 or "norm" in name:
                scale = 0.0 if name.endswith(("bias", "beta")) else 0.5
                parameter.copy_(scale + 0.2 * noise)
            else:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
    return model.eval()


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).norm() / expected.norm()).item()


def assert_equals_timm(ours: ResMLP, theirs: nn.Module, batch: int, bound: float) -> None:
    """Equal outputs and equal gradients of every parameter, in relative norm."""
    torch.manual_seed(1)
    images = torch.randn(batch, 3, *ours.img_size)
    weights = torch.randn(batch, ours.num_classes)
    outputs = [model(images) for model in (ours, theirs)]
    assert relative_error(*outputs) < bound
    for output in outputs:
        (output * weights).sum().backward()
    gradients = own_names({name: p.grad for name, p in theirs.named_parameters()})
    named = dict(ours.named_parameters())
    assert named.keys() == gradients.keys()
    for name, expected in gradients.items():
        assert relative_error(named[name].grad, expected) < bound, name


def small_model(**kwargs: object) -> ResMLP:
    """Three patches a side, one layer of 12 channels; parameters far from their start."""
    sizes = {"img_size": (12, 12), "patch_size": 4, "in_chans": 3, "num_classes": 5}
    sizes |= {"embed_dim": 12, "depth": 1, "layer_scale_init": 0.1}
    return randomised(ResMLP(**(sizes | kwargs)))


def authors_names(model: ResMLP) -> dict[str, Tensor]:
    """The names in the authors' resmlp_models.py, which timm's filter turns into its own."""
    state = {}
    for name, value in timm_names(model).items():
        if name.endswith((".alpha", ".beta")):
            value = value.flatten()
        for theirs, authors in {
            "stem.": "patch_embed.",
            "linear_tokens.": "attn.",
            "mlp_channels.": "mlp.",
            ".ls": ".gamma_",
        }.items():
            name = name.replace(theirs, authors)
        state[name] = value
    return state


def test_outputs_and_gradients_equal_timms() -> None:
    theirs = randomised(timm.create_model("resmlp_12_224", num_classes=7, img_size=64))
    ours = create_model("resmlp_s12", num_classes=7, img_size=64).eval()
    load_weights(ours, theirs.state_dict())
    assert_equals_timm(ours, theirs, batch=3, bound=1e-5)


def test_b24_with_patches_of_8_equals_two_blocks_of_timms_big_model() -> None:
    theirs = timm.models.mlp_mixer.MlpMixer(
        num_classes=7, img_size=48, patch_size=8, num_blocks=2, embed_dim=768, mlp_ratio=4,
        block_layer=timm.models.mlp_mixer.ResBlock, norm_layer=timm.models.mlp_mixer.Affine,
    )  # fmt: skip
    ours = ResMLP(
        img_size=(48, 48), patch_size=8, in_chans=3, num_classes=7, embed_dim=768, depth=2,
        layer_scale_init=1e-6,
    ).eval()  # fmt: skip
    load_weights(ours, randomised(theirs).state_dict())
    assert_equals_timm(ours, theirs, batch=2, bound=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("timm_name", "name", "patch_size"),
    [
        ("resmlp_12_224", "resmlp_s12", 16),
        ("resmlp_24_224", "resmlp_s24", 16),
        ("resmlp_36_224", "resmlp_s36", 16),
        ("resmlp_big_24_224", "resmlp_b24", 8),
    ],
)
def test_all_models_equal_timms_at_full_size(timm_name: str, name: str, patch_size: int) -> None:
    theirs = randomised(timm.create_model(timm_name))
    ours = create_model(name, patch_size=patch_size).eval()
    load_weights(ours, theirs.state_dict())
    assert_equals_timm(ours, theirs, batch=1, bound=1e-5)


def test_weights_go_back_to_timm() -> None:
    ours = randomised(create_model("resmlp_s12", num_classes=7, img_size=32))
    theirs = timm.create_model("resmlp_12_224", num_classes=7, img_size=32).eval()
    theirs.load_state_dict(timm_names(ours))
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert relative_error(theirs(images), ours(images)) < 1e-5


def assert_same_parameters(model: ResMLP, expected: ResMLP) -> None:
    for name, value in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_every_way_of_naming_and_storing_gives_the_same_model(tmp_path: Path) -> None:
    expected = small_model()
    own, timms, authors = expected.state_dict(), timm_names(expected), authors_names(expected)
    other = {name: torch.zeros_like(value) for name, value in own.items()}
    assert "blocks.0.gamma_1" in authors
    assert authors["patch_embed.proj.weight"].shape == (12, 3, 4, 4)
    torch.save(timms, tmp_path / "timm.pth")
    torch.save({"model": authors, "args": argparse.Namespace(lr=1)}, tmp_path / "authors.pth")
    torch.save({"model": other, "model_ema": own}, tmp_path / "train.pth")
    torch.save({"state_dict": {f"module.{k}": v for k, v in own.items()}}, tmp_path / "ddp.pt")
    save_file({k: v.contiguous() for k, v in authors.items()}, tmp_path / "authors.safetensors")
    # the content counts, not the name
    save_file({k: v.contiguous() for k, v in timms.items()}, tmp_path / "pytorch_model.bin")
    torch.save(own, tmp_path / "own.safetensors")
    sources = [own, timms, authors, {"model": own}, *sorted(tmp_path.iterdir())]
    assert len(sources) == 11
    for source in sources:
        model = small_model(num_classes=5)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        load_weights(model, str(source) if isinstance(source, Path) else source)
        assert_same_parameters(model, expected)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"pooling": "class_mlp"},
        {"mixing": "mlp"},
        {"mixing": "separable"},
        {"norm": "layernorm"},
        {"img_size": (12, 8)},
    ],
)
def test_own_variants_are_loaded_back(kwargs: dict[str, object]) -> None:
    expected, model = small_model(**kwargs), randomised(small_model(**kwargs), seed=1)
    load_weights(model, expected.state_dict())
    assert_same_parameters(model, expected)


def test_the_head_is_kept_or_reset() -> None:
    source = small_model(num_classes=9).state_dict()
    model = small_model()
    before = model.head.weight.clone()
    with pytest.raises(UserError, match=r"has 9 classes and the model 5: load .* num_classes=9\.$"):
        load_weights(model, source)
    assert torch.equal(model.head.weight, before)
    load_weights(model, source, head="reset")
    assert torch.equal(model.head.weight, before)
    assert torch.equal(model.patch_embed.proj.weight, source["patch_embed.proj.weight"])
    headless = {k: v for k, v in source.items() if not k.startswith("head.")}
    with pytest.raises(UserError, match=r"has no classifier: load it with head=.reset"):
        load_weights(model, headless)
    load_weights(model, headless, head="reset")


@pytest.mark.parametrize(
    ("old", "new"), [((3, 3), (5, 5)), ((4, 4), (2, 2)), ((3, 5), (4, 2)), ((2, 3), (3, 2))]
)
def test_adapted_mixing_resizes_mixes_and_resizes_back(
    old: tuple[int, int], new: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(old[0] * old[1], old[0] * old[1]), torch.randn(old[0] * old[1])
    x = torch.randn(7, *new)  # images on the new grid
    resized = nn.functional.interpolate(x[:, None], old, mode="bilinear", antialias=True)
    mixed = (resized.flatten(1) @ weight.T + bias).view(7, 1, *old)
    expected = nn.functional.interpolate(mixed, new, mode="bilinear", antialias=True).flatten(1)
    new_weight, new_bias = adapt_mixing(weight, bias, old, new)
    torch.testing.assert_close(
        x.flatten(1) @ new_weight.T + new_bias, expected, rtol=1e-5, atol=1e-5
    )


def test_weights_of_timms_models_are_adapted_by_timm_alone() -> None:
    made = [timm.create_model("test_vit", img_size=size) for size in (160, 192)]
    with pytest.raises(
        UserError, match=r"with the sizes of these weights, or take .* --pretrained"
    ):
        load_weights(made[1], made[0].state_dict())
    ours = small_model(embed_dim=24)
    with pytest.raises(UserError, match=r"create the model with the sizes of these weights\.$"):
        load_weights(ours, small_model(embed_dim=16).state_dict())


def test_weights_are_adapted_to_another_resolution(caplog: pytest.LogCaptureFixture) -> None:
    model = small_model(pooling="class_mlp")
    larger = small_model(pooling="class_mlp", img_size=(24, 16))
    with caplog.at_level(logging.INFO):
        load_weights(larger, model.state_dict())
    assert "adapted from a grid of 3 x 3 patches to 6 x 4" in caplog.text
    assert len(caplog.records) == 1
    before, after = model.blocks[0].token_mixing, larger.blocks[0].token_mixing
    expected = adapt_mixing(before.weight, before.bias, (3, 3), (6, 4))
    torch.testing.assert_close((after.weight, after.bias), expected)
    # The class token's own weight stays; equal patches contribute as much as before.
    before, after = (m.class_blocks[0].token_mixing.weight[0] for m in (model, larger))
    assert after[0] == before[0]
    torch.testing.assert_close(after[1:].sum(), before[1:].sum())
    assert torch.equal(larger.head.weight, model.head.weight)
    assert larger(torch.randn(2, 3, 24, 16)).shape == (2, 5)


def test_the_grid_of_a_checkpoint_is_used_where_it_is_not_square() -> None:
    model = small_model(img_size=(8, 32))  # 2 x 8 = 4 x 4 patches
    turned = small_model(img_size=(16, 16))
    args = {"name": "resmlp_tiny", "img_size": (8, 32), "patch_size": 4}
    load_weights(turned, {"model": model.state_dict(), "model_args": args})
    mixing = model.blocks[0].token_mixing
    expected = adapt_mixing(mixing.weight, mixing.bias, (2, 8), (4, 4))
    torch.testing.assert_close(turned.blocks[0].token_mixing.weight, expected[0])
    torch.testing.assert_close(turned.blocks[0].token_mixing.bias, expected[1])
    assert turned.state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_adapted_in_float32(dtype: torch.dtype) -> None:
    state = small_model(pooling="class_mlp").to(dtype).state_dict()
    models = [small_model(pooling="class_mlp", img_size=(24, 16)) for _ in range(2)]
    load_weights(models[0], state)
    load_weights(models[1], {name: value.float() for name, value in state.items()})
    assert_same_parameters(*models)


@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        torch.compile,
        lambda model: nn.DataParallel(torch.compile(model)),
        lambda model: torch.compile(nn.DataParallel(model)),
    ],
    ids=["parallel", "compiled", "compiled and parallel", "parallel and compiled"],
)
def test_a_wrapped_model_gets_its_weights(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model, expected = small_model(), small_model()
    randomised(expected, seed=1)
    load_weights(wrap(model), expected.state_dict())
    assert_same_parameters(model, expected)


def test_the_patches_of_other_weights_are_told() -> None:
    with pytest.raises(
        UserError, match=r"sizes of these weights \(their patches have 2 pixels a si"
    ):
        load_weights(small_model(), small_model(patch_size=2).state_dict())


def test_a_grid_that_cannot_be_known_is_refused() -> None:
    source = small_model(img_size=(12, 8)).state_dict()
    with pytest.raises(UserError, match="for 6 patches, which do not make a square grid"):
        load_weights(small_model(), source)


@pytest.mark.parametrize("pooling", ["mean", "class_mlp"])
def test_tensors_of_any_shape_are_refused_in_a_sentence(pooling: str) -> None:
    """One is of another shape; the others are as they should be, or of a larger grid."""
    model = small_model(pooling=pooling)
    for size in (12, 16):
        state = small_model(pooling=pooling, img_size=(size, size)).state_dict()
        args = {"img_size": (-size, -size), "patch_size": 4}  # not a grid
        for name in state:
            for shape in ((), (0,), (1,), (7,), (0, 0), (1, 0), (1, 1), (4, 7), (1, 2, 3)):
                source = {"model": {**state, name: torch.ones(shape)}, "model_args": args}
                if shape != state[name].shape:
                    with pytest.raises(UserError, match=r"has the shape|its classifier has"):
                        load_weights(model, source)


def broken_files(folder: Path) -> dict[str, tuple[Path, str]]:
    """name: a file that cannot be loaded, and what the message says of it."""
    state = small_model().state_dict()
    torch.save({"model": state, "code": Malicious()}, folder / "code.pth")
    torch.save({"model": state, "names": np.array([b"cat"])}, folder / "bytes.pth")
    torch.save({"model": state, "cost": Decimal("0.5")}, folder / "decimal.pth")
    torch.save(state, folder / "cut.pth")
    save_file(state, folder / "cut.safetensors")
    for name in ("cut.pth", "cut.safetensors"):
        (folder / name).write_bytes((folder / name).read_bytes()[:700])
    (folder / "text.pth").write_text("weights")
    torch.save({"fc.weight": torch.ones(2)}, folder / "other.pth")
    (folder / "page.pth").write_text("\n<!DOCTYPE html><html>404")
    (folder / "graph.onnx").write_bytes(b"\x08\x0a")
    (folder / "packed.pth.gz").write_bytes(gzip.compress((folder / "other.pth").read_bytes()))
    (folder / "lfs.pth").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d\n")
    torch.save([1, 2], folder / "list.pth")
    torch.save({"epoch": 3}, folder / "numbers.pth")
    torch.save(small_model(embed_dim=16).state_dict(), folder / "wider.pth")
    torch.save({**state, "two\nlines": torch.ones(2)}, folder / "surplus.pth")
    messages = {
        "code.pth": "it asks for (posix|nt).system: expected tensors and plain values only",
        "bytes.pth": r"it holds arrays of type 'S3': .* as in a model's state_dict\(\)\.$",
        "decimal.pth": r"it asks for decimal\.Decimal: expected tensors and plain values only",
        "cut.pth": "it is damaged or not a PyTorch file",
        "cut.safetensors": "it is damaged or not a safetensors file",
        "text.pth": "it is damaged or not a PyTorch file",
        "page.pth": "because it is a web page, such as an error of its server: expected tensors",
        "graph.onnx": "because it is a graph of ONNX: expected tensors",
        "packed.pth.gz": r"because it is packed \(unpack it\): expected tensors",
        "lfs.pth": "is a pointer of Git LFS: get the file itself with git lfs pull",
        "list.pth": "holds a list: expected a dictionary",
        "numbers.pth": "holds no state dict of tensors",
        "other.pth": r"does not fit the model \(\d+ names missing, 1 unknown; ",
        "wider.pth": r"proj.weight has the shape \(16, 48\), but the model needs \(12, 48\)",
        "surplus.pth": r"two\\nlines is unknown",
        "nowhere.pth": "cannot be read: No such file",
    }
    return {name: (folder / name, message) for name, message in messages.items()}


def test_files_that_cannot_be_loaded_are_refused_in_one_sentence(tmp_path: Path) -> None:
    model = small_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for name, (path, message) in broken_files(tmp_path).items():
        with pytest.raises(UserError, match=message) as error:
            load_weights(model, path)
        assert name in str(error.value)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"^https://a.org/w.pth is an address: download it"):
        load_weights(model, "https://a.org/w.pth")
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_the_weights_of_another_architecture_are_refused() -> None:
    source = small_model(mixing="none").state_dict()
    with pytest.raises(UserError, match=r"names missing, 0 unknown; .* is missing"):
        load_weights(small_model(), source)
    source = timm.create_model("vit_tiny_patch16_224", num_classes=5).state_dict()
    with pytest.raises(UserError, match="does not fit the model"):
        load_weights(small_model(), source)


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


def beside(state: dict[str, Tensor], prefix: str, head: str) -> dict[str, Tensor]:
    """The state dict of a module that has the model without its classifier, and a classifier."""
    return {
        head + name.removeprefix("head.") if name.startswith("head.") else prefix + name: value
        for name, value in state.items()
    }


#: how trainers and wrappers store a state dict; x is the right one, o another of the same shapes
STORED = {
    "DDP": lambda x, o: prefixed(x, "module."),
    "compiled": lambda x, o: prefixed(x, "_orig_mod."),
    "DDP of compiled": lambda x, o: {"state_dict": prefixed(x, "module._orig_mod.")},
    "compiled blocks": lambda x, o: {
        name.replace("blocks.0.", "blocks.0._orig_mod."): value for name, value in x.items()
    },
    "FSDP with checkpointing": lambda x, o: {
        "model": prefixed(
            {
                k.replace("blocks.0.", "blocks.0._checkpoint_wrapped_module."): v
                for k, v in x.items()
            },
            "_fsdp_wrapped_module.",
        )
    },
    "timm with EMA": lambda x, o: {"epoch": 3, "state_dict": o, "state_dict_ema": x, "metric": 0.5},
    "timm with EMA under DDP": lambda x, o: {
        "state_dict": prefixed(o, "module."),
        "state_dict_ema": prefixed(x, "module."),
    },
    "Lightning": lambda x, o: {
        "state_dict": prefixed(x, "model.") | {"criterion.weight": torch.ones(3)},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(2)}}}],
        "hyper_parameters": {"lr": 0.1},
    },
    "Lightning with EMA": lambda x, o: {
        "state_dict": prefixed(o, "net.") | prefixed(x, "ema_net.module.")
    },
    "Lightning, distilled": lambda x, o: {
        "state_dict": prefixed(x, "model.") | prefixed(o, "teacher.")
    },
    "torch's AveragedModel": lambda x, o: prefixed(x, "module.") | {"n_averaged": torch.tensor(9)},
    "Lightning, student and teacher": lambda x, o: {
        "state_dict": prefixed(o, "teacher.") | prefixed(x, "student.")
    },
    "DeepSpeed": lambda x, o: {"module": x, "optimizer": {"state": {"a": torch.ones(1)}}},
    "initial weights": lambda x, o: {"init_state_dict": o, "state_dict": x},
    "moments": lambda x, o: {"adam": {"exp_avg": o, "exp_avg_sq": o}, "net": x},
    "a teacher's short name": lambda x, o: {"t_net": o, "s_net": x},
    "averages beside": lambda x, o: {"state_dict": o, "state_dict_avg": x},
    "polyak": lambda x, o: {"model": o, "model_polyak": x},
    "the best and the last": lambda x, o: {"last_state_dict": o, "best_state_dict": x},
    "MoCo": lambda x, o: {
        "state_dict": prefixed(o, "module.encoder_k.") | prefixed(x, "module.encoder_q.")
    },
    "BYOL": lambda x, o: prefixed(o, "target_encoder.") | prefixed(x, "online_encoder."),
    "an optimizer that has names": lambda x, o: {"optimizer": {"exp_avg": o}, "model": x},
    "Lightning, classifier beside": lambda x, o: {
        "state_dict": beside(x, "backbone.", "fc.") | {"criterion.weight": torch.ones(5)}
    },
    "EMAModel": lambda x, o: {"model": o, "EMAModel": x},
    "modelEma": lambda x, o: {"model": o, "callbacks": {"modelEma": x}},
    "a head of several modules": lambda x, o: beside(x, "backbone.", "head.1."),
    "a classifier after dropout": lambda x, o: {"net": beside(x, "encoder.", "classifier.1.")},
    "a classifier of another name": lambda x, o: prefixed(beside(x, "", "fc."), "model."),
    "a linear probe": lambda x, o: beside(x, "backbone.", "linear."),
    "transformers": lambda x, o: beside(x, "encoder.", "classification_head."),
    "mmpretrain": lambda x, o: {"state_dict": beside(x, "backbone.", "head.fc."), "meta": {}},
    "nested": lambda x, o: {"state": {"net": {"weights": x}}, "step": 7},
    "accelerate, half precision": lambda x, o: {
        "model_state_dict": {k: v.to(torch.float16).float() for k, v in x.items()}
    },
}


@pytest.mark.parametrize("how", STORED)
@pytest.mark.parametrize("naming", ["own", "timm", "authors"])
def test_weights_as_trainers_leave_them(tmp_path: Path, how: str, naming: str) -> None:
    expected = small_model()
    with torch.no_grad():
        for parameter in expected.parameters():
            parameter.copy_(parameter.half())  # exact in every type
    names = {"own": ResMLP.state_dict, "timm": timm_names, "authors": authors_names}[naming]
    state = dict(names(expected))
    other = {name: torch.zeros_like(value) for name, value in state.items()}
    torch.save(STORED[how](state, other), tmp_path / "w.pth")
    model = randomised(small_model(), seed=1)
    load_weights(model, tmp_path / "w.pth")
    assert_same_parameters(model, expected)


@pytest.mark.parametrize(("student", "teacher"), [("module.backbone.", "backbone."), ("", "")])
def test_without_classifiers_the_teacher_is_the_model(student: str, teacher: str) -> None:
    """DINO's and DINOv2's teacher is the average of the student, and both have no classifier."""
    expected = small_model(num_classes=0)
    state = expected.state_dict()
    other = {name: torch.zeros_like(value) for name, value in state.items()}
    source = {"student": prefixed(other, student), "teacher": prefixed(state, teacher)}
    model = randomised(small_model(num_classes=0), seed=1)
    load_weights(model, source)
    assert_same_parameters(model, expected)


#: layers of a self-supervised student that are not a classifier, with their inputs and outputs
NO_CLASSIFIERS = {
    "a projection in two layers": {"head.0": (12, 64), "head.2": (64, 16)},
    "a projection": {"projection_head.0": (12, 5)},
    "a layer of a block": {"blocks.0.linear": (12, 5)},
    "of another width": {"linear": (64, 5)},
}


def layers(sizes: dict[str, tuple[int, int]]) -> dict[str, Tensor]:
    return {
        name: value
        for place, (inputs, outputs) in sizes.items()
        for name, value in prefixed(nn.Linear(inputs, outputs).state_dict(), f"{place}.").items()
    }


@pytest.mark.parametrize("what", list(NO_CLASSIFIERS)[:3])
def test_a_student_with_other_layers_is_not_a_distilled_one(what: str) -> None:
    expected = small_model(num_classes=0)
    state = expected.state_dict()
    student = {name: torch.zeros_like(value) for name, value in state.items()}
    source = {"student": student | layers(NO_CLASSIFIERS[what]), "teacher": state}
    model = randomised(small_model(num_classes=0), seed=1)
    load_weights(model, source)
    assert_same_parameters(model, expected)


@pytest.mark.parametrize("what", NO_CLASSIFIERS)
@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_a_layer_that_is_no_classifier_does_not_become_one(what: str, prefix: str) -> None:
    state = small_model(num_classes=0).state_dict()
    model = small_model()
    with pytest.raises(UserError, match="has no classifier"):
        load_weights(model, prefixed(state | layers(NO_CLASSIFIERS[what]), prefix))


@pytest.mark.parametrize("name", ["resmlp_tiny", "test_convnext"])
def test_a_model_for_features_leaves_the_classifier_out(name: str) -> None:
    source, target = (build_model(name, classes) for classes in (3, 0))
    load_weights(target, source.state_dict())
    for key, value in target.state_dict().items():
        assert torch.equal(value, source.state_dict()[key]), key


def test_timms_models_take_weights_in_the_same_way(tmp_path: Path) -> None:
    first, second = (timm.create_model("test_convnext", num_classes=3) for _ in range(2))
    torch.save({"state_dict": prefixed(first.state_dict(), "module.")}, tmp_path / "w.pth")
    load_weights(second, tmp_path / "w.pth")
    for name, value in first.state_dict().items():
        assert torch.equal(second.state_dict()[name], value), name
    third = timm.create_model("test_convnext", num_classes=5)
    head = third.get_classifier().weight.clone()
    with pytest.raises(UserError, match="its classifier has 3 classes and the model 5"):
        load_weights(third, tmp_path / "w.pth")
    load_weights(third, tmp_path / "w.pth", head="reset")
    assert torch.equal(third.get_classifier().weight, head)
    assert torch.equal(third.stem[0].weight, first.stem[0].weight)


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_efficientnet"])
@pytest.mark.parametrize("beside", ["head.fc.", "fc.1.", "model.classifier."])
def test_the_classifier_of_any_model_may_lie_beside_it(name: str, beside: str) -> None:
    """As in mmpretrain and Lightning; other models than ours name it fc, head.fc, ..."""
    first, second = (timm.create_model(name, num_classes=3) for _ in range(2))
    last = next(n for n, module in first.named_modules() if module is first.get_classifier()) + "."
    source = {
        beside + key.removeprefix(last) if key.startswith(last) else f"backbone.{key}": value
        for key, value in first.state_dict().items()
    }
    load_weights(second, {"state_dict": source})
    for key, value in first.state_dict().items():
        assert torch.equal(second.state_dict()[key], value), key


def test_our_models_are_read_from_the_hub(tmp_path: Path) -> None:
    """In a process that has not registered them with timm; its file stands in for the hub's."""
    sizes = {"img_size": 8, "patch_size": 2}
    model = create_model("resmlp_tiny", num_classes=2, **sizes)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    program = (
        "import sys\n"
        "from unittest.mock import patch\n"
        "from resmlp_mt.vision import create_model, load_weights\n"
        f"sizes = {sizes}\n"
        "config = {'file': sys.argv[1], 'num_classes': 2, 'label_names': ['cat', 'dog']}\n"
        "config |= {'mean': [0.1, 0.2, 0.3], 'architecture': 'resmlp_tiny'}\n"
        "found = config, 'resmlp_tiny', sizes\n"
        "model = create_model('resmlp_tiny', num_classes=2, **sizes)\n"
        "name = 'timm.models._factory.load_model_config_from_hf'\n"
        "with patch(name, lambda *args, **options: found):\n"
        "    print(load_weights(model, 'hf-hub:owner/name').classes)\n"
        "print(model.pretrained_cfg['mean'], float(model.head.weight.detach().double().sum()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "w.pth")],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    total = float(model.head.weight.detach().double().sum())
    assert done.stdout == f"['cat', 'dog']\n[0.1, 0.2, 0.3] {total}\n", done.stderr


def test_files_from_before_batches_were_counted_are_read() -> None:
    """PyTorch sets the count of a batch norm to 0 where it is missing, and so does this."""
    first, second, third = (timm.create_model("test_resnet", num_classes=3) for _ in range(3))
    state = {k: v for k, v in first.state_dict().items() if not k.endswith("num_batches_tracked")}
    assert len(state) < len(first.state_dict())
    for buffer in second.buffers():
        buffer.fill_(7)
    load_weights(second, state)
    third.load_state_dict(state)
    for name, value in third.state_dict().items():
        assert torch.equal(second.state_dict()[name], value), name
    del state["bn1.running_mean"]
    with pytest.raises(UserError, match=r"bn1\.running_mean is missing"):
        load_weights(second, state)


def test_arrays_and_the_buffers_of_profilers_do_no_harm() -> None:
    torch.manual_seed(3)
    model, other = small_model(), small_model()
    state: dict[str, Any] = {key: value.numpy() for key, value in other.state_dict().items()}
    counts = {"total_ops": torch.zeros(1), "blocks.0.total_params": torch.zeros(1)}
    load_weights(model, {"state_dict": {**state, **counts}})
    for key, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[key])
    for wrong in ([1], None, 3):
        with pytest.raises(
            UserError, match=f"is of type {type(wrong).__name__}: give a state dict"
        ):
            load_weights(model, wrong)  # type: ignore[arg-type]


def test_plain_values_beside_the_weights_do_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trainers store paths, numbers of numpy, namespaces and logs; other types are refused."""
    module = ModuleType("mmengine.logging.history_buffer")
    for name in ("mmengine", "mmengine.logging", module.__name__):
        monkeypatch.setitem(sys.modules, name, module)
    module.HistoryBuffer = type("HistoryBuffer", (), {"__module__": module.__name__})  # type: ignore[attr-defined]
    history = module.HistoryBuffer()
    history.__dict__ |= {"max_length": 1000, "_log_history": np.array([1.0, 0.5])}
    expected = small_model()
    plain = {
        "best": np.float64(81.5),
        "epoch": np.int64(3),
        "args": argparse.Namespace(output=tmp_path),
        "config": SimpleNamespace(lr=0.1),
        "history": defaultdict(list, {"loss": [1.0]}),
        "window": deque([1.0, 2.0], maxlen=20),
        "random": (random.getstate(), np.random.get_state(), torch.get_rng_state()),
        "confusion": np.eye(3, dtype=bool),
        "names": np.array(["cat", "dog"]),
        "date": datetime.now(UTC),
        "frozen": frozenset({"head"}),
        "times": [datetime(2026, 1, 2).date(), timedelta(hours=1)],
        "version": torch.__version__,
        "hyper_parameters": OmegaConf.create({"lr": 0.1, "sizes": [8, {"a": None}]}),
        "message_hub": {"log_scalars": {"loss": history}},
    }
    torch.save({**plain, "model": expected.state_dict()}, tmp_path / "w.pth")
    model = randomised(small_model(), seed=1)
    load_weights(model, tmp_path / "w.pth")
    assert_same_parameters(model, expected)
    # Lightning stores what a module was made with; its class is not here
    own = type("Net", (nn.Linear,), {"__module__": module.__name__})
    module.Net = own  # type: ignore[attr-defined]
    hyper = {"net": own(2, 2), "optimizer": functools.partial(torch.optim.AdamW, lr=0.1)}
    torch.save({"hyper_parameters": hyper, "state_dict": expected.state_dict()}, tmp_path / "w.pth")
    model = randomised(small_model(), seed=1)
    load_weights(model, tmp_path / "w.pth")
    assert_same_parameters(model, expected)
    torch.save({"model": own(2, 2)}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"asks for mmengine\.logging\.\w+\.Net: expected"):
        load_weights(model, tmp_path / "w.pth")
    large = np.zeros((), "V1000")[()]
    for value in (large, np.float64, Fraction(1, 2)):
        torch.save({"value": value, "model": expected.state_dict()}, tmp_path / "w.pth")
        with pytest.raises(UserError, match="expected tensors and plain values only"):
            load_weights(model, tmp_path / "w.pth")


def test_weights_without_content_are_refused() -> None:
    """Also the parts of DeepSpeed's third stage."""
    for without in (lambda value: value.to("meta"), lambda value: value.new_empty(0)):
        source = {name: without(value) for name, value in small_model().state_dict().items()}
        with pytest.raises(UserError, match="holds tensors without content: join the parts"):
            load_weights(small_model(), source)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused(value: float) -> None:
    model = create_model("resmlp_tiny", num_classes=2)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state["head.bias"][1] = value
    with pytest.raises(UserError, match=r"the state dict: head\.bias has values that are not fin"):
        load_weights(model, state)
    load_weights(model, state, head="reset")


def test_the_log_says_which_of_several_was_taken(caplog: pytest.LogCaptureFixture) -> None:
    state = small_model().state_dict()
    with caplog.at_level(logging.INFO):
        load_weights(small_model(), {"model": state, "ema": {"module": state}})
    assert "holds model, ema.module: ema.module is loaded" in caplog.text
