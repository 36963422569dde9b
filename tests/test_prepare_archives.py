"""Unpacking: only what is wanted, and nothing from an archive that would do harm."""

from __future__ import annotations

import errno
import gzip
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from resmlp_mt.errors import UserError
from resmlp_mt.preparation import archives, formats
from tests.corpus_server import tar, zipped

GOOD = {"training/a.en": b"one\n", "training/a.de": b"eins\n", "training/a.fr": b"un\n"}
WANTED = ("training/a.en", "training/a.de")


def special(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = link
    return info


PACKINGS = {
    "x.tar": "", "x.tgz": "gz", "x.tar.gz": "gz", "x.TGZ": "gz", "x.tar.bz2": "bz2",
    "x.tbz2": "bz2", "x.tar.xz": "xz", "x.txz": "xz",
}  # fmt: skip
"""Names of tar files, and how tarfile calls their packing."""


def packed(members: Mapping[str, bytes], name: str) -> bytes:
    if name.lower().endswith(".zip"):
        return zipped(members)
    return tar(members, f"w:{PACKINGS[name]}")


@pytest.mark.parametrize("name", [*PACKINGS, "x.zip", "x.ZIP"])
def test_only_the_wanted_members_are_written(tmp_path: Path, name: str) -> None:
    assert archives.is_archive(name)
    archive = tmp_path / name
    archive.write_bytes(packed(GOOD, name))
    paths = archives.unpack(archive, WANTED, tmp_path / "out")
    assert [path.read_bytes() for path in paths] == [b"one\n", b"eins\n"]
    assert sorted(path.name for path in (tmp_path / "out").rglob("*.*")) == ["a.de", "a.en"]


@pytest.mark.parametrize(
    "member",
    [
        {"../evil": b"x"},
        {"training/../../evil": b"x"},
        {"/tmp/evil": b"x"},
        {"evil": special("evil", tarfile.SYMTYPE, "/etc/passwd")},
        {"evil": special("evil", tarfile.SYMTYPE, "training/a.en")},
        {"evil": special("evil", tarfile.LNKTYPE, "training/a.en")},
        {"evil": special("evil", tarfile.LNKTYPE, "../../outside")},
        {"evil": special("evil", tarfile.CHRTYPE)},
        {"evil": special("evil", tarfile.BLKTYPE)},
        {"evil": special("evil", tarfile.FIFOTYPE)},
    ],
    ids=[
        "up",
        "up inside",
        "absolute",
        "symlink",
        "symlink inside",
        "hard link",
        "hard link out",
        "character device",
        "block device",
        "fifo",
    ],
)
def test_a_hostile_tar_is_refused(
    tmp_path: Path, member: dict[str, bytes | tarfile.TarInfo]
) -> None:
    archive = tmp_path / "x.tgz"
    # First in the archive, so that nothing at all may be written.
    archive.write_bytes(tar({**member, **GOOD}))
    with pytest.raises(UserError, match=r"x.tgz is refused: .*evil"):
        archives.unpack(archive, WANTED, tmp_path / "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["x.tgz"]


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "a/../../evil"])
def test_a_zip_that_leaves_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    archive = tmp_path / "x.zip"
    archive.write_bytes(zipped({**GOOD, name: b"x"}))
    with pytest.raises(UserError, match=r"x.zip is refused: .*evil would be outside"):
        archives.unpack(archive, WANTED, tmp_path / "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["x.zip"]


def test_a_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / "x.zip"
    link = zipfile.ZipInfo("evil")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr(link, "/etc/passwd")
    with pytest.raises(UserError, match="evil is a link or a device"):
        archives.unpack(archive, WANTED, tmp_path / "out")


@pytest.mark.parametrize("name", ["x.tgz", "x.tar.bz2", "x.tar.xz", "x.zip"])
def test_the_unpacked_size_is_bounded(tmp_path: Path, name: str) -> None:
    bomb = {"bomb": bytes(10_000_000), **GOOD}
    archive = tmp_path / name
    archive.write_bytes(packed(bomb, name))
    assert archive.stat().st_size < 20_000
    with pytest.raises(UserError, match="unpacks to more than 1000000 bytes"):
        archives.unpack(archive, WANTED, tmp_path / "out", limit=1_000_000)
    assert not (tmp_path / "out").exists()
    assert len(archives.unpack(archive, WANTED, tmp_path / "out")) == 2


def test_a_zip_without_its_beginning_is_an_error(tmp_path: Path) -> None:
    """Its members would lie before the first byte."""
    (tmp_path / "x.zip").write_bytes(zipped(GOOD)[10:])
    with pytest.raises(UserError, match=r"x.zip: the archive is cut off or damaged"):
        archives.unpack(tmp_path / "x.zip", WANTED, tmp_path / "out")


@pytest.mark.parametrize("place", ["header", "directory"])
def test_a_zip_whose_names_are_not_utf_8_is_an_error(tmp_path: Path, place: str) -> None:
    """Each name stands before its member, and again in the directory at the end."""
    content = bytearray(zipped({WANTED[0]: b"", "ä": b""}))
    find = content.find if place == "header" else content.rfind
    content[find("ä".encode()) + 1] = 0xFF
    (tmp_path / "x.zip").write_bytes(content)
    wanted = ["ä"] if place == "header" else WANTED
    with pytest.raises(UserError, match=r"x.zip: the archive is cut off or damaged") as error:
        archives.unpack(tmp_path / "x.zip", wanted, tmp_path / "out")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["x.tgz", "x.tar.bz2", "x.tar.xz"])
