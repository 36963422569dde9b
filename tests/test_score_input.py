"""What the score command reads and what it refuses."""

import gzip
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from sacrebleu.dataset import DATASETS

from resmlp_mt import unpacking
from resmlp_mt.errors import UserError
from resmlp_mt.score import main
from resmlp_mt.scoring import lines as reading
from resmlp_mt.scoring.downloads import load_test_set
from translations import Corpus, fails, score, scores, write


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return Corpus(tmp_path_factory.mktemp("corpus"))


def test_windows_files_and_gzip_score_alike(corpus: Corpus, tmp_path: Path) -> None:
    text = Path(corpus.file["sys"]).read_bytes()
    windows, packed = tmp_path / "windows", tmp_path / "sys.gz"
    windows.write_bytes(b"\xef\xbb\xbf" + text.replace(b"\n", b"\r\n").removesuffix(b"\r\n"))
    packed.write_bytes(gzip.compress(text))
    found = [
        score("-i", str(path), "--ref", corpus.file["ref"], path=tmp_path / "json")["scores"]
        for path in (corpus.file["sys"], windows, packed)
    ]
    assert found[0] == found[1] == found[2]


def test_only_newlines_end_sentences(tmp_path: Path) -> None:
    line = "one\u2028two\x0bthree\x85four five"
    file = write(tmp_path / "odd", [line, "six"])
    report = score("-i", file, "--ref", file, "-m", "bleu", path=tmp_path / "r.json")
    assert report["sentences"] == 2


def test_empty_translations_score_zero(corpus: Corpus, tmp_path: Path) -> None:
    empty = write(tmp_path / "empty", [""] * 150)
    found = scores(
        score("-i", empty, "--ref", corpus.file["ref"], "-l", "en-de", path=tmp_path / "r.json")
    )
    assert found["ter"][0] == 100.0
    assert {value for metric, (value, _) in found.items() if metric != "ter"} == {0.0}


SPLIT = " was split into subwords (2 of 2 lines have the marks of subwords"


