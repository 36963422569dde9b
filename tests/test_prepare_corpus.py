"""Declarations of corpora: what they may say, and that nothing else comes of them."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path
from typing import Any

import pytest
import yaml

from resmlp_mt.errors import UserError
from resmlp_mt.preparation import corpus, sources
from resmlp_mt.preparation.steps import Steps
from tests.corpus_server import tar

GOOD = {
    "source": "en",
    "target": "de",
    "files": {"news": [{"urls": ["https://a.example/news.tgz"], "size": 12}]},
    "train": [{"source": "news:a.en", "target": "news:a.de", "lines": 3}],
    "tests": {"t": [{"source": "news:t.en", "target": "news:t.de"}]},
    "valid_every": 5,
}


def load(tmp_path: Path, content: bytes | str) -> corpus.Corpus:
    path = tmp_path / "mine.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return corpus.load(path)


def changed(*keys: Any, value: Any) -> str:
    """The good declaration with one value changed."""
    content: Any = yaml.safe_load(yaml.safe_dump(GOOD))
    inner = content
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    return yaml.safe_dump(content)


def addressed(*names: str) -> str:
    """The good declaration with other packages of its file."""
    urls = [{"urls": [f"https://a.example/{name}"]} for name in names]
    return changed("files", "news", value=urls)


@pytest.mark.parametrize("name", ["x.tar.bz2", "x.tar.xz", "x.TGZ", "x.ZIP?raw=1", "x.txz"])
def test_archives_of_all_kinds_may_be_declared(tmp_path: Path, name: str) -> None:
    assert load(tmp_path, addressed(name)).files["news"][0].file_name == name.partition("?")[0]


def test_numbers_are_numbers_and_norwegian_is_a_language(tmp_path: Path) -> None:
    found = load(tmp_path, yaml.safe_dump(GOOD).replace("source: en", "source: no"))
    assert (found.source, found.target, found.valid_every) == ("no", "de", 5)
    assert load(tmp_path, changed("target", value="zh-CN")).target == "zh_CN"  # as in file names
    assert found.train == (corpus.Part("news:a.en", "news:a.de", lines=3),)
    assert found.files["news"][0].size == 12


LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{new}: &{new} [*{old}, *{old}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)

TWICE = yaml.safe_dump(
    {
        **{"source": "en", "target": "de", "valid_every": 9},
        "files": {side: [{"urls": [f"http://{side}.example/all.gz"]}] for side in ("a", "b")},
        "train": [{"source": "a", "target": "b"}],
    }
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("source: München".encode("latin-1"), "is not UTF-8"),
        (LAUGHS, "is not valid YAML: line 2: an alias"),
        ("source: &a en\ntarget: *a\n", "is not valid YAML: line 2: an alias"),
        ("[" * 5000, "is not valid YAML: "),
        ("source: " + "[" * 900 + "]" * 900, "source must be a text|too deeply nested"),
        ("a: b: c", "is not valid YAML"),
        ("\x00", "is not valid YAML"),
        ("x: [" + "a, " * 300_000 + "]", "has over 100000 bytes"),
        ("", "the file must be a mapping"),
        ("- a", "the file must be a mapping"),
        (changed("licence", value=[1]), "licence must be a text"),
        (changed("source", value="../x"), "'../x' is not a language code"),
        (changed("target", value="e/n"), "'e/n' is not a language code"),
        (changed("train", 0, "lines", value=10**30), "lines must be a positive number"),
        (changed("train", 0, "lines", value="9" * 5000), "lines must be a positive number"),
        (changed("train", 0, "lines", value=-1), "lines must be a positive number"),
        (changed("train", 0, "lines", value="2024-13-45"), "lines must be a positive number"),
        (changed("train", 0, "source", value="news:../../etc/passwd"), "without '..'"),
        (changed("train", 0, "source", value="news:/etc/passwd"), "without '..'"),
        (changed("train", 0, "source", value="news:"), "must name a member"),
        (changed("train", 0, "source", value="/etc/passwd"), "names none of the files"),
        (changed("train", 0, "source", value=3), "'3' names none of the files"),
        (changed("train", 0, "formt", value="sgm"), "unexpected keyword argument 'formt'"),
        (changed("train", value="news"), "a part must be a mapping"),
        (changed("valid_every", value="often"), "valid_every must be a positive number"),
        (changed("valid_every", value=0), "valid_every must be a positive number"),
        (changed("character_coverage", value="nan"), "character_coverage must be above 0"),
        (changed("character_coverage", value="much"), "could not convert string to float"),
        (changed("files", value={"../up": GOOD["files"]["news"]}), "'../up' is not a plain file"),  # type: ignore[index]
        (changed("files", "news", 0, "urls", value=["file:///etc/passwd"]), "is not an address"),
        (changed("files", "news", 0, "urls", value=["http://a.example/.."]), "'..' is not a plain"),
        (changed("files", "news", 0, "urls", value=["https://a.example/"]), "'' is not a plain"),
        (changed("files", "news", 0, "urls", value=[]), "urls must be a list"),
        (changed("files", "news", 0, "urls", value="https://a.example/x"), "urls must be a list"),
        (changed("files", "news", 0, "sha256", value="abc"), "sha256 must be 64"),
        (changed("files", "news", 0, "size", value="1e9"), "size must be a positive number"),
        (TWICE, "all.gz is the file name of more than one package"),
        (changed("generator", value={"module": "os"}), "generator is no longer run"),
        (changed("folder", value="x"), "folder stands in place of files, tests, train"),
        ("{source: en, target: de, folder: ../x}", "'../x' is not a plain file name"),
        ("{source: en, target: de, folder: /etc}", "'/etc' is not a plain file name"),
        ("{source: en, target: de, folder: x}", "x is not a folder"),
        (changed("surprise", value=1), "unexpected keyword argument 'surprise'"),
        (changed("train", value=[]), "'train' is missing"),
        (changed("files", "more", value=GOOD["files"]["news"]), "no part names the file 'more'"),  # type: ignore[index]
        (changed("valid", value=GOOD["train"]), "must be valid or valid_every, and not both"),
        (changed("valid_everyy", value=5).replace("valid_every:", "#"), "valid or valid_every"),
        (changed("train", 0, "format", value="tsv"), "tsv has both languages in one file: .*same"),
        (changed("tests", "t", 0, "format", value="tmx"), "tmx has both languages in one file"),
        (yaml.safe_dump(GOOD) + "train: []\n", "is not valid YAML: line .*: train occurs more"),
        ("source: en\ntests:\n  a: []\n  b: []\n  a: []\n", "line 5: a occurs more than once"),
        (changed("train", 0, "source", value="news"), "news.tgz is an archive: name a member"),
        (changed("train", 0, "source", value="news:a.bz2"), "'news:a.bz2' is packed, as a.bz2"),
        (changed("train", 0, "source", value="news:a.ZIP"), "'news:a.ZIP' is packed, as a.ZIP"),
        (addressed("download.php?f=x.zip"), "the address ends in 'download.php', not in .tgz"),
        (addressed("news.tgz", "news.gz"), "the address ends in 'news.gz', not in .tgz"),
        (addressed("news.7z"), "the address ends in 'news.7z', not in .tgz"),
        (addressed("a.en.xz").replace("news:a.en", "news"), "'news' is packed, as a.en.xz: of"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_sentence(
    tmp_path: Path, content: bytes | str, message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load(tmp_path, content)
    assert str(tmp_path / "mine.yaml") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("code", "files"),
    [("en", "en"), ("zh-CN", "zh_CN"), ("pt_BR", "pt_BR"), ("zh-Hant-TW", "zh_Hant_TW")],
)
def test_language_codes(code: str, files: str) -> None:
    assert corpus.file_code(code) == files


@pytest.mark.parametrize("code", ["", "en de", "e.n", "en/..", "en,de", "-en", "zh--CN", "en\n"])
def test_other_codes_are_refused(code: str) -> None:
    with pytest.raises(UserError, match="is not a language code: use letters and digits"):
        corpus.file_code(code)


@pytest.mark.parametrize("there", ["zh-CN", "zh_CN", "zh", "ZH", "zho_Hans"])
@pytest.mark.parametrize("code", ["zh-CN", "zh_CN", "zh-cn", "zh"])
def test_files_of_every_spelling_are_found(tmp_path: Path, there: str, code: str) -> None:
    for split in ("train", "valid", "test", "test.b"):
        for language in ("en", there, "fr"):
            (tmp_path / f"{split}.{language}").write_bytes(b"x\n")
    found = corpus.local(tmp_path, "en", code)
    assert (found.source, found.target) == ("en", corpus.file_code(code))
    assert Path(found.train[0].target).name == f"train.{there}"
    assert list(found.tests) == ["test", "test.b"]


@pytest.mark.parametrize(
    ("code", "others"), [("zh-TW", ["zh"]), ("zh-CN", ["zh_CN", "ZH_CN"]), ("en-de", ["de", "fr"])]
)
def test_files_that_do_not_fit_are_named(tmp_path: Path, code: str, others: list[str]) -> None:
    for language in ("en", *others):
        for split in ("train", "valid"):
            (tmp_path / f"{split}.{language}").write_bytes(b"x\n")
    there = ", ".join(sorted(f"train.{language}" for language in ("en", *others)))
    with pytest.raises(UserError, match=f"as train.en and train.{code}, .*; it has {there}$"):
        corpus.local(tmp_path, "en", code)


def test_what_is_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"; it has no files$"):
        corpus.local(tmp_path, "en", "de")
    for language in ("en", "de"):
        for split in ("train", "tune"):
            (tmp_path / f"{split}.{language}").write_bytes(b"x\n")
    there = "train.de, train.en, tune.de, tune.en"
    with pytest.raises(
        UserError, match=f"'valid' .*exactly once, .*; it has nothing of it, but {there}$"
    ):
        corpus.local(tmp_path, "en", "de")
    (tmp_path / "train.de").rename(tmp_path / "train.de.xz")
    with pytest.raises(UserError, match=r"'train' .*; it has train\.de\.xz, train\.en$"):
        corpus.local(tmp_path, "en", "de")


@pytest.mark.parametrize("name", ["dev", "val", "validation", "Dev"])
def test_the_validation_set_has_other_names(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", name, "test"):
        for language in ("en", "de"):
            (tmp_path / f"{split}.{language}").write_bytes(b"x\n")
    found = corpus.local(tmp_path, "en", "de")
    assert found.valid == (corpus.Part(*(str(tmp_path / f"{name}.{x}") for x in ("en", "de"))),)
    assert list(found.tests) == ["test"]
    assert capsys.readouterr().err == ""


def test_what_is_not_used_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Training text is not left out without a word."""
    for split in ("train", "train.part2", "valid", "dev"):
        for language in ("en", "de"):
            (tmp_path / f"{split}.{language}").write_bytes(b"x\n")
    for name in ("README.md", ".train.en.swp", "train.fr", "train.html"):
        (tmp_path / name).touch()
    for name in ("more.en.xz", "old.tmx.bz2", "train.de.part2", "train2.en.bz2"):
        (tmp_path / name).touch()
    assert corpus.local(tmp_path, "en", "de").valid[0].source.endswith("valid.en")
    names = (
        "dev.de, dev.en, more.en.xz, old.tmx.bz2, train.de.part2, train.part2.de, train.part2.en, "
        "train2.en.bz2"
    )
    assert capsys.readouterr().err == (
        f"prepare: warning: {tmp_path} also has {names}: only train, valid and test* are used\n"
    )


