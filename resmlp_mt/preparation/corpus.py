"""Corpora: the declarations in `corpora/*.yaml`, and a user's own folder."""

import re
import sys
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import urlsplit

from resmlp_mt import language_codes
from resmlp_mt.errors import UserError
from resmlp_mt.preparation import archives
from resmlp_mt.preparation.formats import LINE_FORMATS, PAIR_FORMATS

FOLDER = Path(__file__).parent / "corpora"
_GZ = re.compile(r"\.gz$", re.IGNORECASE)
VALID = ("valid", "dev", "val", "validation")
"""Names of the validation set in a folder; the first that is there counts."""

T = TypeVar("T")
KINDS: dict[type, str] = {dict: "a mapping of keys to values", list: "a list", str: "a text"}
"""What is expected of a value, for messages."""


@dataclass(frozen=True)
class Package:
    """One downloadable form of a file: the same bytes at every URL."""

    urls: tuple[str, ...]
    size: int | None = None
    sha256: str | None = None
    md5: str | None = None

    @property
    def file_name(self) -> str:
        return PurePosixPath(urlsplit(self.urls[0]).path).name


@dataclass(frozen=True)
class Part:
    """Aligned text: `source` and `target` are `file` or `file:member`, local paths for `local`."""

    source: str
    target: str
    format: str = "plain"
    lines: int | None = None


@dataclass(frozen=True)
class Corpus:
    """A parallel corpus.

    Attributes:
        files: the packages of each file, for example a `.tgz` and a `.zip` with the same members;
            the first available one is taken.
        valid_every: every n-th training pair is held out for validation, if there is no `valid`.
        character_coverage: share of the characters that get a piece of their own; below 1 for text
            from the web, where thousands of stray characters would fill the vocabulary.
    """

    name: str
    source: str
    target: str
    licence: str = ""
    citation: str = ""
    files: Mapping[str, tuple[Package, ...]] = field(default_factory=dict)
    train: tuple[Part, ...] = ()
    valid: tuple[Part, ...] = ()
    tests: Mapping[str, tuple[Part, ...]] = field(default_factory=dict)
    valid_every: int | None = None
    character_coverage: float = 1.0

    @property
    def parts(self) -> tuple[Part, ...]:
        return (
            *self.train,
            *self.valid,
            *(part for parts in self.tests.values() for part in parts),
        )