def test_different_line_counts_name_both_files(
    corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = write(tmp_path / "short", corpus.lines["sys"][:-1])
    message = fails(capsys, "-i", short, "--ref", corpus.file["ref"])
    assert f"{short} has 149 sentences, but {corpus.file['ref']} has 150" in message
    argv = ("-i", corpus.file["sys"], "--ref", corpus.file["ref"])
    assert f"but {short} has 149" in fails(capsys, *argv, "--src", short)
    assert f"but {short} has 149" in fails(capsys, *argv, "--baseline", short, "-m", "bleu")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"good\nb\xc3\nc\n", ", line 2 is not valid UTF-8 (unexpected end of data at byte 2)"),
        (b"good\nb\0\n", ", line 2 holds a NUL byte"),
        ("a\n".encode("utf-16"), " is UTF-16 or UTF-32: convert it to UTF-8 with iconv"),
        (b"\xfd7zXZ\0", " is packed: unpack it"),
        (b"", " is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid", " is a pointer of Git LFS"),
        (b"Ein H@@ aus\n", ", line 1 still carries subword marks ('@@'): give --remove-bpe"),
        ("Ein\n▁Haus\n".encode(), ", line 2 still carries subword marks ('▁'): give --remove-bpe"),
        (b"T h e | c a t |\n" * 2, f"{SPLIT}, '|'): give --remove-bpe, or text whose subwords are"),
        (b"the ##y r ##un\n" * 2, f"{SPLIT}, '##'): give --remove-bpe, or text whose subwords are"),
        (
            b"_The _cat _ru ns\n" * 2,
            f"{SPLIT}, '_'): give --remove-bpe, or text whose subwords are",
        ),
        (b"Es ist rich @-@ text\n", " looks tokenized (0 of 1 sentences end in ' .', 1 hold"),
        (b"Ein Haus .\nEin Baum .\nKurz\n", " looks tokenized (2 of 3"),
        (None, " cannot be read: No such file or directory"),
    ],
)
def test_unusable_files_are_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, expected: str
) -> None:
    bad, good = tmp_path / "bad", write(tmp_path / "good", ["Ein Haus."])
    if content is not None:
        bad.write_bytes(content)
    assert f"{bad}{expected}" in fails(capsys, "-i", str(bad), "--ref", good)
    if content:
        expected = re.sub(": give.*", ": give the raw reference", expected)
        assert f"{bad}{expected}" in fails(capsys, "-i", good, "--ref", str(bad))


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("D-0\t-1.5\tEin Haus.", "lines of fairseq-generate: give them with --generate-output"),
        ('{"source": "A house.", "translation": "Ein Haus."}', "lines of JSON: extract the transl"),
        ('<seg id="1">Ein Haus.</seg>', "segments of SGML or XML: take their text out"),
        ("A house.\tEin Haus.", "columns between tabs: cut one of them out, cut -f N"),
        ("  </doc>", "segments of SGML or XML: take their text out"),
    ],
)
def test_records_are_no_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, told: str
) -> None:
    good, bad = write(tmp_path / "good", ["Haus"] * 3), write(tmp_path / "bad", [line, line, ""])
    for argv in (
        ["-i", bad, "--ref", good],
        ["-i", good, "--ref", bad],
        ["-i", good, "--ref", good, "--src", bad],
        ["-i", good, "--ref", good, "--baseline", bad, "-m", "bleu"],
    ):
        assert f"{bad} holds {told}" in fails(capsys, *argv)
    argv = ["-i", bad, "--ref", good, "-m", "bleu"]
    score(*argv, "--force", path=tmp_path / "r.json")
    write(tmp_path / "bad", [line, "Haus", "Haus"])
    score(*argv, path=tmp_path / "r.json")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        *(
            (f"x.{kind}", "is not lines of text: convert it")
            for kind in "sgm XML tmx srt ass json sgm.gz".split()
        ),
        ("x.docx", "is a document: take its text out"),
        ("x.zip", "is an archive: unpack it"),
    ],
)
def test_what_is_no_text_is_known_by_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, told: str
) -> None:
    """Whatever its lines look like; a name may also be a misunderstanding."""
    good, lines = write(tmp_path / "good", ["Haus"] * 3), ["1", "00:00 --> 00:01", "Haus"]
    bad = write(tmp_path / name, lines)
    if name.endswith(".gz"):
        Path(bad).write_bytes(gzip.compress(Path(bad).read_bytes()))
    for argv in (
        ["-i", bad, "--ref", good],
        ["-i", good, "--ref", bad],
        ["-i", good, "--ref", good, "--src", bad],
        ["-i", good, "--ref", good, "--baseline", bad, "-m", "bleu"],
    ):
        assert f"{bad} {told}, or insist with --force" in fails(capsys, *argv)
    score("-i", bad, "--ref", good, "-m", "bleu", "--force", path=tmp_path / "r.json")


@pytest.mark.parametrize("count", [1, 9])
def test_one_line_with_marks_may_be_raw(tmp_path: Path, count: int) -> None:
    lines = ["Rename _config and _data"] + ["Ein Haus."] * (count - 1)
    file = write(tmp_path / "sys", lines)
    score("-i", file, "--ref", file, "-m", "chrf", path=tmp_path / "r.json")


def test_force_scores_suspicious_text_and_says_so(tmp_path: Path) -> None:
    file = write(tmp_path / "sys", ["a ▁ in a text about ▁ @-@ ."])
    report = score("-i", file, "--ref", file, "--force", "-m", "bleu", path=tmp_path / "r.json")
    assert report["scores"][0]["score"] == pytest.approx(100.0)
    assert any("--force" in note for note in report["notes"])


