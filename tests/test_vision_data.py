"""The images behind --data, their transforms, and the order in which a training sees them."""

import gzip
import io
import os
import random
import re
import shutil
import signal
import sys
import tarfile
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits

from resmlp_mt.errors import UserError
from resmlp_mt.vision import (
    archives,
    data,
    image_dataset,
    images,
    loader,
    prediction,
    training_parts,
    transforms,
)
from resmlp_mt.vision.images import BadImage
from resmlp_mt.vision.libraries import timm, torchvision
from resmlp_mt.vision.training_options import AugmentationOptions

CONFIG: dict[str, Any] = {
    "input_size": (3, 8, 8),
    "mean": (0.4, 0.5, 0.6),
    "std": (0.1, 0.2, 0.3),
    "interpolation": "bicubic",
    "crop_pct": 1.0,
}


def random_image(seed: int, size: tuple[int, int] = (8, 8)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(256, size=(*size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def png(seed: int = 0, size: tuple[int, int] = (8, 8)) -> bytes:
    buffer = io.BytesIO()
    random_image(seed, size).save(buffer, "PNG")
    return buffer.getvalue()


def shard(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """train: 3 classes of 4 images; val: 2 of them, 1 image each; files are PNG."""
    for split, classes, count in (("train", "abc", 4), ("val", "bc", 1)):
        for name in classes:
            (tmp_path / split / name).mkdir(parents=True)
            for index in range(count):
                image = random_image(ord(name) * 10 + index)
                image.save(tmp_path / split / name / f"{index}.png")
    return tmp_path


def pixels(dataset: image_dataset.ImageDataset) -> list[tuple[bytes, int]]:
    return [(image.tobytes(), target) for image, target in dataset]


def test_a_folder_is_read_as_by_torchvision(folder: Path) -> None:
    ours = data.create_dataset([str(folder)], "train")
    theirs = torchvision.datasets.ImageFolder(str(folder / "train"))
    assert ours.classes == theirs.classes
    assert pixels(ours) == [(image.tobytes(), target) for image, target in theirs]


def test_validation_counts_classes_as_training_does(folder: Path) -> None:
    dataset = data.create_dataset([str(folder)], "val")
    assert dataset.classes == ["a", "b", "c"]
    assert dataset.targets == [1, 2]
    other = data.create_dataset([str(folder)], "val", classes=["c", "x", "b"])
    assert other.targets == [2, 0]


def test_a_validation_class_that_training_lacks_is_refused(folder: Path) -> None:
    (folder / "val/z").mkdir()
    with pytest.raises(UserError, match=r"val has classes that training lacks \(z\)"):
        data.create_dataset([str(folder)], "val")


def test_a_part_of_the_classes_keeps_the_numbers_of_all(folder: Path) -> None:
    names = sorted(path.name for path in (folder / "train").iterdir())
    classes = ["0 before", *names, "zz after"]
    for split in ("train", "val"):
        part = data.create_dataset([str(folder)], split, classes=classes)
        whole = data.create_dataset([str(folder)], split)
        assert part.targets == [target + 1 for target in whole.targets]


def test_an_empty_class_folder_is_refused_in_training(folder: Path) -> None:
    (folder / "train/empty").mkdir()
    with pytest.raises(UserError, match=r"train: .*empty"):
        data.create_dataset([str(folder)], "train")


def test_folders_without_classes_or_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no folder"):
        data.create_dataset([str(tmp_path)], "train")
    (tmp_path / "train-0000.TAR").touch()
    with pytest.raises(UserError, match=f"shards are given as --data wds {tmp_path}"):
        data.create_dataset([str(tmp_path)], "train")
    (tmp_path / "val/a").mkdir(parents=True)
    with pytest.raises(UserError, match="holds no images"):
        data.create_dataset([str(tmp_path)], "val")
    (tmp_path / "train").mkdir()
    with pytest.raises(UserError, match="train"):
        data.create_dataset([str(tmp_path)], "train")


@pytest.mark.parametrize("words", [["cifar10-tar"], ["wds"], ["a", "b"], [], ["digits", "x"]])
def test_other_words_are_refused(words: list[str]) -> None:
    with pytest.raises(UserError, match="expected a folder"):
        data.create_dataset(words, "train")


def pack(folder: Path, archive: Path, top: str = "top") -> None:
    """Write an archive of all splits of a folder, compressed if its name says so."""
    with tarfile.open(archive, "w:gz" if archive.suffix == ".gz" else "w") as tar:
        tar.add(folder, top, filter=lambda member: None if ".tar" in member.name else member)


@pytest.mark.parametrize(
    "top", ["top", ".", "training", "train", "eval", "Train/val", "../up", ".cache/images"]
)
def test_an_archive_holds_what_its_folder_holds(folder: Path, tmp_path: Path, top: str) -> None:
    (folder / "val/b/part/of/it").mkdir(parents=True)
    random_image(77).save(folder / "val/b/part/of/it/0.png")
    (folder / "train/train").mkdir()  # a class, as in Pascal VOC
    random_image(78).save(folder / "train/train/0.png")
    pack(folder, tmp_path / "images.tar.gz", top)
    for split in ("train", "val"):
        ours = data.create_dataset(["cifar10-tar", str(tmp_path / "images.tar.gz")], split)
        theirs = data.create_dataset([str(folder)], split)
        assert ours.classes == theirs.classes
        assert sorted(pixels(ours)) == sorted(pixels(theirs))
        assert ours.image_size == (8, 8)


@pytest.mark.parametrize("root", ["", "/"])
def test_an_archive_with_links_and_what_macos_adds(folder: Path, tmp_path: Path, root: str) -> None:
    """A hard link to an image is an image; files that begin with a dot are not."""
    plain = tmp_path / "plain.tar"
    pack(folder, plain.with_suffix(".tar.gz"))
    expected = data.create_dataset(["cifar10-tar", str(plain.with_suffix(".tar.gz"))], "train")
    pack(folder, plain)
    with tarfile.open(plain, "a") as tar:
        image = next(member for member in tar.getmembers() if member.name.endswith(".png"))
        link = tarfile.TarInfo(str(Path(image.name).with_name("zz.png")))
        link.type, link.linkname = tarfile.LNKTYPE, root + image.name
        tar.addfile(link)
        tar.addfile(tarfile.TarInfo(str(Path(image.name).with_name("._0.png"))))
    found = data.create_dataset(["cifar10-tar", str(plain)], "train")
    assert len(found) == len(expected) + 1
    pictures = sorted(pixels(found))
    assert len(set(pictures)) == len(pictures) - 1  # the link shows the same again
    link.name, link.linkname = link.name.replace("zz.png", "zzz.png"), "none.png"
    with tarfile.open(plain, "a") as tar:
        tar.addfile(link)
    found = data.create_dataset(["cifar10-tar", str(plain)], "train")
    (bad,) = [source for source in found.sources if isinstance(source, BadImage)]
    assert bad.reason == "it is a link to none.png, which leads to no file of the archive"
    empty = tarfile.TarInfo("train/zz_nothing")
    empty.type = tarfile.DIRTYPE
    with tarfile.open(plain, "a") as tar:
        tar.addfile(empty)
    with pytest.raises(UserError, match=r"plain\.tar: train/zz_nothing holds no images"):
        data.create_dataset(["cifar10-tar", str(plain)], "train")


def test_symbolic_links_of_archives_are_followed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also to later files, and from link to link; each file is decoded once."""
    (folder / "zz_all").mkdir()
    random_image(50).save(folder / "zz_all/0.png")
    for name, target in (("x", "../../zz_all/0.png"), ("y", "./x.png"), ("z", "../b/0.png")):
        (folder / f"train/a/{name}.png").symlink_to(target)
    pack(folder, tmp_path / "images.tar.gz")
    decoded = []
    open_image = images.open_image

    def count(content: bytes, name: str) -> Image.Image:
        decoded.append(name)
        return open_image(content, name)

    monkeypatch.setattr(archives, "open_image", count)
    found = data.create_dataset(["cifar10-tar", str(tmp_path / "images.tar.gz")], "train")
    expected = data.create_dataset([str(folder)], "train")
    assert sorted(pixels(found)) == sorted(pixels(expected))
    assert found.targets.count(0) == 7
    assert len(decoded) == len(set(decoded)) == 13


def test_links_of_archives_lead_nowhere_else(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    random_image(0).save(tmp_path / "outside.png")
    for name, target in (
        ("outside.png", tmp_path / "outside.png"),
        ("above.png", f"../../../{tmp_path.name}/outside.png"),
        ("self.png", "self.png"),
        ("there.png", "back.png"),
        ("back.png", "there.png"),
        ("folder.png", "../b"),
        ("notes", "0.png"),
        ("../linked", "b"),
        (".hidden.png", "0.png"),
    ):
        (folder / "train/a" / name).symlink_to(target)
    os.mkfifo(folder / "train/a/pipe.png")
    pack(folder, tmp_path / "images.tar")
    found = data.create_dataset(["cifar10-tar", str(tmp_path / "images.tar")], "train")
    bad = [str(source) for source in found.sources if isinstance(source, BadImage)]
    assert len(bad) == 6
    assert all("which leads to no file of the archive" in text for text in bad)
    assert len(found) == 12 + len(bad)
    assert (
        "3 files left out, no image by name or place (2 symbolic link, 1 of another" in caplog.text
    )


def test_links_of_archives_have_the_size_of_their_files(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "MAX_BYTES", 10)
    monkeypatch.delattr(archives, "open_image")  # refused before
    archive = tmp_path / "links.tar"
    image = next(iter(sorted((folder / "train").rglob("*.png"))))
    link = tarfile.TarInfo(f"train/{image.parent.name}/link.png")
    link.type, link.linkname = tarfile.LNKTYPE, "elsewhere.png"
    with tarfile.open(archive, "w") as tar:
        tar.add(image, "elsewhere.png")
        tar.addfile(link)
    (bad,) = data.create_dataset(["cifar10-tar", str(archive)], "train").sources
    assert isinstance(bad, BadImage)
    assert bad.reason == "the file has more than 10 bytes"


def test_broken_archives_are_refused(folder: Path, tmp_path: Path) -> None:
    archive = tmp_path / "images.tar.gz"
    with pytest.raises(UserError, match="No such file"):
        data.create_dataset(["cifar10-tar", str(archive)], "train")
    pack(folder, archive)
    archive.write_bytes(archive.read_bytes()[:1500])
    with pytest.raises(UserError, match=r"images\.tar\.gz cannot be read"):
        data.create_dataset(["cifar10-tar", str(archive)], "train")
    archive.write_bytes(b"no archive")
    with pytest.raises(UserError, match=r"images\.tar\.gz cannot be read: .+") as error:
        data.create_dataset(["cifar10-tar", str(archive)], "train")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("packing", ["gz", "bz2", "xz"])
def test_damage_in_a_packed_archive_is_told(folder: Path, tmp_path: Path, packing: str) -> None:
    archive = tmp_path / f"images.tar.{packing}"
    with tarfile.open(archive, f"w:{packing}") as tar:  # type: ignore[call-overload]
        tar.add(folder / "train", "train")
    content = archive.read_bytes()
    for cut in range(30, len(content), 97):
        damaged = bytearray(content)
        damaged[cut] ^= 0xFF
        archive.write_bytes(damaged)
        with suppress(UserError):  # of some bytes, one image is bad, or nothing is
            data.create_dataset(["cifar10-tar", str(archive)], "train")


def hostile(path: Path, size: int) -> Path:
    """A tar file with a whole file, and one whose header claims this size."""
    infos = [tarfile.TarInfo("train/a/0.png"), tarfile.TarInfo("train/a/1.png")]
    infos[1].size = size
    blocks = [info.tobuf(tarfile.GNU_FORMAT) for info in infos]
    path.write_bytes(b"".join(blocks) + bytes(10 * tarfile.BLOCKSIZE))
    return path


@pytest.mark.parametrize("size", [-1024, -512, -1, 2**70, 2**63 - 1])
def test_sizes_that_lead_nowhere_are_refused(tmp_path: Path, size: int) -> None:
    """Python before 3.11.14 would read the same headers for ever if a size is negative."""
    archive = hostile(tmp_path / "train-0.tar", size)
    for words in (["cifar10-tar", str(archive)], ["wds", str(tmp_path)]):
        with pytest.raises(UserError, match=r"train-0\.tar cannot be read: .+; expected a"):
            data.create_dataset(words, "train")


def test_headers_without_end_are_refused(tmp_path: Path) -> None:
    """Each of them belongs to the next one, until Python's stack is full."""
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 0
    path = tmp_path / "train-0.tar"
    path.write_bytes(header.tobuf(tarfile.USTAR_FORMAT) * 5000 + bytes(1024))
    for words in (["cifar10-tar", str(path)], ["wds", str(tmp_path)]):
        with pytest.raises(UserError, match=r"train-0\.tar cannot be read: "):
            data.create_dataset(words, "train")


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        (tarfile.XHDTYPE, 2**21),
        (tarfile.XGLTYPE, 2**21),
        (tarfile.GNUTYPE_LONGNAME, 2**21),
        (tarfile.GNUTYPE_LONGLINK, -512),  # all of the file
        (tarfile.GNUTYPE_SPARSE, 0),  # whose map has no end
    ],
)
def test_headers_do_not_fill_the_memory(tmp_path: Path, kind: bytes, size: int) -> None:
    """Packed, a gigabyte of them takes a megabyte."""
    plain, packed = tmp_path / "train-0.tar", tmp_path / "images.tar.gz"
    header = tarfile.TarInfo("train/a/1.png")
    header.type, header.size = kind, size
    block = bytearray(header.tobuf(tarfile.GNU_FORMAT))
    if kind == tarfile.GNUTYPE_SPARSE:
        block[482] = 1  # more of the map follows
        block[148:156] = b"%06o\0 " % tarfile.calc_chksums(block)[0]
    shard(plain, {"train/a/0.png": png()})
    first = plain.read_bytes()[: 2 * tarfile.BLOCKSIZE]
    plain.write_bytes(first + block + b"1" * 2**22)
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    for words in (["cifar10-tar", str(packed)], ["wds", str(tmp_path)]):
        with pytest.raises(UserError, match=r"cannot be read: the headers of a file have more"):
            data.create_dataset(words, "train")


def test_only_images_of_one_size_have_it(folder: Path, tmp_path: Path) -> None:
    """A bad image has none."""
    (folder / "train/b/1.png").write_bytes(b"no image")
    words = ["cifar10-tar", str(tmp_path / "images.tar")]
    pack(folder, Path(words[1]))
    assert data.create_dataset(words, "train").image_size == (8, 8)
    random_image(0, (9, 8)).save(folder / "train/c/2.png")
    pack(folder, Path(words[1]))
    assert data.create_dataset(words, "train").image_size is None
    assert data.create_dataset(words, "val").image_size == (8, 8)


def test_classes_that_shards_lack_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Labels that begin at 1 make one class too many, without an image."""
    for labels, told in (
        ([1, 2, 4], "2 of the 5 classes have no training images (0, 3)"),
        ([1, 2], "1 of the 3 classes has no training images (0): shards count"),
    ):
        members = {f"{n}.png": png(n) for n in labels} | {f"{n}.cls": b"%d" % n for n in labels}
        path = shard(tmp_path / "train-0.tar", members)
        dataset = data.create_dataset(["wds", str(path)], "train")
        image_dataset.check_classes(dataset, dataset)
        assert told in caplog.text


def test_a_bad_image_is_returned_in_its_place(folder: Path, tmp_path: Path) -> None:
    bad = folder / "train/b/1.png"
    bad.write_bytes(bad.read_bytes()[:60])
    pack(folder, tmp_path / "images.tar.gz")
    for words in ([str(folder)], ["cifar10-tar", str(tmp_path / "images.tar.gz")]):
        samples = [s for s in data.create_dataset(words, "train") if isinstance(s, BadImage)]
        assert len(samples) == 1
        assert samples[0].name.endswith("train/b/1.png")


def damage_last_header(path: Path) -> int:
    """Change a byte of the last file's header; returns where it begins."""
    with tarfile.open(path) as tar:
        offset = tar.getmembers()[-1].offset
    content = bytearray(path.read_bytes())
    content[offset + 150] ^= 0xFF  # inside the checksum
    path.write_bytes(content)
    return offset


@pytest.mark.parametrize("kind", ["cifar10-tar", "wds"])
def test_an_archive_that_is_damaged_inside_is_refused(
    folder: Path, tmp_path: Path, kind: str
) -> None:
    """tarfile alone would end there, with the images before."""
    if kind == "wds":
        write_shards(tmp_path)
        source, archive = tmp_path, tmp_path / "set-train-0000.tar"
    else:
        source = archive = tmp_path / "images.tar"
        pack(folder, archive)
    assert len(data.create_dataset([kind, str(source)], "train"))
    offset = damage_last_header(archive)
    with pytest.raises(UserError, match=f"{archive.name} is damaged at byte {offset:,} of"):
        data.create_dataset([kind, str(source)], "train")


@pytest.mark.parametrize("name", ["images.tar", "images.tar.gz", "train-0.tar"])
def test_a_second_archive_behind_the_end_is_refused(
    folder: Path, tmp_path: Path, name: str
) -> None:
    """tarfile would read the first alone."""
    archive = tmp_path / name
    if name == "train-0.tar":
        source = ["wds", str(shard(archive, {"a.png": png(), "a.cls": b"0"}))]
    else:
        source = ["cifar10-tar", str(archive)]
        pack(folder, archive)
    assert len(data.create_dataset(source, "train"))
    archive.write_bytes(archive.read_bytes() + archive.read_bytes())
    message = rf"{name} has another archive behind its end \(joined by cat\?\): give the files sepa"
    with pytest.raises(UserError, match=message):
        data.create_dataset(source, "train")


def test_an_archive_without_its_closing_zeros_is_whole(folder: Path, tmp_path: Path) -> None:
    archive = tmp_path / "images.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(folder / "train", "train")
        end = tar.offset
    archive.write_bytes(archive.read_bytes()[:end])
    assert len(data.create_dataset(["cifar10-tar", str(archive)], "train")) == 12


def write_shards(folder: Path) -> None:
    for shard in range(2):
        with webdataset.TarWriter(str(folder / f"set-train-{shard:04}.tar")) as writer:
            for index in range(3):
                key = f"sample{shard}{index}"
                writer.write({"__key__": key, "png": random_image(index), "cls": index % 2})
    with webdataset.TarWriter(str(folder / "set-val-0000.tar")) as writer:
        writer.write({"__key__": "x", "png": random_image(9), "cls": 1})
    # what tar and macOS add of themselves
    with tarfile.open(folder / "set-train-0001.tar", "a") as tar:
        tar.add(folder, ".", recursive=False)
        tar.addfile(tarfile.TarInfo("._sample10.png"))


def test_shards_are_read_as_by_webdataset(tmp_path: Path) -> None:
    write_shards(tmp_path)
    ours = data.create_dataset(["wds", str(tmp_path)], "train")
    urls = [str(path) for path in sorted(tmp_path.glob("*train*.tar"))]
    theirs = webdataset.WebDataset(urls, shardshuffle=False).decode("pil").to_tuple("png", "cls")
    assert pixels(ours) == [(image.tobytes(), target) for image, target in theirs]
    assert ours.classes == ["0", "1"]
    assert data.create_dataset(["wds", str(tmp_path)], "val").targets == [1]


def test_wrong_shards_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no images"):
        data.create_dataset(["wds", str(tmp_path)], "train")
    write_shards(tmp_path)
    with webdataset.TarWriter(str(tmp_path / "set-val-0001.tar")) as writer:
        writer.write({"__key__": "x", "png": random_image(9), "cls": 7})
    with pytest.raises(UserError, match="val has class 7"):
        data.create_dataset(["wds", str(tmp_path)], "val")
    (tmp_path / "set-train-0002.tar").write_bytes(b"no archive" * 100)
    with pytest.raises(UserError, match=r"train-0002\.tar cannot be read"):
        data.create_dataset(["wds", str(tmp_path)], "train")


def test_a_split_is_a_word_in_the_name_of_a_shard(tmp_path: Path) -> None:
    names = ("train-interval-0", "x_Train_1", "constraint-2", "validation-0", "a.val.1", "val2")
    for index, name in enumerate(names):
        members = {"x.png": png(index), "x.cls": str(index).encode()}
        shard(tmp_path / f"{name}.tar", members)

    def targets(split: str) -> set[int]:
        return set(data.create_dataset(["wds", str(tmp_path)], split, classes=["c"] * 6).targets)

    assert targets("train") == {0, 1}
    assert targets("val") == {3, 4, 5}


def test_a_shard_of_two_splits_and_keys_with_dots_are_refused(tmp_path: Path) -> None:
    """Training on what validates, and images that WebDataset would not find."""
    write_shards(tmp_path)
    (tmp_path / "set-train-0000.tar").rename(tmp_path / "set-train-val-0000.tar")
    with pytest.raises(UserError, match=r"set-train-val-0000\.tar is named after both"):
        data.create_dataset(["wds", str(tmp_path)], "val")
    (tmp_path / "set-train-val-0000.tar").rename(tmp_path / "set-train-0000.tar")
    with tarfile.open(tmp_path / "set-train-0000.tar", "a") as tar:
        tar.addfile(tarfile.TarInfo("a.0.png"))
    with pytest.raises(UserError, match=r"takes a\.0\.png for '0\.png' of 'a'.*without dots"):
        data.create_dataset(["wds", str(tmp_path)], "train")


def test_a_fifth_of_the_digits_is_held_out_evenly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("digits/a").mkdir(parents=True)  # has no say
    random_image(0).save("digits/a/0.png")
    assert not data.is_one_split(["digits"], "val")
    assert data.is_one_split(["./digits"], "val")
    train = data.create_dataset(["digits"], "train")
    val = data.create_dataset(["digits"], "val")
    assert (len(train), len(val)) == (1437, 360)
    shares = np.bincount(val.targets) / np.bincount(load_digits().target)
    assert np.abs(shares - 0.2).max() < 0.01
    again = data.create_dataset(["digits"], "val")
    assert pixels(val) == pixels(again)
    brightest = max(np.asarray(image).max() for image, _ in val)
    assert brightest == 255


@pytest.mark.parametrize("seed", range(20))
def test_the_small_crop_is_that_of_a_padded_image(seed: int) -> None:
    image, padding = random_image(seed), 3
    padded = np.pad(np.asarray(image), ((padding, padding), (padding, padding), (0, 0)))
    windows = {
        padded[top : top + 8, left : left + 8].tobytes()
        for top in range(2 * padding + 1)
        for left in range(2 * padding + 1)
    }
    random.seed(seed)
    cropped = transforms.PaddedCrop((8, 8), padding)(image)
    assert cropped.tobytes() in windows


def test_normalising_a_batch_is_normalising_each_image() -> None:
    image = random_image(0)
    plain = torch.stack([transforms.create_transform(CONFIG, normalize=False)(image)])
    ours = transforms.create_normalization(CONFIG)(plain.float())
    theirs = torchvision.transforms.Compose(
        [
            torchvision.transforms.ToTensor(),
            torchvision.transforms.Normalize(CONFIG["mean"], CONFIG["std"]),
        ]
    )(image)
    torch.testing.assert_close(ours[0], theirs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(transforms.create_transform(CONFIG)(image), theirs)


def test_the_papers_augmentation_takes_every_strength() -> None:
    """Pillow refuses the strongest posterization of timm's RandAugment: 0 bits."""
    strongest = timm.data.auto_augment.rand_augment_transform(
        "rand-m10-inc1", {"translate_const": 3}
    )
    for operation in strongest.ops:
        operation.prob = 1.0
        assert operation(random_image(1)).size == (8, 8)
    options = AugmentationOptions(aa="rand-m10-n4-inc1")
    augment = training_parts.training_transform(options, CONFIG | {"input_size": (3, 40, 40)})
    random.seed(0)
    for seed in range(60):
        result = augment(random_image(seed, (50, 60)))
        assert (result.shape, result.dtype) == ((3, 40, 40), torch.uint8)


def test_options_for_large_images_are_told_for_small_ones(caplog: pytest.LogCaptureFixture) -> None:
    options = AugmentationOptions(scale=[0.5, 1.0])
    for side, told in ((40, ""), (32, "--scale is for images of more than 32 pixels: not used")):
        training_parts.training_transform(options, CONFIG | {"input_size": (3, side, side)})
        assert caplog.messages == [told][: len(told)]


def blank(count: int) -> image_dataset.MemoryDataset:
    images = np.zeros((count, 8, 8, 3), np.uint8)
    return image_dataset.MemoryDataset(images, [0] * count, ["a"])


def steps(batches: loader.EpochBatches) -> list[list[int]]:
    return [[index for _, index in batch] for batch in batches]


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 5), st.integers(1, 3), st.integers(0, 3), st.integers(1, 2), st.integers(0, 40)
)
def test_two_processes_see_what_one_sees(
    batch: int, epoch: int, repeats: int, multiple: int, more: int
) -> None:
    dataset = blank(2 * batch * multiple + more)
    one = loader.EpochBatches(dataset, 2 * batch, 3, repeats=repeats, multiple=multiple)
    two = [
        loader.EpochBatches(dataset, batch, 3, rank, 2, repeats=repeats, multiple=multiple)
        for rank in range(2)
    ]
    for batches in (one, *two):
        batches.epoch = epoch
    assert len(one) % multiple == 0
    pairs = zip(steps(one), *map(steps, two), strict=False)
    for alone, first, second in pairs:
        assert sorted(alone) == sorted(first + second)
    if not repeats:
        seen = [index for batch_ in steps(one) for index in batch_]
        assert len(set(seen)) == len(seen)


@pytest.mark.parametrize("repeats", [0, 3])
def test_seed_and_epoch_change_the_order(repeats: int) -> None:
    orders = []
    for seed, epoch in ((1, 0), (2, 0), (1, 1), (1, 0)):
        batches = loader.EpochBatches(blank(64), 8, seed, repeats=repeats)
        batches.epoch = epoch
        orders.append(steps(batches))
    assert orders[0] == orders[3]
    assert orders[0] != orders[1]
    assert orders[0] != orders[2]


def test_an_epoch_goes_on_where_it_was_left() -> None:
    batches = loader.EpochBatches(blank(40), 4, seed=1)
    batches.epoch = 2
    whole = list(batches)
    batches.start = 6
    assert list(batches) == whole[6:]
    batches.epoch, batches.start = 3, 0
    assert [index for _, index in next(iter(batches))] != [index for _, index in whole[0]]


def test_data_below_one_update_is_refused() -> None:
    with pytest.raises(UserError, match="10 training images do not fill one update"):
        loader.EpochBatches(blank(10), 4, seed=1, multiple=3)


def test_workers_and_start_do_not_change_a_batch() -> None:
    images = np.random.default_rng(0).integers(256, size=(24, 8, 8, 3), dtype=np.uint8)
    options = AugmentationOptions(aa="rand-m9-mstd0.5-inc1")
    transform = training_parts.training_transform(options, CONFIG)
    dataset = image_dataset.MemoryDataset(images, list(range(24)), ["a"] * 24, transform)

    def read(workers: int, start: int) -> list[torch.Tensor]:
        batches = loader.EpochBatches(dataset, 4, seed=5)
        batches.start = start
        found = loader.create_loader(loader.Seeded(dataset), workers, False, batch_sampler=batches)
        return [images for images, _, _ in found]

    alone = read(0, 0)
    assert len({images.numpy().tobytes() for images in alone}) == 6
    for other in (read(2, 0), [*alone[:3], *read(0, 3)]):
        assert all(torch.equal(a, b) for a, b in zip(alone, other, strict=True))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 30), st.integers(1, 4), st.integers(1, 5))