def names() -> list[str]:
    """Names of the declared corpora."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def declaration(corpus: str) -> Path:
    """The corpus file that a name or a path means."""
    return Path(corpus) if corpus.endswith(".yaml") else FOLDER / f"{corpus}.yaml"


def file_code(language: str) -> str:
    """A language code for file names: `zh_CN` for `zh-CN`.

    fairseq splits the languages of `train.en-zh_CN.en.idx` at the hyphen.

    Raises:
        UserError: it has other characters than letters, digits, hyphens and underscores.
    """
    if not re.fullmatch(r"[A-Za-z0-9]+([-_][A-Za-z0-9]+)*", language):
        raise UserError(
            f"{language!r} is not a language code: use letters and digits, as in en, pt-BR, zh_Hans"
        )
    return language.replace("-", "_")


def load(path: Path) -> Corpus:
    """The corpus declared in `path`.

    Raises:
        UserError: invalid YAML, an unknown or missing key, a value of the wrong type, a name that
            leads out of the folder, a part of an undeclared file, two files with one name.
    """
    from resmlp_mt import yaml_files  # here, because --help needs no YAML

    content = yaml_files.read_corpus(path)
    try:
        corpus = _corpus(path, content)
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise UserError(
            f"{path}: {reason}; docs/data.md lists the keys of a corpus file"
        ) from error
    stored = Counter(package.file_name for forms in corpus.files.values() for package in forms)
    twice = sorted(name for name, count in stored.items() if count > 1)
    if twice:
        raise UserError(
            f"{path}: {', '.join(twice)} is the file name of more than one package: "
            "downloads need names of their own"
        )
    return corpus


def _corpus(path: Path, content: Any) -> Corpus:
    """A corpus from a declaration of texts, lists and mappings, after checks.

    Raises:
        TypeError, KeyError, AttributeError, ValueError: saying what is wrong.
    """
    fields = dict(_typed(content, dict, "the file"))
    if "generator" in fields:
        raise ValueError("generator is no longer run: write its text into a folder, for folder")
    instead = {"files", "train", "valid", "tests", "valid_every"} & fields.keys()
    if "folder" in fields and instead:
        raise ValueError(f"folder stands in place of {', '.join(sorted(instead))}")
    for key in ("source", "target"):
        fields[key] = file_code(_typed(fields[key], str, key))
    for key in ("licence", "citation"):
        fields[key] = _typed(fields.get(key, ""), str, key)
    fields["files"] = {
        _plain_name(file, "files"): tuple(_package(package) for package in packages)
        for file, packages in _typed(fields.get("files", {}), dict, "files").items()
    }
    for split in ("train", "valid"):
        fields[split] = _parts(fields.get(split, ()), fields["files"])
    if "folder" not in fields:
        if not fields["train"]:
            raise KeyError("train")
        if bool(fields["valid"]) == ("valid_every" in fields):
            raise ValueError("there must be valid or valid_every, and not both")
    fields["tests"] = {
        test: _parts(parts, fields["files"])
        for test, parts in _typed(fields.get("tests", {}), dict, "tests").items()
    }
    if "valid_every" in fields:
        fields["valid_every"] = _number(fields["valid_every"], "valid_every")
    if "character_coverage" in fields:
        fields["character_coverage"] = float(fields["character_coverage"])
        if not 0 < fields["character_coverage"] <= 1:
            raise ValueError("character_coverage must be above 0 and at most 1")
    if "folder" in fields:
        folder = path.parent / _plain_name(_typed(fields.pop("folder"), str, "folder"), "folder")
        text = local(folder, fields["source"], fields["target"])
        fields |= {"train": text.train, "valid": text.valid, "tests": text.tests}
    corpus = Corpus(name=path.stem, **fields)
    named = {side.partition(":")[0] for part in corpus.parts for side in (part.source, part.target)}
    if unused := sorted(set(corpus.files) - named):
        raise ValueError(f"no part names the file {unused[0]!r}: leave it out")
    return corpus


def _package(declared: Any) -> Package:
    fields = dict(_typed(declared, dict, "a package"))
    fields["urls"] = tuple(_typed(url, str, "urls") for url in _typed(fields["urls"], list, "urls"))
    for url in fields["urls"]:
        if urlsplit(url).scheme not in ("http", "https"):
            raise ValueError(f"{url!r} is not an address that begins with http:// or https://")
    if "size" in fields:
        fields["size"] = _number(fields["size"], "size")
    for kind, digits in (("sha256", 64), ("md5", 32)):
        if kind in fields and not re.fullmatch(rf"[0-9a-f]{{{digits}}}", str(fields[kind])):
            raise ValueError(f"{kind} must be {digits} hexadecimal digits, in lower case")
    package = Package(**fields)
    _plain_name(package.file_name, "urls")
    return package


def _parts(declared: Any, files: Mapping[str, tuple[Package, ...]]) -> tuple[Part, ...]:
    return tuple(_part(part, files) for part in declared)


def _part(declared: Any, files: Mapping[str, tuple[Package, ...]]) -> Part:
    fields = dict(_typed(declared, dict, "a part"))
    for key in ("source", "target", "format"):
        if key in fields:
            fields[key] = _typed(fields[key], str, key)
    for key in ("source", "target"):
        file, colon, member = fields[key].partition(":")
        path = PurePosixPath(member)
        if colon and (not member or path.is_absolute() or ".." in path.parts or "\\" in member):
            raise ValueError(f"{fields[key]!r} must name a member inside {file}, without '..'")
        if file not in files:
            raise ValueError(f"{fields[key]!r} names none of the files {sorted(files)}")
        for package in files[file]:
            _check_packing(fields[key], package.file_name)
    if "lines" in fields:
        fields["lines"] = _number(fields["lines"], "lines")
    part = Part(**fields)
    if part.format not in (*LINE_FORMATS, *PAIR_FORMATS):
        raise ValueError(f"unknown format {part.format!r}")
    if part.format in PAIR_FORMATS and part.source != part.target:
        raise ValueError(
            f"{part.format} has both languages in one file: {part.source!r} and {part.target!r} "
            "must be the same"
        )
    return part


def _check_packing(named: str, package: str) -> None:
    """Check, before anything is fetched, that a package can have the text that a part names.

    Raises:
        ValueError: it cannot.
    """
    file, _, member = named.partition(":")
    if archives.is_archive(package) and not member:
        raise ValueError(f"{package} is an archive: name a member of it, {file}:MEMBER")
    if member and not archives.is_archive(package):
        raise ValueError(
            f"{named!r} is a member of an archive, but the address ends in {package!r}, not in "
            f"{', '.join(archives.NAMES)}"
        )
    text = PurePosixPath(member or package)
    if archives.is_archive(text.name) or text.suffix.lower() in archives.OTHERS:
        raise ValueError(
            f"{named!r} is packed, as {text.name}: of single files, only .gz is unpacked"
        )


def _typed(value: Any, kind: type[T], name: str) -> T:
    if not isinstance(value, kind) or value == []:
        raise TypeError(f"{name} must be {KINDS[kind]}")
    return value


def _number(value: Any, name: str) -> int:
    if not (isinstance(value, str) and re.fullmatch(r"[0-9]{1,18}", value) and int(value) > 0):
        raise ValueError(f"{name} must be a positive number, not {str(value)[:40]!r}")
    return int(value)


def _plain_name(name: str, key: str) -> str:
    if not re.fullmatch(r"[\w-][\w.+-]*", name):
        raise ValueError(f"{key}: {name!r} is not a plain file name")
    return name


def local(folder: Path, source: str, target: str) -> Corpus:
    """The corpus in a folder: `train.*`, `valid.*` (or `dev.*`, ...) and any number of `test*.*`.

    Each split is a pair of files (`train.en[.gz]`, `train.de[.gz]`) or one `.tmx[.gz]` or
    `.tsv[.gz]`. The languages may be spelt otherwise in the names of the files, and the splits in
    capitals. Other files whose names have one of the languages, or a format, are named.

    Raises:
        UserError: a missing split or side, or several files for one.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: it must hold the text of the corpus")
    splits = _splits(folder)
    languages = source, target

    def split(stem: str) -> tuple[Part, ...]:
        return _local_split(folder, stem, splits.get(stem, {}), languages)

    known = sorted(
        stem
        for stem, files in splits.items()
        if any(form in files for form in (*PAIR_FORMATS, *_matches(files, languages)))
    )
    tests = sorted((stem for stem in known if stem.startswith("test")), key=_natural)
    valid = next((stem for stem in VALID if stem in known), VALID[0])
    found = Corpus(
        name="local",
        source=file_code(source),
        target=file_code(target),
        train=split("train"),
        valid=split(valid),
        tests={stem: split(stem) for stem in tests},
    )
    used = {file for part in found.parts for file in (part.source, part.target)}
    others = [
        path.name
        for path in _files(folder)
        if str(path) not in used
        and (_matches(ends := path.name.split(".")[1:], languages) or {*PAIR_FORMATS} & {*ends})
    ]
    if others:
        more = f" and {len(others) - 9} more" if len(others) > 9 else ""
        names = ", ".join(others[:9])
        warn(f"{folder} also has {names}{more}: only train, {valid} and test* are used")
    return found