@pytest.mark.parametrize("end", [60, 300, -200, -4])
def test_a_cut_archive_is_an_error(tmp_path: Path, name: str, end: int) -> None:
    archive = tmp_path / name
    noise = bytes(range(256)) * 500
    content = packed({**GOOD, "noise": noise}, name)
    archive.write_bytes(content[:end])
    with pytest.raises(UserError, match=rf"{name}: the archive is cut off or damaged"):
        archives.unpack(archive, [*WANTED, "noise"], tmp_path / "out")


def test_a_full_disk_is_not_a_damaged_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(archives.shutil, "copyfileobj", full)
    (tmp_path / "x.tgz").write_bytes(tar(GOOD))
    with pytest.raises(OSError, match="No space left"):
        archives.unpack(tmp_path / "x.tgz", WANTED, tmp_path / "out")


@pytest.mark.parametrize("fault", ["password", "compression"])
def test_a_zip_of_another_kind_is_an_error(tmp_path: Path, fault: str) -> None:
    content = bytearray(zipped(GOOD))
    # Flags and method of compression, in the headers before each member and in the directory.
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = content.find(signature)
        while start >= 0:
            if fault == "password":
                content[start + flags] |= 1
            else:
                content[start + flags + 2] = 9
            start = content.find(signature, start + 1)
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(UserError, match=rf"x.zip cannot be unpacked .*{fault}"):
        archives.unpack(tmp_path / "x.zip", WANTED, tmp_path / "out")


def test_a_damaged_lzma_member_is_an_error(tmp_path: Path) -> None:
    archive = tmp_path / "x.zip"
    noise = bytes(range(256)) * 50
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_LZMA) as file:
        file.writestr("noise", noise)
    content = bytearray(archive.read_bytes())
    content[39:44] = b"\xff" * 5  # the properties of the stream
    archive.write_bytes(content)
    with pytest.raises(UserError, match=r"x.zip: the archive is cut off or damaged"):
        archives.unpack(archive, ["noise"], tmp_path / "out")


def test_a_header_of_any_size_is_bounded(tmp_path: Path) -> None:
    archive = tmp_path / "x.tgz"
    name = special("././@LongLink", tarfile.GNUTYPE_LONGNAME)
    name.size = 3_000_000
    with gzip.open(archive, "wb") as file:
        file.write(name.tobuf() + b"a" * name.size)
    with pytest.raises(UserError, match="the headers of a file have more than 1,048,576 bytes"):
        archives.unpack(archive, WANTED, tmp_path / "out")


def test_a_sparse_file_without_its_map_is_an_error(tmp_path: Path) -> None:
    """tarfile raises an IndexError where more of the map should follow."""
    header = tarfile.TarInfo("x")
    header.type = tarfile.GNUTYPE_SPARSE
    block = bytearray(header.tobuf(tarfile.GNU_FORMAT))
    block[482] = 1  # more of it follows
    block[148:156] = b"%06o\0 " % tarfile.calc_chksums(block)[0]
    (tmp_path / "x.tgz").write_bytes(gzip.compress(block))
    with pytest.raises(UserError, match=r"x.tgz: the archive is cut off or damaged"):
        archives.unpack(tmp_path / "x.tgz", WANTED, tmp_path / "out")


def test_a_single_gzip_file_is_checked_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(b"text"))
    formats.check(path)
    path.write_bytes(gzip.compress(b"text")[:-1])
    with pytest.raises(UserError, match=r"x.gz: the gzip file is cut off or damaged"):
        formats.check(path)


def test_something_else_than_an_archive_is_an_error(tmp_path: Path) -> None:
    for name in (*PACKINGS, "x.zip"):
        (tmp_path / name).write_bytes(b"<html>not found</html>" * 100)
        with pytest.raises(UserError, match="damaged"):
            archives.unpack(tmp_path / name, WANTED, tmp_path / "out")


def test_a_missing_member_is_an_error(tmp_path: Path) -> None:
    archive = tmp_path / "x.tgz"
    archive.write_bytes(tar(GOOD))
    with pytest.raises(UserError, match=r"x.tgz has no member training/b.en"):
        archives.unpack(archive, ["training/b.en"], tmp_path / "out")