def test_validation_shares_hold_each_image_once(count: int, world: int, batch: int) -> None:
    dataset = blank(count)
    dataset.transform = transforms.create_transform(CONFIG, normalize=False)
    dataset.targets = list(range(count))
    seen: list[int] = []
    for rank in range(world):
        own = loader.create_loader(loader.share(dataset, rank, world), 0, False, batch_size=batch)
        seen += [target for _, targets, _ in own for target in targets.tolist()]
    assert sorted(seen) == list(range(count))


def test_lost_images_are_made_up_by_good_ones() -> None:
    images, targets = torch.arange(3.0).view(3, 1, 1, 1), torch.arange(3)
    filled, labels = loader.refill(images, targets, 8)
    assert labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert filled.flatten().tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    with pytest.raises(UserError, match="all 8 images of a batch are bad"):
        loader.refill(images[:0], targets[:0], 8)


def test_an_archive_inside_memory_is_a_plain_file(tmp_path: Path) -> None:
    """Images of different sizes and other files in the archive are fine."""
    archive = tmp_path / "x.tar"
    members = {"train/a/1.png": png(1, (3, 5)), "train/b/2.PNG": png(1, (4, 4)), "README": b""}
    shard(archive, members)
    dataset = data.create_dataset(["cifar10-tar", str(archive)], "train")
    assert [image.size for image, _ in dataset] == [(5, 3), (4, 4)]
    with pytest.raises(UserError, match=r"holds no images val/CLASS/IMAGE, but README\.$"):
        data.create_dataset(["cifar10-tar", str(archive)], "val")