def test_a_failed_run_leaves_the_old_report_and_no_litter(corpus: Corpus, tmp_path: Path) -> None:
    report = tmp_path / "out" / "r.json"
    report.parent.mkdir()
    report.write_text("old")
    same_file = tmp_path / "link"  # shows whether the file is replaced or written over
    same_file.hardlink_to(report)
    argv = ["-i", corpus.file["sys"], "--ref", str(tmp_path / "none"), "--json", str(report)]
    with pytest.raises(UserError):
        main(argv)
    assert report.read_text() == "old"
    score("-i", corpus.file["sys"], "--ref", corpus.file["ref"], "-m", "bleu", path=report)
    assert json.loads(report.read_text())["sentences"] == 150
    assert list(report.parent.iterdir()) == [report]
    assert same_file.read_text() == "old"


def test_closed_standard_output_loses_no_scores(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    argv = ["-i", corpus.file["sys"], "--ref", corpus.file["ref"], "-m", "BLEU", "--quiet"]
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(UserError, match=r"^standard output is closed: give --json FILE"):
        main(argv)
    main([*argv, "--json", str(tmp_path / "r.json")])
    assert (tmp_path / "r.json").exists()


def test_scores_are_shown_even_if_the_report_cannot_be_written(
    corpus: Corpus, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["-i", corpus.file["sys"], "--ref", corpus.file["ref"], "-m", "bleu", "--quiet"]
    message = r"--json /dev/full cannot be written \(No space left on device\): choose another"
    with pytest.raises(UserError, match=message):
        main([*argv, "--json", "/dev/full"])
    assert "BLEU " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["-i", "x"], "no references: give --ref FILE, or -t NAME -l SRC-TGT"),
        (["-i", "x", "-t", "wmt14"], "-t wmt14 needs a language pair"),
        (["-i", "x", "--ref", "y", "-l", "en-"], "expected source and target"),
        (["-i", "x", "--ref", "y", "-l", "de"], "expected source and target, such as en-de"),
        (["-i", "x", "--ref", "y", "-w", "-1"], "--width/-w: must be at least 0, but is -1"),
        (["-i", "x", "--ref", "y", "-ci", "-cin", str(10**18)], "-cin: must be at most 1000000"),
        (["-i", "x", "--ref", "y", "-cc", "999"], "--chrf-char-order/-cc: must be at most 100"),
        (["-i", "x", "--ref", "y", "-sv", "1e39"], "--smooth-value/-sv: must be at most 3.4e+38"),
        (["-i", "x", "--ref", "y", "--paired-bs"], "add --baseline FILE"),
        (["-i", "x", "--ref", "y", "-pbsn", "50"], "add --baseline FILE"),
        (["-i", "x", "--ref", "y", "-ci", "-cin", "1"], "--confidence-n/-cin: must be at least 2"),
        (["-i", "x", "--ref", "y", "--baseline", "z", "-pbsn", "1"], "-n/-pbsn: must be at least"),
        (["-i", "x", "--ref", "y", "--baseline", "z", "-parn", "9"], "is for --paired-ar: add it"),
        (
            ["-i", "x", "--ref", "y", "--baseline", "z", "-par", "-pbsn", "9"],
            "--paired-bs-n is for --paired-bs: give --paired-ar-n",
        ),
        (["-i", "x", "--ref", "y", "--baseline", "z", "-par", "-pbs"], "are two tests: drop one"),
        (["-i", "x", "--ref", "y", "--length-buckets", "9"], "add --src FILE"),
        (
            ["-i", "x", "--ref", "y", "--src", "z", "-m", "chrf", "--length-buckets", "9"],
            "add bleu to -m",
        ),
        (["-i", "x", "--ref", "y", "-m", "tokenized-bleu"], "tokenized BLEU needs -l SRC-TGT"),
        (
            ["-i", "x", "--ref", "y", "--length-buckets", "9,3"],
            "expected increasing positive numbers",
        ),
        (["-i", "x", "--ref", "y", "-sl", "-m", "bleu", "chrf"], "takes one metric"),
        (["-i", "x", "--ref", "y", "-sl", "-ci"], "--confidence belongs to scores of a whole text"),
        (["-i", "x", "--ref", "y", "-cin", "9"], "number of samples of --confidence"),
        (["-i", "x", "--ref", "y", "--baseline", "z", "-ci"], "--confidence is for one system"),
        (["-i", "x", "--ref", "y", "-m", "chrf", "-lc"], "--lowercase is for bleu: add bleu to -m"),
        (
            ["-i", "x", "--ref", "y", "-m", "dash-split-bleu", "-l", "en-de", "--tokenize", "intl"],
            "--tokenize is for bleu: add bleu to -m, or drop it",
        ),
        (
            ["-i", "x", "--ref", "y", "-m", "chrf++", "--chrf-word-order", "3"],
            "--chrf-word-order is for chrf: add chrf to -m",
        ),
        (["-i", "x", "--ref", "y", "-m", "bleu", "--ter-no-punct"], "--ter-no-punct is for ter"),
        (["-i", "x", "--ref", "y", "-sl", "-cw", "2"], "--chrf-word-order is for chrf: add chrf"),
        (["-i", "x", "--ref", "y", "-sv", "1"], "--smooth-value is for --smooth-method floor"),
        (["-i", "x", "--ref", "y", "-s", "floor", "-sv", "-1"], "must be at least 0, but is -1"),
        (["-i", "x", "--ref", "y", "-l", "en-fr-ca"], "not clear where the target begins"),
        (["-i", "x", "z", "--ref", "y"], "-i takes one system: compare it with another one by"),
        (["-i", "x", "--generate-output", "g", "--ref", "y"], "both give the translations"),
        (["-i", "x", "--ref", "y", "-t", "wmt14", "-l", "en-de"], "both give the references"),
        (["y", "-i", "x", "--ref", "y"], "y: give references only once"),
        (["y", "-i", "x", "-t", "wmt14", "-l", "en-de"], "y: give references only once"),
        (["-i", "x", "--ref", "y", "-b"], "-b is an option of the sacrebleu command: every"),
        (["-i", "x", "--ref", "y", "-f", "text"], "-f is an option of the sacrebleu command: "),
        (["y", "--num-refs", "2"], "give --ref one file for each reference"),
        (
            ["-t", "wmt14", "-l", "en-de", "--echo", "src"],
            "--echo is an option of the sacrebleu command: run sacrebleu",
        ),
        (["-i", "-", "--ref", "-"], "- is standard input, which has one text"),
        (["y", "--src", "-"], "- is standard input, which has one text"),
    ],
)
def test_wrong_options_are_explained(
    capsys: pytest.CaptureFixture[str], argv: list[str], expected: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    assert stopped.value.code == 2
    assert expected in capsys.readouterr().err


def test_a_report_that_cannot_be_written_is_told_before_the_text_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in ("/no/such/r.json", str(tmp_path)):
        argv = ("-i", "/no/such/x", "--ref", "/no/such/y", "--json", place)
        assert fails(capsys, *argv).startswith(f"--json {place} cannot be written")


def test_unknown_languages_and_test_sets_are_refused(
    corpus: Corpus, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ("-i", corpus.file["sys"], "--ref", corpus.file["ref"])
    named = ("-l", "en-xx", "-m", "tokenized-bleu")
    assert "no rules for the language 'xx'" in fails(capsys, *argv, *named)
    assert "no rules for the language 'xx'" in fails(capsys, *argv, "--detokenize", "xx")
    argv = ("-i", corpus.file["sys"], "-l", "en-xx")
    assert "knows no test set 'wmt00'" in fails(capsys, *argv, "-t", "wmt00")
    message = fails(capsys, *argv, "-t", "wmt14/full")
    assert "wmt14/full has no language pair 'en-xx', but cs-en, en-cs, de-en, en-de" in message


@pytest.mark.parametrize(
    ("languages", "pair"),
    [
        ("en-zh_CN", "en-zh"),
        ("eng-cmn", "en-zh"),
        ("zho_Hans-en_XX", "zh-en"),
        ("en-zh", "en-zh"),
        ("en_GB-de_AT", "en-de"),
        ("en-de-AT", "en-de"),
    ],
)
def test_the_languages_of_a_test_set_may_be_spelt_otherwise(
    monkeypatch: pytest.MonkeyPatch, corpus: Corpus, languages: str, pair: str
) -> None:
    dataset = DATASETS["wmt20"]
    fetched = []

    def source(found: str) -> str:
        fetched.append(found)
        return str(corpus.file["sys"])

    monkeypatch.setattr(dataset, "get_source_file", source)
    monkeypatch.setattr(dataset, "get_reference_files", lambda _: [str(corpus.file["ref"])])
    load_test_set("wmt20", languages)
    assert fetched == [pair]


@pytest.mark.parametrize("language", ["zh_TW", "zh-Hant", "yue", "lzh"])
def test_a_test_set_is_not_for_the_neighbour_of_its_language(language: str) -> None:
    for pair in (f"en-{language}", f"{language}-en"):
        with pytest.raises(UserError, match=f"wmt20 has no language pair '{pair}', but .*en-zh"):
            load_test_set("wmt20", pair)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["-t", "wmt14/full", "-l", "en-de"],
            r"test set wmt14/full cannot be fetched.*give --ref FILE",
        ),
        (
            ["--ref", "{ref}", "-m", "bleu", "--tokenize", "flores200"],
            "--tokenize flores200 cannot be fetched",
        ),
    ],
    ids=["test set", "tokenizer"],
)
def test_what_cannot_be_fetched_is_told_in_one_sentence(
    corpus: Corpus, tmp_path: Path, options: list[str], message: str
) -> None:
    dead = "http://127.0.0.1:9"  # the discard port: the connection is refused at once
    options = [option.format_map(corpus.file) for option in options]
    result = subprocess.run(
        [sys.executable, "-m", "resmlp_mt.score", "-q", "-i", corpus.file["sys"], *options],
        env={**os.environ, "SACREBLEU": str(tmp_path), "https_proxy": dead, "http_proxy": dead},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert re.match(message, result.stderr)
    assert len(result.stderr.splitlines()) == 1


def test_reads_standard_input(corpus: Corpus, tmp_path: Path) -> None:
    with open(corpus.file["sys"], "rb") as stdin:
        result = subprocess.run(
            [sys.executable, "-m", "resmlp_mt.score", "--ref", corpus.file["ref"], "-m", "bleu"],
            stdin=stdin,
            capture_output=True,
            text=True,
            check=True,
        )
    ours = scores(
        score("-i", corpus.file["sys"], "--ref", corpus.file["ref"], path=tmp_path / "r.json")
    )
    assert "system:      <stdin>" in result.stdout
    assert f" {ours['bleu'][0]:.1f} " in result.stdout


def test_a_language_without_moses_rules_has_no_tokenized_bleu(
    corpus: Corpus, tmp_path: Path
) -> None:
    argv = ("-i", corpus.file["sys"], "--ref", corpus.file["ref"])
    for more, reason in (((), "give -l SRC-TGT"), (("-l", "en-xx"), "rules for the language 'xx'")):
        report = score(*argv, *more, path=tmp_path / "r.json")
        assert list(scores(report)) == ["bleu", "chrf", "chrf++", "ter"]
        assert any("no tokenized BLEU" in note and reason in note for note in report["notes"])


def test_reports_what_was_done_to_the_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From subwords of Moses tokens to the plain reference; lengths are those of the S- lines."""
    gen = write(
        tmp_path / "gen",
        [
            *("S-1\tA t@@ ree .", "T-1\tEin B@@ aum .", "H-1\t-1\tEin B@@ aum ."),
            *("D-1\t-1\tEin B@@ aum .", "S-0\tThe h@@ ou@@ se &apos;s .", "T-0\tDas H@@ aus ."),
            *("H-0\t-1\tDas H@@ aus .", "D-0\t-1\tDas H@@ aus ."),
        ],
    )
    argv = ("--generate-output", gen, "--remove-bpe", "--detokenize", "de", "-m", "bleu", "chrf")
    main([*argv, "--length-buckets", "4", "--json", str(tmp_path / "r.json")])
    printed = capsys.readouterr().out
    assert "removed:     subwords (subword_nmt) and Moses tokenization (de)" in printed
    assert f"references:  {gen} (T- lines)" in printed
    report = json.loads((tmp_path / "r.json").read_text())
    assert scores(report)["chrf"][0] == 100.0
    assert [b["sentences"] for b in report["by_source_length"]] == [1, 1]
    raw = write(tmp_path / "ref", ["Das Haus.", "Ein Baum."])
    again = score(*argv, "--ref", raw, path=tmp_path / "r.json")
    assert again["scores"] == report["scores"]


@pytest.mark.parametrize(
    ("lines", "options", "expected"),
    [
        (["T-0\ta <<unk>> b", "D-0\t-1\ta b"], [], "(T- lines), sentence 0 contains <unk>"),
        (["D-0\t-1\ta b"], [], "has no T- lines: give --ref FILE"),
        (["T-0\tEs ist gut .", "D-0\t-1\tEs ist gut."], [], "(T- lines) looks tokenized"),
        (["T-0\tab c", "H-0\t-1\ta b", "D-0\t-1\tab"], [], "removed the subwords twice"),
        (
            ["T-0\ta.", "H-0\t-1\ta .", "D-0\t-1\ta."],
            ["--detokenize", "de"],
            "were detokenized by fairseq: drop --detokenize",
        ),
        (["T-0\ta", "D-0\t-1\ta"], ["--remove-bpe", "sentencepiece"], "(D- lines) holds no '▁'"),
    ],
)
def test_unusable_generate_output_is_refused(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    lines: list[str],
    options: list[str],
    expected: str,
) -> None:
    gen = write(tmp_path / "gen", lines)
    message = fails(capsys, "--generate-output", gen, *options)
    assert message.startswith(gen)
    assert expected in message


def test_unknown_words_of_the_system_are_reported(tmp_path: Path) -> None:
    """The second is as most sentencepiece models print them."""
    argv = ("-i", write(tmp_path / "sys", ["a <unk>", "b \u2047 <unk>", "c"]), "-m", "bleu")
    ref = write(tmp_path / "ref", ["a c", "b", "c"])
    report = score(*argv, "--ref", ref, path=tmp_path / "r.json")
    assert "2 translations contain <unk> or \u2047" in report["notes"]


@pytest.mark.parametrize(
    "letters",
    ["\u09df", "\u0915\u095c", "e\u0301", "\u1780\u200b\u1781", "re\xadchnen", "\u200ea"],
    ids=ascii,
)
def test_references_that_no_normalised_translation_equals_are_told(
    letters: str, tmp_path: Path
) -> None:
    def told(system: list[str], reference: list[str]) -> list[str]:
        files = write(tmp_path / "sys", system), write(tmp_path / "ref", reference)
        argv = ("-i", files[0], "--ref", files[1], "-m", "chrf", "--force")
        notes = score(*argv, path=tmp_path / "r.json")["notes"]
        return [note for note in notes if "normalised" in note]

    plain = ["a b", "c\xa0d  e "] * 50
    (note,) = told(plain, [*plain[:-3], *[letters] * 3])
    assert note.startswith("3 references have letters or signs that normalised translations cannot")
    assert not told(plain, [*plain[:-1], letters])  # hardly any
    assert told([*plain[:-3], *[letters] * 3], [letters] * 100)
    assert not told([*plain[:-12], *[letters] * 12], [letters] * 100)
    assert not told([letters] * 100, [letters] * 100)
    assert not told(plain, plain)


def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, "MIN_LIMIT", 1000)
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(b"a\n" * 500))
    assert reading.read_lines(str(path)) == ["a"] * 500
    path.write_bytes(gzip.compress(b"a\n" * 50_000))
    with pytest.raises(UserError, match=r"x\.gz is refused: it unpacks to over 20 times"):
        reading.read_lines(str(path))