def _natural(name: str) -> list[str | int]:
    """A key that sorts test2 before test10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and path.name[0] != ".")


def _splits(folder: Path) -> dict[str, dict[str, list[Path]]]:
    """The files of a folder, by the parts of their names: `train.en.gz` is under train and en."""
    splits: dict[str, dict[str, list[Path]]] = {}
    for path in _files(folder):
        stem, _, extension = _GZ.sub("", path.name).rpartition(".")
        splits.setdefault(stem.lower(), {}).setdefault(extension, []).append(path)
    return splits


def _matches(files: Collection[str], languages: tuple[str, str]) -> list[str]:
    """The extensions that mean the languages; of both, or of one, or none."""
    codes = [extension for extension in files if extension not in PAIR_FORMATS]
    return [found for code in languages if (found := language_codes.find(code, codes))]


def _local_split(
    folder: Path, stem: str, files: Mapping[str, list[Path]], languages: tuple[str, str]
) -> tuple[Part, ...]:
    sides = _matches(files, languages)
    forms = [form for form in PAIR_FORMATS if form in files]
    for paths in map(files.__getitem__, [*sides, *forms]):
        if len(paths) > 1:
            raise UserError(f"{' and '.join(map(str, paths))} are all there: keep one")
    everything = [path.name for path in _files(folder)]
    there = ", ".join(name for name in everything if name.lower().startswith(f"{stem}."))
    if not there:
        there = f"nothing of it, but {', '.join(everything[:9])}" if everything else "no files"
    if len(set(sides)) == 2 and not forms:
        return (Part(str(files[sides[0]][0]), str(files[sides[1]][0])),)
    if len(forms) == 1 and not sides:
        return (Part(str(files[forms[0]][0]), str(files[forms[0]][0]), forms[0]),)
    names = f" (or {', '.join(VALID[1:])})" if stem in VALID else ""
    raise UserError(
        f"{folder} must hold '{stem}'{names} exactly once, as {stem}.{languages[0]} and "
        f"{stem}.{languages[1]}, {stem}.tmx or {stem}.tsv (each also .gz); it has {there}"
    )


def warn(message: str) -> None:
    """Print a warning about the text of a corpus."""
    print(f"prepare: warning: {message}", file=sys.stderr)