def plant(split: Path) -> None:
    """What tools and systems leave in people's folders."""
    picture = random_image(99)
    for place in (
        ".ipynb_checkpoints", "__MACOSX", ".git", "@eaDir", "$RECYCLE.BIN", "@Recycle", "~snapshot",
        "a/.ipynb_checkpoints", "a/__MACOSX", "a/@eaDir/0.png",
    ):  # fmt: skip
        (split / place).mkdir(parents=True)
        picture.save(split / place / "x-checkpoint.png")
    picture.save(split / "a/._0.png")
    for name in ("Thumbs.db", ".DS_Store", "a/Thumbs.db", "a/desktop.ini", "README.txt"):
        (split / name).write_bytes(b"no image")


def test_what_systems_put_into_folders_does_not_count(folder: Path, tmp_path: Path) -> None:
    before = [data.create_dataset([str(folder)], split) for split in ("train", "val")]
    expected = [(dataset.classes, pixels(dataset)) for dataset in before]
    (folder / "val/a").mkdir(exist_ok=True)
    for split in ("train", "val"):
        plant(folder / split)
    after = [data.create_dataset([str(folder)], split) for split in ("train", "val")]
    assert [(dataset.classes, pixels(dataset)) for dataset in after] == expected
    pack(folder, tmp_path / "images.tar.gz")
    for split, (classes, found) in zip(("train", "val"), expected, strict=True):
        archive = data.create_dataset(["cifar10-tar", str(tmp_path / "images.tar.gz")], split)
        assert archive.classes == classes
        assert sorted(pixels(archive)) == sorted(found)


