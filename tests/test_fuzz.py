"""Any damage to any file that is read ends in one sentence, or in nothing; so does any line."""

import gzip
import io
import json
import math
import shutil
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import sentencepiece
import torch
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from conftest import ROOT
from fuzzing import ALL, EDITS, FEW, Edit, damaged, damaged_member, each
from models import translation_model
from resmlp_mt.engine import digests, model_folder
from resmlp_mt.engine.options import SearchOptions
from resmlp_mt.engine.shortlist import Shortlist
from resmlp_mt.engine.subwords import read_sentencepiece
from resmlp_mt.engine.translator import Translator
from resmlp_mt.errors import UserError
from resmlp_mt.fairseq_plugin import checkpoints, stored_config
from resmlp_mt.models import resmlp_mt  # noqa: F401  registers the architectures
from resmlp_mt.preparation import archives, formats
from resmlp_mt.preparation import corpus as corpus_files
from resmlp_mt.vision import shards
from resmlp_mt.vision.factory import create_model, load_model
from resmlp_mt.vision.images import BadImage, open_image
from resmlp_mt.vision.weights import load_weights
from vision_checkpoints import checkpoint

FIXTURES = ROOT / "tests/fixtures/resmlp_mt_0_1_0"
WORDS = 20


class Target(NamedTuple):
    """A reader: ``make`` writes a good file into a folder, ``read`` reads it.

    ``member`` is the end of the name of the part that is damaged, where the file is an archive.
    """

    make: Callable[[Path], Path]
    read: Callable[[Path], object]
    member: str = ""


def read_checkpoint(path: Path) -> None:
    state = checkpoints.read(path)
    stored_config.check(state, path, plugin_only=True)
    checkpoints.check_parameters(state, path)
    checkpoints.check_digest(state, path)


def a_checkpoint(folder: Path) -> Path:
    return Path(shutil.copy(FIXTURES / "checkpoint.pt", folder))


def some_arrays(folder: Path) -> Path:
    counts = [np.arange(6).reshape(2, 3), np.ones(2, dtype=np.float32)]
    torch.save({"model": {"a": torch.ones(2)}, "extra_state": counts}, folder / "arrays.pt")
    return folder / "arrays.pt"


def in_folder(file: str, form: str = "float32") -> Callable[[Path], Path]:
    """A file of an exported folder without digests, which would find any damage at last."""

    def make(folder: Path) -> Path:
        if form == "0.1.0":
            return Path(shutil.copytree(FIXTURES / "exported", folder / "model")) / file
        write = None
        if form == "onnx":
            from resmlp_mt.engine.onnx_export import export_onnx as write
        model_folder.save(translation_model(), folder / "model", write_weights=write)
        (folder / "model" / digests.NAME).unlink()
        return folder / "model" / file

    return make


def load_folder(path: Path) -> None:
    model_folder.load(path.parent)


def pieces(folder: Path) -> Path:
    text = "a small house and a large house and no house at all\n" * 20
    (folder / "text").write_text(text)
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"), model_prefix=str(folder / "spm"), vocab_size=30,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    return folder / "spm.model"


def a_shortlist(folder: Path) -> Path:
    table = np.zeros((WORDS, 3), dtype=np.int64)
    Shortlist(np.arange(6), table).save(folder / "shortlist.safetensors")
    return folder / "shortlist.safetensors"


