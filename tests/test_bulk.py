"""Corpora in parts: every line once and in order, whatever is killed, stopped or damaged."""

import gzip
import json
import logging
import os
import random
import re
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pyarrow
import pyarrow.parquet
import pytest
import ray.data
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import ROOT
from models import build, translation_model
from resmlp_mt import bulk
from resmlp_mt.engine import digests, model_folder, pretrained
from resmlp_mt.engine.folding import fold
from resmlp_mt.engine.options import SearchOptions
from resmlp_mt.engine.translation import Translation
from resmlp_mt.engine.translator import Translator
from resmlp_mt.errors import UserError
from resmlp_mt.sharding import manifest, parts, ray_data
from resmlp_mt.sharding.formats import format_of
from resmlp_mt.sharding.manifest import Manifest, Record, locked
from resmlp_mt.sharding.parts import CorpusFile

KINDS = ["a.en", "a.en.gz", "a.jsonl", "a.jsonl.gz", "a.parquet"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with random weights, which translates words."""
    folder = tmp_path_factory.mktemp("bulk") / "model"
    model_folder.save(translation_model(fold(build(max_source_positions=40).float())), folder)
    return folder


def lines_of(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [
        " ".join(f"w{rng.randrange(16)}" for _ in range(rng.randint(1, 9))) for _ in range(count)
    ]


def write(path: Path, lines: list[str]) -> None:
    """A corpus in the form that the name says; records have a number and their text."""
    rows = [{"n": number, "text": line} for number, line in enumerate(lines)]
    if path.suffix == ".parquet":
        table = pyarrow.Table.from_pylist(rows, pyarrow.schema({"n": "int64", "text": "string"}))
        pyarrow.parquet.write_table(table, path, row_group_size=4)
        return
    if ".jsonl" in path.name:
        lines = [json.dumps(row) for row in rows]
    content = "".join(line + "\n" for line in lines).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def read(paths: list[Path]) -> list[dict]:
    """The rows of output files, one after the other."""
    rows = []
    for path in paths:
        if path.suffix == ".parquet":
            rows += pyarrow.parquet.read_table(path).to_pylist()
            continue
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
        assert content.endswith(b"\n")
        lines = content.decode()[:-1].split("\n")
        is_json = ".jsonl" in path.name
        rows += [json.loads(line) if is_json else {"translation": line} for line in lines]
    return rows


@pytest.mark.parametrize("name", KINDS)
@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    lines=st.lists(st.sampled_from(["", "a", "b c", "é \u2028 f", "x" * 70]), min_size=1),
    size=st.integers(1, 9),
)
def test_parts_are_the_file_and_are_written_as_it_is(
    tmp_path: Path, name: str, lines: list[str], size: int
) -> None:
    write(tmp_path / name, lines)
    kind = format_of(tmp_path / name, "text")
    found = list(kind.parts(tmp_path / name, size))
    assert [part.first for part in found] == list(range(0, len(lines), size))
    texts, outputs = [], []
    for index, part in enumerate(found):
        own = kind.texts(part, name)
        assert len(own) == min(size, len(lines) - part.first)
        texts += own
        best = [Translation(text.upper(), "", -0.5, []) for text in own]
        outputs.append(tmp_path / f"{index}{kind.suffix}")
        outputs[-1].write_bytes(kind.translated(part, best))
    expected = lines if name.startswith("a.en") else [" ".join(li.split("\u2028")) for li in lines]
    assert [text.split() for text in texts] == [line.split() for line in expected]
    rows = read(outputs)
    assert [row["translation"] for row in rows] == [text.upper() for text in texts]
    if not name.startswith("a.en"):
        assert [row["id"] for row in rows] == list(range(len(lines)))
        assert [(row["n"], row["text"]) for row in rows] == list(enumerate(lines))
        assert {row["score"] for row in rows} == {-0.5 / 0.6931471805599453}


def test_ids_that_are_there_stay(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"id": "x7", "text": "a"}\n')
    kind = format_of(tmp_path / "a.jsonl", "text")
    (part,) = kind.parts(tmp_path / "a.jsonl", 5)
    missing = Translation("", "", -float("inf"), [])
    assert json.loads(kind.translated(part, [missing])) == {
        "id": "x7", "text": "a", "translation": "", "score": None,
    }  # fmt: skip


def test_records_stay_as_they_are_written(tmp_path: Path) -> None:
    """Python's floats would round numbers, or make infinity of them, which is no JSON."""
    (tmp_path / "a.jsonl").write_text(
        '{"text":"a","x":1.10,"y":1e999,"s":"\\u00e9"} \n {"text":"b" }\n'
    )
    kind = format_of(tmp_path / "a.jsonl", "text")
    (part,) = kind.parts(tmp_path / "a.jsonl", 5)
    found = kind.translated(part, [Translation(text, "", 0.0, []) for text in ("ä", "b")])
    added = '"translation": "ä", "score": 0.0}'
    assert found.decode().splitlines() == [
        '{"id": 0, "text":"a","x":1.10,"y":1e999,"s":"\\u00e9", ' + added,
        '{"id": 1, "text":"b", ' + added.replace("ä", "b"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "a"}\n{"te', r"a\.jsonl, line 2: "),
        ("a.jsonl", b"[1]\n", "line 1: expected an object"),
        ("a.jsonl", b'{"text": "a"}\n{"text": 3}\n', "line 2: expected a text as 'text'"),
        ("a.jsonl", b'{"source": "a"}\n', "expected a text as 'text': name another one with --col"),
        ("a.jsonl", b'{"text": "a", "score": 1}\n', "'score' exists already"),
        ("a.jsonl", rb'{"text": "\ud800"}', r"line 1: '.ud800' is half of a character: write both"),
        ("a.jsonl", b'{"text": "a"}\n\n{"text": "b"}\n', "line 2: .* the line is empty: remove it"),
        (
            "a.jsonl",
            b'{"text" "a"}\n',
            r"line 1: expected an object: Expecting ':' .* at column 9.$",
        ),
        ("a.jsonl", b"{}\n", "line 1: expected a text as 'text'"),
        ("a.jsonl", b"[" * 100_000, "line 1"),
        ("a.parquet", b"PAR1", r"a\.parquet cannot be read as parquet"),
        ("a.en.gz", gzip.compress(b"a\nb\n" * 100)[:-9], r"a\.en\.gz cannot be read"),
        ("a.en.gz", b"text", r"a\.en\.gz cannot be read"),
        (
            "a.en",
            b"version https://git-lfs.github.com/spec/v1\noid",
            r"a\.en is a pointer of Git LFS",
        ),
        ("a.en.xz", b"", "is packed: unpack it, or pack its text with gzip"),
        ("a.parquet.gz", b"", "parquet files have their own compression"),
    ],
)
def test_what_cannot_be_read_is_named(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)

    def texts() -> list[list[str]]:
        kind = format_of(path, "text")
        return [kind.texts(part, str(path)) for part in kind.parts(path, 10)]

    with pytest.raises(UserError, match=message) as error:
        texts()
    assert "\n" not in str(error.value)


def test_a_model_among_the_inputs_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"en-de is a model: MODEL comes before --input\.$"):
        bulk.corpus_files([pretrained.FOLDER / "en-de"], tmp_path, "text")


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_records_without_text_are_empty_lines(kind: str, tmp_path: Path) -> None:
    path, rows = tmp_path / f"a.{kind}", [{"text": None}, {"text": "  a\nb "}]
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    reader = format_of(path, "text")
    (part,) = reader.parts(path, 10)
    assert reader.texts(part, str(path)) == ["", "  a b "]  # some models keep spaces
    content = reader.translated(part, [Translation("", "", 0.0, [])] * 2)
    written = tmp_path / f"b.{kind}"
    written.write_bytes(content)
    assert [row["text"] for row in read([written])] == [None, "  a\nb "]


