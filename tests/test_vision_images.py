"""Image files of every kind become 8-bit RGB, or an error that names the file."""

import io
import pickle
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from conftest import ROOT
from resmlp_mt.errors import UserError
from resmlp_mt.vision import images
from resmlp_mt.vision.images import EXTENSIONS, BadImage, SkipCounter, collate, open_image

RAMP = np.linspace(0, 255, 16, dtype=np.uint8).reshape(4, 4)
ROTATED_BY_90 = 6  # EXIF: the camera was held upright


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixels(source: str | Path | bytes) -> NDArray[np.uint8]:
    image = open_image(source)
    assert image.mode == "RGB"
    return np.asarray(image)


def png(width: int, height: int, bits: int, colour: int, rows: bytes) -> bytes:
    """A PNG file written by hand, for kinds that Pillow does not write."""

    def chunk(name: bytes, body: bytes) -> bytes:
        crc = zlib.crc32(name + body)
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(*part) for part in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    )


@pytest.mark.parametrize("size", [(1, 201), (402, 2), (1, 2_000_000)])
def test_images_that_are_lines_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(BadImage, match=f"{size[0]} x {size[1]} pixels, is more than 200 times"):
        open_image(encode(Image.new("L", size)))
    assert open_image(encode(Image.new("L", (200, 1)))).size == (200, 1)


def test_rgb_comes_through_unchanged_from_file_and_bytes(tmp_path: Path) -> None:
    expected = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    data = encode(Image.fromarray(expected))
    path = tmp_path / "image.png"
    path.write_bytes(data)
    for source in (data, path, str(path)):
        np.testing.assert_array_equal(pixels(source), expected)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP", "GIF", "PPM", "WEBP"])
def test_grey_is_the_same_in_three_channels(kind: str) -> None:
    options = {"quality": 95} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    found = pixels(encode(Image.fromarray(RAMP), kind, **options))
    np.testing.assert_allclose(found, np.stack([RAMP] * 3, -1), atol=3 if kind == "JPEG" else 0)


def test_one_bit_images() -> None:
    bits = Image.fromarray(RAMP).point(lambda value: 255 * (value > 127), "1")
    assert set(pixels(encode(bits)).flat) == {0, 255}


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    sixteen = np.linspace(0, 65535, 16, dtype=np.uint16).reshape(4, 4)
    grey = np.stack([sixteen >> 8] * 3, -1)
    np.testing.assert_array_equal(pixels(encode(Image.fromarray(sixteen))), grey)
    np.testing.assert_array_equal(pixels(encode(Image.fromarray(sixteen), "TIFF")), grey)
    portable = b"P5\n4 4\n65535\n" + sixteen.astype(">u2").tobytes()
    np.testing.assert_array_equal(pixels(portable), grey)


def tiff(values: NDArray[np.uint16], bits: int, kind: int = 1, photometric: int = 1) -> bytes:
    """A grey TIFF file written by hand: (rows, columns), kind 2 is signed; white may be 0."""
    rows, columns = values.shape
    packed = (
        int("".join(f"{value:0{bits}b}" for value in row), 2).to_bytes(columns * bits // 8)
        for row in values.tolist()
    )
    body = b"".join(packed) if bits != 16 else values.astype("<u2").tobytes()
    tags = {256: columns, 257: rows, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1,
            278: rows, 279: len(body), 339: kind}  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = struct.pack("<2sHI", b"II", 42, 8 + len(body))
    return head + body + struct.pack("<H", len(tags)) + entries + bytes(4)


def test_twelve_bits_are_scaled_too() -> None:
    twelve = np.linspace(0, 4095, 16, dtype=np.uint16).reshape(4, 4)
    grey = np.stack([twelve >> 4] * 3, -1)
    np.testing.assert_array_equal(pixels(tiff(twelve, 12)), grey)


@pytest.mark.parametrize("bits", [8, 16])
def test_white_may_be_zero(bits: int) -> None:
    values = np.linspace(0, 2**bits - 1, 16, dtype=np.uint16).reshape(4, 4)
    grey = np.stack([values >> (bits - 8)] * 3, -1)
    np.testing.assert_array_equal(pixels(tiff(values, bits)), grey)
    np.testing.assert_array_equal(pixels(tiff(values, bits, photometric=0)), 255 - grey)


@pytest.mark.parametrize("bits", [8, 16])
def test_signed_values_have_no_range(bits: int) -> None:
    values = np.arange(16, dtype=np.uint16).reshape(4, 4)
    with pytest.raises(BadImage, match=f"{bits} bits with a sign have no stated range"):
        open_image(tiff(values, bits, kind=2))


def test_sixteen_bit_colour_is_scaled_alike() -> None:
    sixteen = np.linspace(0, 65535, 24, dtype=np.uint16).reshape(2, 4, 3)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in sixteen)
    np.testing.assert_array_equal(pixels(png(4, 2, 16, 2, rows)), sixteen >> 8)


