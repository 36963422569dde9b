"""The image models: sizes and operations of the paper's tables, starts, layout and contracts."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from resmlp_mt.vision import create_model
from resmlp_mt.vision.folding import folded
from resmlp_mt.vision.mixing import MIXINGS
from resmlp_mt.vision.model import ResMLP
from resmlp_mt.vision.presets import MODELS

S12 = "resmlp_s12"

# Millions of parameters and 10^9 multiply-adds as printed in tables 1 and 3 of the paper; None
# where they are not known.
PAPER = [
    ("resmlp_s12", {}, "15.4", "3.0"),
    ("resmlp_s24", {}, "30.0", "6.0"),
    ("resmlp_s36", {}, "44.7", "8.9"),
    ("resmlp_b24", {}, "115.7", "23.0"),
    ("resmlp_b24", {"patch_size": 8}, "129.1", "100.2"),
    (S12, {"norm": "layernorm"}, "15.4", "3.0"),
    (S12, {"pooling": "class_mlp"}, "17.7", None),
    (S12, {"mixing": "none"}, "14.9", None),
    (S12, {"mixing": "mlp"}, "18.6", None),
    (S12, {"mixing": "conv"}, "30.8", None),
    (S12, {"mixing": "depthwise"}, "14.9", None),
    (S12, {"mixing": "separable"}, "16.7", None),
]


@pytest.mark.parametrize(("name", "kwargs", "parameters", "operations"), PAPER)
def test_sizes_are_those_printed_in_the_paper(
    name: str, kwargs: dict[str, object], parameters: str, operations: str | None
) -> None:
    with torch.device("meta"):
        model = create_model(name, **kwargs).requires_grad_(False)
        assert f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f}" == parameters
        if operations is not None:
            with FlopCounterMode(display=False) as counter:
                model(torch.empty(1, 3, 224, 224))
            # PyTorch counts a multiply-add as two operations, the paper as one.
            assert f"{counter.get_total_flops() / 2e9:.1f}" == operations


def test_the_start_is_that_of_the_authors_code() -> None:
    """resmlp_models.py: trunc-normal(0.02) and zero biases for linear layers, not the patches."""
    scales = {name: preset.layer_scale_init for name, preset in MODELS.items()}
    assert scales == {
        "resmlp_s12": 0.1,
        "resmlp_s24": 1e-5,
        "resmlp_s36": 1e-6,
        "resmlp_b24": 1e-6,
        "resmlp_tiny": 0.1,
    }
    assert (create_model("resmlp_tiny", layer_scale_init=0.3).blocks[3].ffn_post.alpha == 0.3).all()
    torch.manual_seed(0)
    model = create_model(S12, img_size=160)
    for block in model.blocks:
        for post in (block.mixing_post, block.ffn_post):
            assert torch.equal(post.alpha, torch.full((384,), 0.1))
            assert post.beta is None
        for pre in (block.mixing_pre, block.ffn_pre):
            assert torch.equal(pre.alpha, torch.ones(384))
            assert torch.equal(pre.beta, torch.zeros(384))
        for linear in (block.token_mixing, block.ffn.fc1, block.ffn.fc2):
            assert linear.weight.std().item() == pytest.approx(0.02, rel=0.03)
            assert linear.bias.abs().max() == 0
    assert model.head.weight.std().item() == pytest.approx(0.02, rel=0.03)
    # PyTorch's start of a convolution with 768 inputs: uniform up to 768 ** -0.5
    bound = 768**-0.5
    assert 0.99 * bound < model.patch_embed.proj.weight.abs().max().item() <= bound
    assert model.patch_embed.proj.bias.abs().max() > 0


def randomised(model: ResMLP, seed: int = 0) -> ResMLP:
    """In float64, every parameter far from its start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.double().parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(
                0.5 * noise if parameter.dim() == 1 else noise / parameter[0].numel() ** 0.5
            )
    return model.eval()


def small(**kwargs: object) -> ResMLP:
    """2 x 3 patches of 4 pixels, two layers of 6 channels."""
    sizes = {"img_size": (8, 12), "patch_size": 4, "in_chans": 2, "num_classes": 5}
    sizes |= {"embed_dim": 6, "depth": 2, "layer_scale_init": 0.1}
    return ResMLP(**(sizes | kwargs))


def images(batch: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 2, 8, 12, generator=generator, dtype=torch.float64)