@pytest.mark.parametrize("column", ["text", "id"])
def test_two_columns_of_a_name_are_refused(tmp_path: Path, column: str) -> None:
    path = tmp_path / "a.parquet"
    columns = [pyarrow.array(["a"])] * 3
    table = pyarrow.Table.from_arrays(columns, names=["text", column, column][-3:])
    pyarrow.parquet.write_table(table, path)
    kind = format_of(path, "text")
    (part,) = kind.parts(path, 10)
    with pytest.raises(
        UserError, match=rf"a\.parquet, after row 0: \d columns are named '{column}'"
    ):
        kind.texts(part, str(path))


@pytest.mark.parametrize("values", [[None, 5], [b"a"], [["a"]]], ids=["number", "bytes", "list"])
def test_columns_without_text_are_named(tmp_path: Path, values: list[object]) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": values}), path)
    kind = format_of(path, "text")
    (part,) = kind.parts(path, 10)
    with pytest.raises(UserError, match=r"a\.parquet, after row 0: expected a text as 'text'"):
        kind.texts(part, str(path))


def finish(folder: Path, file: CorpusFile, translator: Translator, most: int = 99) -> list[str]:
    """What a run does without Ray, for ``most`` new parts; returns the parts that were new."""
    new: list[str] = []
    with Manifest(folder, {"beam": 5}) as journal:
        parts.check_identity([file], 5, journal.done)
        for shard in parts.shards(file, 5, journal.done):
            if shard.record is None and len(new) == most:
                return new
            if journal.add(parts.translate(shard, translator, folder)):
                new.append(shard.output)
        journal.finish([file.name])
    return new


def test_parts_have_draws_of_their_own(tmp_path: Path, model: Path) -> None:
    path = tmp_path / "a.en"
    (tmp_path / "out").mkdir()
    write(path, ["w1 w2"] * 20)
    file = CorpusFile(path, "a.en", format_of(path, "text"))
    translator = Translator.load(model, SearchOptions(beam=1, sampling=True))
    outputs = finish(tmp_path / "out", file, translator)
    assert len({(tmp_path / "out" / output).read_bytes() for output in outputs}) == 4


