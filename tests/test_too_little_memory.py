"""Too little memory is not taken for a damaged file, nor for a wrong one, and is told once.

The advice for a damaged checkpoint is to remove it.
"""

import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.data import Dictionary
from PIL import Image
from safetensors.torch import save_file

from resmlp_mt import signals, tensor_files
from resmlp_mt.command_line import CommandError, command
from resmlp_mt.engine import model_folder, pretrained, subwords
from resmlp_mt.errors import UserError, is_of_memory
from resmlp_mt.fairseq_plugin import saving
from resmlp_mt.fairseq_plugin.conversion import load_trained
from resmlp_mt.models import resmlp_mt  # noqa: F401  applies the remedies
from resmlp_mt.serving import workers
from resmlp_mt.serving.limits import ModelOptions
from resmlp_mt.sharding import formats
from resmlp_mt.vision import archives, data, factory, images, onnx_export, shards, state_dicts
from resmlp_mt.vision import weights as image_weights
from resmlp_mt.vision.memory import memory_told

FIXTURE = Path(__file__).parent / "fixtures" / "resmlp_mt_0_1_0"
ALLOCATOR = (
    "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you "
    "tried to allocate {} bytes. Error code 12 (Cannot allocate memory)"
)
ERRORS = [
    MemoryError(),
    RuntimeError(ALLOCATOR.format(8)),
    OSError(12, "Cannot allocate memory"),
]
every_error = pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)

Read = Callable[[Path], object]


def load_folder(_: Path) -> object:
    return model_folder.load(pretrained.located())


def graph(_: Path) -> object:
    classifier: Any = SimpleNamespace(
        name="x", model=torch.nn.Identity(), classes=["a"], data_config={"input_size": (3, 8, 8)}
    )
    return onnx_export.graph(classifier)