def naive_mixing(block: nn.Module, x: Tensor, mixing: str) -> Tensor:
    """The mixing over patches of one image, (dim, rows, columns) in and out."""
    module, flat = block.token_mixing, x.flatten(1)
    if mixing == "linear":
        return nn.functional.linear(flat, module.weight, module.bias).view_as(x)
    if mixing == "mlp":
        return module.fc2(nn.functional.gelu(module.fc1(flat))).view_as(x)
    padded = nn.functional.pad(x, (1, 1, 1, 1))
    output = torch.zeros_like(x)
    kernel = module.conv.weight
    for channel in range(x.size(0)):
        inputs = padded if mixing == "conv" else padded[channel : channel + 1]
        for row in range(x.size(1)):
            for column in range(x.size(2)):
                window = inputs[:, row : row + 3, column : column + 3]
                output[channel, row, column] = (window * kernel[channel]).sum()
        output[channel] += module.conv.bias[channel]
    if mixing == "separable":
        point = module.pointwise
        output = torch.einsum("oi,irc->orc", point.weight, output) + point.bias.view(-1, 1, 1)
    return output


def naive_forward(model: ResMLP, image: Tensor, mixing: str) -> Tensor:
    """Logits of one image from the paper's equations, hidden states as (dim, rows, columns)."""

    def per_patch(module: nn.Module, x: Tensor) -> Tensor:
        return module(x.permute(1, 2, 0)).permute(2, 0, 1)

    size, proj = model.patch_size, model.patch_embed.proj
    kernel = proj.weight.view(-1, image.size(0), size, size)
    x = nn.functional.conv2d(image[None], kernel, proj.bias, stride=size)[0]
    for block in model.blocks:
        if mixing != "none":
            y = naive_mixing(block, per_patch(block.mixing_pre, x), mixing)
            x = x + block.mixing_post.alpha.view(-1, 1, 1) * y
        y = per_patch(block.ffn, per_patch(block.ffn_pre, x))
        x = x + block.ffn_post.alpha.view(-1, 1, 1) * y
    if model.class_token is None:
        return model.head(per_patch(model.norm, x).mean((1, 2)))
    token = model.class_token.flatten()
    for block in model.class_blocks:
        row = block.token_mixing
        both = torch.stack([token, *x.flatten(1).T])
        y = (row.weight[0].unsqueeze(1) * block.mixing_pre(both)).sum(0) + row.bias
        token = token + block.mixing_post.alpha * y
        token = token + block.ffn_post.alpha * block.ffn(block.ffn_pre(token))
    return model.head(model.norm(token))


@pytest.mark.parametrize("mixing", MIXINGS)
@pytest.mark.parametrize(("norm", "pooling"), [("affine", "mean"), ("layernorm", "class_mlp")])
def test_every_variant_equals_its_equations(mixing: str, norm: str, pooling: str) -> None:
    model = randomised(small(mixing=mixing, norm=norm, pooling=pooling))
    batch = images()
    expected = torch.stack([naive_forward(model, image, mixing) for image in batch])
    torch.testing.assert_close(model(batch), expected, rtol=1e-10, atol=1e-10)
    features = model.forward_features(batch)
    assert features.shape == (3, 6 + (pooling == "class_mlp"), 6)
    assert model.forward_head(features, pre_logits=True).shape == (3, 6)
    model(batch).square().sum().backward()
    assert all(p.grad.abs().max() > 0 for p in model.parameters())


def test_layernorm_with_mean_pooling_averages_behind_the_norm() -> None:
    model = randomised(small(norm="layernorm"))
    expected = torch.stack([naive_forward(model, image, "linear") for image in images()])
    torch.testing.assert_close(model(images()), expected, rtol=1e-10, atol=1e-10)


def test_stochastic_depth_leaves_out_branches_of_single_images() -> None:
    """With one layer, each image has one of four outputs; their mean is right on average."""
    model = randomised(small(depth=1, drop_path=0.4))
    block = model.blocks[0]
    x = torch.randn(1, 6, 6, dtype=torch.float64).expand(4000, -1, -1)
    torch.manual_seed(0)
    with torch.no_grad():
        output = block.train()(x)
        mixed = block.token_mixing(block.mixing_pre(x).transpose(0, 1)).transpose(0, 1)
        kept = x + block.mixing_post(mixed) / 0.6
        ends = [y + keep * block.ffn_post(block.ffn(block.ffn_pre(y))) / 0.6
                for y in (x, kept) for keep in (0, 1)]  # fmt: skip
    matches = torch.stack([(output - end).abs().amax((1, 2)) < 1e-10 for end in ends])
    assert (matches.sum(0) == 1).all()
    shares = matches.double().mean(1)
    expected = torch.tensor([0.16, 0.24, 0.24, 0.36], dtype=torch.float64)
    torch.testing.assert_close(shares, expected, rtol=0, atol=0.04)
    rates = {m.drop_path for m in small(depth=4, drop_path=0.3).blocks}
    assert rates == {0.3}


