"""`prepare.py` from end to end: the declared corpora in their true layouts, and local folders."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fairseq.data import Dictionary, data_utils

from conftest import ROOT
from resmlp_mt import files, prepare
from resmlp_mt.errors import UserError
from resmlp_mt.preparation import corpus, steps
from resmlp_mt.preparation.manifest import CLEANED
from resmlp_mt.preparation.options import parse_args
from resmlp_mt.preparation.pipeline import fairseq_names
from tests import corpus_server
from tests.corpus_server import lines, text

SCRIPT = ROOT / "data_scripts/prepare.py"


def run(*arguments: object) -> int:
    """The status of the command; as Python does at its end, a message goes to standard error."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        prepare.main([str(argument) for argument in arguments])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        signal.signal(signal.SIGTERM, handler)
    return 0


def outputs(out: Path) -> dict[str, bytes]:
    """Everything that a run leaves behind but its private records."""
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and ".steps" not in path.parts
    }


def manifest(out: Path) -> dict[str, Any]:
    content = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def read(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").split("\n")[:-1]


def decoded(out: Path, split: str, lang: str, pair: str) -> list[str]:
    """Text of a binarised split, by fairseq's own reader and dictionary."""
    dictionary = Dictionary.load(str(out / "bin" / f"dict.{lang}.txt"))
    dataset = data_utils.load_indexed_dataset(
        str(out / "bin" / f"{split}.{pair}.{lang}"), dictionary
    )
    assert all(sentence[-1] == dictionary.eos() for sentence in dataset)
    return [dictionary.string(sentence, bpe_symbol="sentencepiece") for sentence in dataset]


# The declared corpora


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[corpus_server.CorpusServer]:
    corpus_server.ask_at_once(monkeypatch)
    with corpus_server.serve() as running:
        yield running


ARCHIVES = {
    "wmt14_en_de": lambda: corpus_server.wmt14("en", "de", "de-en", "deen"),
    "wmt14_en_fr": lambda: corpus_server.wmt14("en", "fr", "fr-en", "fren"),
    "multi30k_en_de": lambda: corpus_server.multi30k("de"),
    "multi30k_en_fr": lambda: corpus_server.multi30k("fr"),
    "iwslt14_de_en": corpus_server.iwslt14,
}


def redirect(
    name: str, server: corpus_server.CorpusServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, bytes]:
    """Points the shipped declaration of a corpus at the small archives: all else stays."""
    declared = yaml.safe_load((corpus.FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    archives = ARCHIVES[name]()
    server.files = {f"/{file}": content for file, content in archives.items()}
    for packages in declared["files"].values():
        for package in packages:
            file = package["urls"][0].rpartition("/")[2]
            if file not in archives:
                package["urls"] = [f"{server.url}/elsewhere/{file}"]
                continue
            # The first mirror is gone.
            package["urls"] = [f"{server.url}/gone/{file}", f"{server.url}/{file}"]
            if "size" in package:
                package["size"] = len(archives[file])
            for kind in ("sha256", "md5"):
                if kind in package:
                    package[kind] = hashlib.new(kind, archives[file]).hexdigest()
    for part in [
        *declared["train"],
        *declared.get("valid", []),
        *(part for parts in declared["tests"].values() for part in parts),
    ]:
        part.pop("lines", None)
    folder.mkdir()
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(declared, sort_keys=False))
    monkeypatch.setattr(corpus, "FOLDER", folder)
    return archives


@pytest.mark.parametrize(
    ("name", "train", "valid", "tests"),
    [
        ("wmt14_en_de", 600, 20, {"test": ("newstest2014", 21)}),
        ("wmt14_en_fr", 710, 20, {"test": ("newstest2014", 21)}),
        (
            "multi30k_en_fr",
            300,
            14,
            {
                "test": ("test_2016_flickr", 10),
                "test1": ("test_2017_flickr", 11),
                "test2": ("test_2017_mscoco", 9),
            },
        ),
        # 402 pairs: 400 sentences, a title and a description; every 23rd validates.
        (
            "iwslt14_de_en",
            402,
            17,
            {"test": ("ted_dev2010_dev2012_tst2010_tst2011_tst2012", 5 + 6 + 7 + 8 + 9)},
        ),
    ],
)
def test_a_declared_corpus(
    tmp_path: Path,
    server: corpus_server.CorpusServer,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    train: int,
    valid: int,
    tests: dict[str, tuple[str, int]],
) -> None:
    redirect(name, server, tmp_path / "corpora", monkeypatch)
    out = tmp_path / "out"
    assert run(name, "--output", out, "--vocab-size", 200, "--jobs", 1) == 0
    source, target = name.split("_")[-2:]
    found = manifest(out)
    assert found["splits"]["train"]["read"] == train
    assert found["splits"]["valid"]["pairs"] == valid
    assert {
        split: (facts["name"], facts["pairs"])
        for split, facts in found["splits"].items()
        if split.startswith("test")
    } == tests
    kept = found["splits"]["train"]["pairs"]
    assert kept == train - sum(step["dropped"] for step in found["splits"]["train"]["steps"])
    for split, count in {
        "train": kept,
        "valid": valid,
        **{s: n for s, (_, n) in tests.items()},
    }.items():
        for lang in (source, target):
            assert len(read(out / "text" / f"{split}.{lang}")) == count
            binarised = decoded(out, split, lang, f"{source}-{target}")
            assert binarised == read(out / "text" / f"{split}.{lang}")
    # Entities are resolved: the text has "&", the sgm "&amp;".
    assert all("&" in line and "&amp;" not in line for line in read(out / "raw" / f"test.{target}"))
    # The same again fetches nothing and changes nothing.
    before, requests = outputs(out), len(server.requests)
    assert run(name, "--output", out, "--vocab-size", 200, "--jobs", 1) == 0
    assert outputs(out) == before
    assert len(server.requests) == requests


def test_the_parts_of_wmt14_in_their_order(
    tmp_path: Path, server: corpus_server.CorpusServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    archives = redirect("wmt14_en_de", server, tmp_path / "corpora", monkeypatch)
    # Fetched before by other means: from a folder, with a digest that is not the declared one.
    folder = tmp_path / "archives"
    folder.mkdir()
    for file, content in archives.items():
        (folder / file).write_bytes(content)
    out = tmp_path / "out"
    arguments = (
        "wmt14_en_de",
        "--output",
        out,
        "--from-dir",
        folder,
        "--vocab-size",
        200,
        "--jobs",
        1,
    )
    assert run(*arguments) == 0
    assert server.requests == []
    english = read(out / "text" / "train.en")
    # Europarl, Common Crawl (U+2028 within a line, CRLF), News Commentary.
    expected = text("en", 300, "Europe") + text("en", 200, "crawl ed") + text("en", 100, "news")
    assert english == expected
    assert read(out / "raw" / "valid.de") == text("de", 20, "dev")
    assert read(out / "raw" / "test.de") == text("de", 21, "test")
    assert (
        manifest(out)["inputs"]["dev.tgz"]["sha256"]
        == hashlib.sha256(archives["dev.tgz"]).hexdigest()
    )


def test_a_damaged_archive_in_the_folder_stops_the_run(
    tmp_path: Path,
    server: corpus_server.CorpusServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    archives = redirect("iwslt14_de_en", server, tmp_path / "corpora", monkeypatch)
    folder = tmp_path / "archives"
    folder.mkdir()
    (folder / "de-en.tgz").write_bytes(archives["de-en.tgz"][:-1] + b"x")
    assert run("iwslt14_de_en", "--output", tmp_path / "out", "--from-dir", folder) == 1
    assert "de-en.tgz has MD5" in capsys.readouterr().err


def test_a_cut_archive_is_not_the_one_to_compare_with(
    tmp_path: Path,
    server: corpus_server.CorpusServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    redirect("iwslt14_de_en", server, tmp_path / "corpora", monkeypatch)
    path = corpus.FOLDER / "iwslt14_de_en.yaml"
    declared = yaml.safe_load(path.read_text(encoding="utf-8"))
    for packages in declared["files"].values():
        for package in packages:
            package.pop("md5", None)
            package.pop("size", None)
    path.write_text(yaml.safe_dump(declared), encoding="utf-8")
    archive = server.files["/de-en.tgz"]
    server.files["/de-en.tgz"] = archive[:-20]
    out = tmp_path / "out"
    assert run("iwslt14_de_en", "--output", out) == 1
    assert "damaged" in capsys.readouterr().err
    assert not (out / "checksums.json").exists()
    server.files["/de-en.tgz"] = archive
    (out / "downloads" / "de-en.tgz").unlink()
    # Fetched and unpacked, but far too large a dictionary for the text.
    assert run("iwslt14_de_en", "--output", out, "--vocab-size", 99999) == 1
    assert "--vocab-size 99999" in capsys.readouterr().err
    known = json.loads((out / "checksums.json").read_text())
    assert known == {"de-en.tgz": hashlib.sha256(archive).hexdigest()}


@pytest.mark.parametrize("name", corpus.names())
def test_a_declaration_is_complete(name: str) -> None:
    declared = corpus.load(corpus.FOLDER / f"{name}.yaml")
    assert declared.licence
    assert declared.citation or not declared.files
    assert declared.train
    assert declared.tests
    assert declared.valid or declared.valid_every
    for packages in declared.files.values():
        assert all(url.startswith("http") for package in packages for url in package.urls)
        # Every file can be had from two addresses at least.
        assert sum(len(package.urls) for package in packages) >= 2


def test_the_expected_counts_of_wmt14() -> None:
    counts = {
        name: sum(part.lines or 0 for part in corpus.load(corpus.FOLDER / f"{name}.yaml").train)
        for name in ("wmt14_en_de", "wmt14_en_fr")
    }
    assert counts == {"wmt14_en_de": 4_520_620, "wmt14_en_fr": 40_842_333}


# Local folders


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: gzip and plain, a duplicate, an empty line, pairs that are held out."""
    path = tmp_path_factory.mktemp("local")
    for lang in ("en", "de"):
        train = [*text(lang, 700, "a"), text(lang, 1, "a")[0], "", *text(lang, 5, "valid")]
        (path / f"train.{lang}.gz").write_bytes(gzip.compress(lines(train)))
        (path / f"valid.{lang}").write_bytes(lines(text(lang, 30, "valid")))
        (path / f"test_b.{lang}").write_bytes(lines(text(lang, 9, "b")))
        (path / f"test_a.{lang}.gz").write_bytes(gzip.compress(lines(text(lang, 8, "a test"))))
    return path


@pytest.fixture(scope="module")
def local(folder: Path) -> list[object]:
    return ["local", "--from-dir", folder, "--src", "en", "--tgt", "de", "--vocab-size", 200]


@pytest.fixture(scope="module")
def fresh(local: list[object], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The outputs of an undisturbed run with one process."""
    out = tmp_path_factory.mktemp("fresh") / "out"
    assert run(*local, "--output", out, "--jobs", 1) == 0
    return outputs(out)


def test_a_local_folder(fresh: dict[str, bytes]) -> None:
    found = json.loads(fresh["manifest.json"])
    steps = {step["step"]: step["dropped"] for step in found["splits"]["train"]["steps"]}
    assert steps == {
        "normalize": 0,
        "empty": 1,
        "length": 0,
        "ratio": 0,
        "held-out": 5,
        "duplicate": 1,
    }
    assert found["splits"]["train"]["pairs"] == 700
    assert found["splits"]["test"]["name"] == "test_a"
    assert found["splits"]["test1"]["name"] == "test_b"
    assert set(found["outputs"]) == set(fresh) - {"manifest.json"}
    for name, facts in found["outputs"].items():
        assert facts["sha256"] == hashlib.sha256(fresh[name]).hexdigest()
    binarised = {name for name in fresh if name.startswith("bin/")}
    assert binarised == {"bin/dict.en.txt", "bin/dict.de.txt"} | {
        f"bin/{split}.en-de.{lang}.{kind}"
        for split in ("train", "valid", "test", "test1")
        for lang in ("en", "de")
        for kind in ("bin", "idx")
    }
    assert str(Path.cwd()) not in fresh["manifest.json"].decode()


def test_any_number_of_processes_gives_the_same_bytes(
    tmp_path: Path, local: list[object], fresh: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And needs no room but in the folder that the user names."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "full"))
    assert run(*local, "--output", tmp_path / "out", "--jobs", 3) == 0
    assert outputs(tmp_path / "out") == fresh


def test_finished_steps_are_skipped_and_options_redo_what_depends_on_them(
    tmp_path: Path, local: list[object], fresh: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"

    def steps(*more: object) -> dict[str, str]:
        capsys.readouterr()
        assert run(*local, "--output", out, "--jobs", 1, *more) == 0
        progress = capsys.readouterr().err.replace("\r", "\n").split("\n")
        told = [line.split(": ") for line in progress if line.endswith(("skipped", " s"))]
        return {name: "skipped" if "skipped" in state else "done" for name, state in told}

    first = steps()
    assert set(first.values()) == {"done"}
    assert outputs(out) == fresh
    assert set(steps().values()) == {"skipped"}
    changed = steps("--vocab-size", 190)
    assert changed == {name: "skipped" if name == "clean" else "done" for name in first}
    assert manifest(out)["options"]["vocab_size"] == 190
    # The length filter drops nothing here: the same text, so only the cleaning is done again.
    changed = steps("--vocab-size", 190, "--max-length", 200)
    assert changed == {name: "done" if name == "clean" else "skipped" for name in first}
    # A damaged result is made again.
    with open(out / "spm.model", "ab") as file:
        file.truncate(100)
    changed = steps("--vocab-size", 190, "--max-length", 200)
    assert changed == {name: "done" if name == "spm" else "skipped" for name in first}
    assert set(steps().values()) == {"done"}
    assert outputs(out) == fresh


def test_only_own_results_are_removed(tmp_path: Path, local: list[object]) -> None:
    # fairseq splits prefixes at commas.
    out = tmp_path / "a,b"
    others = ["raw/mine.en", "text/notes", "bin/checkpoints/last.pt"]
    for name in others:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("mine")
    left = out / "bin" / "train7.en-de.en.bin"
    left.write_text("of a run cut off")
    assert run(*local, "--output", out, "--jobs", 1, "--samples", 2) == 0
    assert not left.exists()
    second = out / "bin2" / "train.en-de.en.bin"
    assert second.exists()
    assert run(*local, "--output", out, "--jobs", 1) == 0
    assert not second.exists()
    assert all((out / name).read_text() == "mine" for name in others)
    assert all((out / name).exists() for name in manifest(out)["outputs"])


def test_a_corpus_in_a_result_folder_is_refused(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    languages = ("--src", "en", "--tgt", "de", "--output", tmp_path)
    for name in ("raw", "text/mine"):
        source = tmp_path / name
        shutil.copytree(folder, source)
        before = outputs(source)
        assert run("local", "--from-dir", source, *languages) == 1
        assert (
            f"is in {tmp_path / name.partition('/')[0]}: give another --output"
            in capsys.readouterr().err
        )
        assert outputs(source) == before


@pytest.mark.parametrize("name", ["raw", "text"])
@pytest.mark.parametrize("place", ["folder", "link to the folder", "link to a file"])
def test_a_corpus_file_does_not_lead_to_text_that_would_be_replaced(
    tmp_path: Path,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    place: str,
) -> None:
    """Its text lies beside it: as a result folder, behind one, or behind a file in one."""
    mine = tmp_path / (name if place == "folder" else "mine")
    shutil.copytree(folder, mine)
    if place == "link to the folder":
        (tmp_path / name).symlink_to(mine)
    elif place == "link to a file":
        (tmp_path / name).mkdir()
        (tmp_path / name / "valid.en").symlink_to(mine / "valid.en")
    (tmp_path / "my.yaml").write_text(f"source: en\ntarget: de\nfolder: {mine.name}\n")
    before = outputs(mine)
    output = tmp_path / "missing/.."
    output.parent.mkdir()
    assert run(tmp_path / "my.yaml", "--output", output, "--vocab-size", 200) == 1
    assert f"is in {output / name}: give another --output" in capsys.readouterr().err
    assert outputs(mine) == before
    assert (tmp_path / "my.yaml").exists()


def test_too_few_pairs_for_a_validation_set_are_told_before_the_download(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("iwslt14_de_en", "--output", tmp_path, "--dry-run", "--max-pairs")
    assert run(*words, 22) == 1
    assert (
        "--max-pairs 22 leaves no validation set, which has every 23th" in capsys.readouterr().err
    )
    assert run(*words, 23) == 0


@pytest.mark.parametrize("form", ["tmx", "tsv"])
def test_pairs_in_one_file(tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = list(zip(text("en", 300), text("de", 300), strict=True))
    for split, part in {"train": pairs, "valid": pairs[:3], "test3": pairs[5:7]}.items():
        if form == "tsv":
            content = "".join(f"{source}\t{target}\n" for source, target in part)
        else:
            units = "".join(
                f'<tu><tuv xml:lang="en"><seg>{source}</seg></tuv>'
                f'<tuv xml:lang="de"><seg>{target}</seg></tuv></tu>'
                for source, target in part
            ).replace("&", "&amp;")
            if split == "train":
                units += '<tu><tuv xml:lang="en"><seg>alone</seg></tuv></tu>'
            content = f'<tmx version="1.4"><header/><body>{units}</body></tmx>'
        (tmp_path / f"{split}.{form}.gz").write_bytes(gzip.compress(content.encode()))
    arguments = ("--src", "en", "--tgt", "de", "--vocab-size", 150, "--jobs", 1)
    assert run("local", "--from-dir", tmp_path, "--output", tmp_path / "out", *arguments) == 0
    assert read(tmp_path / "out" / "text" / "train.de") == [
        target for n, (_, target) in enumerate(pairs) if n not in (0, 1, 2, 5, 6)
    ]
    told = capsys.readouterr().out
    assert ("train: 1 units without both languages were left out" in told) == (form == "tmx")
    # The name of a test set is the user's, where it is one of fairseq's.
    assert "\ntest3 pairs" in told
    assert decoded(tmp_path / "out", "test3", "de", "en-de") == [pair[1] for pair in pairs[5:7]]


@pytest.mark.parametrize(
    ("tests", "names"),
    [
        (["test1", "test2"], ["test1", "test2"]),
        (["test", "test2", "test10"], ["test", "test2", "test10"]),
        (["test_a", "test_b"], ["test", "test1"]),
        (["test1", "a", "test3", "b", "c"], ["test1", "test", "test3", "test2", "test4"]),
        (["flickr", "test"], ["test1", "test"]),
        ([], []),
    ],
)  # fmt: skip
def test_a_test_set_keeps_a_name_of_fairseq(tests: list[str], names: list[str]) -> None:
    assert fairseq_names(tests) == dict(zip(names, tests, strict=True))


def test_no_name_of_a_file_need_be_utf_8(tmp_path: Path, folder: Path) -> None:
    home = tmp_path / os.fsdecode(b"\xff\xe9")
    shutil.copytree(folder, home / "raw")
    for language in ("en", "de"):
        name = os.fsdecode(b"test_b\xff." + language.encode())
        (home / f"raw/test_b.{language}").rename(home / "raw" / name)
    languages = ("--src", "en", "--tgt", "de", "--vocab-size", 200, "--jobs", 1)
    assert run("local", "--from-dir", home / "raw", "--output", home / "out", *languages) == 0
    assert manifest(home / "out")["splits"]["test1"]["name"] == os.fsdecode(b"test_b\xff")
    assert decoded(home / "out", "test1", "de", "en-de") == read(home / "out/raw/test1.de")


def test_every_test_set_of_a_local_folder_is_found(tmp_path: Path) -> None:
    """A name may have dots of its own, also beside the same name without."""
    for stem in ("train", "valid", "test", "test.2014"):
        for lang in ("en", "de"):
            (tmp_path / f"{stem}.{lang}").write_bytes(b"x\n")
    (tmp_path / "test.2015.tsv.gz").write_bytes(gzip.compress(b"x\ty\n"))
    found = corpus.local(tmp_path, "en", "de")
    assert {name: Path(part.target).name for name, (part,) in found.tests.items()} == {
        "test": "test.de",
        "test.2014": "test.2014.de",
        "test.2015": "test.2015.tsv.gz",
    }
    (tmp_path / "test.2014.de").unlink()
    with pytest.raises(
        UserError, match=r"as test\.2014\.en and test\.2014\.de, .* it has test\.2014\.en"
    ):
        corpus.local(tmp_path, "en", "de")


def test_the_demo_needs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    hashed: set[Path] = set()

    original = steps.sha256

    def sha256(path: Path) -> str:
        hashed.add(path.resolve())
        return original(path)

    monkeypatch.setattr(steps, "sha256", sha256)
    assert run("demo", "--output", out, "--vocab-size", 300, "--max-pairs", 1000, "--jobs", 1) == 0
    assert manifest(out)["splits"]["train"]["read"] == 1000
    assert decoded(out, "test", "de", "en-de") == read(out / "raw" / "test.de")
    assert hashed >= set((corpus.FOLDER / "demo").iterdir())


def test_a_dry_run_only_tells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("wmt14_en_de", "--output", tmp_path / "out", "--dry-run") == 0
    told = capsys.readouterr().out
    assert "https://www.statmt.org/wmt13/training-parallel-europarl-v7.tgz" in told
    assert "657,632,379 bytes" in told
    assert "bpe of 32000 pieces" in told
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_ends_as_other_commands_do_if_nobody_reads(tmp_path: Path) -> None:
    words = ["resmlp_mt.prepare", "wmt14_en_de", "--output", tmp_path / "out", "--dry-run"]
    reading, writing = os.pipe()
    os.close(reading)
    for streams in ({"stdout": writing, "stderr": subprocess.PIPE}, {"stderr": writing}):
        done = subprocess.run(
            [sys.executable, "-m", *words], cwd=ROOT, **{"stdout": subprocess.PIPE, **streams}
        )
        lost = "stdout" in streams
        assert done.returncode == (128 + signal.SIGPIPE if lost else 0)
        assert not done.stderr
        assert lost or done.stdout.startswith(b"wmt14_en_de: en -> de\n")
    os.close(writing)


def test_a_corpus_file_is_named_by_its_path(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(shutil.copy(corpus.FOLDER / "multi30k_en_de.yaml", tmp_path / "mine.yaml"))
    assert run(path, "--output", tmp_path / "out", "--dry-run") == 0
    assert capsys.readouterr().out.startswith("mine: en -> de\n")
    for unknown in ("mine", tmp_path / "other.yaml"):
        with pytest.raises(SystemExit, match="2"):
            run(unknown, "--output", tmp_path / "out", "--dry-run")
        assert "choose from demo, iwslt14_de_en" in capsys.readouterr().err


def test_data_of_another_corpus_are_not_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trained models need the dictionaries and the sentencepiece model there."""
    path = tmp_path / "out/manifest.json"
    path.parent.mkdir()
    written = {"corpus": "multi30k_en_de", "source_lang": "en", "target_lang": "de"}
    cleaned = path.parent / CLEANED  # of a run that was killed after it
    cleaned.parent.mkdir()
    cases = ((json.dumps(written), 1), ("{}", 0), ("[", 0))
    for file, content, status in [(file, *case) for case in cases for file in (path, cleaned)]:
        path.unlink(missing_ok=True)
        file.write_text(content)
        assert run("multi30k_en_de", "--output", path.parent, "--dry-run") == 0
        assert run("multi30k_en_fr", "--output", path.parent, "--dry-run") == status
        said = f"{path.parent} holds multi30k_en_de (en to de): choose another --output, or delete"
        assert (said in capsys.readouterr().err) == (status == 1)


@pytest.mark.parametrize("is_declared", [False, True])
def test_data_of_other_training_text_are_not_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], is_declared: bool
) -> None:
    """Of a corpus with the same name and languages; the files may also be packed since."""
    out = tmp_path / "out"

    def prepare_from(folder: Path) -> int:
        words: list[object] = ["local", "--from-dir", folder, "--src", "en", "--tgt", "de"]
        if is_declared:
            declared = folder.parent / f"{folder.name}_file" / "mine.yaml"
            declared.parent.mkdir(exist_ok=True)
            declared.write_text("source: en\ntarget: de\nfolder: text\n")
            link = declared.parent / "text"
            if not link.exists():
                link.symlink_to(folder)
            words = [declared]
        return run(*words, "--output", out, "--vocab-size", 120, "--jobs", 1)

    for name, first in (("one", 0), ("other", 300)):
        (tmp_path / name).mkdir()
        for split, count in {"train": 200, "valid": 3, "test": 3}.items():
            for lang in ("en", "de"):
                part = text(lang, first + count)[first:]
                (tmp_path / name / f"{split}.{lang}").write_bytes(lines(part))
    one, other, shared, packed = (tmp_path / name for name in ("one", "other", "shared", "packed"))
    shutil.copytree(other, shared)
    packed.mkdir()
    for path in one.iterdir():
        (packed / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        if path.stem != "train":
            shutil.copy(path, shared)
    assert prepare_from(one) == 0
    before = outputs(out)
    capsys.readouterr()
    for folder in (other, shared, packed, None):
        if folder is None:  # a later run of this text was killed after it was cleaned
            folder = other
            (out / "manifest.json").unlink()
            before = outputs(out)
        assert prepare_from(folder) == 1
        assert (
            f"{out} holds data made from other training files: choose another "
            "--output, or delete it first.\n"
        ) in capsys.readouterr().err
        assert outputs(out) == before
    path = one / "train.de"  # is repaired
    path.write_bytes(path.read_bytes()[:-1] + b" mehr\n")
    assert prepare_from(one) == 0
    assert outputs(out)["text/train.de"] != before["text/train.de"]


def test_data_of_another_archive_are_not_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """However often it is tried: its members are unpacked before they can be compared."""
    out, packed, path = tmp_path / "out", tmp_path / "packed", tmp_path / "news.yaml"
    packed.mkdir()

    def prepare_from(name: str) -> int:
        declared = {
            **{"source": "en", "target": "de", "valid_every": 50},
            "files": {"news": [{"urls": [f"https://a.example/{name}"]}]},
            "train": [{"source": "news:a.en", "target": "news:a.de"}],
        }
        path.write_text(yaml.safe_dump(declared))
        words = (path, "--from-dir", packed, "--output", out, "--vocab-size", 120, "--jobs", 1)
        return run(*words)

    for name, first in (("v1.tgz", 0), ("v2.tgz", 300)):
        members = {f"a.{lang}": lines(text(lang, first + 200)[first:]) for lang in ("en", "de")}
        (packed / name).write_bytes(corpus_server.tar(members))
    assert prepare_from("v1.tgz") == 0
    before = outputs(out)
    for _ in range(2):
        capsys.readouterr()
        assert prepare_from("v2.tgz") == 1
        assert f"{out} holds data made from other training files" in capsys.readouterr().err
        changed = {name for name, content in outputs(out).items() if before.get(name) != content}
        assert changed == {"checksums.json", "unpacked/news/a.de", "unpacked/news/a.en"}
    assert prepare_from("v1.tgz") == 0
    assert outputs(out) | {"checksums.json": before["checksums.json"]} == before


def test_a_second_run_in_the_same_folder_is_refused(
    tmp_path: Path, local: list[object], capsys: pytest.CaptureFixture[str]
) -> None:
    with files.locked(tmp_path / ".steps/lock", ""):
        assert run(*local, "--output", tmp_path) == 1
    assert "another run is using" in capsys.readouterr().err


def test_what_was_kept_and_dropped_is_told(
    tmp_path: Path, local: list[object], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(*local, "--output", out, "--jobs", 1, "--samples", 2) == 0
    told = capsys.readouterr()
    rows = dict(re.findall(r"^ *(.*?) +([\d,]+)(?: \(.*\))?$", told.out, flags=re.MULTILINE))
    assert rows["training pairs read"] == "707"
    assert rows["dropped: held-out"] == "5"
    assert rows["dropped: duplicate"] == "1"
    assert rows["training pairs kept"] == "700"
    assert (rows["test pairs"], rows["test1 pairs"]) == ("8", "9")
    assert f"{out}/bin:{out}/bin2, {out}/spm.model" in told.out
    assert "100%" in told.err[told.err.index("binarize: ") :]


def test_signs_that_sentencepiece_keeps_for_itself_lose_no_sentence(tmp_path: Path) -> None:
    """Its trainer leaves out every sentence with one of them: here that would be all."""
    raw = tmp_path / "raw"
    raw.mkdir()
    for split, count in {"train": 200, "valid": 3, "test": 3}.items():
        for lang in ("en", "de"):
            signs = [f"{line} \u2585\u2581" for line in text(lang, count)]
            (raw / f"{split}.{lang}").write_bytes(lines(signs))
    out = tmp_path / "out"
    arguments = ("--src", "en", "--tgt", "de", "--vocab-size", 120, "--jobs", 1)
    assert run("local", "--from-dir", raw, "--output", out, *arguments) == 0
    found = decoded(out, "test", "de", "en-de")
    assert found == [line.replace("\u2585\u2581", "\u2584_") for line in read(out / "raw/test.de")]
    assert sum(facts["unknown"] for facts in manifest(out)["tokens"].values()) == 0


@pytest.mark.parametrize(("code", "there"), [("zh-CN", "zh-CN"), ("zh_CN", "zh-CN"), ("pt", "pt")])
def test_language_codes_as_people_write_them(tmp_path: Path, code: str, there: str) -> None:
    """fairseq finds the languages of the files by itself."""
    raw = tmp_path / "raw"
    raw.mkdir()
    for split, count in {"train": 200, "valid": 3, "test": 3}.items():
        (raw / f"{split}.en").write_bytes(lines(text("en", count)))
        (raw / f"{split}.{there}").write_bytes(lines(text("de", count)))
    out = tmp_path / "out"
    arguments = ("--src", "en", "--tgt", code, "--vocab-size", 120, "--jobs", 1)
    assert run("local", "--from-dir", raw, "--output", out, *arguments) == 0
    source, target = data_utils.infer_language_pair(str(out / "bin"))
    assert (source, target) == ("en", code.replace("-", "_"))
    assert (out / "bin" / f"dict.{target}.txt").exists()
    assert decoded(out, "test", target, f"en-{target}") == read(out / "raw" / f"test.{target}")
    assert manifest(out)["target_lang"] == target


# Mistakes of the user


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "train.de.gz").unlink(), r"as train.en and train.de, .* it has train.en"),
        (
            lambda f: (f / "valid.en").write_bytes(b"one\n"),
            r"valid.en has 1 lines but .*valid.de has 30",
        ),
        (lambda f: (f / "train.en").write_bytes(b""), r"train.en and .*train.en.gz are all there"),
        (
            lambda f: (f / "valid.de").write_bytes(b"ok\n" * 20 + b"\xfc\n" + b"ok\n" * 9),
            r"valid.de, line 21: byte 0xfc at position 0 is not valid UTF-8",
        ),
        (
            lambda f: (f / "train.en.gz").write_bytes((f / "train.en.gz").read_bytes()[:-50]),
            r"train.en.gz: the gzip file is cut off or damaged",
        ),
        (
            lambda f: (f / "valid.en").unlink() or (f / "valid.de").unlink(),
            r"must hold 'valid' \(or dev, val, validation\) exactly",
        ),
    ],
    ids=["one side", "misaligned", "two files", "not UTF-8", "cut gzip", "no valid"],
)
def test_a_mistake_is_told_in_one_line(
    tmp_path: Path,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    spoil: Any,
    message: str,
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    spoil(copy)
    out = tmp_path / "out"
    arguments = ("--src", "en", "--tgt", "de", "--jobs", 1)
    assert run("local", "--from-dir", copy, "--output", out, *arguments) == 1
    [line] = [line for line in capsys.readouterr().err.split("\n") if "error" in line]
    assert re.search(message, line)
    assert not (out / "manifest.json").exists()
    assert not list(out.rglob(".*.????????"))


@pytest.mark.parametrize(
    "arguments",
    [
        ["local", "--output", "x"],
        ["wmt14_en_de", "--output", "x", "--src", "en"],
        ["nothing", "--output", "x"],
        ["local", "--output", "x", "--from-dir", "x", "--src", "en", "--tgt", "zh.CN"],
        ["local", "--output", "x", "--from-dir", "x", "--src", "zh-CN", "--tgt", "zh_CN"],
        ["local", "--output", "x", "--from-dir", "x", "--src", "en-de", "--tgt", "de"],
    ],
)
def test_wrong_options_end_with_usage(arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(*arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--sentencepiece-alpha 0.1", "--sentencepiece-alpha is for --samples: add it"),
        ("--concatenate-share 0.5", "--concatenate-share is for --concatenate N"),
        ("--concatenate 1 --concatenate-share 0.5", "with N above 1: add it"),
        ("--concatenate 9 --max-length 8", "--concatenate 9 is above --max-length 8"),
    ],
)
def test_options_without_effect_are_refused(
    options: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        run("demo", "--output", "x", "--dry-run", *options.split())
    assert message in capsys.readouterr().err


def test_options_that_belong_together_are_taken() -> None:
    words = ["demo", "--output", "x", "--samples", "2", "--concatenate", "3"]
    found = parse_args([*words, "--sentencepiece-alpha", "0.3", "--concatenate-share", "0.4"])
    assert (found.sentencepiece_alpha, found.concatenate_share) == (0.3, 0.4)
    found = parse_args(words)
    assert (found.sentencepiece_alpha, found.concatenate_share) == (0.1, 0.5)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--max-ratio", "nan"),
        ("--max-ratio", "inf"),
        ("--max-ratio", "x"),
        ("--jobs", "0"),
        ("--jobs", "x"),
        ("--max-ratio", "0.5"),
        ("--character-coverage", "nan"),
        ("--character-coverage", "0.0"),
        ("--character-coverage", "1.5"),
    ],
)
def test_numbers_out_of_range_name_their_option(
    option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        run("demo", "--output", "x", option, value)
    told = capsys.readouterr().err
    assert re.search(rf"argument {option}: (must be .*, but is {value}|invalid .*'{value}')", told)


# Interruptions


def script(*arguments: object, **options_: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        **options_,
    )


STOP = """
import os, signal, sys, tqdm
from resmlp_mt import files, prepare
stop_at, number = int(sys.argv[1]), getattr(signal, sys.argv[2])
calls, replace = 0, os.replace
def stopping(*paths):
    global calls
    calls += 1
    # a monitor of tqdm would take a signal while a process is started, which then tells of it
    assert tqdm.tqdm.monitor_interval == 0
    if calls == stop_at:
        os.kill(os.getpid(), number)
    replace(*paths)
os.replace = stopping
prepare.main(sys.argv[3:])
"""


def test_a_run_killed_again_and_again_gives_the_same_in_the_end(
    tmp_path: Path, local: list[object], fresh: dict[str, bytes]
) -> None:
    """Killed just before a result gets its name, at a later point each time."""
    out = tmp_path / "out"
    driver = tmp_path / "stop.py"
    driver.write_text(STOP)
    kills = 0
    for stop_at in (1, 4, 9, 12, 14, 20):
        done = script(driver, stop_at, "SIGKILL", *local, "--output", out, "--jobs", 1)
        kills += done.returncode == -signal.SIGKILL
        assert not (out / "manifest.json").exists() or done.returncode == 0
    assert kills >= 4
    # What such runs can leave: hidden files that were not finished, and blocks of ids.
    (out / ".steps" / "bin.left").mkdir()
    (out / ".steps" / ".words.abcd1234").mkdir()
    (out / ".steps" / ".clean.json.abcd1234").touch()
    assert run(*local, "--output", out, "--jobs", 1) == 0
    assert outputs(out) == fresh
    assert not list(out.rglob(".*.????????"))
    assert not list((out / ".steps").glob("bin.*"))


def test_a_terminated_run_cleans_up(tmp_path: Path, local: list[object]) -> None:
    out = tmp_path / "out"
    driver = tmp_path / "stop.py"
    driver.write_text(STOP)
    done = script(driver, 15, "SIGTERM", *local, "--output", out, "--jobs", 1)
    assert done.returncode == 128 + signal.SIGTERM
    assert "interrupted; the same command continues" in done.stderr
    assert not list(out.rglob(".*.????????"))
    record = json.loads((out / ".steps" / "clean.json").read_text())
    assert "key" not in record or (out / "text" / "train.en").exists()


def test_a_full_disk_is_told_and_the_run_goes_on_later(
    tmp_path: Path, local: list[object], fresh: dict[str, bytes]
) -> None:
    out = tmp_path / "out"
    # The kernel refuses to write files above this size, in the middle of text/train.*.
    limit = len(fresh["text/train.en"]) // 2

    def small_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = script(SCRIPT, *local, "--output", out, "--jobs", 1, preexec_fn=small_disk)
    assert done.returncode == 1
    assert "no space left for" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(out.rglob(".*.????????"))
    assert not (out / "text" / "train.en").exists()
    assert run(*local, "--output", out, "--jobs", 1) == 0
    assert outputs(out) == fresh
