"""The hub interface: what it loads is a folder, or an archive with an address that stays inside."""

import io
import random
import re
import tarfile
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from fairseq import checkpoint_utils, file_utils, hub_utils
from fairseq.models.transformer import TransformerModel
from omegaconf import OmegaConf

from conftest import ROOT, Corpus
from resmlp_mt.errors import UserError
from resmlp_mt.fairseq_plugin import hub
from resmlp_mt.models.resmlp_mt import ResMLPTiny


def archive(path: Path, *names: str, link: str | None = None) -> Path:
    """A tar file with a small file under each name, after a link to another folder."""
    with tarfile.open(path, "w:gz") as tar:
        if link is not None:
            member = tarfile.TarInfo("model/link")
            member.type, member.linkname = tarfile.SYMTYPE, link
            tar.addfile(member)
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 3
            tar.addfile(member, io.BytesIO(b"new"))
    return path


def test_what_cannot_be_fetched_is_told_and_what_was_fetched_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a network fairseq ends in a traceback, and it keeps the page of an error."""
    refusal = requests.Response()
    refusal.status_code, refusal.url, refusal._content = 403, "https://x/y", b"<html>"

    def unreachable(*_: object, **__: object) -> requests.Response:
        try:
            raise OSError(-2, "Name or service not known")
        except OSError:
            raise requests.ConnectionError("Max retries") from None

    def silent(*_: object, **__: object) -> requests.Response:
        raise requests.ReadTimeout

    monkeypatch.setattr(file_utils, "PYTORCH_FAIRSEQ_CACHE", tmp_path)
    for answer, told in (
        (unreachable, "Name or service not known"),
        (lambda *_, **__: refusal, "403 Client Error: None for url: https://x/y"),
        (silent, "no answer"),
    ):
        for method in ("get", "head"):
            monkeypatch.setattr(requests, method, answer)
        for url, fetch, advice in (
            ("https://x/gpt2_bpe/y", file_utils.cached_path, "a local file (--gpt2-encoder-json"),
            ("https://x/y.tar.gz", file_utils.load_archive_file, "the folder of the unpacked arc"),
        ):
            message = re.escape(f"{url} cannot be fetched: {told}; give {advice}")
            try:
                raise KeyError("unrelated")
            except KeyError:  # a program may fetch what it lacks
                with pytest.raises(UserError, match=f"^{message}"):
                    fetch(url)
    assert list(tmp_path.iterdir()) == []
    fetched = tmp_path / file_utils.url_to_filename("https://x/y", "etag")
    fetched.touch()
    assert file_utils.get_from_cache("https://x/y", str(tmp_path)) == str(fetched)


@pytest.mark.parametrize("model", [ResMLPTiny, TransformerModel])
def test_files_are_not_taken_for_archives_and_stay(
    tmp_path: Path, corpus: Corpus, trained: Path, model: type[TransformerModel]
) -> None:
    path = archive(tmp_path / "model.tar.gz", "../left")
    checkpoint = trained / "checkpoint_best.pt"
    for given, message in (
        ((path, "model.pt", corpus.data), r"model\.tar\.gz is a file: give a folder"),
        ((trained, "checkpoint_best.pt", path), r"model\.tar\.gz is a file: give a folder"),
        ((checkpoint, "model.pt", corpus.data), rf"folder {trained}, and checkpoint_best\.pt as"),
        ((tmp_path / "missing",), "missing does not exist: give the folder"),
    ):
        with pytest.raises(UserError, match=message):
            model.from_pretrained(*map(str, given))
    assert path.exists()
    assert checkpoint.exists()
    assert not (tmp_path.parent / "left").exists()


@pytest.mark.parametrize(
    ("names", "link"),
    [
        (["../left"], None),
        (["model/../../left"], None),
        (["{outside}/left"], None),
        (["model/link/left"], "{outside}"),
        (["model/link/left"], "../../outside"),
    ],
)
def test_an_archive_that_is_fetched_stays_in_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: list[str], link: str | None
) -> None:
    outside = tmp_path / "outside"
    (outside / "left").mkdir(parents=True)
    (outside / "left" / "own").touch()
    names = [name.format(outside=outside) for name in names]
    cached = archive(
        tmp_path / "cached", *names, link=link if link is None else link.format(outside=outside)
    )
    monkeypatch.setattr(file_utils, "cached_path", lambda *_, **__: str(cached))
    with pytest.raises(UserError, match=r"^https://x/y\.tar\.gz cannot be fetched and unpacked: "):
        file_utils.load_archive_file("https://x/y.tar.gz")
    assert sorted(outside.rglob("*")) == [outside / "left", outside / "left" / "own"]


def test_an_archive_with_an_address_is_unpacked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = archive(tmp_path / "cached", "model/a", "model/b")
    monkeypatch.setattr(file_utils, "cached_path", lambda *_, **__: str(cached))
    for _ in range(2):
        found = Path(file_utils.load_archive_file("https://x/y.tar.gz"))
        assert {path.name: path.read_text() for path in found.iterdir()} == {"a": "new", "b": "new"}


def test_an_address_that_nobody_answers_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> str:
        raise ConnectionError("no route")

    monkeypatch.setattr(file_utils, "cached_path", unreachable)
    with pytest.raises(UserError, match=r"^https://x/y\.tar\.gz cannot be .*: no route\.$"):
        ResMLPTiny.from_pretrained("https://x/y.tar.gz")


def test_a_path_with_a_dot_is_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fairseq takes it for one in the folder of the model."""
    for folder in ("model/own", "here/DATA/bin", "bin"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    found = {}

    def load(_: object, arg_overrides: dict[str, str]) -> tuple[list[object], dict[str, str], None]:
        found.update(arg_overrides)
        return [], {}, None

    monkeypatch.setattr(checkpoint_utils, "load_model_ensemble_and_task", load)
    for given, expected in (
        ("./DATA/bin", "here/DATA/bin"),
        ("../bin", "bin"),
        (".", "model"),
        ("./own", "model/own"),
    ):
        hub_utils.from_pretrained(str(tmp_path / "model"), "x.pt", given)
        assert found["data"] == str(tmp_path / expected)


@pytest.mark.parametrize("damage", ["negative size", "xz", "gz"])
def test_a_damaged_archive_with_an_address_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    cached = tmp_path / "cached"
    if damage == "negative size":  # older versions of Python read such an archive for ever
        infos = [tarfile.TarInfo("a"), tarfile.TarInfo("b")]
        infos[1].size = -1024
        cached.write_bytes(b"".join(i.tobuf(tarfile.GNU_FORMAT) for i in infos) + bytes(5120))
    else:
        with tarfile.open(cached, f"w:{damage}") as tar:  # type: ignore[call-overload]
            member = tarfile.TarInfo("model/a")
            content = " ".join(str(random.Random(n).random()) for n in range(5000)).encode()
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        packed = bytearray(cached.read_bytes())
        packed[len(packed) // 2 : len(packed) // 2 + 64] = bytes(64)
        cached.write_bytes(packed)
    monkeypatch.setattr(file_utils, "cached_path", lambda *_, **__: str(cached))
    with pytest.raises(UserError, match=r"^https://x/y\.tar\.gz cannot be fetched and unpacked: "):
        file_utils.load_archive_file("https://x/y.tar.gz")


def test_paths_are_paths_and_unknown_options_are_refused(corpus: Corpus, trained: Path) -> None:
    """fairseq splits paths as text, and ignores options that it does not know."""
    given = (trained, Path("checkpoint_best.pt"), corpus.data)
    found = ResMLPTiny.from_pretrained(*given, beam=2, bpe="sentencepiece")  # found beside the data
    tokens = found.encode("one two")
    assert found.decode(tokens) == "one two"
    assert found.generate([tokens], beam=1, lenpen=1, print_alignment="hard")
    assert found.generate([tokens], beam=np.int64(1), lenpen=np.float64(0.6))
    searches: list[tuple[dict[str, Any], str]] = [
        ({"beem": 1}, r"'beem' not in .* \(did you mean beam"),
        ({"lenpen": "1"}, "lenpen is '1', not 1.0"),
    ]
    for options, message in searches:
        with pytest.raises(UserError, match=f"^the hub's options of the search: .*{message}"):
            found.generate([tokens], **options)
    models: list[tuple[dict[str, Any], str]] = [
        ({"beem": 1}, r"^beem is no option of the model or its task \(did you mean beam"),
        ({"sentencepiece_model": Path("x")}, "^sentencepiece_model changes nothing without bpe='s"),
        ({"bpe": "sentencepeice"}, r"^bpe='sentencepeice' is unknown \(did you mean sentencepiece"),
        ({"tokenizer": "mosses"}, r"^tokenizer='mosses' is unknown \(did you mean moses"),
    ]
    for options, message in models:
        with pytest.raises(UserError, match=message):
            ResMLPTiny.from_pretrained(*given, **options)
    with pytest.raises(KeyError):  # it is looked for once the user's module is imported
        ResMLPTiny.from_pretrained(*given, bpe="own", user_dir=ROOT / "resmlp_mt")


def test_options_of_tasks_without_a_dataclass_are_known() -> None:
    task = Namespace(source_lang=None)
    config = OmegaConf.create({"task": task}, flags={"allow_objects": True})
    hub._check_options(["source_lang"], config)
    with pytest.raises(UserError, match=r"^sauce_lang is no option .* mean source_lang"):
        hub._check_options(["sauce_lang"], config)