def test_cmyk() -> None:
    cyan = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    np.testing.assert_allclose(pixels(encode(cyan, "JPEG"))[4, 4], [0, 255, 255], atol=3)


def test_transparency_lies_on_white() -> None:
    clear, half = (10, 20, 30, 0), (0, 0, 0, 128)
    image = Image.new("RGBA", (2, 1), clear)
    image.putpixel((1, 0), half)
    np.testing.assert_allclose(pixels(encode(image))[0], [[255] * 3, [127] * 3], atol=1)


def test_palette_with_transparency() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([200, 10, 10, 10, 200, 10])
    image.putpixel((1, 0), 1)
    opaque = pixels(encode(image))
    np.testing.assert_array_equal(opaque[0], [[200, 10, 10], [10, 200, 10]])
    for transparency in (1, b"\xff\x00"):  # an index, or alpha for each entry
        found = pixels(encode(image, transparency=transparency))
        np.testing.assert_array_equal(found[0], [[200, 10, 10], [255, 255, 255]])


def test_exif_orientation_is_followed() -> None:
    image = Image.new("RGB", (16, 8), "black")
    image.paste("white", (0, 0, 8, 8))  # white on the left
    exif = Image.Exif()
    exif[0x0112] = ROTATED_BY_90
    found = pixels(encode(image, exif=exif))
    assert found.shape == (16, 8, 3)
    assert (found[0].min(), found[-1].max()) == (255, 0)  # turned clockwise: white on top


def test_broken_exif_does_not_hurt() -> None:
    image = Image.fromarray(RAMP)
    for exif in (b"Exif\0\0II*\0\xff\xff\xff\x7f", b"Exif\0\0MM\0*\0\0\0\x08\0\x09"):
        np.testing.assert_array_equal(pixels(encode(image, exif=exif))[..., 0], RAMP)


def test_one_pixel() -> None:
    assert pixels(encode(Image.new("RGB", (1, 1), (1, 2, 3)))).tolist() == [[[1, 2, 3]]]