def test_files_that_are_left_out_are_told(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An image of an unknown kind is not lost without a word."""
    create = partial(data.create_dataset, [str(folder)], "train")
    expected = pixels(create())
    plant(folder / "train")
    assert pixels(create()) == expected
    assert caplog.text == ""
    (folder / "train/a/b").mkdir()
    for name in ("x.HEIC", "b/y.heic", "z"):
        (folder / "train/a" / name).touch()
    random_image(99).save(folder / "train/loose.png")
    assert pixels(create()) == expected
    message = (
        "4 files left out, no image by name or place (2 .heic, 1 without an extension, 1 in no "
        "folder of a class)"
    )
    assert f"{folder}/train: {message}" in caplog.text
    (folder / "train/a/again").symlink_to(
        folder / "train"
    )  # not a file, and its files are already counted
    caplog.clear()
    assert pixels(create()) == expected
    assert message in caplog.text
    (folder / "train/a/again").unlink()
    caplog.clear()
    pack(folder, tmp_path / "images.tar")
    archive = data.create_dataset(["cifar10-tar", str(tmp_path / "images.tar")], "train")
    assert len(archive) == len(expected)
    assert f"images.tar: {message}" in caplog.text


@pytest.mark.parametrize(("split", "name"), [("val", "validation"), ("val", "valid"),
                                             ("val", "Eval"), ("val", "VAL"), ("train", "Train"),
                                             ("train", "training")])  # fmt: skip
def test_splits_go_by_their_usual_names(folder: Path, split: str, name: str) -> None:
    expected = pixels(data.create_dataset([str(folder)], split))
    (folder / split).rename(folder / name)
    assert pixels(data.create_dataset([str(folder)], split)) == expected


def test_the_very_name_of_a_split_comes_first(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "train", folder / "validation")
    archive = tmp_path / "images.tar"
    pack(folder, archive)
    for words in ([str(folder)], ["cifar10-tar", str(archive)]):
        found = {name: data.create_dataset(words, name) for name in ("train", "val", "validation")}
        assert sorted(pixels(found["validation"])) == sorted(pixels(found["train"]))
        assert len(found["val"]) < len(found["train"])
        with pytest.raises(UserError, match="has val and validation: leave one of them for eval"):
            data.create_dataset(words, "eval")


def test_the_training_split_may_have_another_name(folder: Path, tmp_path: Path) -> None:
    """Its classes count, also where there is a folder train beside it."""
    shutil.copytree(folder / "train", folder / "fold1")
    (folder / "fold1/extra").mkdir()
    shutil.copy(next((folder / "train/a").iterdir()), folder / "fold1/extra")
    archive = tmp_path / "images.tar"
    pack(folder, archive)
    for words in ([str(folder)], ["cifar10-tar", str(archive)]):
        for split in ("fold1", "val"):
            found = data.create_dataset(words, split, training="fold1")
            assert found.classes == ["a", "b", "c", "extra"]
    (folder / "fold1/empty").mkdir()
    pack(folder, archive)
    for words in ([str(folder)], ["cifar10-tar", str(archive)]):
        with pytest.raises(UserError, match="empty"):
            data.create_dataset(words, "fold1", training="fold1")


def test_a_split_may_be_a_path(folder: Path) -> None:
    """As in timm: some data sets have seg_train/seg_train/CLASS."""
    expected = pixels(data.create_dataset([str(folder)], "train"))
    (folder / "seg").mkdir()
    (folder / "train").rename(folder / "seg/train")
    for split in ("seg/train", "seg/train/"):
        assert pixels(data.create_dataset([str(folder)], split, training=split)) == expected
        assert data.create_dataset([str(folder)], "val", training=split).targets == [1, 2]
    with pytest.raises(UserError, match=r"there is no folder .*seg/val; expected"):
        data.create_dataset([str(folder)], "seg/val")


def test_classes_that_hold_only_folders_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """iNaturalist 2018 has SUPERCATEGORY/CLASS; a folder of one name is that of a class."""
    for name in ("Aves/1", "Aves/2", "Plantae/3", "Plantae/4", "x/images", "y/1", "y"):
        (tmp_path / "train" / name).mkdir(parents=True, exist_ok=True)
        random_image(0).save(tmp_path / "train" / name / "0.png")
    pack(tmp_path, tmp_path / "images.tar")
    words = ([str(tmp_path)], ["cifar10-tar", str(tmp_path / "images.tar")])
    for source in words:
        assert data.create_dataset(source, "train").classes == ["Aves", "Plantae", "x", "y"]
    assert caplog.text == ""
    shutil.rmtree(tmp_path / "train/y")
    pack(tmp_path, tmp_path / "images.tar")
    for source in words:
        caplog.clear()
        assert data.create_dataset(source, "train").classes == ["Aves", "Plantae", "x"]
        message = "the 3 classes are its uppermost folders, but most of them have images only in"
        assert f"{message} folders inside (Aves/1)" in caplog.text


def test_a_class_map_may_choose_classes(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As in timm, images of others are left out; without a map, they are refused."""
    caplog.set_level("INFO")
    (folder / "train/empty").mkdir()  # not chosen
    pack(folder, tmp_path / "images.tar.gz")
    for words in ([str(folder)], ["cifar10-tar", str(tmp_path / "images.tar.gz")]):
        create = partial(data.create_dataset, words)
        caplog.clear()
        found = create("train", classes=["c", "a"], select="the map")
        assert (sorted(found.targets), found.classes) == ([0] * 4 + [1] * 4, ["c", "a"])
        assert re.search(r" (1|2) of (3|4) classes are not in the map, .*\(b", caplog.text)
        assert create("val", classes=["c", "a"], select="the map").targets == [0]
        with pytest.raises(UserError, match=r"has none of the classes of the map, but b, c: "):
            create("val", classes=["a"], select="the map")
        with pytest.raises(UserError, match=r"has classes that training lacks \(b\)"):
            create("val", classes=["c", "a"])


def test_missing_and_doubtful_splits_are_named(folder: Path) -> None:
    (folder / "validation").mkdir()
    with pytest.raises(UserError, match="has val and validation: leave one of them for valid, or"):
        data.create_dataset([str(folder)], "valid")
    (folder / "validation").rmdir()
    (folder / "val").rename(folder / "test")
    with pytest.raises(
        UserError, match=r"no folder .*val \(or validation, .*has test, train; other .*--val-split"
    ):
        data.create_dataset([str(folder)], "val")


def test_a_link_that_leads_back_adds_no_images(folder: Path) -> None:
    expected = pixels(data.create_dataset([str(folder)], "train"))
    (folder / "train/a/again").symlink_to(folder / "train/a")
    (folder / "train/b/all").symlink_to(folder / "train")
    assert pixels(data.create_dataset([str(folder)], "train")) == expected
    (folder / "train/d").symlink_to(folder / "train/a")  # another class: no loop
    assert data.create_dataset([str(folder)], "train").targets.count(3) == 4


def test_a_folder_that_may_not_be_read_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its images would be missing without a word."""
    scandir = os.scandir

    def refuse(path: Path) -> Any:
        if Path(path).name in closed:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    for split in ("train", "val"):
        (folder / split / "b/inner").mkdir()
        (folder / split / "b/.hidden").mkdir()
    for place in ("b", "b/inner"):
        closed = [Path(place).name]
        message = rf"--data .*val/{place}: Permission denied; expected CLASS/IM"
        with pytest.raises(UserError, match=message):
            data.create_dataset([str(folder)], "val")
        message = rf"^.*train/{place} cannot be read: Permission denied\.$"
        with pytest.raises(UserError, match=message):
            prediction.find_images([folder])
    closed = [".hidden"]  # not looked at
    assert len(data.create_dataset([str(folder)], "val")) == 2


def test_composed_and_decomposed_letters_are_one_class(folder: Path) -> None:
    """macOS and other systems write the same name in different forms."""
    (folder / "train/c").rename(folder / "train/caf\N{LATIN SMALL LETTER E WITH ACUTE}")
    (folder / "val/c").rename(folder / "val/cafe\N{COMBINING ACUTE ACCENT}")
    assert data.create_dataset([str(folder)], "val").targets == [1, 2]
    # a folder that was copied from both
    (folder / "train/cafe\N{COMBINING ACUTE ACCENT}").mkdir()
    random_image(9).save(folder / "train/cafe\N{COMBINING ACUTE ACCENT}/9.png")
    both = data.create_dataset([str(folder)], "train")
    assert (len(both.classes), set(both.targets)) == (3, {0, 1, 2})


def test_every_extension_of_jpeg(folder: Path) -> None:
    for extension in ("JPG", "jpeg", "Jpe", "jfif"):
        random_image(1).save(folder / f"train/a/x.{extension}", "JPEG")
    assert data.create_dataset([str(folder)], "train").targets.count(0) == 8


def test_the_working_directory_is_a_folder_like_others(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = pixels(data.create_dataset([str(folder)], "val"))
    monkeypatch.chdir(folder / "val")
    found = data.create_dataset(["."], ".", classes=["a", "b", "c"])
    assert (pixels(found), found.sources[0]) == (expected, "./b/0.png")


def test_shards_below_a_hidden_folder_have_images(tmp_path: Path) -> None:
    """The folders above all images of a shard may be hidden, but not those of operating systems."""
    for number, place in enumerate((".cache/.data/", "../", "./", "/.a/b/", "@eaDir/")):
        members = {"LICENSE": b"", "._x.png": b"", "x/..": b"", f"{place}.": b""}
        for name in (f"{number}", "._9", ".9", ".ipynb_checkpoints/8", "@eaDir/7"):
            members |= {f"{place}{name}.png": png(number), f"{place}{name}.cls": b"%d" % number}
        members[".ipynb_checkpoints/6.cls"] = b"6"
        shard(tmp_path / f"train-{number}.tar", members)
    found = data.create_dataset(["wds", str(tmp_path)], "train")
    assert found.targets == [0, 1, 2, 3]


def test_hidden_folders_beside_the_images_of_a_shard_are_ignored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As of editors and of waste baskets, whose images lack a class, or were thrown away."""
    members = {"x/0.png": png(), "x/0.cls": b"0", "./1.png": png(), "./1.cls": b"1"}
    for name in ("./.ipynb_checkpoints/0-checkpoint.png", ".Trash-1000/files/2.png"):
        members[name] = png(1)
    members[".Trash-1000/files/2.cls"] = b"2"
    for number, order in enumerate((1, -1)):
        shard(tmp_path / f"train-{number}.tar", dict([*members.items()][::order]))
    assert data.create_dataset(["wds", str(tmp_path)], "train").targets == [0, 1, 1, 0]
    first = "./.ipynb_checkpoints/0-checkpoint.png"
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}/train-0.tar: 2 images in hidden folders left out (first: {first})",
        f"{tmp_path}/train-1.tar: 2 images in hidden folders left out (first: "
        ".Trash-1000/files/2.png)",
    ]