def test_a_run_goes_on_where_it_was_stopped(tmp_path: Path, model: Path) -> None:
    """What is damaged or changed is done again, what is finished is not, the rest is removed."""
    lines, translator = lines_of(23), Translator.load(model)
    path, folder = tmp_path / "a.en", tmp_path / "out"
    folder.mkdir()
    write(path, lines)
    file = CorpusFile(path, "a.en", format_of(path, "text"))
    every = [f"a.en/part-{number:05d}.txt" for number in range(5)]
    assert finish(folder, file, translator, most=2) == every[:2]
    with (folder / manifest.NAME).open("a") as journal:
        journal.write('{"file": "a.en", "part": 2, "li')  # cut off by a crash
    (folder / "a.en/.part-00002.txt.x").touch()  # of a worker that was killed
    assert finish(folder, file, translator) == every[2:]
    expected = [found[0].text for found in translator.translate(lines)]
    outputs = [folder / name for name in every]
    assert [row["translation"] for row in read(outputs)] == expected
    assert sorted(p.name for p in (folder / "a.en").iterdir()) == [p.name for p in outputs]
    assert finish(folder, file, translator) == []
    outputs[1].unlink()
    outputs[3].write_text("damaged\n")
    assert finish(folder, file, translator) == [every[1], every[3]]
    changed = [*lines[:6], "w1 w2", *lines[7:18]]
    write(path, changed)
    assert finish(folder, file, translator) == [every[1], every[3]]  # the last is shorter now
    assert not outputs[4].exists()
    expected = [found[0].text for found in translator.translate(changed)]
    assert [row["translation"] for row in read(outputs[:4])] == expected
    with pytest.raises(UserError, match="holds translations with another beam"):
        Manifest(folder, {"beam": 4})
    text = (folder / manifest.NAME).read_text().splitlines()
    assert [json.loads(line)["part"] for line in text[1:]] == [0, 1, 2, 3]


def test_a_part_that_was_written_and_not_recorded_is_removed(tmp_path: Path, model: Path) -> None:
    """By a run that was killed in between, before the input became shorter."""
    folder, translator = tmp_path / "out", Translator.load(model)
    folder.mkdir()
    path = tmp_path / "a.en"
    write(path, lines_of(12))
    file = CorpusFile(path, "a.en", format_of(path, "text"))
    finish(folder, file, translator, most=1)
    *_, last = parts.shards(file, 5, {})
    parts.translate(last, translator, folder)
    write(path, lines_of(12)[:4])
    finish(folder, file, translator)
    assert [path.name for path in (folder / "a.en").iterdir()] == ["part-00000.txt"]


def test_another_file_may_be_translated_into_the_same_folder(tmp_path: Path, model: Path) -> None:
    """The parts of the first one stay, and are not done again."""
    folder, translator = tmp_path / "out", Translator.load(model)
    folder.mkdir()
    files = []
    for name in ("b.en", "a.en"):
        write(tmp_path / name, lines_of(7))
        files += bulk.corpus_files([tmp_path / name], folder, "text")
        assert len(finish(folder, files[-1], translator)) == 2
    for file in files:
        assert finish(folder, file, translator) == []
    assert len(list(folder.rglob("part-*"))) == 4
    write(tmp_path / "b.en", [])  # has no parts now
    assert finish(folder, files[0], translator) == []
    assert [path.name for path in sorted(folder.rglob("part-*.txt"))] == [
        "part-00000.txt",
        "part-00001.txt",
    ]
    lines = (folder / manifest.NAME).read_text().splitlines()
    assert [json.loads(line)["file"] for line in lines[1:]] == ["a.en"] * 2


NO_ROOM = ConnectionError("no room")


@pytest.mark.parametrize(
    ("address", "error", "told"),
    [
        ("local", NO_ROOM, r"^Ray cannot be started on this machine \(no room\)\.$"),
        ("auto", NO_ROOM, r"^--address auto has no cluster of Ray \(no room\)\.$"),
        (
            "local",
            OSError(30, "Read-only", "/home"),
            r"TMPDIR .* cannot use /home \(Read-only\)\.$",
        ),
    ],
)
def test_a_missing_cluster_is_told(
    monkeypatch: pytest.MonkeyPatch, address: str, error: OSError, told: str
) -> None:
    monkeypatch.setattr(ray_data.ray, "init", Mock(side_effect=error))
    with pytest.raises(UserError, match=told):
        ray_data._start(address, None)


def answers(worker: ray_data.Worker, shards: Iterator[parts.Shard]) -> list[object]:
    """What a worker returns for each shard."""
    return [ray_data._value(worker(ray_data._table(s))["pickled"][0].as_py()) for s in shards]


def raising(error: Exception) -> Callable[[], Translator]:
    def load() -> Translator:
        raise error

    return load


def test_a_worker_without_the_model_of_the_run_says_so(tmp_path: Path, model: Path) -> None:
    """Its machine has none, another one or no room. Ray makes tracebacks of what it raises."""
    write(tmp_path / "a.en", lines_of(7))
    file = CorpusFile(tmp_path / "a.en", "a.en", format_of(tmp_path / "a.en", "text"))
    folder, right = tmp_path / "out", digests.total(model)
    folder.mkdir()
    with Manifest(folder, {"beam": 5}):
        before = sorted(folder.iterdir())
    no_room = "DefaultCPUAllocator: can't allocate memory:\nyou tried to allocate 9 bytes"
    for load, digest, expected in (
        (partial(Translator.load, model), "other", "is not the model that this run began with"),
        (partial(Translator.load, tmp_path / "none"), right, "none is neither a checkpoint nor a"),
        (raising(MemoryError()), right, "not enough memory for as many workers with .*: give few"),
        (raising(RuntimeError(no_room)), right, "not enough memory for as many workers"),
    ):
        worker = ray_data.Worker(load, model, digest, folder, {"beam": 5})
        for answer in answers(worker, parts.shards(file, 5, {})):
            assert isinstance(answer, str)
            assert re.search(expected, answer), answer
            assert "\n" not in answer
    assert sorted(folder.iterdir()) == before
    with pytest.raises(RuntimeError, match="a bug"):
        ray_data.Worker(raising(RuntimeError("a bug")), model, right, folder, {"beam": 5})
    worker = ray_data.Worker(partial(Translator.load, model), model, right, folder, {"beam": 5})
    found = answers(worker, parts.shards(file, 5, {}))
    assert [type(answer) for answer in found] == [Record, Record]


