"""``python -m resmlp_mt.translate`` on exported folders and checkpoints."""

import gzip
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from conftest import ROOT, Corpus
from resmlp_mt import translate
from resmlp_mt.engine import pretrained
from resmlp_mt.errors import UserError


def run(*arguments: object, text: bytes, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Lines of standard output for ``text`` on standard input."""
    stdin = sys.stdin
    sys.stdin = SimpleNamespace(buffer=io.BytesIO(text), isatty=lambda: False)  # type: ignore
    try:
        translate.main([str(argument) for argument in arguments])
    finally:
        sys.stdin = stdin
    return capsys.readouterr().out.split("\n")[:-1]


@pytest.mark.parametrize("name", ["input", "output"])
def test_a_closed_stream_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, f"std{name.removesuffix('put')}", None)
    with pytest.raises(UserError, match=f"standard {name} is closed: give --{name} FILE"):
        translate.main([])


def test_an_exported_model_translates_without_fairseq(corpus: Corpus, exported: Path) -> None:
    """In a process of its own, in which fairseq and omegaconf cannot be imported."""
    program = (
        "import runpy, sys; sys.modules.update({'fairseq': None, 'omegaconf': None});"
        "runpy.run_module('resmlp_mt.translate', run_name='__main__');"
        # half of the time to start, where something computes on the meta device
        "assert 'torch._dynamo' not in sys.modules"
    )
    lines = corpus.sentences("test", "en")
    done = subprocess.run(
        [sys.executable, "-c", program, str(exported), "--beam", "4", "--threads", "1"],
        input="\n".join(lines),
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found = done.stdout.splitlines()
    assert len(found) == len(lines)
    right = sum(f == t for f, t in zip(found, corpus.sentences("test", "de"), strict=True))
    assert right >= 6


def test_checkpoint_file_and_folder_translate_alike(
    corpus: Corpus, trained: Path, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = trained / "checkpoint_best.pt"
    path = corpus.folder / "test.en"
    from_file = run(exported, "--input", path, text=b"", capsys=capsys)
    of_checkpoint = run(
        checkpoint, "--data", corpus.data, "--sentencepiece-model", corpus.spm,
        text=path.read_bytes(), capsys=capsys,
    )  # fmt: skip
    assert from_file == of_checkpoint


def test_small_buffers_change_nothing(
    corpus: Corpus, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (corpus.folder / "test.en").read_bytes()
    expected = run(exported, text=text, capsys=capsys)
    options = ("--buffer-size", 3, "--batch-size", 2, "--max-tokens", 40)
    assert run(exported, *options, text=text, capsys=capsys) == expected
    options = ("--workers", 2, "--batch-size", 2, "--print-scores")
    scored = run(exported, *options, text=text, capsys=capsys)
    assert [line.split("\t")[2] for line in scored] == expected


def test_lines_of_a_pipe_have_draws_of_their_own(
    exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--sampling", "--beam", 1, "--temperature", 5, "--buffer-size", 1)
    first, again = (run(exported, *options, text=b"one two\n" * 8, capsys=capsys) for _ in range(2))
    assert first == again
    assert len(set(first)) > 1


def test_samples_are_as_many_as_are_asked_for(
    exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = ("--sampling", "--temperature", 5)
    text = b"one two\n" * 8
    plain = run(exported, *one, text=text, capsys=capsys)
    assert plain == run(exported, *one, "--beam", 1, text=text, capsys=capsys)
    found = run(exported, *one, "--nbest", 7, text=text, capsys=capsys)
    assert [line.split("\t")[0] for line in found] == [f"D-{n}" for n in range(8) for _ in range(7)]


def test_greedy_search_is_the_same_with_and_without_scores(
    corpus: Corpus, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (corpus.folder / "test.en").read_bytes()
    plain = run(exported, "--beam", 1, text=text, capsys=capsys)
    scored = run(exported, "--beam", 1, "--print-scores", text=text, capsys=capsys)
    assert [line.split("\t")[2] for line in scored] == plain
    assert all(float(line.split("\t")[1]) < 0 for line in scored)


def test_nbest_lines_carry_number_and_score(
    exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = b"one two\n\nthree four five\n"
    best = run(exported, text=text, capsys=capsys)
    lines = run(exported, "--nbest", 2, text=text, capsys=capsys)
    fields = [line.split("\t") for line in lines]
    assert [f[0] for f in fields] == ["D-0", "D-0", "D-1", "D-2", "D-2"]
    scores = [float(f[1]) for f in fields]
    assert scores[0] > scores[1]
    assert scores[3] > scores[4]
    assert [fields[0][2], fields[2][2], fields[3][2]] == best
    alone = run(exported, "--print-scores", text=text, capsys=capsys)
    assert alone == [lines[0], lines[2], lines[3]]


def test_every_line_has_its_line(
    exported: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Empty, too long, of wrong bytes, and with a carriage return inside."""
    text = b"one\n\n" + b"two " * 99 + b"\nthr\xffee\nfour\rfive\nsix"
    lines = run(exported, text=text, capsys=capsys)
    assert [bool(line) for line in lines] == [True, False, False, True, True, True]
    assert "at most 40 are allowed: its translation is left empty" in caplog.text
    assert "line 4 is not valid UTF-8: its wrong bytes became U+FFFD" in caplog.text


def test_int8_translates_nearly_alike(
    corpus: Corpus, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (corpus.folder / "valid.en").read_bytes()
    float32 = run(exported, text=text, capsys=capsys)
    int8 = run(exported, "--dtype", "int8", text=text, capsys=capsys)
    assert sum(a == b for a, b in zip(float32, int8, strict=True)) >= 0.7 * len(int8)


BLOCKED = ["fairseq", "fairseq_cli", "hydra", "omegaconf", "timm", "torchvision", "sklearn",
           "matplotlib"]  # fmt: skip


@pytest.mark.parametrize(
    ("module", "arguments", "expected"),
    [
        ("translate", ["MODEL", "--input", "SOURCE"], ""),
        ("score", ["-i", "TARGET", "--ref", "TARGET", "-l", "en-de", "-m", "bleu"], "100"),
        ("translate", ["missing"], "missing is neither a checkpoint nor a folder"),
        ("translate", ["CHECKPOINT"], "fairseq, .* run pip install '.\\[train\\]'"),
        ("export", ["CHECKPOINT", "--output", "x"], "pip install '.\\[train\\]'"),
        ("visualize", ["--help"], "usage: "),
        ("vision.train", ["--help"], "'.\\[vision\\]"),
        ("average", ["--inputs", "CHECKPOINT", "--output", "AVERAGE"], "^wrote .*average.pt, the"),
    ],
    ids=str,
)
def test_the_base_install_translates_and_scores(
    corpus: Corpus,
    exported: Path,
    trained: Path,
    tmp_path: Path,
    module: str,
    arguments: list[str],
    expected: str,
) -> None:
    """Without the packages of the extras, and with a terminal that knows ASCII alone."""
    program = (
        f"import runpy, sys; sys.modules.update(dict.fromkeys({BLOCKED}));"
        f"runpy.run_module('resmlp_mt.{module}', run_name='__main__', alter_sys=True)"
    )
    places = {
        "MODEL": exported,
        "CHECKPOINT": trained / "checkpoint_best.pt",
        "SOURCE": corpus.folder / "test.en",
        "TARGET": corpus.folder / "test.de",
        "AVERAGE": tmp_path / "average.pt",
    }
    done = subprocess.run(
        [sys.executable, "-c", program, *(str(places.get(a, a)) for a in arguments)],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    output = done.stdout + done.stderr
    assert "Traceback" not in output
    assert re.search(expected, output), output
    if "MODEL" in arguments:
        right = corpus.sentences("test", "de")
        assert sum(f in right for f in done.stdout.splitlines()) >= 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing"], "missing is neither a checkpoint nor a folder"),
        (["tests"], "tests cannot be read as an exported model"),
        (["MODEL", "--input", "missing"], "--input missing cannot be read: No such file"),
        (["MODEL", "--data", "x"], "--data is for checkpoints: .* has its own"),
        (["MODEL", "--beam", "0", "--nbest", "0"], None),
        (["MODEL", "--nbest", "6"], None),
        (["MODEL", "--split-sentences", "--print-scores"], None),
        (["MODEL", "--split-sentences", "--out-format", "jsonl"], None),
        (["MODEL", "--threads", "0"], None),
        (["MODEL", "--workers", "0"], None),
        (["MODEL", "--threads", "3000000"], None),
        (["MODEL", "--workers", "9" * 5000], None),
        (["MODEL", "--temperature", "inf"], None),
        (["MODEL", "--lenpen", "1", "--beam", "400"], "--beam 400 is too large"),
        (["MODEL", "--min-len", "50"], "--min-len 50 is above the longest translation, 39"),
    ],
)
def test_mistakes_are_named_in_one_line(
    exported: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str | None,
) -> None:
    """Wrong numbers in the command line are argparse's to report, with status 2."""
    monkeypatch.chdir(ROOT)
    arguments = [str(exported) if a == "MODEL" else a for a in arguments]
    with pytest.raises(SystemExit) as error:
        run(*arguments, text=b"one\n", capsys=capsys)
    if message is None:
        assert error.value.code == 2
        assert "error: " in capsys.readouterr().err
    else:
        assert isinstance(error.value, UserError)
        assert error.match(message)
        assert "\n" not in str(error.value)


def test_a_pipe_gets_its_line_back_at_once(exported: Path) -> None:
    """The second line is written when the translation of the first has been read."""
    command = [sys.executable, "-m", "resmlp_mt.translate", str(exported), "--workers", "2"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, **pipes) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for line in (b"one two\n", b"five\n"):
            process.stdin.write(line)
            process.stdin.flush()
            assert process.stdout.readline().decode().strip()
        process.stdin.close()
        assert process.wait(300) == 0


def test_output_goes_to_a_file_that_appears_when_it_is_complete(
    corpus: Corpus, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (corpus.folder / "test.en").read_bytes()
    expected = run(exported, text=text, capsys=capsys)
    assert run(exported, "--output", tmp_path / "out", text=text, capsys=capsys) == []
    assert (tmp_path / "out").read_text(encoding="utf-8").splitlines() == expected
    with pytest.raises(UserError, match=r"--output .*none/out cannot be written"):
        run(exported, "--output", tmp_path / "none" / "out", text=text, capsys=capsys)


def test_packed_files_and_a_dash(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = run(exported, "--output", "-", text=b"one two\n\nthree\n", capsys=capsys)
    assert [bool(line) for line in lines] == [True, False, True]
    # not opened by this name: that would empty the file of ``>> FILE``
    named = run(exported, "--output", "/dev/stdout", text=b"one two\n\nthree\n", capsys=capsys)
    assert named == lines
    packed, output = tmp_path / "in.gz", tmp_path / "out.gz"
    packed.write_bytes(gzip.compress(b"one two\n") + gzip.compress(b"\nthree\n"))
    assert not run(exported, "--input", packed, "--output", output, text=b"", capsys=capsys)
    assert gzip.decompress(output.read_bytes()).decode() == "".join(f"{line}\n" for line in lines)
    flags, time = output.read_bytes()[3], output.read_bytes()[4:8]
    assert (flags, time) == (0, bytes(4))  # RFC 1952: no name, no time
    capitals = packed.rename(tmp_path / "IN.GZ"), tmp_path / "OUT.Gz"
    assert not run(exported, "-i", capitals[0], "-o", capitals[1], text=b"", capsys=capsys)
    assert capitals[1].read_bytes() == output.read_bytes()
    capitals[0].rename(packed)
    packed.write_bytes(packed.read_bytes()[:-4])
    with pytest.raises(
        UserError, match=f"--input {packed} cannot be read after line 3: Compressed"
    ):
        run(exported, "--input", packed, text=b"", capsys=capsys)


@pytest.mark.parametrize(
    ("option", "name", "message"),
    [
        ("--input", "text.en.bz2", "is packed: unpack it, or pack its text with gzip"),
        ("--input", "TEXT.XZ", "is packed: unpack it, or pack its text with gzip"),
        ("--input", "a.jsonl", "has records: python -m resmlp_mt"),
        ("--input", "a.jsonl.gz", "has records: python -m resmlp_mt"),
        ("--input", "corpus.tar.gz", r"is an archive: unpack it\.$"),
        *(
            ("--input", f"text.en.{kind}", "is not lines of text: convert it")
            for kind in (
                "csv csv.GZ sgm TMX xml xlf html srt vtt po sgm.gz ass ssa sbv ttml dfxp xhtml pot "
                "resx sdlxliff mxliff tbx"
            ).split()
        ),
        *(
            ("--input", f"text.en.{kind}", r"is a document: take its text out\.$")
            for kind in "docx DOC odt epub pptx xlsx pdf rtf pdf.gz".split()
        ),
        ("--output", "text.de.xz", "is packed: name a text file"),
        ("--output", "text.zip", "is an archive: name a text file"),
        ("--output", "out.tar.gz", "is an archive: name a text file"),
    ],
)
def test_files_of_other_kinds_are_refused_by_their_names(
    option: str, name: str, message: str, tmp_path: Path
) -> None:
    """They would be translated byte by byte, or not have what their name says."""
    (tmp_path / name).write_bytes(b"x\n")
    with pytest.raises(UserError, match=f"{option} .*{name} {message}"):
        translate.main(["MODEL", option, str(tmp_path / name)])


def test_json_lines_have_score_alignment_and_nbest(
    corpus: Corpus, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "  one\u2028two\x85 \n \n".encode() + b"two " * 99 + b"\n"
    plain = run(exported, "--nbest", 2, text=text, capsys=capsys)
    lines = run(exported, "--nbest", 2, "--out-format", "jsonl", text=text, capsys=capsys)
    assert "\n".join(lines).splitlines() == lines  # no other sign divides them
    found = [json.loads(line) for line in lines]
    first = found[0]
    assert first["source"] == "one\u2028two"
    scores = [f"D-0\t{n['score']}\t{n['translation']}" for n in first["nbest"]]
    assert scores == plain[:2]
    assert (first["translation"], first["score"]) == tuple(first["nbest"][0].values())
    sizes = len(first["source_pieces"]), len(first["pieces"])
    assert [target for _, target in first["alignment"]] == list(range(sizes[1]))
    assert all(0 <= source < sizes[0] for source, _ in first["alignment"])
    assert (found[1]["translation"], found[1]["score"]) == ("", 0.0)
    assert (found[2]["translation"], found[2]["score"]) == ("", None)
    assert [entry["alignment"] for entry in found[1:]] == [[], []]


def test_a_line_of_several_sentences_is_translated_sentence_by_sentence(
    exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sentences = ["one two.", "Three one two.", "Two."]
    text = f" {sentences[0]} {sentences[1]}\t\n\n* * *\n{sentences[2]}\r\u2028...\n".encode()
    for options in (["--buffer-size", 1], [], ["--sampling"]):
        plain = run(exported, *options, text="\n".join(sentences).encode(), capsys=capsys)
        assert len(plain) == 3
        assert run(exported, "--split-sentences", *options, text=text, capsys=capsys) == [
            f"{plain[0]} {plain[1]}",
            "",
            "* * *",
            f"{plain[2]}  ...",
        ]


def test_sentences_of_a_pipe_have_draws_of_their_own(
    exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--split-sentences", "--sampling", "--buffer-size", 1]
    assert len(set(run(exported, *options, text=b"one two. One two.\n" * 8, capsys=capsys))) > 1


def test_text_for_a_model_and_an_output_that_is_the_input_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    text = tmp_path / "in.txt"
    text.write_text("A dog runs.\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"in.txt is text, and MODEL .*: give it with --input"):
        translate.main([str(text), "--input", str(text)])
    with pytest.raises(UserError, match=r"is a file of an exported folder: give that, .*en-de\.$"):
        translate.main([str(pretrained.FOLDER / "en-de/config.json")])
    (tmp_path / "link").symlink_to(text)
    for output in (text, tmp_path / "link"):
        with pytest.raises(UserError, match="is the --input: choose another name"):
            translate.main(["--input=~/in.txt", "--output", str(output)])
    assert text.read_text(encoding="utf-8") == "A dog runs.\n"