def test_a_hidden_file_of_a_shard_is_left_out_in_silence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As macOS writes one beside each file."""
    members = {"./x/0.png": png(), "./x/0.cls": b"0", "./x/._0.png": b"", "./.x/._1.png": b""}
    members["x"] = b""  # named as the folder
    shard(tmp_path / "train-0.tar", members)
    assert data.create_dataset(["wds", str(tmp_path)], "train").targets == [0]
    assert caplog.text == ""


def test_keys_of_shards_in_capitals(tmp_path: Path) -> None:
    """WebDataset does not look at their case."""
    for name, image, label in (("small", "png", "cls"), ("large", "PNG", "CLS")):
        members = {}
        for index in range(3):
            for start in ("", "._"):
                members[f"{start}{index}.{image}"] = png(index)
                members[f"{start}{index}.{label}"] = str(index).encode()
        shard(tmp_path / name / "train-0.tar", members)
    small, large = (
        data.create_dataset(["wds", str(tmp_path / name)], "train") for name in ("small", "large")
    )
    assert pixels(small) == pixels(large)
    assert len(large) == 3


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("cls", b" 3\n"),
        ("cls", b"\xef\xbb\xbf3"),
        ("cls", b'"3"'),
        ("cls.txt", b"3"),
        ("CLS.JSON", b"3"),
        ("label", b"3"),
        ("Target", b"3\n"),
        ("label.txt", b"3"),
        ("class_id.JSON", b"3"),
        ("json", b"3"),
        ("json", b'{"caption": "a dog", "label": 3}'),
        ("json", b'{"cls": "3", "label": 1}'),
        ("json", b'{"label": "dog", "class_id": 3}'),
        ("json", b'{"category": "dog", "category_id": 3}'),
        ("json", b'{"class_name": "dog", "class_idx": 3}'),
        ("json", b'{"label": 3.0}'),
        ("json", b'{"Caption": "a dog", "LABEL": 3}'),
        ("json", b'{"label": 3, "Label": "dog"}'),
        ("json", b'{"Label": "dog", "label": 3}'),
        ("json", b'{"label": 3, "LABEL": 7}'),
        ("json", b'{"LABEL": 7, "label": 3}'),
        ("json", b'{"label": "3.00"}'),
        ("json", b"3.0"),
        ("cls", b"3.0"),
        ("cls", b"3.00"),
    ],
)
def test_classes_of_shards_as_people_write_them(
    tmp_path: Path, name: str, label: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    shard(tmp_path / "train-0.tar", {"a.png": png(), f"a.{name}": label})
    assert data.create_dataset(["wds", str(tmp_path)], "train").targets == [3]
    other = {"b.json": b'{"label": 7}', "b.png": png(1), "b.cls": b"2"}  # cls wins
    other |= {"c.json": b'{"caption": "a dog"}', "c.png": png(2), "c.label": b"4"}
    other |= {"d.json": b"1", "d.png": png(2), "d.label": b"4"}
    # names and empty files do not hide the number beside them
    other |= {"e.cls": b"dog", "e.png": png(3), "e.label": b"5", "f.cls": b"", "f.png": png(4)}
    other |= {"f.json": b"6", "g.png": png(5), "g.label": b"dog", "g.class": b"7"}
    other |= {"h.png": png(6), "h.txt": b"8 dogs", "h.json": b"1"}  # a caption
    shard(tmp_path / "train-1.tar", other)
    found = data.create_dataset(["wds", str(tmp_path)], "train").targets
    assert found == [3, 2, 4, 1, 5, 6, 7, 1]
    assert "4 of 8 samples have no class in the file that is preferred" in caplog.text


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.png": png(), "a.cls": b"0", "b.cls": b"1"}, r"has b\.cls, but no image of that name"),
        ({"a.png": png(), "a.cls": b"0", "a.jpg": png()}, r"has both a\.png and a\.jpg for 'a'"),
        ({"a.png": png(), "a.cls": b"0", "a.cls.txt": b"1"}, r"has both a\.cls and a\.cls\.txt"),
        ({"a.png": png(), "a.json": b'{"label": "dog"}'}, r"expected a class index.*b'dog'"),
        (
            {"a.png": png(), "a.json": b'{"caption": "dog"}'},
            r"class index \(as cls, label, .*\), but found",
        ),
        ({"a.png": png(), "a.json": b'{"label": true}'}, r"expected a class index.*b'True'"),
        ({"a.png": png(), "a.json": b'{"label": 2.5}'}, r"expected a class index.*b'2\.5'"),
        ({"a.png": png(), "a.cls": b"0", "a.1.cls": b"1"}, r"takes a\.1\.cls for '1\.cls' of 'a'"),
        (
            {"a.png": png(), "a.label": b"0", "a.2.png": png(1), "a.2.label": b"1"},
            r"takes a\.2\.png for '2\.png' of 'a': write keys without dots",
        ),
        (
            {"a.png": png(), "a.json": b"0", "a.2.png": png(1), "a.2.json": b"1"},
            r"takes a\.2\.png for '2\.png' of 'a': write keys without dots",
        ),
        (
            {"a.2.cls.TXT": b"1", "a.2.PNG": png(1), "a.png": png(), "a.cls": b"0"},
            r"takes a\.2\.PNG for '2\.PNG' of 'a': write keys without dots",
        ),
        ({"a.png": png(), "a.cls": b"9" * 30}, r"expected a class index below 1,000,000"),
        (
            {"a.png": png(), "a.cls": b"1000000"},
            "expected a class index below 1,000,000, but found b'1000000'",
        ),
        ({"a.png": png()}, r"a\.cls is missing"),
        (
            {"a.png": png(), "a.txt": b"cat", "a.cls": b"cat"},
            "expected a class index, but found b'cat'",
        ),
    ],
)
def test_samples_of_shards_without_their_halves_are_refused(
    tmp_path: Path, members: dict[str, bytes], message: str
) -> None:
    shard(tmp_path / "train-0.tar", members)
    with pytest.raises(UserError, match=message):
        data.create_dataset(["wds", str(tmp_path)], "train")


def test_other_pictures_of_a_sample_are_left_alone(tmp_path: Path) -> None:
    """For WebDataset, a.mask.png is the field mask.png of the sample a."""
    members = {"a.mask.png": png(1), "a.png": png(0), "a.cls": b"2", "a.depth.txt": b"x"}
    found = data.create_dataset(["wds", str(shard(tmp_path / "train-0.tar", members))], "train")
    assert pixels(found) == [(random_image(0).tobytes(), 2)]


def test_samples_of_shards_without_an_image_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As in a folder; JSON without a class may describe anything."""
    members = {"a.png": png(0), "a.json": b"2", "meta.json": b'{"version": "1"}', "b.txt": b"x"}
    path = shard(tmp_path / "train-0.tar", members)
    create = partial(data.create_dataset, ["wds", str(tmp_path)], "train")
    assert create().targets == [2]
    assert caplog.text == ""
    more = {f"{key}.{end}": b"3" for key in "cd" for end in ("avif", "json")}
    shard(tmp_path / "train-1.tar", {"e.png": png(1), "e.json": b"1", **more})
    with tarfile.open(path, "a") as tar:
        for kind, key, target in (
            (tarfile.LNKTYPE, "f", "a"),
            (tarfile.SYMTYPE, "g", "../x"),
            (tarfile.SYMTYPE, "h", "./f"),
        ):
            for end in ("png", "json"):
                info = tarfile.TarInfo(f"{key}.{end}")
                info.type, info.linkname = kind, f"{target}.{end}"
                if end == "json" and key == "g":
                    info.type, info.linkname = tarfile.LNKTYPE, "a.json"
                tar.addfile(info)
    found = create()
    first, second = ((random_image(seed).tobytes(), target) for seed, target in ((0, 2), (1, 1)))
    # a link is the file that it leads to
    assert pixels(found) == [first, first, first, second]
    message = "3 files left out, no image by name or place (2 .avif, 1 .png (link))"
    assert f"{tmp_path}: {message}" in caplog.text