READERS: dict[str, tuple[str, Read]] = {
    "tensors": ("torch.load", lambda folder: tensor_files.read(folder / "x.pt")),
    "safetensors": (
        "safetensors.torch.load_file",
        lambda folder: tensor_files.read(folder / "model.safetensors"),
    ),
    "the size": (
        "resmlp_mt.tensor_files.check_is_whole",
        lambda folder: tensor_files.read(folder / "x.pt"),
    ),
    "checksums": ("zipfile.ZipFile", lambda folder: tensor_files.check_archive(folder / "x.pt")),
    "weights": ("resmlp_mt.engine.weights.safe_open", load_folder),
    "a model": ("resmlp_mt.engine.weights.empty", load_folder),
    "a shortlist": ("resmlp_mt.engine.shortlist.safe_open", load_folder),
    "a configuration": ("resmlp_mt.engine.model_folder.json.loads", load_folder),
    "sentencepiece": (
        "resmlp_mt.engine.subwords.check_is_whole",
        lambda folder: subwords.read_sentencepiece(folder / "x.pt"),
    ),
    "a dictionary": (
        "fairseq.file_io.PathManager.get_local_path",
        lambda folder: Dictionary.load(str(folder / "dict.txt")),
    ),
    "parquet": (
        "pyarrow.parquet.ParquetFile",
        lambda folder: list(formats.Parquet("text").parts(folder / "x.parquet", 1)),
    ),
    "an image": ("PIL.Image.open", lambda folder: images.open_image(folder / "x.png")),
    "its orientation": (
        "PIL.ImageOps.exif_transpose",
        lambda folder: images.open_image(folder / "x.png"),
    ),
    "an archive": (
        "tarfile.open",
        lambda folder: archives.archive_dataset(folder / "train-0.tar", "train", None, "train"),
    ),
    "a shard": (
        "tarfile.open",
        lambda folder: data.create_dataset(["wds", str(folder)], "train"),
    ),
    "an image in a shard": (
        "resmlp_mt.vision.shards.open",
        lambda folder: shards.ShardDataset(
            [(str(folder / "train-0.tar"), 0, 1, "a.png")], [0], ["a"]
        ).read(0),
    ),
    "an index": (
        "resmlp_mt.vision.state_dicts.json.loads",
        lambda folder: state_dicts.read_weights(folder / "model.safetensors.index.json"),
    ),
    "a configuration of the hub": (
        "resmlp_mt.vision.state_dicts.json.loads",
        lambda folder: state_dicts.read_weights(folder),
    ),
    "the hub": ("timm.create_model", lambda _: image_weights.hub_weights("timm:resmlp_12_224")),
    "a model of the hub": (
        "timm.create_model",
        lambda _: factory.build_model("timm:resnet18", 10, pretrained=True),
    ),
    "an export": ("resmlp_mt.vision.onnx_export.graph_of", graph),
}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    tensors = {"a": torch.ones(4)}
    torch.save(tensors, tmp_path / "x.pt")
    save_file(tensors, tmp_path / "model.safetensors")
    index = {"weight_map": {"a": "model.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "config.json").write_text("{}")
    Image.new("RGB", (2, 2)).save(tmp_path / "x.png")
    with tarfile.open(tmp_path / "train-0.tar", "w") as archive:
        archive.add(tmp_path / "x.png", "x.png")
    return tmp_path


def failing(error: Exception) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


@every_error
@pytest.mark.parametrize("kind", READERS)
def test_a_reader_calls_no_file_wrong_for_want_of_memory(
    files: Path, monkeypatch: pytest.MonkeyPatch, kind: str, error: Exception
) -> None:
    place, read = READERS[kind]
    monkeypatch.setattr(place, failing(error), raising=False)
    with pytest.raises(type(error)) as caught:
        read(files)
    assert caught.value is error


@every_error
def test_no_older_checkpoint_is_taken_for_want_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    for name in ("checkpoint1.pt", "checkpoint_last.pt"):
        torch.save({"model": {"w": torch.ones(4)}}, tmp_path / name)
    monkeypatch.setattr(torch, "load", failing(error))
    with pytest.raises(type(error)):
        saving.readable_instead(tmp_path)
    with pytest.raises(type(error)):
        saving.updates(tmp_path / "checkpoint1.pt")


@every_error
def test_fairseqs_own_reading_may_run_out_of_memory(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """It comes after a look at the file, which maps it."""
    load = torch.load

    def look(*arguments: Any, **options: Any) -> Any:
        if not options.get("mmap"):
            raise error
        return load(*arguments, **options)

    monkeypatch.setattr(torch, "load", look)
    path = str(FIXTURE / "checkpoint.pt")
    with pytest.raises(type(error)):
        checkpoint_utils.load_checkpoint_to_cpu(path)
    with pytest.raises(type(error)):
        load_trained(path, FIXTURE)


def test_more_than_a_file_can_hold_is_damage(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a flipped bit in the size of a tensor asks for."""
    path = files / "x.pt"
    size = path.stat().st_size
    monkeypatch.setattr(torch, "load", failing(RuntimeError(ALLOCATOR.format(size))))
    with pytest.raises(RuntimeError, match="tried to allocate"):
        tensor_files.read(path)
    monkeypatch.setattr(torch, "load", failing(RuntimeError(ALLOCATOR.format(size + 1))))
    with pytest.raises(UserError, match=r"x\.pt cannot be read because it is damaged"):
        tensor_files.read(path)


@every_error
def test_a_worker_of_a_server_says_so(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """What else its start raises is lost."""
    monkeypatch.setattr(signals, "follow_parent", lambda: None)
    monkeypatch.setattr(workers, "_translators", {})
    monkeypatch.setattr(model_folder, "load", failing(error))
    workers._load([Path()], ModelOptions(beam=1, lenpen=1.0, max_batch_tokens=10))
    told = workers._loaded()
    assert isinstance(told, str)
    assert told.startswith(f"a worker could not load its models: {type(error).__name__}")


def test_a_library_that_does_not_fit_is_a_sentence() -> None:
    """As below ``ulimit -v``, which schedulers of clusters set."""

    @command
    def main() -> None:
        raise ImportError("libtorch_cpu.so: failed to map segment from shared object")

    with pytest.raises(CommandError, match=r"^there is not enough memory: libtorch_cpu"):
        main()


def test_what_was_told_of_memory_is_not_told_again() -> None:
    """A sentence may cite the error that it is about."""
    told = f"NODE has not enough memory ({ALLOCATOR.format(8)}): give fewer --workers."

    def main() -> None:
        with memory_told():
            raise UserError(told)

    assert not is_of_memory(UserError(told))
    with pytest.raises(CommandError) as caught:
        command(main)()
    assert str(caught.value) == told


@every_error
def test_a_command_tells_it(error: Exception) -> None:
    with pytest.raises(CommandError, match=r"^there is not enough memory: "):
        command(failing(error))()
