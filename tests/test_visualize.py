"""Pictures and sparsity of the mixing matrices, for image and translation checkpoints."""

import argparse
import base64
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import colormaps
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from conftest import ROOT
from resmlp_mt import visualize
from resmlp_mt.errors import UserError
from resmlp_mt.mixing import VARIANTS, MixingConfig
from resmlp_mt.visualization import figures, matrices
from resmlp_mt.visualization.page import page as html_page
from vision_checkpoints import Malicious


def image_state(tokens: int = 12) -> dict[str, Tensor]:
    """A state dict of an image model of two layers, as far as it is read here."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"token_mixing": (tokens, tokens), "ffn.fc1": (12, 3), "ffn.fc2": (3, 12)}
    state = {
        f"blocks.{i}.{name}.weight": torch.randn(shape, generator=generator)
        for i in range(2)
        for name, shape in shapes.items()
    }
    return state | {"class_blocks.0.token_mixing.weight": torch.ones(1, tokens + 1)}


def translation_state() -> dict[str, Tensor]:
    """A state dict of a translation model of 2 + 2 layers, as far as it is read here."""
    state = image_state(tokens=10)
    del state["class_blocks.0.token_mixing.weight"]
    sides = ("encoder", "decoder")
    renamed = {
        f"{side}.{k.replace('blocks', 'layers')}": v for side in sides for k, v in state.items()
    }
    return renamed | {"decoder.layers.0.encoder_attn.k_proj.weight": torch.ones(3, 3)}


def run(*arguments: object) -> None:
    visualize.main([*map(str, arguments)])


@settings(deadline=None, max_examples=30)
@given(rows=st.integers(1, 6), columns=st.integers(1, 6), seed=st.integers(0, 99))
def test_sparsity_is_the_share_of_small_entries(rows: int, columns: int, seed: int) -> None:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) ** 5
    largest = max(abs(entry) for row in weight.tolist() for entry in row)
    small = 0
    for row in weight.tolist():
        for entry in row:
            if abs(entry) < 0.05 * largest:
                small += 1
    assert matrices.sparsity(weight, 0.05) == pytest.approx(small / (rows * columns), abs=1e-7)


def test_the_decoders_sparsity_counts_its_triangle_alone() -> None:
    weight = torch.tensor([[1.0, 9.0, 9.0], [0.01, 1.0, 9.0], [0.01, 1.0, 0.01]])
    layers = matrices.matrices({"decoder.layers.0.token_mixing.weight": weight}, "x")
    numbers = matrices.sparsities(layers, 0.05)
    assert numbers["decoder"][0]["A"] == pytest.approx(3 / 6)


def test_pictures_of_rows_show_the_rows_of_the_central_patches() -> None:
    state = image_state(tokens=5 * 4)["blocks.1.token_mixing.weight"]
    weight = state.numpy()
    picture = figures.mosaic(matrices.row_images(state, (5, 4), 2))
    pixel, gap = figures.SIDE // 5, figures.GAP
    assert picture.shape == (2 * 5 * pixel + gap, 2 * 4 * pixel + gap, 4)
    colors = colormaps[figures.COLORS]
    for down in range(2):
        for across in range(2):
            patch = (1 + down) * 4 + (1 + across)  # rows 1-2 of 0-4, columns 1-2 of 0-3
            scaled = weight[patch] / np.abs(weight[patch]).max()
            for source in range(20):
                top = down * (5 * pixel + gap) + source // 4 * pixel
                left = across * (4 * pixel + gap) + source % 4 * pixel
                square = picture[top : top + pixel, left : left + pixel]
                expected = colors((scaled[source] + 1) / 2, bytes=True)
                assert (square == np.array(expected)).all()
    assert (picture[5 * pixel : 5 * pixel + gap] == (0, 0, 0, 255)).all()


def test_a_picture_of_rows_says_what_it_shows() -> None:
    images = matrices.row_images(torch.randn(20, 20), (5, 4), 2)
    figure = figures.patch_figure(images, *matrices.central((5, 4), 2), "layer 3")
    axes, bar = figure.axes
    assert axes.get_title() == "layer 3"
    assert "column" in axes.get_xlabel()
    assert "row" in axes.get_ylabel()
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "2"]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["1", "2"]
    assert "weight" in bar.get_ylabel()
    assert bar.get_ylim() == (-1, 1)
    (shown,) = axes.images
    assert np.array_equal(shown.get_array(), figures.mosaic(images))


def test_the_papers_figure_has_36_pictures_of_14_x_14() -> None:
    images = matrices.row_images(torch.randn(196, 196), (14, 14), 6)
    assert images.shape == (6, 6, 14, 14)
    weight = torch.arange(196.0).unsqueeze(1).expand(196, 196)  # row t holds t
    images = matrices.row_images(weight, (14, 14), 6)
    assert images[0, 0, 0, 0] == 4 * 14 + 4
    assert images[5, 5, 3, 3] == 9 * 14 + 9


def test_heat_maps_show_the_matrix_and_some_rows() -> None:
    weight = torch.randn(16, 16).tril()
    matrix_axes, row_axes = figures.heat_map({"A": weight}, "decoder, layer 0", causal=True).axes[
        :2
    ]
    (picture,) = matrix_axes.images
    assert np.array_equal(picture.get_array(), weight.numpy())
    assert picture.norm.vmax == -picture.norm.vmin == weight.abs().max().item()
    curves = [line for line in row_axes.lines if line.get_label().startswith("row")]
    assert [line.get_label() for line in curves] == ["row 2", "row 4", "row 8"]
    for line, row in zip(curves, (2, 4, 8), strict=True):
        assert line.get_xdata().tolist() == list(range(-row, 1))
        assert np.array_equal(line.get_ydata(), weight[row, : row + 1].numpy())


@pytest.mark.parametrize("kind", VARIANTS)
@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("causal", [False, True])
def test_the_matrix_of_every_mixing_is_drawn(kind: str, heads: int, causal: bool) -> None:
    config = MixingConfig(heads=heads, relative=kind, decay=kind != "none", values=True)
    mixing = VARIANTS[kind](7, causal, config, 6)
    stack = "decoder" if causal else "encoder"
    names = {f"{stack}.layers.0.token_mixing.{k}": v for k, v in mixing.state_dict().items()}
    layer = matrices.matrices(names, "x", positions=5)[stack][0]
    found = matrices.a_of(layer)
    assert list(found) == (["A"] if heads == 1 else ["A1", "A2", "A3"])
    assert torch.equal(torch.stack(list(found.values())), mixing.matrix(5))


@pytest.mark.parametrize(
    ("threshold", "shown"), [(0.05, "5%"), (0.001, "0.1%"), (0.07, "7%"), (0.125, "12.5%")]
)
def test_a_threshold_is_shown_as_it_is(threshold: float, shown: str) -> None:
    (axes,) = figures.sparsity_plot({"image": [{"A": 0.5}]}, threshold).axes
    assert axes.get_title() == f"image: entries below {shown} of the largest"
    assert f"whose size is below {shown} of the" in html_page({}, "x", {"image": 1}, threshold)


def assert_page_is_complete(folder: Path) -> None:
    """The page links to every file and holds every picture."""
    page = (folder / "index.html").read_text()
    names = {path.name for path in folder.iterdir()} - {"index.html"}
    assert set(re.findall(r'href="([^"]+)"', page)) == names
    embedded = re.findall(r'src="data:image/png;base64,([^"]+)" alt="([^"]+)"', page)
    assert {name for _, name in embedded} == {name for name in names if name.endswith(".png")}
    for data, name in embedded:
        assert base64.b64decode(data) == (folder / name).read_bytes()
        Image.open(io.BytesIO(base64.b64decode(data))).verify()


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_translation_checkpoint(tmp_path: Path, suffix: str) -> None:
    checkpoint, out = tmp_path / f"<mt>.{suffix}", tmp_path / "new" / "folder"
    state = translation_state()
    if suffix == "pt":
        torch.save({"model": state, "cfg": {}}, checkpoint)
    else:
        save_file({name: value.clone() for name, value in state.items()}, checkpoint)
    run(checkpoint, "--out", out, "--positions", 6, "--threshold", 0.1)
    assert "whose size is below 10% of the" in (out / "index.html").read_text()
    assert_page_is_complete(out)
    sides = ("encoder", "decoder")
    expected = {f"{side}_layer_{i:02d}.png" for side in sides for i in range(2)}
    expected |= {"sparsity.png", "sparsity.json", "index.html"}
    assert {path.name for path in out.iterdir()} == expected
    page = (out / "index.html").read_text()
    assert "<h1>&lt;mt&gt;" in page
    assert "positions of a sentence" in page
    assert "patches of an image" not in page
    report = json.loads((out / "sparsity.json").read_text())
    assert (report["positions"], report["threshold"]) == (6, 0.1)
    weight = state["encoder.layers.1.token_mixing.weight"][:6, :6].abs()
    share = (weight < 0.1 * weight.max()).double().mean().item()
    assert report["layers"]["encoder"][1]["A"] == pytest.approx(share, abs=1e-6)


def test_checkpoints_of_the_image_models_and_timms_names(tmp_path: Path) -> None:
    state = image_state(tokens=12)
    zeros = {name: torch.zeros_like(value) for name, value in state.items()}
    args = {"name": "resmlp_tiny", "img_size": [12, 16], "patch_size": 4}
    torch.save({"model": zeros, "model_ema": state, "model_args": args}, tmp_path / "best.pth")
    timms = {
        k.replace("token_mixing", "linear_tokens").replace("ffn", "mlp_channels"): v
        for k, v in image_state(tokens=9).items()
    }
    torch.save(timms | {"stem.proj.weight": torch.ones(3, 3, 4, 4)}, tmp_path / "timm.pth")
    for name in ("best", "timm"):
        run(tmp_path / f"{name}.pth", "--out", tmp_path / name)
        assert_page_is_complete(tmp_path / name)
    page = (tmp_path / "best/index.html").read_text()
    assert "patches of an image" in page
    assert "sentence" not in page
    report = json.loads((tmp_path / "best" / "sparsity.json").read_text())
    expected = matrices.sparsity(state["blocks.0.ffn.fc1.weight"], 0.05)
    assert report["layers"]["image"][0]["B"] == expected


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


#: how trainers store a state dict; x is the right one, o another of the same shapes
STORED = {
    "compiled layers": lambda x, o: {
        name.replace("blocks.0.", "blocks.0._orig_mod."): value for name, value in x.items()
    },
    "an average inside": lambda x, o: {"model": o, "ema": {"decay": 0.9, "module": x}},
    "Lightning with EMA": lambda x, o: {
        "state_dict": prefixed(o, "net.") | prefixed(x, "ema_net.module.")
    },
    "Lightning, distilled": lambda x, o: {
        "state_dict": prefixed(o, "teacher.") | prefixed(x, "model.")
    },
    "deep inside": lambda x, o: {"state": {"net": {"weights": x}}},
    "arrays": lambda x, o: {name: value.numpy() for name, value in x.items()},
}


@pytest.mark.parametrize("how", STORED)
@pytest.mark.parametrize("kind", [image_state, translation_state])
def test_the_weights_are_those_that_would_be_loaded(
    how: str, kind: Callable[[], dict[str, Tensor]], tmp_path: Path
) -> None:
    state = kind()
    zeros = {name: torch.zeros_like(value) for name, value in state.items()}
    stored = STORED[how](state, zeros)
    # translation takes an average from average_checkpoints alone
    is_average = kind is translation_state and how == "an average inside"
    expected = zeros if is_average else state
    torch.save(stored, tmp_path / "x.pt")
    found = matrices.state_dict(matrices.read_checkpoint(tmp_path / "x.pt"), "x.pt")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_what_fairseq_leaves_in_checkpoints_is_read(tmp_path: Path) -> None:
    """Options of its older components and the sums behind --eval-bleu."""
    extra = {"args": argparse.Namespace(lr=[0.2]), "bleu": np.zeros(4, dtype=np.int64)}
    average = {name: torch.zeros_like(value) for name, value in translation_state().items()}
    stored = {"model": translation_state(), "extra_state": {"ema": average}, **extra}
    torch.save(stored, tmp_path / "checkpoint_best.pt")
    found = matrices.state_dict(stored, "checkpoint_best.pt")  # export and average read this too
    assert all(torch.equal(found[name], value) for name, value in stored["model"].items())
    run(tmp_path / "checkpoint_best.pt", "--out", tmp_path / "out")
    assert_page_is_complete(tmp_path / "out")


def test_reading_an_image_checkpoint_loads_neither_fairseq_nor_timm(tmp_path: Path) -> None:
    torch.save(image_state(tokens=9), tmp_path / "image.pth")
    check = (
        "import sys; from resmlp_mt import visualize; visualize.main(); "
        "assert not {'fairseq', 'timm'} & sys.modules.keys()"
    )
    subprocess.run(
        [sys.executable, "-c", check, tmp_path / "image.pth", "--out", tmp_path / "out"],
        cwd=ROOT,
        check=True,
    )


def test_mistakes_are_told_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.save(image_state(tokens=12), tmp_path / "grid.pth")
    torch.save({"model": image_state(), "code": Malicious()}, tmp_path / "code.pth")
    torch.save({"fc.weight": torch.ones(2)}, tmp_path / "other.pth")
    torch.save({"epoch": 1}, tmp_path / "numbers.pth")
    torch.save([1], tmp_path / "list.pth")
    nan = {name: value * torch.nan for name, value in image_state(tokens=9).items()}
    torch.save(nan, tmp_path / "nan.pth")
    first = "encoder.layers.0.token_mixing."
    torch.save({f"{first}{x}": torch.ones(2, 3) for x in ("weight", "odd")}, tmp_path / "odd.pt")
    torch.save({f"{first}weight": torch.ones(2, 3)}, tmp_path / "wide.pt")
    (tmp_path / "text.pt").write_text("no checkpoint")
    (tmp_path / "text.safetensors").write_text("no checkpoint")
    (tmp_path / "file").write_text("in the way")
    mistakes = {
        "nowhere.pt": "nowhere.pt cannot be read: No such file",
        "code.pth": "it asks for (posix|nt).system: expected tensors and plain values only",
        "text.pt": "it is damaged or not a PyTorch file",
        "text.safetensors": "it is damaged or not a safetensors file",
        "list.pth": "holds a list: expected a dictionary",
        "numbers.pth": "holds no state dict",
        "other.pth": "has no linear mixing matrices",
        "grid.pth": "for 12 patches, which do not make a square: name their grid with --grid",
        "grid.pth --grid 3 5": "--grid 3 5 has 15 patches, but the mixing matrices have 12",
        "grid.pth --grid 3 4 --out file": "--output .*file cannot be written .File exists",
        "grid.pth --grid -3 -4": "--grid: must be at least 1, but is -3",
        "nan.pth": "nan.pth holds numbers that are not finite, in blocks.0",
        "odd.pt": r"odd\.pt: the mixing has the parameters odd, weight, which no variant of this",
        "wide.pt": r"wide\.pt: the mixing matrices have shapes that do not fit\.$",
        "grid.pth --patches 0": "--patches: must be at least 1, but is 0",
        "grid.pth --threshold 5": "--threshold: must be below 1, but is 5",
    }
    monkeypatch.chdir(tmp_path)
    for arguments, message in mistakes.items():
        with pytest.raises(SystemExit) as error:
            run(*f"--out out {arguments}".split())
        told = capfd.readouterr().err if error.value.code == 2 else str(error.value)
        assert re.search(message, told), told
        assert "\n" not in told.strip() or error.value.code == 2
    assert not (tmp_path / "out").exists()


def test_a_file_appears_complete_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    torch.save(image_state(tokens=9), tmp_path / "image.pth")
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(SystemExit, match=r"cannot be written \(No space left on device\)"):
        run(tmp_path / "image.pth", "--out", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_folders_with_dictionaries(tmp_path: Path) -> None:
    """Only an exported folder has a config.json; binarised text has not."""
    (tmp_path / "dict.en.txt").touch()
    with pytest.raises(UserError, match=r"without model\.safetensors"):
        matrices.read_checkpoint(tmp_path)
    (tmp_path / "config.json").touch()
    with pytest.raises(UserError, match="multiplies matrices with others"):
        matrices.read_checkpoint(tmp_path)