def test_shards_of_a_training_split_of_another_name(tmp_path: Path) -> None:
    for name, label in (("fold1", 4), ("train", 1), ("val", 0), ("validation", 2)):
        members = {"a.png": png(0), "a.cls": str(label).encode()}
        shard(tmp_path / f"{name}-0.tar", members)
    words = ["wds", str(tmp_path)]
    for split, targets in (("fold1", [4]), ("val", [0, 2]), ("validation", [2])):
        found = data.create_dataset(words, split, training="fold1")
        assert (found.targets, len(found.classes)) == (targets, 5)


def test_shards_lie_in_folders_of_their_split_or_follow_a_pattern(tmp_path: Path) -> None:
    for split, count in (("train", 12), ("VALIDATION", 2)):
        for number in range(count):
            members = {"a.png": png(number), "a.cls": str(number).encode()}
            shard(tmp_path / split / f"{number:06}.TAR", members)

    def targets(source: str, split: str = "train") -> list[int]:
        words = ["wds", "::".join(str(tmp_path / part) for part in source.split("::"))]
        return data.create_dataset(words, split, classes=["c"] * 12).targets

    assert targets("") == list(range(12))
    assert targets("", "val") == [0, 1]
    assert targets("train/{000003..000011}.TAR") == list(range(3, 12))
    assert targets("{train,VALIDATION}/00000{0,1}.TAR", "val") == [0, 1]
    assert targets("*/00001*.TAR") == [10, 11]
    assert targets("train/000003.TAR::train/{000005..000006}.TAR") == [3, 5, 6]
    with pytest.raises(UserError, match=r"there is no shard .*train/000012\.TAR"):
        targets("train/{000011..000013}.TAR")
    with pytest.raises(UserError, match="there is no shard https:"):
        data.create_dataset(["wds", "https://example.org/train-{0..3}.tar"], "train")