def test_packed_files_may_end_in_capitals(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        for language in ("en", "de"):
            (tmp_path / f"{split}.{language}.GZ").write_bytes(gzip.compress(b"x\n"))
    found = corpus.local(tmp_path, "en", "de")
    assert found.train[0].source.endswith("train.en.GZ")


def test_test_sets_are_in_their_natural_order(tmp_path: Path) -> None:
    for stem in ("train", "valid", "test10", "test2", "test", "test_b"):
        for language in ("en", "de"):
            (tmp_path / f"{stem}.{language}").write_bytes(b"x\n")
    found = list(corpus.local(tmp_path, "en", "de").tests)
    assert found == ["test", "test2", "test10", "test_b"]


def test_of_many_files_nine_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for stem in ("train", "valid", *map(str, range(1, 8))):
        for language in ("en", "de"):
            (tmp_path / f"{stem}.{language}").write_bytes(b"x\n")
    corpus.local(tmp_path, "en", "de")
    assert ", 5.de and 5 more: only train" in capsys.readouterr().err


def test_one_file_is_not_both_sides(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        (tmp_path / f"{split}.zh").write_bytes(b"x\n")
    with pytest.raises(UserError, match=r"; it has train.zh$"):
        corpus.local(tmp_path, "zh-CN", "zh_Hans")


def test_files_with_training_text_are_known(tmp_path: Path) -> None:
    """By their own digests, not those of their members, and in the packing that was taken."""
    packed = {"news.tgz": "ab", "dev.tgz": "d", "c.de.gz": ""}
    for name, members in packed.items():
        content = {f"{member}.{lang}": b"x\n" for member in members for lang in ("en", "de")}
        (tmp_path / name).write_bytes(tar(content) if content else gzip.compress(b"x\n"))
    urls = {"news": ["news.zip", "news.tgz"], "dev": ["dev.tgz"], "c": ["c.de.gz"]}
    declared = {
        "source": "en",
        "target": "de",
        "files": {
            name: [{"urls": [f"https://a.example/{file}"]} for file in files]
            for name, files in urls.items()
        },
        "train": [
            {"source": "news:a.en", "target": "news:a.de"},
            {"source": "news:b.en", "target": "c"},
        ],
        "valid": [{"source": "dev:d.en", "target": "dev:d.de"}],
    }
    out = tmp_path / "out"
    (out / ".steps").mkdir(parents=True)
    found = sources.gather(
        load(tmp_path, yaml.safe_dump(declared)), out, tmp_path, Steps(out, out / "manifest.json")
    )
    assert found.training == {
        hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
        for name in ("news.tgz", "c.de.gz")
    }
    assert found.training < {facts["sha256"] for facts in found.manifest.values()}