def text(name: str, content: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        data = content.encode()
        (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return folder / name

    return make


def read_pairs(kind: str) -> Callable[[Path], object]:
    def read(path: Path) -> None:
        other = path
        if kind in formats.LINE_FORMATS:
            other = path.with_name("other")
            other.write_text({"plain": "one\ntwo\n", "sgm": SGM, "ted": TED}[kind])
        list(formats.pairs(formats.TextFiles(path, other, kind, "en", "de")))

    return read


SGM = (
    '<refset><doc id="1">\n<seg id="1">one &amp; two</seg>\n<seg id="2">2</seg>\n</doc></refset>\n'
)
TED = "<title>one</title>\ntwo\n"
TMX = (
    '<?xml version="1.0"?><tmx version="1.4"><body><tu><tuv xml:lang="en"><seg>one <bpt>x</bpt>'
    '</seg></tuv><tuv xml:lang="de"><seg>eins</seg></tuv></tu></body></tmx>'
)


def an_archive(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / "a.txt").write_text("one\n" * 50)
        if name.endswith(".zip"):
            shutil.make_archive(str(folder / "a"), "zip", folder, "a.txt")
        else:
            with tarfile.open(folder / name, "w:gz" if name.endswith("gz") else "w") as file:
                file.add(folder / "a.txt", "a.txt")
        return folder / name

    return make


def unpack(path: Path) -> None:
    archives.unpack(path, ["a.txt"], path.parent / "out")


def some_weights(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        state = tiny().state_dict()
        if name.endswith(".pth"):
            torch.save(state, folder / name)
        else:
            save_file(state, folder / name)
        return folder / name

    return make


def tiny() -> Any:
    return create_model("resmlp_tiny", num_classes=3, img_size=8, patch_size=4)


def picture(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        pixels = np.random.default_rng(1).integers(256, size=(9, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
        return folder / name

    return make


def a_shard(folder: Path) -> Path:
    (folder / "wds").mkdir()
    image = io.BytesIO()
    Image.new("RGB", (8, 8)).save(image, "png")
    with tarfile.open(folder / "wds" / "train-0.tar", "w") as tar:
        for name, content in (("1.png", image.getvalue()), ("1.cls", b"2")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return folder / "wds" / "train-0.tar"


def read_shard(path: Path) -> None:
    dataset = shards.shard_dataset(path.parent, "train", None, "train")
    for index in range(len(dataset)):
        dataset[index]


TARGETS = {
    "checkpoint": Target(a_checkpoint, read_checkpoint),
    "checkpoint, its pickle": Target(a_checkpoint, read_checkpoint, "data.pkl"),
    "stored arrays, their pickle": Target(some_arrays, checkpoints.read, "data.pkl"),
    "config.json": Target(in_folder("config.json"), load_folder),
    "config.json of 0.1.0": Target(in_folder("config.json", "0.1.0"), load_folder),
    "model.safetensors": Target(in_folder("model.safetensors"), load_folder),
    "model.safetensors of 0.1.0": Target(in_folder("model.safetensors", "0.1.0"), load_folder),
    "dictionary": Target(in_folder("dict.en.txt"), load_folder),
    "sentencepiece": Target(pieces, read_sentencepiece),
    "shortlist": Target(a_shortlist, lambda path: Shortlist.load(path, WORDS, WORDS)),
    "corpus file": Target(
        lambda folder: Path(shutil.copy(corpus_files.FOLDER / "multi30k_en_de.yaml", folder)),
        corpus_files.load,
    ),
    "lines": Target(text("a.en", "one\ntwo\n"), read_pairs("plain")),
    "lines.gz": Target(text("a.en.gz", "one\ntwo\n"), read_pairs("plain")),
    "sgm": Target(text("a.sgm", SGM), read_pairs("sgm")),
    "TED": Target(text("a.ted", TED), read_pairs("ted")),
    "TMX": Target(text("a.tmx", TMX), read_pairs("tmx")),
    "TSV": Target(text("a.tsv", "one\teins\ntwo\tzwei\n"), read_pairs("tsv")),
    "tar": Target(an_archive("a.tar"), unpack),
    "tar.gz": Target(an_archive("a.tar.gz"), unpack),
    "zip": Target(an_archive("a.zip"), unpack),
    "best.pth": Target(lambda folder: checkpoint(folder / "best.pth"), load_model),
    "best.pth, its pickle": Target(
        lambda folder: checkpoint(folder / "best.pth"), load_model, "data.pkl"
    ),
    "image weights": Target(some_weights("w.safetensors"), lambda p: load_weights(tiny(), p)),
    "image weights, their pickle": Target(
        some_weights("w.pth"), lambda path: load_weights(tiny(), path), "data.pkl"
    ),
    "shard": Target(a_shard, read_shard),
    "PNG": Target(picture("a.png"), open_image),
    "JPEG": Target(picture("a.jpg"), open_image),
    "WebP": Target(picture("a.webp"), open_image),
}
SLOW_TARGETS = {
    "ONNX graph": Target(in_folder("encoder.onnx", "onnx"), load_folder),
    "ONNX config.json": Target(in_folder("config.json", "onnx"), load_folder),
}
COUNT = len(TARGETS) + len(SLOW_TARGETS) + 3  # the tests below
MANY = 8 * math.ceil(ALL / COUNT / 8)  # of which eight threads get an eighth each


Record = Callable[[str, object], None]  # benchmarks/fuzz.py reads what is recorded
COUNTS = pytest.mark.parametrize(
    "examples", [FEW, pytest.param(MANY, marks=pytest.mark.slow)], ids=["few", "many"]
)


def refused(read: Callable[[Path], object], path: Path) -> str | None:
    """The one sentence with which a reader refuses a file; None if it takes it."""
    try:
        read(path)
    except (UserError, BadImage) as error:
        message = str(error)
    else:
        return None
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", [
    *TARGETS, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW_TARGETS),
])  # fmt: skip
@COUNTS
def test_damaged_files_are_refused_in_a_sentence(
    name: str, examples: int, tmp_path: Path, record_property: Record
) -> None:
    target = (TARGETS | SLOW_TARGETS)[name]
    path = target.make(tmp_path)
    good = path.read_bytes()
    target.read(path)
    refusals = 0

    def once(edits: list[Edit]) -> None:
        nonlocal refusals
        if target.member:
            path.write_bytes(damaged_member(good, target.member, edits))
        else:
            path.write_bytes(damaged(good, edits))
        message = refused(target.read, path)
        assert message is None or path.name in message or str(path.parent) in message
        refusals += message is not None

    record_property("inputs", each(once, examples, EDITS))
    record_property("refused", refusals)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
    | st.sampled_from(["${x}", "open('x','w')", "[(1, 2)] * 9", "http://x", "__import__('os')"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
    ),
    max_leaves=5,
)  # fmt: skip


@COUNTS
def test_any_stored_configuration_is_taken_or_refused_in_a_sentence(
    examples: int, record_property: Record
) -> None:
    state = checkpoints.read(FIXTURES / "checkpoint.pt")
    fields = [(s, f) for s, part in state["cfg"].items() if isinstance(part, dict) for f in part]

    refusals = 0

    def once(changes: list[tuple[tuple[str, str], Any]]) -> None:
        nonlocal refusals
        cfg = {
            s: dict(part) if isinstance(part, dict) else part for s, part in state["cfg"].items()
        }
        for (section, field), value in changes:
            cfg[section][field] = value
        message = refused(
            lambda path: stored_config.check({"cfg": cfg}, path, plugin_only=True), Path("a.pt")
        )
        assert message is None or message.startswith("a.pt was not loaded: ")
        refusals += message is not None

    changes = st.lists(st.tuples(st.sampled_from(fields), PLAIN), min_size=1, max_size=3)
    record_property("inputs", each(once, examples, changes))
    record_property("refused", refusals)


@pytest.fixture(scope="module")
def translator() -> Translator:
    loaded = model_folder.load(FIXTURES / "exported")
    return Translator(loaded, SearchOptions(beam=2, max_len_a=0, max_len_b=8), batch_size=3)


KNOWN = st.sampled_from(["one", "two", "three", "<s>", "</s>", "<pad>", "\u2028"])
LINES = st.lists(
    st.text(st.characters(), max_size=30) | st.lists(KNOWN, max_size=30).map(" ".join), max_size=7
)


@COUNTS
def test_any_lines_have_a_translation_each(
    translator: Translator, examples: int, record_property: Record
) -> None:
    def once(lines: list[str], beam: int, size: int, disable_unk: bool) -> None:
        found = translator.translate(
            lines, beam_size=beam, no_repeat_ngram_size=size, disable_unk=disable_unk
        )
        assert len(found) == len(lines)
        for translations in found:
            assert 1 <= len(translations) <= beam
            assert not any("\n" in translation.text for translation in translations)
            json.dumps([translation.text for translation in translations])

    options = st.integers(1, 3), st.integers(0, 2), st.booleans()
    record_property("inputs", each(once, examples, LINES, *options))


@COUNTS
def test_eight_threads_get_what_one_gets(
    translator: Translator, examples: int, record_property: Record
) -> None:
    def once(batches: list[list[str]]) -> None:
        expected = [translator.translate(lines) for lines in batches]
        with ThreadPoolExecutor(8) as threads:
            assert list(threads.map(translator.translate, batches)) == expected

    count = each(once, max(examples // 8, 4), st.lists(LINES, min_size=8, max_size=8))
    record_property("inputs", 8 * count)