def test_compressed_shards_are_refused(tmp_path: Path) -> None:
    members = {"a.png": png(), "a.cls": b"0"}
    path = shard(tmp_path / "train-0.tar.gz", members, "w:gz")
    with pytest.raises(UserError, match=r"train-0\.tar\.gz is compressed.*unpack it"):
        data.create_dataset(["wds", str(tmp_path)], "train")
    path.rename(tmp_path / "train-0.tar")
    with pytest.raises(UserError, match="expected an uncompressed tar file"):
        data.create_dataset(["wds", str(tmp_path)], "train")


def test_an_archive_that_would_fill_the_memory_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(folder, tmp_path / "images.tar.gz")
    monkeypatch.setattr(archives, "MAX_MEMORY", 5 * 8 * 8 * 3)
    with pytest.raises(UserError, match=r"images take more than .* unpack it and give the"):
        data.create_dataset(["cifar10-tar", str(tmp_path / "images.tar.gz")], "train")


def test_a_worker_whose_parent_has_ended_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """After Ctrl-C, the thread that gives its tensors finds the other end closed."""
    reported: list[Any] = []
    monkeypatch.setattr(sys, "excepthook", lambda *details: reported.append(details))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(loader.Queue, "_on_queue_feeder_error", None)  # given back at the end
    loader._ends_with_its_parent(0)
    for error in (EOFError(), ConnectionResetError(), BrokenPipeError()):
        sys.excepthook(type(error), error, None)
    assert not reported
    other = ValueError()
    sys.excepthook(ValueError, other, None)
    assert reported == [(ValueError, other, None)]


def test_an_archive_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.tar").symlink_to("/proc/self/mem")
    with pytest.raises(UserError, match=r"a\.tar cannot be read: Input/output error"):
        archives.archive_dataset(tmp_path / "a.tar", "val", None, "train")