def test_the_first_frame_counts() -> None:
    first, second = Image.new("RGB", (2, 2), "red"), Image.new("RGB", (2, 2), "blue")
    found = pixels(encode(first, "GIF", save_all=True, append_images=[second]))
    assert found[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("width", [9_000, 18_000])  # Pillow warns of one and refuses the other
def test_decompression_bombs_are_refused_undecoded(width: int, tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png(width, 10_000, 8, 0, b"\0"))
    with pytest.raises(BadImage, match=r"bomb\.png: .* more than 89,478,485 pixels"):
        open_image(path)


def test_an_image_just_below_the_bound_is_read() -> None:
    row = b"\0" + bytes(8_947)
    assert open_image(png(8_947, 10_000, 8, 0, row * 10_000)).size == (8_947, 10_000)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP", "GIF", "PPM", "WEBP"])
@settings(max_examples=25, deadline=None)
@given(share=st.floats(0.0, 0.9))
def test_truncated_files_are_named(kind: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    data = encode(Image.fromarray(noise), kind)
    with pytest.raises(BadImage, match=r"^cut: "):
        open_image(data[: int(share * len(data))], "cut")


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=60), magic=st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8"]))
def test_whatever_is_no_image_is_a_bad_image(data: bytes, magic: bytes) -> None:
    with pytest.raises(BadImage):
        open_image(magic + data)


def test_each_fault_has_its_reason(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "lfs.jpg").write_text("version https://git-lfs.github.com/spec/v1\noid")
    (tmp_path / "notes.jpg").write_text("no image")
    (tmp_path / "deep.tif").write_bytes(encode(Image.new("F", (2, 2)), "TIFF"))
    good = encode(Image.fromarray(RAMP))
    (tmp_path / "crc.png").write_bytes(good[:-20] + bytes(4) + good[-16:])
    for name, reason in {
        "empty.jpg": "the file is empty",
        "lfs.jpg": "it is a pointer of Git LFS: get the file itself with git lfs pull",
        "notes.jpg": "not an image file of a known kind",
        "deep.tif": "32 bits a channel",
        "crc.png": "broken",
        "missing.jpg": "No such file or directory",
        ".": "Is a directory",
    }.items():
        with pytest.raises(BadImage, match=reason) as caught:
            open_image(tmp_path / name)
        assert str(caught.value).startswith(f"{tmp_path / name}: ")
        assert "\n" not in str(caught.value)


def test_postscript_is_not_run() -> None:
    with pytest.raises(BadImage, match="not an image file of a known kind"):
        open_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n%%EndComments\n")


def test_every_format_has_its_extensions() -> None:
    registered = Image.registered_extensions()
    assert {registered[extension] for extension in EXTENSIONS} == {
        "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"
    }  # fmt: skip


class Numbers(Dataset[object]):
    """Images filled with their number; odd ones are bad."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> object:
        if index % 2:
            return BadImage(f"{index}.png", "odd")
        return torch.full((3, 2, 2), float(index)), index


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_images_leave_a_loader_beside_the_batch(workers: int) -> None:
    loader = DataLoader(Numbers(), batch_size=3, collate_fn=collate, num_workers=workers)
    counter = SkipCounter("skip")
    found = []
    for batch, targets, bad in loader:
        counter.update(bad)
        assert batch.shape == (len(targets), 3, 2, 2)
        assert batch[:, 0, 0, 0].tolist() == targets.tolist()
        found += targets.tolist()
    assert found == [0, 2, 4]
    assert counter.skipped == {"1.png": "odd", "3.png": "odd", "5.png": "odd"}


def test_a_batch_of_bad_images_alone() -> None:
    images, targets, bad = collate([BadImage("1.png", "odd")])
    assert (len(images), len(targets), len(bad)) == (0, 0, 1)


def test_a_file_counts_and_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    counter = SkipCounter("skip")
    for _ in range(2):  # two epochs
        counter.update([BadImage("a.png", "odd"), BadImage("b.png", "even")])
    assert len(counter.skipped) == 2
    assert [record.getMessage() for record in caplog.records] == [
        "skipped a.png: odd",
        "skipped b.png: even",
    ]


def test_raising_names_the_file_and_the_way_out() -> None:
    with pytest.raises(UserError, match=r"a\.png: odd; --on-error skip"):
        SkipCounter("raise").update([BadImage("a.png", "odd")])


def test_bad_images_survive_pickling() -> None:
    copy = pickle.loads(pickle.dumps(BadImage("a.png", "odd")))
    assert (copy.name, copy.reason, str(copy)) == ("a.png", "odd", "a.png: odd")
    assert str(BadImage("two\nlines", "odd")) == r"two\nlines: odd"  # a name in a shard


def test_a_small_file_does_not_fill_the_memory(tmp_path: Path) -> None:
    """A WebP takes eight bytes a pixel as soon as it is opened; transparency made three copies."""
    side, color = 3000, (200, 100, 50)
    for name, mode, options in (
        ("lossy.webp", "RGB", {}),
        ("lossless.webp", "RGB", {"lossless": True}),
        ("alpha.webp", "RGBA", {}),
    ):
        Image.new(mode, (16, 24), (*color, 128)[: len(mode)]).save(tmp_path / name, **options)
        content = bytearray((tmp_path / name).read_bytes())
        assert open_image(bytes(content)).size == (16, 24)
        kind = bytes(content[12:16])
        if kind == b"VP8 ":
            content[26:30] = struct.pack("<HH", 9000, 9000)
        elif kind == b"VP8L":
            content[21:25] = struct.pack("<I", 8999 | 8999 << 14)
        else:
            content[24:30] = struct.pack("<I", 8999)[:3] * 2
        (tmp_path / name).write_bytes(content)
    image = Image.new("RGBA", (side, side), (*color, 128))
    image.save(tmp_path / "alpha.png", compress_level=1)
    code = (
        "import resource, sys; from resmlp_mt.vision.images import BadImage, open_image\n"
        "size = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\n"
        "before = size()\n"
        "for name in sys.argv[1:]:\n"
        "    try: print(open_image(name).size)\n"
        "    except BadImage as bad: print(bad)\n"
        "    print(size() - before)"
    )
    files = ["lossy.webp", "lossless.webp", "alpha.webp", "alpha.png"]
    words = [sys.executable, "-c", code, *(str(tmp_path / name) for name in files)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    said, grown = done.stdout.splitlines()[::2], done.stdout.splitlines()[1::2]
    for line in said[:3]:
        assert "webp: the image has more than 44,739,242 pixels" in line
    assert int(grown[2]) < 30  # MiB
    assert said[3] == str((side, side))
    assert int(grown[3]) < side**2 * (4 + 3) / 2**20 + 60  # the image and its result


@pytest.mark.parametrize("size", [(3, 5), (300, 2), (5, 700)])
def test_transparency_is_laid_on_white_in_any_number_of_strips(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (*size[::-1], 4), dtype=np.uint8))
    white = Image.new("RGBA", image.size, "white")
    expected = Image.alpha_composite(white, image).convert("RGB")
    assert open_image(encode(image)).tobytes() == expected.tobytes()


def test_files_of_too_many_bytes_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    monkeypatch.setattr(images, "MAX_BYTES", 10)
    for source in (tmp_path / "a.png", (tmp_path / "a.png").read_bytes()):
        with pytest.raises(BadImage, match="the file has more than 10 bytes"):
            open_image(source)