@pytest.mark.parametrize("in_chans", [1, 3])
def test_folded_models_have_equal_outputs(in_chans: int) -> None:
    torch.manual_seed(0)
    model = randomised(small(in_chans=in_chans, depth=3)).float()
    batch = torch.randn(4, in_chans, 8, 12)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for _ in range(2):  # in-place changes must not reach the input or the weights
        torch.testing.assert_close(folded(model)(batch), model(batch), rtol=1e-5, atol=1e-5)
    fold = folded(model)
    torch.testing.assert_close(fold(batch), fold(batch.clone()), rtol=0, atol=0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    exact = randomised(small(depth=3))
    torch.testing.assert_close(folded(exact)(images()), exact(images()), rtol=1e-12, atol=1e-12)
    assert not any(p.requires_grad for p in fold.parameters())


def test_a_folded_model_of_another_type() -> None:
    torch.manual_seed(0)
    model = randomised(small(depth=3)).float()
    batch = images()
    fold = folded(model, torch.float64)
    assert fold(batch).dtype == torch.float64
    torch.testing.assert_close(fold(batch), model.double()(batch), rtol=1e-5, atol=1e-5)


def test_folded_in_8_bits() -> None:
    """Weights have 8 bits and inputs 7: errors of 1 / 127 and 1 / 63 that average out."""
    torch.manual_seed(0)
    model = create_model("resmlp_tiny", 10).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    batch = torch.randn(30, 3, 32, 32)  # more tokens than are computed at once
    exact, rounded = folded(model)(batch), folded(model, int8=True)(batch)
    assert 0 < (rounded - exact).norm() < 0.02 * exact.norm()
    alone = folded(model, int8=True)(batch[:1])  # an image's scales are its own
    torch.testing.assert_close(alone, rounded[:1], rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="int8 is for models in float32 on a CPU"):
        folded(model, torch.float64, int8=True)


@pytest.mark.parametrize(
    "kwargs", [{"norm": "layernorm"}, {"mixing": "none"}, {"pooling": "class_mlp"}]
)
def test_what_cannot_be_folded_is_refused(kwargs: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="only models with affine maps, linear mixing and mean"):
        folded(small(**kwargs))


def test_affine_maps_and_scales_are_not_decayed() -> None:
    names = small().no_weight_decay()
    expected = {
        f"blocks.{i}.{m}_pre.{p}"
        for i in (0, 1)
        for m in ("mixing", "ffn")
        for p in ("alpha", "beta")
    }
    expected |= {f"blocks.{i}.{m}_post.alpha" for i in (0, 1) for m in ("mixing", "ffn")}
    assert names == expected | {"norm.alpha", "norm.beta"}
    other = small(norm="layernorm", pooling="class_mlp")
    assert {"class_token", "norm.weight", "norm.bias"} <= other.no_weight_decay()
    assert other.no_weight_decay() <= other.state_dict().keys()


def test_parameters_keep_the_order_that_optimizers_of_earlier_trainings_have() -> None:
    parts = ["mixing_pre", "token_mixing", "mixing_post", "ffn_pre", "ffn", "ffn_post"]
    model = small(pooling="class_mlp")
    for layers, expected in (
        (model.blocks, ["token_mixing", "mixing_pre", *parts[2:]]),
        (model.class_blocks, parts),
    ):
        for layer in layers:
            assert [name for name, _ in layer.named_children()] == expected


def test_tiny_is_for_small_images() -> None:
    assert create_model("resmlp_tiny", 10)(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    digits = create_model("resmlp_tiny", 10, img_size=8, patch_size=2, in_chans=1)
    assert digits(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    for model in (create_model("resmlp_tiny", 10), digits):
        assert 0.1e6 < sum(p.numel() for p in model.parameters()) < 0.2e6


MISTAKES = [
    ("resmlp_s13", {}, r"there is no model 'resmlp_s13' \(did you mean .*resmlp_s12"),
    (S12, {"mixing": "attention"}, "mixing must be one of linear, none, .*'attention'"),
    (S12, {"norm": "batch"}, "norm must be one of affine, layernorm, but is 'batch'"),
    (S12, {"pooling": "max"}, "pooling must be one of mean, class_mlp, but is 'max'"),
    (S12, {"img_size": 230}, "a multiple of patch_size 16 in both directions, but is 230 x 230"),
    (S12, {"img_size": (32, 40)}, "but is 32 x 40"),
    (S12, {"img_size": 0}, "img_size must be at least 1, but is 0"),
    (S12, {"patch_size": 0}, "patch_size must be at least 1, but is 0"),
    (S12, {"num_classes": -1}, "num_classes must be at least 0, but is -1"),
    (S12, {"drop_path": 1.0}, "drop_path must be at least 0 and below 1, but is 1.0"),
]


@pytest.mark.parametrize(("name", "kwargs", "message"), MISTAKES)
def test_mistakes_are_refused(name: str, kwargs: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_model(name, **kwargs)


def test_images_of_another_size_are_refused() -> None:
    message = "takes images of 8 x 12 pixels, but these have 12 x 8: resize them"
    with pytest.raises(ValueError, match=message):
        small()(torch.zeros(1, 2, 12, 8))
