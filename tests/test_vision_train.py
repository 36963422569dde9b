"""The training command: options, resuming, processes, errors, and what it learns."""

import csv
import errno
import os
import re
import shutil
import signal
import socket
import tarfile
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import portalocker
import pytest
import torch
import webdataset
import yaml
from PIL import Image
from torch import Tensor

from resmlp_mt.errors import UserError
from resmlp_mt.files import locked
from resmlp_mt.vision import checkpoints, factory, shards, train, training
from resmlp_mt.vision.distributed import Process
from resmlp_mt.vision.factory import create_model
from resmlp_mt.vision.libraries import timm
from resmlp_mt.vision.output_folder import hold_folder
from resmlp_mt.vision.trainer import Trainer
from resmlp_mt.vision.training_arguments import parse_args
from resmlp_mt.vision.training_options import TrainingOptions
from resmlp_mt.vision.weights import adapt_mixing, load_weights
from vision_checkpoints import start, wait_for

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = sorted((ROOT / "configs/vision").glob("*.yaml"))
# everything that draws random numbers or keeps a state
FULL = """
    --img-size 8 --patch-size 4 --batch-size 8 --epochs 3 --warmup-epochs 1 --sched-on-updates
    --opt lamb --lr 5e-3 --clip-grad 1 --grad-accum-steps 2 --model-ema --model-ema-decay 0.9
    --drop-path 0.2 --aug-repeats 3 --aa rand-m9-mstd0.5-inc1 --reprob 0.5 --mixup 0.8
    --cutmix 1.0 --workers 0
""".split()
PLAIN = """
    --img-size 8 --patch-size 4 --batch-size 8 --no-aug --epochs 2 --warmup-epochs 0 --workers 0
    --smoothing 0
""".split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes, bright and dark; 64 images for training, 10 for validation."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split, count in (("train", 32), ("val", 5)):
        for name, low in (("dark", 0), ("light", 100)):
            path = root / split / name
            path.mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(low, low + 150, size=(10, 12, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(path / f"{index}.png")
    return root


def run(folder: Path, output: Path, *options: object) -> dict[str, Any]:
    """Train in this process; returns last.pth."""
    train.main(["--data", str(folder), f"--output={output}", *map(str, options)])
    return checkpoints.load(output / "last.pth")


def go_on(output: Path, *options: object) -> dict[str, Any]:
    """Continue the training in a folder; returns last.pth."""
    train.main([f"--resume={output / 'last.pth'}", *map(str, options)])
    return checkpoints.load(output / "last.pth")


def trainer_of(folder: Path, output: Path, *options: object) -> Trainer:
    """A training before its first update, by default of resmlp_tiny with 8 x 8 pixels."""
    plain = PLAIN if "--model" not in options else PLAIN[4:]  # without the sizes
    words = ["--data", folder, f"--output={output}", *plain, *options]
    return training.create_trainer(
        parse_args([str(word) for word in words]), Process(torch.device("cpu"))
    )


def assert_same(first: Any, second: Any) -> None:
    """Equal to the last bit, wherever tensors are."""
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first.keys() - {"seconds", "images_per_second", "config", "digest"}:
            assert_same(first[key], second[key])
    elif isinstance(first, list | tuple):
        assert len(first) == len(second)
        for a, b in zip(first, second, strict=True):
            assert_same(a, b)
    elif isinstance(first, Tensor):
        assert torch.equal(first, second)
    else:
        assert first == second


# 64 images with 3 repeats give 64 // 8 = 8 batches, 4 updates an epoch
@pytest.mark.parametrize("stops", [[6], [1, 4, 11]])
def test_a_stopped_training_goes_on_exactly(folder: Path, tmp_path: Path, stops: list[int]) -> None:
    whole = run(folder, tmp_path / "whole", *FULL)
    parts = tmp_path / "parts"
    stopped = run(folder, parts, *FULL, "--max-updates", stops[0])
    assert stopped["position"]["updates"] == stops[0]
    for stop in stops[1:]:
        go_on(parts, "--max-updates", stop)
    assert_same(whole, go_on(parts))  # the other options are in the checkpoint
    assert_same(checkpoints.load(tmp_path / "whole/best.pth"), checkpoints.load(parts / "best.pth"))
    assert whole["position"]["updates"] == 12
    assert [row["epoch"] for row in whole["history"]] == [0, 1, 2]


def test_a_training_goes_on_as_it_began(folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path, *PLAIN, "--max-updates", 1)
    with pytest.raises(UserError, match=r"continues with --lr 0\.001, not 0\.01"):
        parse_args([f"--resume={tmp_path / 'last.pth'}", "--lr=0.01"])
    options = parse_args([f"--resume={tmp_path}", "--workers=2", "--output=other"])
    assert options.resume == tmp_path / "last.pth"
    assert (options.workers, str(options.output), options.batch_size) == (2, "other", 8)
    words = ["--num-classes", "2", "--torchcompile", "eager", "--torchcompile-mode", "default"]
    options = parse_args([f"--resume={tmp_path / 'last.pth'}", *words])  # computes the same
    assert (options.num_classes, options.torchcompile_mode) == (2, "default")


def test_the_same_command_goes_on(folder: Path, tmp_path: Path) -> None:
    """All options again, in the form they were given in, besides --resume."""
    run(folder, tmp_path, *FULL, "--max-updates", 1)
    whole = run(folder, tmp_path, *FULL, f"--resume={tmp_path / 'last.pth'}")
    assert whole["position"]["updates"] == 12


def test_a_training_goes_on_where_its_folder_is_now(folder: Path, tmp_path: Path) -> None:
    """Moved, or copied with --output; the best epoch so far comes along."""
    constant = ["--lr", 0, "--min-lr", 0, "--warmup-lr", 0]  # the first epoch stays the best
    run(folder, tmp_path / "old", *PLAIN, *constant, "--max-updates", 12)
    best = checkpoints.load(tmp_path / "old/best.pth")
    (tmp_path / "old").rename(tmp_path / "new")
    assert go_on(tmp_path / "new", "--max-updates", 13)["position"]["updates"] == 13
    assert not (tmp_path / "old").exists()
    words = [f"--resume={tmp_path / 'new/last.pth'}", f"--output={tmp_path / 'copy'}"]
    train.main(words)
    assert checkpoints.load(tmp_path / "copy/last.pth")["position"]["updates"] == 16
    assert checkpoints.load(tmp_path / "new/last.pth")["position"]["updates"] == 13
    assert_same(best["model"], checkpoints.load(tmp_path / "copy/best.pth")["model"])
    before = (tmp_path / "copy/last.pth").read_bytes()
    train.main(words)
    assert (tmp_path / "copy/last.pth").read_bytes() == before
    assert (tmp_path / "copy-1/last.pth").exists()


def test_weights_are_needed_at_the_start_alone(folder: Path, tmp_path: Path) -> None:
    first = run(folder, tmp_path / "a", *PLAIN, "--max-updates", 1)
    torch.save(first["model"], tmp_path / "w.pth")
    run(folder, tmp_path / "b", *PLAIN, "--weights", tmp_path / "w.pth", "--max-updates", 1)
    (tmp_path / "w.pth").unlink()
    assert go_on(tmp_path / "b")["position"]["updates"] == 16


def test_a_best_pth_that_is_gone_is_not_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """Only last.pth was copied: the best of the later epochs is saved and named."""
    constant = ["--lr", 0, "--min-lr", 0, "--warmup-lr", 0]  # no epoch is better than the first
    run(folder, tmp_path / "old", *PLAIN, *constant, "--max-updates", 12)
    (tmp_path / "new").mkdir()
    shutil.copy(tmp_path / "old/last.pth", tmp_path / "new")
    last = go_on(tmp_path / "new")
    assert "new/best.pth is not there: the best epoch is that of the epochs from now on" in (
        caplog.text
    )
    best = tmp_path / "new/best.pth"
    line = f"best val_top1 {last['history'][1]['val_top1']:.2f} % in epoch 1: {best}"
    assert capsys.readouterr().out.splitlines()[-1] == line
    assert_same(checkpoints.load(best)["model"], last["model"])
    caplog.clear()
    go_on(tmp_path / "new")  # all is done; the same epoch counts
    assert capsys.readouterr().out.splitlines()[-1] == line
    assert "not there" not in caplog.text
    best.unlink()
    go_on(tmp_path / "new")
    line = f"no epoch was trained: {tmp_path / 'new/last.pth'} has the weights of the last one"
    assert capsys.readouterr().out.splitlines()[-1] == line


def test_a_checkpoint_that_could_not_be_written_is_made_up_for(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk at the first best.pth; the training that goes on still writes it."""
    run(folder, tmp_path, *PLAIN, "--max-updates", 1)
    save = checkpoints.save

    def full(state: dict[str, Any], path: Path) -> None:
        if path.name == "best.pth":
            raise UserError("the disk is full")
        save(state, path)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "save", full)
        with pytest.raises(UserError, match="the disk is full"):
            go_on(tmp_path)
    last = go_on(tmp_path)
    assert_same(run(folder, tmp_path / "whole", *PLAIN), last)
    best = checkpoints.load(tmp_path / "best.pth")
    assert_same(checkpoints.load(tmp_path / "whole/best.pth"), best)


def test_a_lost_summary_comes_back(folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path, *PLAIN)
    before = (tmp_path / "summary.csv").read_text()
    (tmp_path / "summary.csv").unlink()
    go_on(tmp_path)
    assert (tmp_path / "summary.csv").read_text() == before


def test_the_grid_of_a_checkpoint_is_known(folder: Path, tmp_path: Path) -> None:
    """Weights for 8 x 32 pixels, 2 x 8 patches of the preset's size, are not a 4 x 4 grid."""
    options = ["--batch-size", 16, "--epochs", 1, "--no-aug", "--workers", 0, "--max-updates", 1]
    wide = run(folder, tmp_path, *options, "--img-size", 8, 32)
    assert wide["model_args"]["img_size"] == (8, 32)
    assert wide["model_args"]["patch_size"] == 4
    larger = create_model("resmlp_tiny", num_classes=2, img_size=(16, 64))
    load_weights(larger, tmp_path / "last.pth")
    expected, _ = adapt_mixing(
        wide["model"]["blocks.0.token_mixing.weight"],
        wide["model"]["blocks.0.token_mixing.bias"],
        (2, 8),
        (4, 16),
    )
    assert torch.equal(larger.state_dict()["blocks.0.token_mixing.weight"], expected)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("world_size", 2, "was trained with 2 processes, but here there are 1"),
        ("steps_per_epoch", 9, "was trained with 9 steps per epoch, but here there are 8"),
        ("classes", ["light", "dark"], "was trained with other classes than --data has"),
        ("config", {}, r"--resume .*last\.pth lacks the options"),
    ],
)
def test_another_setting_does_not_go_on(
    folder: Path, tmp_path: Path, key: str, value: object, message: str
) -> None:
    state = run(folder, tmp_path, *PLAIN, "--max-updates", 1)
    checkpoints.save({**state, key: value}, tmp_path / "last.pth")
    with pytest.raises(UserError, match=message):
        go_on(tmp_path)


def test_a_checkpoint_in_between_changes_nothing(folder: Path, tmp_path: Path) -> None:
    plain = run(folder, tmp_path / "a", *PLAIN)
    saved = run(folder, tmp_path / "b", *PLAIN, "--recovery-interval", 1)
    assert_same(plain, saved)


@pytest.mark.parametrize(
    ("number", "status", "workers"),
    [
        (signal.SIGTERM, 143, 0),
        (signal.SIGTERM, 143, 1),
        (signal.SIGINT, 130, 1),
        (signal.SIGHUP, 129, 1),
    ],
)
def test_a_signal_saves_and_names_the_command_that_goes_on(
    folder: Path, tmp_path: Path, number: signal.Signals, status: int, workers: int
) -> None:
    """Schedulers and terminals send it to all processes."""
    options = ["--data", folder, *FULL, "--epochs", 10_000, "--recovery-interval", 1]
    process = start(
        "resmlp_mt.vision.train", f"--output={tmp_path}", *options, "--workers", workers
    )
    wait_for(tmp_path / "summary.csv", process)
    os.killpg(process.pid, number)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == status, output
    assert "Traceback" not in output
    last = checkpoints.load(tmp_path / "last.pth")
    updates = last["position"]["updates"]
    resume = f"python -m resmlp_mt.vision.train --resume {tmp_path / 'last.pth'}"
    assert output.splitlines()[-1] == f"stopped after update {updates}; continue with: {resume}"
    again = run(folder, tmp_path / "whole", *FULL, "--epochs", 10_000, "--max-updates", updates)
    assert_same(again, last)
    assert [path.name for path in tmp_path.glob(".*")] == [".lock"]


def _names_of(rank: int, folder: str) -> None:
    """One of two processes, for :func:`test_an_image_that_two_processes_skip_counts_once`."""
    store = torch.distributed.FileStore(f"{folder}/store", 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    process = Process(torch.device("cpu"), rank, rank, 2)
    names = process.union(["both.jpg", f"{rank}.jpg"])
    Path(folder, f"{rank}.txt").write_text(" ".join(sorted(names)))
    torch.distributed.destroy_process_group()


def test_an_image_that_two_processes_skip_counts_once(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_names_of, (str(tmp_path),), nprocs=2)
    for rank in range(2):
        assert (tmp_path / f"{rank}.txt").read_text() == "0.jpg 1.jpg both.jpg"
    assert Process(torch.device("cpu")).union(["a.jpg"]) == {"a.jpg"}


def test_two_processes_are_one_with_twice_the_batch(folder: Path, tmp_path: Path) -> None:
    """Tolerance 1e-5: sums in another order. SGD, because Adam enlarges gradients near zero."""
    options = [*PLAIN, "--opt", "sgd", "--lr", "0.05", "--clip-grad", "1"]
    alone = run(folder, tmp_path / "one", *options, "--batch-size", 16)
    process = start(
        "torch.distributed.run", "--nproc-per-node=2", "--standalone",
        "-m", "resmlp_mt.vision.train", "--data", folder, f"--output={tmp_path / 'two'}",
        *options, "--device", "cpu",
    )  # fmt: skip
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    together = checkpoints.load(tmp_path / "two/last.pth")
    for name, weight in alone["model"].items():
        torch.testing.assert_close(together["model"][name], weight, rtol=1e-5, atol=1e-6)
    for one, two in zip(alone["history"], together["history"], strict=True):
        for key in ("updates", "val_top1", "train_loss", "val_loss", "lr"):
            assert two[key] == pytest.approx(one[key], rel=1e-5)


def test_accumulated_batches_are_one_of_their_size(folder: Path, tmp_path: Path) -> None:
    options = [*PLAIN, "--opt", "sgd", "--lr", "0.05"]
    whole = run(folder, tmp_path / "a", *options, "--batch-size", 16)
    parts = run(folder, tmp_path / "b", *options, "--batch-size", 4, "--grad-accum-steps", 4)
    for name, weight in whole["model"].items():
        torch.testing.assert_close(parts["model"][name], weight, rtol=1e-5, atol=1e-6)


def test_it_learns_and_writes_what_it_says(folder: Path, tmp_path: Path) -> None:
    options = [*PLAIN, "--epochs", 4, "--model-kwargs", "layer_scale_init=1.0"]
    average = ["--model-ema", "--model-ema-decay", 0.5]
    last = run(folder, tmp_path, *options, *average, "--tensorboard")
    assert last["history"][-1]["ema_top1"] == 100
    with (tmp_path / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [{k: float(v) for k, v in row.items()} for row in rows] == last["history"]
    assert list(tmp_path.glob("events.out.tfevents.*"))
    best = checkpoints.load(tmp_path / "best.pth")
    assert "optimizer" not in best
    assert best["classes"] == ["dark", "light"]
    assert best["data_config"]["input_size"] == (3, 8, 8)
    model, _ = factory.load_model(tmp_path / "best.pth")
    assert torch.equal(model.state_dict()["head.bias"], best["model_ema"]["head.bias"])
    saved = yaml.safe_load((tmp_path / "args.yaml").read_text())
    assert parse_args([f"--config={tmp_path / 'args.yaml'}"]).to_config() == saved
    with pytest.raises(UserError, match=r"cannot be continued: give a last\.pth"):
        train.main([f"--resume={tmp_path / 'best.pth'}"])


@pytest.mark.parametrize(
    "options",
    ["--amp", "--amp --amp-dtype float16", "--torchcompile eager", "--channels-last",
     "--workers 2", "--sched none", "--mixup 0.2 --smoothing 0.1", "--opt sgd --weight-decay 0"],
)  # fmt: skip
def test_variants_run(folder: Path, tmp_path: Path, options: str) -> None:
    last = run(folder, tmp_path, *PLAIN, "--epochs", 1, "--batch-size", 16, *options.split())
    assert last["position"]["updates"] == 4
    if options in ("--torchcompile eager", "--channels-last", "--workers 2"):
        plain = run(folder, tmp_path / "plain", *PLAIN, "--epochs", 1, "--batch-size", 16)
        for name, weight in plain["model"].items():
            torch.testing.assert_close(last["model"][name], weight, rtol=1e-5, atol=1e-6)


def test_scales_and_biases_are_not_decayed(folder: Path, tmp_path: Path) -> None:
    trainer = trainer_of(folder, tmp_path, "--opt", "lamb", "--weight-decay", 0.2)
    names = {parameter: name for name, parameter in trainer.model.named_parameters()}
    for group in trainer.optimizer.param_groups:
        for parameter in group["params"]:
            decays = group["weight_decay"] > 0
            assert decays == (parameter.dim() > 1), names[parameter]
            assert not (decays and re.search("alpha|beta|bias", names[parameter]))


def test_models_of_timm_get_the_images_that_they_are_for(folder: Path, tmp_path: Path) -> None:
    """As in timm's train.py; options that are given win."""
    name = "test_resnet"
    given = ["--img-size", 32, "--mean", 0.1, 0.2, 0.3, "--std", 1, 1, 1, "--crop-pct", 1,
             "--interpolation", "nearest"]  # fmt: skip
    model = timm.create_model(name)
    usual = timm.data.resolve_model_data_config(model)
    assert usual["mean"] == (0.5, 0.5, 0.5)
    changes = {"mean": (0.1, 0.2, 0.3), "std": (1, 1, 1), "crop_pct": 1, "img_size": 32,
               "interpolation": "nearest"}  # fmt: skip
    changed = timm.data.resolve_model_data_config(model, args=changes)
    for more, expected in (([], usual), (given, changed)):
        trainer = trainer_of(folder, tmp_path, "--model", name, *more)
        assert trainer.description["data_config"] == expected
        pixels, _, _ = next(iter(trainer.validation))
        assert pixels.shape[1:] == expected["input_size"]
        mean = torch.tensor(expected["mean"]).mul(255).view(1, -1, 1, 1)
        torch.testing.assert_close(trainer.normalize(mean.clone()), torch.zeros_like(mean))
    ours = trainer_of(folder, tmp_path).description["data_config"]
    assert ours == timm.data.resolve_data_config(
        {"input_size": (3, 8, 8), "crop_pct": 0.9, "interpolation": "bicubic"}
    )
    with pytest.raises(UserError, match=r"--model test_resnet.x: Invalid pretrained tag"):
        trainer_of(folder, tmp_path, "--model", "test_resnet.x")


@pytest.mark.parametrize("mode", ["agc", "norm"])
@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("model", ["resmlp_tiny", "test_resnet"])
def test_adaptive_clipping_leaves_the_classifier_out(
    folder: Path, tmp_path: Path, model: str, amp: bool, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in timm, and in section 4.1 of its paper (arXiv:2102.06171)."""
    words = ["--model", model, "--clip-mode", mode, "--clip-grad", 1e-3]
    words += ["--amp", "--amp-dtype", "float16"] if amp else []
    trainer = trainer_of(folder, tmp_path, "--img-size", 32, *words)
    loss = torch.stack([parameter.sum() for parameter in trainer.model.parameters()]).sum()
    seen: dict[str, Tensor] = {}

    def step() -> None:
        seen.update({n: p.grad.clone() for n, p in trainer.model.named_parameters()})

    monkeypatch.setattr(trainer.optimizer, "step", step)
    trainer._backward(loss, update=True)
    classifier = {f"{name}.{kind}" for name in ("head", "fc") for kind in ("weight", "bias")}
    for name, gradient in seen.items():
        is_whole = mode == "agc" and name in classifier
        assert bool((gradient == 1).all()) == is_whole, name


def test_statistics_of_batch_norm_are_averaged_at_the_end_of_an_epoch(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second process, with twice these statistics; those of the average are the first one's."""
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor, op: tensor.mul_(3))
    monkeypatch.setattr(torch.distributed, "broadcast", lambda tensor, source: tensor.mul_(5))
    words = ["--model", "test_resnet", "--img-size", 32, "--model-ema"]
    trainer = trainer_of(folder, tmp_path, *words)
    trainer.process = Process(trainer.process.device, world_size=2)
    steps = len(trainer.batches)
    for step, factors in ((steps - 1, (1, 1)), (steps, (1.5, 5))):
        trainer.position.step = step
        both = (trainer.model, trainer.ema.module)
        before = [{name: value.clone() for name, value in m.state_dict().items()} for m in both]
        trainer._after_update()
        for model, state, factor in zip(both, before, factors, strict=True):
            for name, value in model.state_dict().items():
                expected = state[name] * (factor if "running" in name else 1)
                torch.testing.assert_close(value, expected, msg=name)


def _train(rank: int, port: int, runs: list[list[str]]) -> None:
    """One of two processes, for :func:`test_batch_norm_in_two_processes_goes_on_exactly`."""
    torch.set_num_threads(1)
    for number, words in enumerate(runs):
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2",
            "MASTER_ADDR": "localhost", "MASTER_PORT": str(port + number),
        }  # fmt: skip
        train.main(words)


def test_batch_norm_in_two_processes_goes_on_exactly(folder: Path, tmp_path: Path) -> None:
    """Stopped inside an epoch, and at the end of one, before its validation."""
    plain = [*PLAIN[4:], "--model", "test_resnet", "--img-size", "32", "--device", "cpu"]
    words = ["--data", str(folder), *plain, "--model-ema", "--model-ema-decay", "0.5"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    resume = [f"--resume={parts / 'last.pth'}", "--device", "cpu"]
    runs = [[*words, f"--output={whole}"], [*words, f"--output={parts}", "--max-updates", "2"],
            [*resume, "--max-updates", "4"], resume]  # fmt: skip
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_train, (min(port, 65000), runs), nprocs=2)
    assert_same(checkpoints.load(whole / "last.pth"), checkpoints.load(parts / "last.pth"))


def test_a_pretrained_model_may_get_a_new_head(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = create_model("resmlp_s12", 2, img_size=32).state_dict()
    monkeypatch.setattr(factory, "hub_weights", lambda _: dict(stored))
    words = ["--model", "resmlp_s12", "--img-size", 32, "--pretrained"]
    for reset in (False, True):
        trainer = trainer_of(folder, tmp_path, *words, *["--reset-head"] * reset)
        for name, value in trainer.model.state_dict().items():
            changed = reset and name == "head.weight"
            assert torch.equal(value, stored[name]) != changed, name


def test_weights_start_a_training(folder: Path, tmp_path: Path) -> None:
    options = [*PLAIN, "--lr", 0, "--warmup-lr", 0, "--min-lr", 0, "--seed", 1]
    first = run(folder, tmp_path / "a", *options)
    kept = run(folder, tmp_path / "b", *options[:-1], 2, "--weights", tmp_path / "a/best.pth")
    assert_same(first["model"], kept["model"])
    fresh = run(folder, tmp_path / "c", *options[:-1], 2, "--weights", tmp_path / "a/best.pth",
                "--reset-head")  # fmt: skip
    different = {n for n, w in fresh["model"].items() if not torch.equal(w, first["model"][n])}
    assert different == {"head.weight"}
    torch.save(first["model"] | {"head.weight": torch.zeros(7, 8)}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="has 7 classes and the model 2: add --reset-head"):
        run(folder, tmp_path / "d", *options, "--weights", tmp_path / "w.pth")


def test_a_classifier_of_other_classes_is_not_kept(folder: Path, tmp_path: Path) -> None:
    """There are as many, so it would fit; its rows would be of the wrong classes."""
    options = [*PLAIN, "--max-updates", 1]
    run(folder, tmp_path / "a", *options)
    words = ["--weights", tmp_path / "a/last.pth"]
    (tmp_path / "map.txt").write_text("light\ndark\n")
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    for split in ("train", "val"):
        (other / split / "light").rename(other / split / "bright")
    message = r"last\.pth knows 2 classes .*\(dark, light and {}\): add --reset-head, or"
    for data, names, extra in (
        (folder, "light, dark", ["--class-map", tmp_path / "map.txt"]),
        (other, "bright, dark", []),
    ):
        with pytest.raises(UserError, match=message.format(names)):
            run(data, tmp_path / "b", *options, *words, *extra)
        run(data, tmp_path / "c", *options, *words, *extra, "--reset-head")

    (tmp_path / "map.txt").write_text("dark\nlight\n")
    kept = run(folder, tmp_path / "e", *options, *words, "--class-map", tmp_path / "map.txt")
    assert kept["classes"] == ["dark", "light"]


def test_a_classifier_without_names_stays_if_its_order_is_sure(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """timm sorts the folders 1, 2, 10. A thousand classes are taken for ImageNet's."""
    data, weights, out = tmp_path / "data", tmp_path / "w.pth", tmp_path / "out"

    def fill(names: list[str]) -> None:
        for name in names:
            shutil.copytree(folder / "val/dark", data / "train" / name)
        shutil.copytree(folder / "val/dark", data / "val" / names[-1])
        sizes = {"img_size": 8, "patch_size": 4}
        torch.save(create_model("resmlp_tiny", len(names), **sizes).state_dict(), weights)

    fill(["1", "2", "10"])
    message = r"w\.pth has no names of classes.*: add --reset-head, or name them in the order"
    with pytest.raises(UserError, match=message):
        trainer_of(data, out, "--weights", weights)
    (tmp_path / "map.txt").write_text("1\n2\n10")
    trainer_of(data, out, "--weights", weights, "--class-map", tmp_path / "map.txt")
    trainer_of(data, out, "--weights", weights, "--reset-head")

    shutil.rmtree(data)
    names = timm.data.ImageNetInfo().label_names()
    fill(names)
    trainer_of(data, out, "--weights", weights)
    (data / "train" / names[0]).rename(data / "train/tench")
    stored = create_model("resmlp_s12", 1000, img_size=32).state_dict()
    monkeypatch.setattr(factory, "hub_weights", lambda _: dict(stored))
    for words, source in (
        (["--weights", weights], r"--weights .*w\.pth"),
        (["--model", "resmlp_s12", "--img-size", 32, "--pretrained"], "--model .* --pretrained"),
    ):
        message = f"{source}, taken for ImageNet's because it has no names of .*: add --reset-head"
        with pytest.raises(UserError, match=message):
            trainer_of(data, out, *words)
        trainer_of(data, out, *words, "--reset-head")


def test_images_are_prepared_as_for_the_weights(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As evaluate does with a checkpoint or a folder of the hub; what is given wins."""
    caplog.set_level("INFO")
    own = {"mean": (0.1, 0.2, 0.3), "std": (0.9, 0.8, 0.7), "interpolation": "nearest",
           "crop_pct": 0.7}  # fmt: skip
    given = ["--mean", 0.1, 0.2, 0.3, "--std", 0.9, 0.8, 0.7, "--interpolation", "nearest",
             "--crop-pct", 0.7]  # fmt: skip
    run(folder, tmp_path / "a", *PLAIN, *given, "--max-updates", 1)
    model, hub = timm.create_model("test_convnext", num_classes=2), tmp_path / "hub"
    model.pretrained_cfg |= own
    timm.models.save_for_hf(model, str(hub), model_config={"label_names": ["dark", "light"]})
    hub_words = ["--model", "test_convnext", "--img-size", 32, "--weights", hub]
    for words in (["--weights", tmp_path / "a/last.pth"], hub_words):
        caplog.clear()
        trainer = trainer_of(folder, tmp_path / "b", *words)
        assert trainer.description["data_config"].items() >= own.items()
        assert trainer.description["config"].items() >= (own | {
            "mean": [0.1, 0.2, 0.3], "std": [0.9, 0.8, 0.7],
        }).items()  # fmt: skip
        mean = torch.tensor([25.5, 51, 76.5]).view(1, -1, 1, 1)
        torch.testing.assert_close(trainer.normalize(mean.clone()), torch.zeros_like(mean))
        assert "images are prepared as for the weights: " in caplog.text
        trainer = trainer_of(folder, tmp_path / "b", *words, "--crop-pct", 1, "--mean", 0, 0, 0)
        changed = own | {"crop_pct": 1, "mean": (0, 0, 0)}
        assert trainer.description["data_config"].items() >= changed.items()
    caplog.clear()
    trainer_of(folder, tmp_path / "b", *hub_words[:-2])
    assert "prepared" not in caplog.text
    config = hub / "config.json"
    config.write_text(config.read_text().replace("0.9,", "0,"))
    with pytest.raises(UserError, match=r"--weights .*hub: its data_config .* is not usable"):
        trainer_of(folder, tmp_path / "b", *hub_words)
    with pytest.raises(UserError, match=r"^--model test_convnext: its data_config \(or .* --crop"):
        trainer_of(folder, tmp_path / "b", *hub_words, "--crop-pct", 0.01)


def test_a_loss_that_is_not_finite_stops_the_training(folder: Path, tmp_path: Path) -> None:
    good = run(folder, tmp_path, *PLAIN, "--sched", "none", "--max-updates", 9)
    last = checkpoints.load(tmp_path / "last.pth")
    last["optimizer"]["param_groups"][0]["lr"] = 1e30
    checkpoints.save(last, tmp_path / "last.pth")
    message = r"the loss became (nan|inf) in epoch 1, update \d+: .*last\.pth is the last good"
    with pytest.raises(UserError, match=message):
        go_on(tmp_path)
    assert_same(checkpoints.load(tmp_path / "last.pth")["model"], good["model"])


def test_weights_that_are_not_finite_are_refused(folder: Path, tmp_path: Path) -> None:
    trainer = trainer_of(folder, tmp_path)
    with torch.no_grad():
        trainer.model.head.bias[0] = float("nan")
    with pytest.raises(UserError, match=r"head\.bias is not finite after update 0"):
        trainer.save("last.pth")
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="the validation loss is nan after update 0: training"):
        trainer.validate(trainer.model)


def test_bad_images_stop_the_training_or_are_counted(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = tmp_path / "images"
    shutil.copytree(folder, images)
    for bad in ("train/dark/3.png", "val/light/1.png"):
        (images / bad).write_bytes(b"no image")
    options = [*PLAIN, "--workers", 2]
    with pytest.raises(UserError, match=r"(3|1)\.png: this is not an image file .*--on-error skip"):
        run(images, tmp_path / "a", *options)
    last = run(images, tmp_path / "b", *options, "--on-error", "skip", "--mixup", 0.5)
    assert last["position"]["updates"] == 16
    assert "2 bad images were skipped" in caplog.text
    assert "dark/3.png" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--batch-size 100", "--batch-size 100: the 64 training images do not fill one update"),
        ("--batch-size 0", "--batch-size/-b: must be at least 1, but is 0"),
        ("--batch-size 7 --mixup 0.5", "need an even --batch-size"),
        ("--no-such-option", "unrecognized arguments: --no-such-option"),
        ("--opt nonsense", "--opt nonsense: "),
        ("--opt adahessian", "--opt adahessian: it needs second derivatives, which this training"),
        (
            "--sched plateau --sched-on-updates",
            "--sched plateau: Plateau LR only supports step per",
        ),
        ("--sched nonsense", "argument --sched: invalid choice: 'nonsense' (choose from"),
        ("--model nonsense", "--model nonsense: there is no such model"),
        ("--patch-size 3", "--model resmlp_tiny: img_size must be a multiple of patch_size 3"),
        ("--img-size 8 8 8", "--img-size takes a side, or height and width"),
        ("--device cuda:9", "--device cuda:9: "),
        ("--aa nonsense", "--aa nonsense"),
        ("--device nonsense", "--device nonsense"),
        ("--interpolation nonsense", "argument --interpolation: invalid choice"),
        ("--train-interpolation nonsense", "argument --train-interpolation: invalid choice"),
        ("--workers -3", "--workers/-j: must be at least 0, but is -3"),
        ("--seed -1", "--seed: must be at least 0, but is -1"),
        (f"--seed {2**64}", f"--seed: must be at most {2**63 - 1}, but is {2**64}"),
        ("--crop-pct 0", "--crop-pct: must be above 0, but is 0"),
        ("--std 0 0 0", "--std: must be above 0, but is 0"),
        ("--torchcompile nonsense", "--torchcompile nonsense is not a backend of torch.compile"),
        ("--model-kwargs num_classes=5", "num_classes follows from --model and the data"),
        ("--model-kwargs img_size=(8,)", "img_size must be a side, or height and width"),
        ("--teacher-weights w.pth", "--teacher-weights needs --teacher: give it"),
        ("--weights timm:nonsense", "--weights timm:nonsense: timm's hub gave no weights"),
        ("--weights nothing.pth", "nothing.pth cannot be read: No such file"),
        ("--model timm:test_vit --img-size 96 --weights x.pth", "x.pth cannot be read"),
        ("--modle resmlp_tiny", "unrecognized arguments: --modle; did you mean --model?"),
        ("--model resmlp_s13", "there is no such model (did you mean "),
        ("--model timm:hf-hub:a/b", "--model timm:hf-hub:a/b: there is no such model"),
        ("--model-kwargs pretrained_cfg={}", "pretrained_cfg cannot be given"),
        ("--model resmlp_tiny --pretrained", "there are no pre-trained weights; models with"),
        ("--resume nothing.pth", "nothing.pth cannot be read"),
        ("--config nothing.yaml", "--config nothing.yaml cannot be read"),
        ("--hflip 1.5", "--hflip: must be at most 1, but is 1.5"),
        ("--vflip -0.1", "--vflip: must be at least 0, but is -0.1"),
        ("--reprob 2", "--reprob: must be at most 1"),
        ("--mixup-prob 2", "--mixup-prob: must be at most 1"),
        ("--mixup-switch-prob 2", "--mixup-switch-prob: must be at most 1"),
        ("--model-ema-decay 2", "--model-ema-decay: must be at most 1"),
        ("--distillation-alpha -1", "--distillation-alpha: must be at least 0"),
        ("--smoothing 1", "--smoothing: must be below 1, but is 1"),
        ("--mixup -1", "--mixup: must be at least 0"),
        ("--cutmix -1", "--cutmix: must be at least 0"),
        ("--aug-repeats -1", "--aug-repeats: must be at least 0"),
        ("--warmup-epochs -1", "--warmup-epochs: must be at least 0"),
        ("--recovery-interval -1", "--recovery-interval: must be at least 0"),
        ("--clip-grad 0", "--clip-grad: must be above 0"),
        ("--ratio 0 1", "--ratio: must be above 0"),
        ("--scale 0.5 1.5", "--scale: must be at most 1"),
        ("--crop-pct 1.5", "--crop-pct: must be at most 1"),
        ("--lr nan", "--lr: must be a finite number, but is nan"),
        ("--mean 0 nan 0", "--mean: must be a finite number, but is nan"),
        ("--hflip nan", "--hflip: must be a finite number, but is nan"),
        ("--model-kwargs pooling", "--model-kwargs: expected KEY=VALUE, but found 'pooling'"),
        ("--opt-kwargs betas", "--opt-kwargs: expected KEY=VALUE, but found 'betas'"),
        ("--device meta", "--device meta cannot be used here: "),
        ("--device xpu", "--device xpu"),
        (f"--output {'x' * 300}", "cannot be read: File name too long"),
        ("--output /dev/null/x", "--output /dev/null/x cannot be written (Not a directory)"),
    ],
)
def test_mistakes_end_in_one_sentence(
    folder: Path, tmp_path: Path, options: str, message: str
) -> None:
    if "cuda" in options and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    words = [word for word in PLAIN if word not in ("--no-aug",)] if "--aa" in options else PLAIN
    with pytest.raises(UserError) as error:
        run(folder, tmp_path, *words, *options.split())
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert ".." not in str(error.value).replace("...", "")


def test_one_class_is_nothing_to_learn(folder: Path, tmp_path: Path) -> None:
    """Every model would be right in all cases, as if it had learned."""
    for split in ("train", "val"):
        shutil.copytree(folder / split / "dark", tmp_path / "one" / split / "images")
        with webdataset.TarWriter(str(tmp_path / f"{split}-0.tar")) as writer:
            for index in range(8):
                pixels = np.zeros((8, 8, 3), dtype=np.uint8)
                writer.write({"__key__": str(index), "png": pixels, "cls": 3})
    with tarfile.open(tmp_path / "one.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "one", "one")
    for words, name in (
        ([tmp_path / "one"], "images"),
        (["cifar10-tar", tmp_path / "one.tar.gz"], "images"),
        (["wds", tmp_path], "3"),
    ):
        message = rf"^--data .* has one class \({name}\): nothing can be learned; expected train/CL"
        with pytest.raises(UserError, match=message):
            trainer_of(folder, tmp_path / "out", "--data", *words)


@pytest.mark.parametrize(
    ("options", "is_told"),
    [
        ("--epochs 2 --warmup-epochs 5", True),
        ("--epochs 1 --warmup-epochs 1 --sched plateau", True),
        ("--epochs 2 --warmup-epochs 1", False),
        ("--epochs 1 --warmup-epochs 1 --warmup-prefix", False),
        ("--epochs 1 --sched none", False),
    ],
)
def test_a_training_that_is_all_warm_up_is_told(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, options: str, is_told: bool
) -> None:
    run(folder, tmp_path, *PLAIN, *options.split(), "--max-updates", 1)
    assert ("is all warm-up" in caplog.text) == is_told
    if is_told:
        assert re.search(r"--epochs \d is all warm-up \(--warmup-epochs \d\), with l", caplog.text)


def test_shards_are_scanned_once_and_their_classes_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for split, labels in (("train", (0, 2) * 4), ("val", (0, 2, 1))):
        with webdataset.TarWriter(str(tmp_path / f"{split}-0.tar")) as writer:
            for index, label in enumerate(labels):
                pixels = np.full((8, 8, 3), 30 * index, dtype=np.uint8)
                writer.write({"__key__": str(index), "png": pixels, "cls": label})
    scanned = []
    scan = shards.shard_samples

    def count(root: Path, split: str) -> Any:
        scanned.append(split)
        return scan(root, split)

    monkeypatch.setattr(shards, "shard_samples", count)
    with pytest.raises(UserError, match=r"validation has classes that training lacks \(1\)"):
        trainer_of(tmp_path, tmp_path, "--data", "wds", tmp_path)
    assert scanned == ["train", "val"]


def test_models_and_teachers_are_tried_with_the_size_of_the_images(
    folder: Path, tmp_path: Path
) -> None:
    message = (
        r"--model test_convnext does not take images of 8 x 8 pixels \(--img-size\): .*[^.]\.$"
    )
    with pytest.raises(UserError, match=message):
        run(folder, tmp_path / "a", *PLAIN[4:], "--img-size", 8, "--model", "test_convnext")
    run(folder, tmp_path / "teacher", *PLAIN, "--img-size", 16, "--max-updates", 1)
    teacher = tmp_path / "teacher/last.pth"
    options = [*PLAIN, "--teacher", teacher, "--distillation-type", "hard"]
    with pytest.raises(UserError, match=r"--teacher .*last\.pth does not take images of 8 x 8"):
        run(folder, tmp_path / "b", *options)


@pytest.mark.parametrize("model", ["resmlp_tiny", "timm:test_vit"])
def test_models_of_one_size_are_made_for_the_sizes_that_are_given(
    folder: Path, tmp_path: Path, model: str
) -> None:
    sizes = ["--img-size", 8, "--patch-size", 2]
    run(folder, tmp_path / "a", *PLAIN, "--model", model, *sizes, "--max-updates", 1)
    made = torch.load(tmp_path / "a/last.pth")
    kernel = "patch_embed.proj.weight"
    assert made["model_args"]["patch_size"] == 2
    assert made["model"][kernel][0].numel() == 3 * 2 * 2
    with pytest.raises(UserError, match=r"test_resnet: .*patch_size"):
        run(folder, tmp_path / "b", *PLAIN, "--model", "test_resnet", *sizes)
    with pytest.raises(UserError, match="--grad-checkpointing is not for --model dla46_c: leave"):
        trainer_of(folder, tmp_path, "--model", "dla46_c", "--img-size", 32, "--grad-checkpointing")
    assert factory.input_arguments("test_resnet", 8, None) == {}


def test_args_yaml_is_written_whole_or_not_at_all(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "args.yaml").write_text("earlier")
    write = Path.write_text

    def full(path: Path, text: str, *args: Any, **kwargs: Any) -> int:
        write(path, text[:10], *args, **kwargs)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(
        UserError, match=r"args\.yaml cannot be written \(No space left on device\)"
    ):
        run(folder, tmp_path, *PLAIN)
    assert (tmp_path / "args.yaml").read_text() == "earlier"


def test_updates_that_are_done_are_not_passed(folder: Path, tmp_path: Path) -> None:
    first = run(folder, tmp_path, *PLAIN, "--max-updates", 5)
    for most in (5, 3):
        assert_same(go_on(tmp_path, "--max-updates", most), first)


def test_a_plateau_goes_on_exactly(folder: Path, tmp_path: Path) -> None:
    """Accuracy stays as it is at this rate: after ten epochs more, timm's schedule lowers it."""
    options = [*PLAIN, "--sched", "plateau", "--lr", 1e-6, "--min-lr", 0, "--epochs", 14,
               "--batch-size", 32]  # fmt: skip
    whole = run(folder, tmp_path / "whole", *options)
    run(folder, tmp_path / "parts", *options, "--max-updates", 11)  # in the sixth epoch
    parts = go_on(tmp_path / "parts")
    assert whole["history"][-1]["lr"] < 1e-6
    assert [row["lr"] for row in parts["history"]] == [row["lr"] for row in whole["history"]]
    assert_same(whole, parts)


def test_noise_around_a_plateau_goes_on_exactly(folder: Path, tmp_path: Path) -> None:
    options = [*PLAIN, "--sched", "plateau", "--epochs", 4, "--batch-size", 32, "--lr-noise", 0.25]
    whole = run(folder, tmp_path / "whole", *options)
    state = run(folder, tmp_path / "parts", *options, "--max-updates", 5)  # in the third epoch
    assert state["restore_lr"] == [1e-3] * 2
    assert_same(whole, go_on(tmp_path / "parts"))


def test_a_second_training_goes_to_a_new_folder(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    first = run(folder, output, *PLAIN)
    for number in (1, 2):
        run(folder, output, *PLAIN, "--seed", number)
        last = checkpoints.load(tmp_path / f"run-{number}/last.pth")
        assert last["config"]["seed"] == number
        assert str(tmp_path / f"run-{number}/best.pth") in capsys.readouterr().out
    assert checkpoints.load(output / "last.pth")["digest"] == first["digest"]


def test_a_training_that_has_just_begun_has_its_folder_too(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It has no last.pth yet."""
    caplog.set_level("INFO")
    words = ["--data", str(folder), *PLAIN, f"--output={tmp_path / 'run'}", "--epochs=1"]
    with locked(tmp_path / "run/.lock", "taken"):
        train.main(words)
    assert os.listdir(tmp_path / "run") == [".lock"]
    assert checkpoints.load(tmp_path / "run-1/last.pth")
    assert f"{tmp_path / 'run'} already holds a training: writing to" in caplog.text
    before = (tmp_path / "run-1/last.pth").read_bytes()
    resume = f"--resume={tmp_path / 'run-1/last.pth'}"
    with (
        locked(tmp_path / "run-1/.lock", "taken"),
        pytest.raises(UserError, match=r"another training is writing to .*run-1: wait for its end"),
    ):
        train.main([resume])
    assert (tmp_path / "run-1/last.pth").read_bytes() == before
    train.main([resume])  # the lock ends with the training


def test_a_file_system_without_locks_is_warned_of(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def acquire(_: portalocker.Lock) -> None:
        raise portalocker.LockException(OSError(errno.ENOLCK, "No locks available"))

    monkeypatch.setattr(portalocker.Lock, "acquire", acquire)
    run(folder, tmp_path / "run", *PLAIN, "--max-updates", 1)
    assert ".lock cannot be locked" in caplog.text
    assert "its file system must have locks" in caplog.text


def test_all_processes_know_why_the_folder_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one finds it out; the others would wait for it."""
    options = replace(TrainingOptions(), output=tmp_path)
    process = Process(torch.device("cpu"), rank=1)
    monkeypatch.setattr(process, "of_first", lambda _: ("", "the first one's message"))
    with pytest.raises(UserError, match="the first one's message"), ExitStack() as held:
        hold_folder(options, process, held)


@pytest.mark.parametrize("left", ["best.pth", "summary.csv"])
def test_results_without_a_last_pth_are_kept(tmp_path: Path, left: str) -> None:
    """last.pth is large, so people remove it and keep the rest."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / left).touch()
    with ExitStack() as held:
        options = replace(TrainingOptions(), output=tmp_path / "run")
        chosen = hold_folder(options, Process(torch.device("cpu")), held)
        assert chosen == tmp_path / "run-1"


def test_what_a_killed_training_has_not_finished_is_removed(tmp_path: Path) -> None:
    """A file of weights that it was writing; but no other file, nor one of a training at work."""
    for name in (".last.pth.a1_b2c3d", ".last.pth.mine", "last.pth", ".notes.a1_b2c3d"):
        (tmp_path / name).touch()
    options = replace(TrainingOptions(), output=tmp_path, resume=tmp_path / "last.pth")
    for is_taken in (True, False):
        with suppress(UserError), ExitStack() as held:
            if is_taken:
                held.enter_context(locked(tmp_path / ".lock", ""))
            hold_folder(options, Process(torch.device("cpu")), held)
        left = {path.name for path in tmp_path.iterdir()} - {".lock"}
        others = {".last.pth.mine", "last.pth", ".notes.a1_b2c3d"}
        assert left == others | ({".last.pth.a1_b2c3d"} if is_taken else set())


@pytest.mark.parametrize("name", [".", "..", "inner/.."])
def test_a_folder_without_a_name_of_its_own_has_others_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    here = tmp_path / "run/inner" if name == ".." else tmp_path / "run"
    (tmp_path / "run/inner").mkdir(parents=True)
    (tmp_path / "run/last.pth").touch()
    monkeypatch.chdir(here)
    with ExitStack() as held:
        options = replace(TrainingOptions(), output=Path(name))
        chosen = hold_folder(options, Process(torch.device("cpu")), held)
        assert chosen == tmp_path / "run-1"
        assert (tmp_path / "run-1/.lock").exists()


def test_the_last_line_names_the_best_epoch_and_its_file(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for more, name in (([], "val_top1"), (["--model-ema", "--model-ema-decay", 0.5], "ema_top1")):
        output = tmp_path / name
        last = run(folder, output, *PLAIN, "--epochs", 4, *more)
        scores = [row[name] for row in last["history"]]
        line = f"best {name} {max(scores):.2f} % in epoch {scores.index(max(scores))}: "
        assert capsys.readouterr().out.splitlines()[-1] == f"{line}{output / 'best.pth'}"


def test_options_are_named_as_in_timm(tmp_path: Path) -> None:
    words = "-b 8 -vb 9 -j 1 -c digits --initial-checkpoint w.pth --output o --drop 0.1"
    options = parse_args(["imagenet", *words.split(), "--model", "resmlp_12_224", "--pretrained"])
    assert options.data == ["imagenet"]
    assert (options.batch_size, options.validation_batch_size, options.workers) == (8, 9, 1)
    assert (options.weights, options.pretrained, options.drop) == ("w.pth", True, 0.1)
    assert options.weight_decay == 0.05
    assert options.model_ema  # of the recipe that -c names
    assert parse_args(["--data-dir", "imagenet"]).data == ["imagenet"]


def test_flags_win_over_the_config_and_the_config_over_defaults(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    assert parse_args(["--data", "x"]).aug
    assert not parse_args(["--data", "x", "--no-aug"]).aug
    path.write_text("lr: 5e-3\nmodel-ema: true\nscale: [0.5, 1.0]\nmodel_kwargs: {norm: layernorm}")
    options = parse_args([f"--config={path}", "--data", "x"])
    assert (options.lr, options.model_ema, options.scale) == (0.005, True, [0.5, 1.0])
    assert options.model_kwargs == {"norm": "layernorm"}
    assert options.weight_decay == parse_args(["--data", "x"]).weight_decay
    options = parse_args(
        [f"--config={path}", "--lr=0.001", "--no-model-ema", "--scale", "0.1", "1"]
    )
    assert (options.lr, options.model_ema, options.scale) == (0.001, False, [0.1, 1.0])


def test_a_folder_before_the_options_is_the_data(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    for text in ("data: [old]\nopt_kwargs: {a: 1}", "opt_kwargs: {a: 1}\ndata: [old]"):
        path.write_text(text)
        for flags in ([f"--config={path}", "--lr=1"], ["-c", str(path)]):
            options = parse_args(["new", *flags])
            assert (options.data, options.opt_kwargs) == (["new"], {"a": 1})
            assert parse_args(flags).data == ["old"]
    for words in (["a", "--data", "b"], ["a", "-c", str(path), "--data-dir=b"]):
        with pytest.raises(UserError, match="--data is given, and a too: leave out one of them"):
            parse_args(words)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("weather: 1", "there is no option weather"),
        ("lr: fast", "argument --lr: invalid float value: 'fast'"),
        ("remode: sometimes", "argument --remode: invalid choice: 'sometimes'"),
        ("- lr", "expected lines of the form OPTION: VALUE"),
        ("lr: [", "cannot be read"),
        ("base: ../x", "base must be the name of a file beside it, but is '../x'"),
        ("base: ''", "base must be the name of a file beside it, but is ''"),
        ("base: ..", "base must be the name of a file beside it, but is '..'"),
        ("base: c.yaml", "base must name another file, but is 'c.yaml'"),
        ("lr: 0.1\nopt: sgd\nlr: 0.2", "c.yaml cannot be read: line 3: lr occurs more than once"),
        ("lr-base: 0.1\nlr_base: 0.2", "c.yaml: lr_base occurs more than once: keep one"),
        ("opt_kwargs: {a: 1, a: 2}", "line 1: a occurs more than once"),
        ("lr: [1, 2]", "c.yaml: lr cannot be a list of 2 values."),
        ("mean: [0, 0, 0, 0]", "c.yaml: mean cannot be a list of 4 values."),
        ("model_ema: [x]", "c.yaml: model_ema cannot be a list of 1 values."),
        ("data: {a: b}", "c.yaml: data cannot be a mapping."),
    ],
)
def test_a_wrong_config_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError, match=re.escape(message)):
        parse_args([f"--config={tmp_path / 'c.yaml'}"])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_recipe_is_understood(path: Path) -> None:
    words = [f"--config={path}", "--data", "x"]
    needs_weights = path.stem.startswith("finetune_")
    parse_args([*words, "--weights", "w.pth"] if needs_weights else words)
    if needs_weights:  # it would train from random ones
        with pytest.raises(UserError, match=r"--reset-head needs --weights or --pretrained"):
            parse_args(words)


def test_the_papers_recipe() -> None:
    """Section 3.1 of the paper."""
    for model in ("resmlp_s12", "resmlp_s24", "resmlp_s36", "resmlp_b24"):
        o = parse_args([f"--config={ROOT}/configs/vision/{model}.yaml", "--data", "x"])
        assert (o.model, o.opt, o.lr, o.weight_decay) == (model, "lamb", 5e-3, 0.2)
        assert (o.epochs, 8 * o.batch_size, o.sched, o.warmup_epochs) == (400, 2048, "cosine", 5)
        assert (o.smoothing, o.reprob, o.mixup, o.cutmix) == (0.1, 0.25, 0.8, 1.0)
        assert (o.drop_path, o.aug_repeats, o.crop_pct, o.amp) == (0.05, 3, 0.9, False)
        assert o.aa == "rand-m9-mstd0.5-inc1"


@pytest.mark.slow
def test_the_digits_are_learned_without_options(tmp_path: Path) -> None:
    train.main([f"--output={tmp_path}"])
    assert checkpoints.load(tmp_path / "last.pth")["history"][-1]["val_top1"] >= 95