@pytest.mark.parametrize("found", [None, "", '{"beam": 4}\n', "[" * 100_000])
def test_a_worker_that_does_not_see_the_output_makes_no_folder(
    tmp_path: Path, model: Path, found: str | None
) -> None:
    """On its machine, the path is another folder, or none; nobody would find its parts."""
    write(tmp_path / "a.en", lines_of(7))
    file = CorpusFile(tmp_path / "a.en", "a.en", format_of(tmp_path / "a.en", "text"))
    folder = tmp_path / "out"
    if found is not None:
        folder.mkdir()
        (folder / manifest.NAME).write_text(found)
    before = sorted(tmp_path.rglob("*"))
    load = partial(Translator.load, model)
    worker = ray_data.Worker(load, model, digests.total(model), folder, {"beam": 5})
    for answer in answers(worker, parts.shards(file, 5, {})):
        assert re.match(r"--output .*out on .* is not the folder of this run: name", str(answer))
    assert sorted(tmp_path.rglob("*")) == before


def test_a_part_that_is_not_there_is_told(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever has become of it; the same command then translates it again."""

    def losing(files: list[CorpusFile], size: int, journal: Manifest, *more: Any) -> Any:
        for record in without_ray(files, size, journal, *more):
            if record.part == 1:
                (journal.folder / record.output).unlink()
            yield record

    monkeypatch.setattr(ray_data, "connected", lambda *_: nullcontext(1))
    write(tmp_path / "a.en", lines_of(12))
    words = [model, "-i", tmp_path / "a.en", "-o", tmp_path / "out", "--shard-size", 5]
    monkeypatch.setattr(ray_data, "run", losing)
    with pytest.raises(UserError, match=r"out lacks a\.en/part-00001\.txt, which a worker has"):
        bulk.main(list(map(str, words)))
    monkeypatch.setattr(ray_data, "run", without_ray)
    bulk.main(list(map(str, words)))
    assert len(list((tmp_path / "out").rglob("part-*"))) == 3


def test_paths_are_not_those_of_one_machine(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their links may lead elsewhere on another one, and so may the package."""
    seen: list[Any] = []

    def run(files: Any, size: int, journal: Manifest, load: Any, place: Any, *more: Any) -> Any:
        seen.append((files[0].path, journal.folder, load.args[0], place))
        yield from without_ray(files, size, journal, load)

    monkeypatch.setattr(ray_data, "run", run)
    monkeypatch.setattr(ray_data, "connected", lambda *_: nullcontext(1))
    for name in ("in", "out"):
        (tmp_path / f"{name}-1").mkdir()
        (tmp_path / name).symlink_to(tmp_path / f"{name}-1")
    (tmp_path / "model").symlink_to(model)
    write(tmp_path / "in-1/a.en", lines_of(3))
    monkeypatch.chdir(tmp_path)
    bulk.main(["model", "-i", "in/a.en", "-o", "out/1"])
    bulk.main(["-i", "in/a.en", "-o", "out/2"])
    bulk.main([str(pretrained.FOLDER / "en-de"), "-i", "in/a.en", "-o", "out/2"])
    given = [tmp_path / "model", None, None]
    assert seen == [
        (tmp_path / "in/a.en", tmp_path / f"out/{number}", place, place)
        for number, place in zip((1, 2, 2), given, strict=True)
    ]


def without_ray(
    files: list[CorpusFile],
    size: int,
    journal: Manifest,
    load: Callable[[], Translator],
    *_: object,
) -> Iterator[Record]:
    """As ray_data.run, in this process."""
    for file in files:
        for shard in parts.shards(file, size, journal.done):
            yield parts.translate(shard, load(), journal.folder)


def test_another_file_of_the_same_name_is_refused(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its translation would take the place of the first one's."""
    monkeypatch.setattr(ray_data, "run", without_ray)
    monkeypatch.setattr(ray_data, "connected", lambda *_: nullcontext(1))
    folder = tmp_path / "out"

    def run(place: str) -> None:
        words = (model, "-i", tmp_path / place / "train.en", "-o", folder, "--shard-size", 5)
        bulk.main(list(map(str, words)))

    for place, lines in (("de", lines_of(12)), ("fr", lines_of(12, 1)), ("empty", [])):
        (tmp_path / place).mkdir()
        write(tmp_path / place / "train.en", lines)
    run("de")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for place in ("fr", "empty"):
        message = f"another train.en, .*/de/train.en, and that of .*/{place}/train.en would take"
        with pytest.raises(UserError, match=message):
            run(place)
        assert {path: path.read_bytes() for path in before} == before
    run("fr/../de")
    (tmp_path / "de").rename(tmp_path / "moved")  # the same content at another place
    run("moved")
    assert {path: path.read_bytes() for path in before} == before
    (tmp_path / "moved").rename(tmp_path / "de")
    write(tmp_path / "de/train.en", lines_of(16, 2))  # the same file, changed
    run("de")
    assert len(list(folder.rglob("part-*"))) == 4
    journal = folder / manifest.NAME
    assert journal.read_bytes() != before[journal]


def test_text_has_no_columns(tmp_path: Path, model: Path) -> None:
    write(tmp_path / "train.en", lines_of(5))
    words = (model, "-i", tmp_path / "train.en", "-o", tmp_path / "out", "--column", "source")
    with pytest.raises(UserError, match=r"--column source is for \.jsonl and \.parquet"):
        bulk.main(list(map(str, words)))
    assert not (tmp_path / "out").exists()


def test_draws_depend_on_the_batches(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a run that draws goes on with batches of the same size only; a search does with any."""
    monkeypatch.setattr(ray_data, "run", without_ray)
    monkeypatch.setattr(ray_data, "connected", lambda *_: nullcontext(1))
    write(tmp_path / "train.en", lines_of(5))

    def run(folder: str, *options: object) -> None:
        words = (model, "-i", tmp_path / "train.en", "-o", tmp_path / folder, *options)
        bulk.main(list(map(str, words)))

    run("searched", "--batch-size", 2)
    run("searched", "--batch-size", 3)
    run("drawn", "--sampling", "--batch-size", 2)
    run("drawn", "--sampling", "--batch-size", 2)
    run("drawn", "--sampling", "--batch-size", 2, "--beam", 3)  # which has no effect
    with pytest.raises(UserError, match="with another batch_size: choose"):
        run("drawn", "--sampling", "--batch-size", 3)
    with pytest.raises(UserError, match="with another seed: choose"):
        run("drawn", "--sampling", "--batch-size", 2, "--seed", 2)
    run("searched", "--seed", 2)
    run("searched", "--dtype", "float32")  # as the model was exported
    with pytest.raises(UserError, match="with another dtype: choose"):
        run("searched", "--dtype", "int8")
    with pytest.raises(UserError, match="with another beam: choose"):
        run("searched", "--beam", 3)
    with pytest.raises(UserError, match="with another sampling: choose"):
        run("searched", "--sampling")


@pytest.mark.parametrize("first", ["a.en", "a.jsonl"])
def test_text_and_records_are_translated_into_one_folder(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    """Text has no columns, so it does not matter which one records have."""
    monkeypatch.setattr(ray_data, "run", without_ray)
    monkeypatch.setattr(ray_data, "connected", lambda *_: nullcontext(1))
    write(tmp_path / "a.en", lines_of(5))
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text('{"source": "w1", "other": "w2"}\n')

    def run(name: str, *options: str) -> None:
        bulk.main([str(model), "-i", str(tmp_path / name), "-o", str(tmp_path / "out"), *options])

    options = {"a.en": [], "a.jsonl": ["--column", "source"]}
    for name in (first, *(options.keys() - {first}), first):
        run(name, *options[name])
    with pytest.raises(UserError, match="with another column: choose"):
        run("b.jsonl", "--column", "other")
    run("b.jsonl", "--column", "source")


def test_a_folder_of_an_earlier_version_goes_on(tmp_path: Path, model: Path) -> None:
    """Its manifest does not say where the files were, nor whether they were UTF-8."""
    folder, translator = tmp_path / "out", Translator.load(model)
    folder.mkdir()
    write(tmp_path / "a.en", lines_of(7))
    (file,) = bulk.corpus_files([tmp_path / "a.en"], folder, "text")
    assert len(finish(folder, file, translator)) == 2
    settings, *records = map(json.loads, (folder / manifest.NAME).read_text().splitlines())
    assert [record.pop("path") for record in records] == [str(tmp_path / "a.en")] * 2
    assert [record.pop("invalid") for record in records] == [0, 0]
    lines = map(json.dumps, (settings, *records))
    (folder / manifest.NAME).write_text("".join(f"{line}\n" for line in lines))
    assert finish(folder, file, translator) == []


def test_the_names_of_parts_sort_as_their_numbers(tmp_path: Path) -> None:
    """However many there are; the first ones have the names that they always had."""
    file = CorpusFile(tmp_path / "a.en", "a.en", format_of(Path("a.en"), "text"))
    numbers = [0, 9, 10, 99_999, 100_000, 100_001, 999_999, 1_000_000, 10_000_000]
    names = [parts.Shard(file, number, parts.Part(0, b""), "").output for number in numbers]
    assert names == sorted(names)
    assert names[3:5] == ["a.en/part-99999.txt", "a.en/part-a100000.txt"]


def test_lines_that_have_no_translation_are_counted(
    tmp_path: Path, model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.en"
    write(path, ["w1", "w2 " * 60, ""])
    file = CorpusFile(path, "a.en", format_of(path, "text"))
    (shard,) = parts.shards(file, 5, {})
    record = parts.translate(shard, Translator.load(model), tmp_path / "out")
    assert (record.lines, record.too_long, record.failed) == (3, 1, 0)
    assert f"{path}: lines that were left empty: 2" in caplog.messages
    assert len((tmp_path / "out" / record.output).read_text().split("\n")) == 4


@pytest.mark.parametrize("kind", ["en", "jsonl"])
def test_wrong_bytes_are_told_with_their_file_and_counted(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    kind: str,
) -> None:  # fmt: skip
    """Also by a run that finds all parts done."""
    monkeypatch.setattr(ray_data, "run", without_ray)
    monkeypatch.setattr(ray_data, "connected", lambda *_: nullcontext(1))
    path = tmp_path / f"a.{kind}"
    line = {"en": b"w1 %s\n", "jsonl": b'{"text": "w1 %s"}\n'}[kind]
    words = (b"w2", b"\xff", "\ufffd".encode(), b"\xe9")
    path.write_bytes(b"".join(line % word for word in words))
    given = [model, "-i", path, "-o", tmp_path / "out", "--shard-size", 2]
    for _ in range(2):
        caplog.clear()
        bulk.main(list(map(str, given)))
        for number in (2, 4):
            assert f"{path}, line {number} is not valid UTF-8: its" in caplog.text
        assert "2 of 4 lines are not valid UTF-8" in caplog.text


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    with locked(tmp_path / "out"), pytest.raises(UserError, match="in use by another run"):  # noqa: SIM117
        with locked(tmp_path / "out"):
            pass
    with locked(tmp_path / "out"):
        pass
    (tmp_path / "out/mine").touch()
    with pytest.raises(UserError, match="has other files in it: choose an empty folder"):
        Manifest(tmp_path / "out", {})
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match=r"--output .* cannot be written"),
        locked(tmp_path / "file"),
    ):
        pass


def test_a_full_disk_below_the_manifest_is_named(tmp_path: Path) -> None:
    with Manifest(tmp_path, {}) as journal, open("/dev/full", "w") as full:
        journal._file.close()
        journal._file = full
        with pytest.raises(UserError, match=r"manifest\.jsonl cannot be written \(No space left"):
            journal.add(Record("a", 0, 1, "", "a/part-00000.txt", "", 0, 0))
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())  # for what was not written


def test_a_damaged_manifest_is_named(tmp_path: Path) -> None:
    (tmp_path / manifest.NAME).write_text("[]\n")
    with pytest.raises(UserError, match=r"manifest\.jsonl is damaged"):
        Manifest(tmp_path, {})
    (tmp_path / manifest.NAME).write_text('{"beam": 5}\n{"file": "a"}\nnull\n')
    with Manifest(tmp_path, {"beam": 5}) as journal:
        assert journal.done == {}
        record = Record("a", 0, 1, "", "a/part-00000.txt", "", 0, 0)
        assert journal.add(record)
        assert json.loads((tmp_path / manifest.NAME).read_text().splitlines()[1])["file"] == "a"


def test_a_run_killed_as_it_began_its_manifest_goes_on(tmp_path: Path) -> None:
    half = tmp_path / f".{manifest.NAME}.abcd_123"
    half.write_text('{"beam')
    with Manifest(tmp_path, {"beam": 5}) as journal:
        assert journal.done == {}
    assert not half.exists()
    (tmp_path / ".notes").touch()
    (tmp_path / manifest.NAME).unlink()
    with pytest.raises(UserError, match="has other files in it"):
        Manifest(tmp_path, {"beam": 5})


@pytest.mark.parametrize(
    "changes",
    [
        {"output": "../victim.txt"},
        {"output": "link/victim.txt"},
        {"output": "."},
        {"output": manifest.NAME},
        {"output": "a\0b"},
        {"output": 5},
        {"file": [1]},
        {"part": True},
        {"other": 1},
    ],
)
def test_a_manifest_names_files_of_its_folder_alone(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    folder, victim = tmp_path / "out", tmp_path / "victim.txt"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path)
    victim.write_text("of somebody else\n")
    record = {"file": "a", "part": 0, "lines": 1, "source": "", "output": "b", "too_long": 0}
    record |= {"failed": 0, "sha256": manifest.digest(victim)} | changes
    (folder / manifest.NAME).write_text(json.dumps({}) + "\n" + json.dumps(record) + "\n")
    with Manifest(folder, {}) as journal:
        assert not journal.done
        journal.finish(["a"])
    assert victim.read_text() == "of somebody else\n"
    assert (folder / manifest.NAME).read_text() == "{}\n"


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """The first byte of a process's memory cannot be, whoever asks."""
    (tmp_path / "a.en").symlink_to("/proc/self/mem")
    with pytest.raises(UserError, match=r"--input .*a\.en cannot be read: Input/output error"):
        format_of(tmp_path / "a.en", "text")


def test_wrong_inputs_are_named(tmp_path: Path) -> None:
    (tmp_path / "in/sub").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    foreign = ("in/Thumbs.db", "in/sub/Desktop.ini", "in/@eaDir/a.en@SynoEAStream", "in/.hidden")
    for name in ("in/a.en", "in/sub/a.en", *foreign):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    files = bulk.corpus_files([tmp_path / "in"], tmp_path / "out", "text")
    assert [file.name for file in files] == ["a.en", "sub/a.en"]
    (named,) = bulk.corpus_files([tmp_path / "in/Thumbs.db"], tmp_path / "out", "text")
    assert named.name == "Thumbs.db"  # which the user wants
    cases = {
        "inside --input": ([tmp_path / "in"], tmp_path / "in/out"),
        "neither a file nor a folder": ([tmp_path / "none"], tmp_path / "out"),
        "is empty": ([tmp_path / "empty"], tmp_path / "out"),
        "2 files of the name a.en": ([tmp_path / "in", tmp_path / "in/sub/a.en"], tmp_path / "out"),
    }
    for message, (inputs, output) in cases.items():
        with pytest.raises(UserError, match=message):
            bulk.corpus_files(inputs, output, "text")


def test_files_are_known_by_the_names_that_the_user_sees(tmp_path: Path) -> None:
    """A link, as caches have them, says by its own name what format it leads to."""
    (tmp_path / "in/.git").mkdir(parents=True)
    (tmp_path / "blob").write_text('{"text": "a"}\n')
    (tmp_path / "in/train.jsonl").symlink_to(tmp_path / "blob")
    (tmp_path / "in/.git/config").touch()
    (tmp_path / "in/A.EN.GZ").touch()
    output = tmp_path / "out"
    for inputs in ([tmp_path / "in"], [tmp_path / "in/A.EN.GZ", tmp_path / "in/train.jsonl"]):
        files = bulk.corpus_files(inputs, output, "text")
        assert [(file.name, file.format.suffix) for file in files] == [
            ("A.EN.GZ", ".txt.gz"),
            ("train.jsonl", ".jsonl"),
        ]
    (tmp_path / "in/link").symlink_to(tmp_path)
    with pytest.raises(UserError, match=r"has a link to a folder, .*link: name the folder itself"):
        bulk.corpus_files([tmp_path / "in"], output, "text")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([manifest.NAME], "has manifest.jsonl, but the output needs this name"),
        ([manifest.LOCK], "has .lock, but the output needs this name"),
        ([".part-1"], "but the output needs this name"),
        (["a", "a/part-00000.txt"], "has a as a file and as a folder"),
        (["x.TAR.gz"], "is an archive: unpack it"),
        (["x.json"], "is neither text nor .jsonl"),
        (["x.csv"], "convert it"),
        (["x.xhtml"], "convert it"),
        (["x.docx"], "is a document: take its text out"),
        (["x.sgm.gz"], "is neither text nor .jsonl"),
        (["x.BZ2"], "is packed"),
    ],
)
def test_names_that_cannot_be_translated_are_refused(
    tmp_path: Path, names: list[str], message: str
) -> None:
    paths = []
    for number, name in enumerate(names):
        paths.append(tmp_path / str(number) / name)
        paths[-1].parent.mkdir(parents=True)
        paths[-1].touch()
        if "/" in name:  # as the whole folder
            paths[-1] = tmp_path / str(number)
    with pytest.raises(UserError, match=message):
        bulk.corpus_files(paths, tmp_path / "out", "text")


class Doomed:
    """In place of a dataset: its workers die as often as they may be started again."""

    def map_batches(self, *_: object, **options: Any) -> "Doomed":
        self.options = options
        return self

    def iter_rows(self) -> Iterator[object]:
        assert 0 < self.options["max_task_retries"] <= self.options["max_restarts"] < 20
        raise ray.exceptions.ActorUnavailableError("the actor is unavailable:\nit died", None)


def test_workers_are_not_replaced_for_ever(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray.data, "from_items", lambda *_, **__: Doomed())
    monkeypatch.setattr(ray_data, "connected", lambda *_: nullcontext(1))
    write(tmp_path / "a.en", lines_of(5))
    with pytest.raises(UserError, match=r"^workers died again and again, .* fewer --workers or a"):
        bulk.main([str(model), "-i", str(tmp_path / "a.en"), "-o", str(tmp_path / "out")])


def test_a_name_need_not_be_utf_8(tmp_path: Path, model: Path) -> None:
    name, folder = os.fsdecode(b"a\xff\n\xc3\xa9.en"), tmp_path / "out"
    folder.mkdir()
    write(tmp_path / name, ["w1 w2", "w3"])
    (file,) = bulk.corpus_files([tmp_path / name], folder, "text")
    translator = Translator.load(model)
    assert finish(folder, file, translator) == [f"{name}/part-00000.txt"]
    assert finish(folder, file, translator) == []
    assert len((folder / name / "part-00000.txt").read_text().splitlines()) == 2


def test_help_needs_neither_ray_nor_torch() -> None:
    """And RAY_ADDRESS may be empty."""
    program = (
        "import sys; from resmlp_mt import bulk\n"
        "try: bulk.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(bulk.Options.address, {'ray', 'torch', 'pyarrow'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT, env={**os.environ, "RAY_ADDRESS": ""}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "local set()", done.stderr


def command(model: Path, folder: Path, *options: object) -> list[str]:
    """With two workers on this machine, and parts of 20 lines."""
    words = (model, "--output", folder, "--workers", 2, "--shard-size", 20, *options)
    return [sys.executable, "-m", "resmlp_mt.bulk", *map(str, words), "--address", "local"]


ENVIRONMENT = {**os.environ, "RAY_worker_niceness": "0", "RAY_AUTH_MODE": "disabled"}


def workers(driver: int) -> list[int]:
    """The processes of Ray's actors that a process has started, by way of others."""
    parents, found = {}, []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text()
            name = (stat.parent / "cmdline").read_bytes()
        except OSError:  # it has ended
            continue
        pid = int(stat.parent.name)
        parents[pid] = int(text.rpartition(")")[2].split()[1])
        if name.startswith(b"ray::MapWorker"):
            found.append(pid)

    def is_ours(pid: int) -> bool:
        while pid in parents and pid != driver:
            pid = parents[pid]
        return pid == driver

    return [pid for pid in found if is_ours(pid)]


@pytest.mark.slow
def test_a_killed_worker_loses_no_line(tmp_path: Path, model: Path) -> None:
    """Files of every kind through two workers of Ray, one of which is killed in the middle."""
    source, folder = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    (source / "empty.en").touch()
    texts = {name: lines_of(400, seed) for seed, name in enumerate(KINDS)}
    for name, lines in texts.items():
        write(source / name, lines)
    process = subprocess.Popen(
        command(model, folder, "--input", source), cwd=ROOT, env=ENVIRONMENT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    end = time.monotonic() + 300
    while len(list(folder.rglob("part-*"))) < 3 and time.monotonic() < end:
        time.sleep(0.01)
    victims = workers(process.pid)
    assert len(victims) == 2
    os.kill(victims[0], signal.SIGKILL)
    assert len(list(folder.rglob("part-*"))) < 100  # else nothing was left for the others
    log = process.communicate(timeout=600)[0]
    assert process.returncode == 0, log
    translator = Translator.load(model)
    for name, lines in texts.items():
        outputs = sorted((folder / name).iterdir())
        assert len(outputs) == 20
        expected = [found[0].text for found in translator.translate(lines)]
        assert [row["translation"] for row in read(outputs)] == expected
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("part-*")}
    damaged = folder / "a.jsonl/part-00007.jsonl"
    damaged.write_bytes(damaged.read_bytes()[:-5])
    again = subprocess.run(
        command(model, folder, "--input", source), cwd=ROOT, env=ENVIRONMENT, capture_output=True,
        text=True, timeout=600,
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    changed = [path for path in times if path.stat().st_mtime_ns != times[path]]
    assert changed == [damaged]
    write(source / "b.jsonl", ["a"])
    wrong = subprocess.run(
        command(model, folder, "--input", source, "--column", "no"), cwd=ROOT, env=ENVIRONMENT,
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert wrong.returncode == 1
    assert "holds translations with another column" in wrong.stderr


class Ray:
    """In place of the module: a cluster with four processors, or none."""

    def __init__(self, is_running: bool = False, is_there: bool = True) -> None:
        self.is_running, self.is_there = is_running, is_there

    def init(self, **_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        logging.getLogger("ray").setLevel(logging.ERROR)
        if not self.is_there:
            raise ConnectionError("nobody there")
        assert not self.is_running  # it would refuse
        self.is_running = True

    def is_initialized(self) -> bool:
        return self.is_running

    def shutdown(self) -> None:
        self.is_running = False

    def cluster_resources(self) -> dict[str, int]:
        return {"CPU": 4}


def test_ray_starts_in_any_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the main thread may set the handlers of signals."""
    monkeypatch.setattr(ray_data, "ray", fake := Ray())
    monkeypatch.setattr(fake, "init", lambda **_: None)

    def count() -> int:
        with ray_data.connected("local", None, 2) as workers:
            return workers

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(count).result() == 2


@pytest.mark.parametrize("is_there", [True, False])
def test_what_ray_changes_in_a_program_is_put_back(
    monkeypatch: pytest.MonkeyPatch, is_there: bool
) -> None:
    """So a program may run the command twice."""
    monkeypatch.setattr(ray_data, "ray", fake := Ray(is_there=is_there))
    logger = logging.getLogger("ray")
    monkeypatch.setattr(logger, "level", logging.DEBUG)
    before = signal.getsignal(signal.SIGTERM)
    for _ in range(2):
        expected = nullcontext() if is_there else pytest.raises(UserError, match="no cluster of Ra")
        with expected, ray_data.connected("auto", None, 1) as workers:
            assert workers == 4
        with pytest.raises(UserError), ray_data.connected("local", 5, 1):
            pass
        assert not fake.is_running
        assert signal.getsignal(signal.SIGTERM) == before
        assert logger.level == logging.DEBUG


def test_ray_that_runs_in_a_program_is_used_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ray_data, "ray", fake := Ray(is_running=True))
    with ray_data.connected("local", None, 1) as workers:
        assert workers == 4
    assert not caplog.messages
    with ray_data.connected("other:6379", 2, 2) as workers:
        assert workers == 2
    assert caplog.messages == [
        "Ray runs in this program already: --address other:6379 has no effect"
    ]
    assert fake.is_running


def test_ray_data_of_a_program_is_as_it_was() -> None:
    context, log = ray.data.DataContext.get_current(), logging.getLogger("ray.data")

    def state() -> object:
        return context.target_max_block_size, context.enable_progress_bars, log.level

    before, filters = state(), warnings.filters[:]
    with suppress(RuntimeError), ray_data._settings():
        assert context.target_max_block_size == 1
        assert state() != before
        raise RuntimeError
    assert state() == before
    assert warnings.filters == filters


TWICE = """
import sys
import ray
from resmlp_mt import bulk
from resmlp_mt.sharding import ray_data

if __name__ == "__main__":
    *words, first, second, third = sys.argv[1:]
    for output in (first, second):
        bulk.main([*words, "--output", output])
        assert not ray.is_initialized()
    ray.init(num_cpus=1, logging_level="error")
    bulk.main([*words, "--output", third])
    assert ray.is_initialized()
"""


@pytest.mark.slow
def test_a_program_may_translate_several_corpora(tmp_path: Path, model: Path) -> None:
    """With Ray itself: on its own, again, and in a program where it runs already."""
    write(tmp_path / "a.en", lines_of(30))
    (tmp_path / "script.py").write_text(TWICE)
    outputs = [tmp_path / name for name in ("1", "2", "3")]
    words = [model, "--input", tmp_path / "a.en", "--workers", 1, "--shard-size", 10, *outputs]
    done = subprocess.run(
        [sys.executable, tmp_path / "script.py", *map(str, words)],
        env={**ENVIRONMENT, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    written = [read(sorted((output / "a.en").iterdir())) for output in outputs]
    assert len(written[0]) == 30
    assert written[0] == written[1] == written[2]
