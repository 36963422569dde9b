"""sacreBLEU's options in the score command, and the tokenizers of languages without spaces."""

import argparse
import json
import lzma
import os
import re
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import sentencepiece
from sacrebleu import sacrebleu as sacrebleu_command
from sacrebleu.metrics import BLEU

from resmlp_mt import language_codes
from resmlp_mt.errors import UserError
from resmlp_mt.other_programs import answers
from resmlp_mt.score import main
from resmlp_mt.scoring.downloads import download
from resmlp_mt.scoring.languages import language_pair, script_without_words
from resmlp_mt.scoring.options import TOKENIZERS, parse_args
from translations import Corpus, command, fails, score, scores, write

TEXTS = {
    "zh": ["我们去城里。", "猫坐在垫子上面。", "今天的天气非常好，我们去公园散步。"],
    "ja": ["猫がマットの上に座っています。", "今日は天気がとても良いです。", "東京に行きます。"],
    "ko": ["고양이가 매트 위에 앉아 있습니다.", "오늘은 날씨가 매우 좋습니다.", "서울에 갑니다."],
    "th": ["แมวนั่งอยู่บนเสื่อ", "วันนี้อากาศดีมาก", "เราไปกรุงเทพฯ"],
}
CODES = {
    "zh": "zh zh-CN zh_TW zho chi cmn ZH zh_Hans zho_Hans cmn_Hant zh-cmn-Hans-CN yue".split(),
    "ja": "ja ja_XX jpn ja-JP jpn_Jpan".split(),
    "ko": "ko kor ko-KR kor_Hang".split(),
    "th": "th tha th-TH tha_Thai".split(),
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return Corpus(tmp_path_factory.mktemp("corpus"))


def system(text: list[str]) -> list[str]:
    """A translation with an error in the middle of each sentence."""
    return [line[: len(line) // 2] + "x" + line[len(line) // 2 + 1 :] for line in text]


OPTIONS = [
    "-m bleu -lc",
    "-m bleu --tokenize intl",
    "-m bleu -tok char",
    "-m bleu -tok none --force",
    "-m bleu -s floor",
    "-m bleu -s add-k -sv 2",
    "-m bleu --smooth-method none",
    "-m chrf -cw 2",
    "-m chrf --chrf-char-order 4 --chrf-beta 1 --chrf-whitespace",
    "-m chrf --chrf-lowercase --chrf-eps-smoothing",
    "-m ter --ter-case-sensitive --ter-no-punct",
    "-m ter --ter-normalized --ter-asian-support",
    "-m bleu chrf ter --confidence --confidence-n 60",
    "-m bleu -ci -cin 30 -lc -tok intl",
    "-m bleu -tok zh",
    "-m bleu chrf ter -tok char -lc --chrf-lowercase --chrf-word-order 3 -cc 2 --ter-normalized",
]


@pytest.mark.parametrize("options", OPTIONS)
def test_options_equal_those_of_the_sacrebleu_command(
    corpus: Corpus, tmp_path: Path, options: str
) -> None:
    files = ("-i", corpus.file["sys"])
    report = score(corpus.file["ref"], *files, *options.split(), path=tmp_path / "r")
    entries = json.loads(
        command("sacrebleu", corpus.file["ref"], *files, *options.split(), "-w", "9")
    )
    entries = entries if isinstance(entries, list) else [entries]
    assert len(report["scores"]) == len(entries)
    for ours, theirs in zip(report["scores"], entries, strict=True):
        assert ours["name"] == theirs["name"]
        assert round(ours["score"], 9) == theirs["score"]
        assert ours["signature"] == theirs["signature"]
        assert ours["verbose"] == theirs.get("verbose_score", "")
        if "confidence_mean" in theirs:
            assert round(ours["mean"], 9) == theirs["confidence_mean"]
            assert round(ours["ci"], 9) == theirs["confidence_var"]
        else:
            assert ours["mean"] is None


@pytest.mark.parametrize("options", ["", "-m chrf -cw 2", "-m ter", "-m bleu -lc -s floor -w 3"])
def test_sentence_level_prints_what_the_sacrebleu_command_prints(
    corpus: Corpus, capsys: pytest.CaptureFixture[str], options: str
) -> None:
    argv = ("-i", corpus.file["sys"], *options.split(), "-sl")
    main([*argv, "--ref", corpus.file["ref"], corpus.file["ref2"]])
    theirs = command("sacrebleu", corpus.file["ref"], corpus.file["ref2"], *argv)
    assert capsys.readouterr().out == theirs
    assert len(theirs.splitlines()) == 150


def test_short_signatures_equal_those_of_the_sacrebleu_command(
    corpus: Corpus, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ("-i", corpus.file["sys"], "-m", "bleu", "chrf", "ter", "--short")
    main([*argv, "--ref", corpus.file["ref"], "-q"])
    printed = capsys.readouterr().out
    theirs = command("sacrebleu", corpus.file["ref"], *argv, "--format", "text")
    for line in theirs.splitlines():
        assert f"\n{line.partition(' = ')[0].strip()}\n" in f"{printed}\n"


def test_short_signatures_name_the_tokenization_of_moses(
    corpus: Corpus, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["-i", corpus.file["sys"], "--ref", corpus.file["ref"], "-l", "en-de", "--short", "-q"]
    main(argv)
    assert "|pretok:sacremoses-aggressive[de]-" in capsys.readouterr().out


def test_a_sample_in_which_nothing_matches_has_an_interval(tmp_path: Path) -> None:
    """sacreBLEU's chrF is of another type there, and Python takes no mean of two types."""
    system, ref = ["x", "Der Hund schläft."], ["Haus", "Der Hund läuft."]
    files = "-i", write(tmp_path / "sys", system), "--ref", write(tmp_path / "ref", ref)
    report = score(*files, "-m", "chrf", "-ci", "-cin", "40", path=tmp_path / "r.json")
    assert 0 < report["scores"][0]["mean"] < report["scores"][0]["score"] + 10


def test_every_option_of_sacrebleu_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Either it works, or a sentence says what to do instead."""
    known: list[set[str]] = []

    def stop(parser: argparse.ArgumentParser, *_: object) -> None:
        known.append({name for action in parser._actions for name in action.option_strings})
        raise SystemExit

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", stop)
    for parse in (sacrebleu_command.parse_args, lambda: parse_args([])):
        with pytest.raises(SystemExit):
            parse()
    theirs, ours = known
    assert theirs - ours == {"-V"}
    assert {name for names in answers("sacrebleu") for name in names.split()} <= theirs


def test_all_tokenizers_of_sacrebleu_can_be_chosen() -> None:
    assert set(TOKENIZERS) == set(BLEU.TOKENIZERS)


def test_flores200_equals_the_sacrebleu_command(corpus: Corpus, tmp_path: Path) -> None:
    """A small model stands for the one that sacreBLEU would download."""
    (tmp_path / "models").mkdir()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus.lines["ref"]),
        model_prefix=str(tmp_path / "small"),
        vocab_size=90,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (tmp_path / "small.model").rename(tmp_path / "models" / "flores200sacrebleuspm")
    argv = ("-i", corpus.file["sys"], "-m", "bleu", "--tokenize", "flores200")
    theirs = json.loads(
        command("sacrebleu", corpus.file["ref"], *argv, "-w", "9", SACREBLEU=str(tmp_path))
    )
    subprocess.run(
        [
            *(sys.executable, "-m", "resmlp_mt.score", *argv, "--ref", corpus.file["ref"]),
            *("--json", str(tmp_path / "r.json")),
        ],
        env={**os.environ, "SACREBLEU": str(tmp_path)},
        check=True,
    )
    (ours,) = json.loads((tmp_path / "r.json").read_text())["scores"]
    assert round(ours["score"], 9) == theirs["score"]
    assert ours["signature"] == theirs["signature"]
    assert "tok:flores200" in ours["signature"]


def test_a_signal_is_no_failed_download() -> None:
    """Ctrl-C, or a service manager, may end a download that takes long."""
    with pytest.raises(SystemExit) as ended, download("chrF", "models", "wait"):
        sys.exit(143)
    assert ended.value.code == 143
    with pytest.raises(UserError, match="chrF cannot be fetched"), download("chrF", "x", "wait"):
        sys.exit(1)  # sacreBLEU's, for a wrong checksum


@pytest.mark.parametrize("error", [zlib.error, lzma.LZMAError, EOFError, ValueError])
def test_a_download_that_is_damaged_is_told(error: type[Exception]) -> None:
    message = r"^wmt14 cannot be fetched \(cut\): allow the network and delete .*/wmt14 if an earl"
    with pytest.raises(UserError, match=message), download("wmt14", "wmt14", "give --ref FILE"):
        raise error("cut")
    with pytest.raises(UserError, match=r"^its own$"), download("wmt14", "wmt14", "wait"):
        raise UserError("its own")


@pytest.mark.parametrize(
    ("language", "code"), [(k, code) for k in ("zh", "ja", "ko") for code in CODES[k]]
)
def test_the_tokenizer_fits_every_spelling_of_the_language(
    tmp_path: Path, language: str, code: str
) -> None:
    files = [
        write(tmp_path / name, lines)
        for name, lines in (("ref", TEXTS[language]), ("sys", system(TEXTS[language])))
    ]
    argv = ("-i", files[1], "-m", "bleu", "-l")
    theirs = json.loads(command("sacrebleu", files[0], *argv, f"en-{language}", "-w", "9"))
    (ours,) = score(*argv, f"en-{code}", "--ref", files[0], path=tmp_path / "r.json")["scores"]
    assert round(ours["score"], 9) == theirs["score"] > 10
    assert ours["signature"] == theirs["signature"]


@pytest.mark.parametrize(
    ("language", "code"),
    [("th", code) for code in CODES["th"]]
    + [("zh", None), ("ja", "jp"), ("ko", "kr"), ("zh", "cn"), ("zh", "chinese"), ("th", None)],
)
def test_bleu_is_refused_where_its_tokenizer_is_not_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], language: str, code: str | None
) -> None:
    """Also where the code is wrong or missing: the script of the references tells."""
    ref = write(tmp_path / "ref", TEXTS[language])
    argv = ["-i", write(tmp_path / "sys", system(TEXTS[language])), "--ref", ref]
    argv += [] if code is None else ["-l", f"en-{code}"]
    message = fails(capsys, *argv, "-m", "bleu")
    assert "(13a) does not find the words" in message
    assert ("--tokenize flores200" if language == "th" else "-l en-zh, -l en-ja") in message
    report = score(*argv, path=tmp_path / "r.json")
    has_words = language == "ko"
    assert list(scores(report)) == ["chrf", "chrf++"] + ["ter"] * has_words
    starts = ("no TER: TER does not find the words of text", "chrF2++ counts words between spaces")
    for start in starts:
        assert any(note.startswith(start) for note in report["notes"]) != has_words
    assert any(note.startswith("no BLEU: ") for note in report["notes"])
    by_hand = score(*argv, "-m", "bleu", "--tokenize", "char", path=tmp_path / "r.json")
    assert scores(by_hand)["bleu"][0] > 10


def test_moses_is_refused_for_text_without_spaces(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ref = write(tmp_path / "ref", TEXTS["zh"])
    argv = ("-i", write(tmp_path / "sys", system(TEXTS["zh"])), "--ref", ref, "-l", "en-zh_CN")
    assert "text in Han script has none" in fails(capsys, *argv, "-m", "tokenized-bleu")
    assert list(scores(score(*argv, path=tmp_path / "r.json"))) == ["bleu", "chrf", "chrf++"]


@pytest.mark.parametrize("language", ["zh", "ja", "ko", "th"])
def test_ter_finds_words_or_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], language: str
) -> None:
    ref = write(tmp_path / "ref", TEXTS[language])
    argv = ("-i", write(tmp_path / "sys", system(TEXTS[language])), "--ref", ref, "-m", "ter")
    divided = ("--ter-normalized", "--ter-asian-support")
    if language in ("zh", "ja"):
        assert "give --ter-normalized --ter-asian-support" in fails(capsys, *argv)
        assert "give --ter-normalized --ter-asian" in fails(capsys, *argv, "--ter-normalized")
    if language == "th":
        assert "text in Thai script: give -m chrf" in fails(capsys, *argv, *divided)
    else:
        options = () if language == "ko" else divided
        assert 0 < scores(score(*argv, *options, path=tmp_path / "r.json"))["ter"][0] < 90


@pytest.mark.parametrize("language", ["ja", "ko"])
def test_a_missing_extra_is_named(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    language: str,
) -> None:
    monkeypatch.setattr(f"sacrebleu.tokenizers.tokenizer_{language}_mecab.MeCab", None)
    ref = write(tmp_path / "ref", TEXTS[language])
    message = fails(capsys, "-i", ref, "--ref", ref, "-l", f"en-{language}", "-m", "bleu")
    assert f"pip install '.[{language}]'" in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("en-de", ("en", "de")),
        ("en_XX-zh_CN", ("en_XX", "zh_CN")),
        ("en-zh-CN", ("en", "zh-CN")),
        ("pt-BR-en", ("pt-BR", "en")),
        ("zh-Hans-CN-pt-BR", ("zh-Hans-CN", "pt-BR")),
        ("en-fr-CA", ("en", "fr-CA")),
        ("en-FR-ca", ("en-FR", "ca")),
        ("xx-yy", ("xx", "yy")),
        ("en-xx", ("en", "xx")),
        ("en-uk", ("en", "uk")),
        ("EN-DE", ("EN", "DE")),
        ("en-jpn_Jpan", ("en", "jpn_Jpan")),
        ("en-ZH", ("en", "ZH")),
        ("en-cz", ("en", "cz")),
        ("en-out", ("en", "out")),
        ("en-DE", ("en", "DE")),
        ("en-Fr", ("en", "Fr")),
        ("eng-Deu", ("eng", "Deu")),
        ("x-y", ("x", "y")),
        ("en-XX", ("en", "XX")),
    ],
)
def test_pairs_are_split_as_they_are_meant(text: str, expected: tuple[str, str]) -> None:
    assert language_pair(text) == expected


@pytest.mark.parametrize("text", ["zh-Hant", "zh-TW", "de-AT", "no-NO", "pt-BR", "es-419"])
def test_one_language_is_no_pair(text: str) -> None:
    with pytest.raises(ValueError, match=f"one language, because {text[3:]} is a script or a"):
        language_pair(text)


def test_base_languages() -> None:
    for language, codes in CODES.items():
        assert {language_codes.base(code) for code in codes} == {language}
    for code, language in (
        ("deu", "de"),
        ("de_AT", "de"),
        ("XX", "xx"),
        ("klingons!", "klingons!"),
    ):
        assert language_codes.base(code) == language


def test_scripts_of_text() -> None:
    for language, script in (("zh", "Han"), ("ko", "Hangul"), ("th", "Thai")):
        assert script_without_words([TEXTS[language]]) == script
    assert script_without_words([TEXTS["ja"]]) in ("Han", "Hiragana", "Katakana")
    assert script_without_words([["Das Wort 猫 heißt Katze.", ""]]) is None
    assert script_without_words([["", "123 !"]]) is None
    assert script_without_words([["\ua9a7\ua9b1\ua997\ua9ae", "\u1b05"]]) == "Javanese"
    assert script_without_words([["\u1a20\u1a63"]]) == "Tai Tham"
    assert script_without_words([["\u1980\u1981"]]) == "New Tai Lue"


def test_equal_scores_are_shown_once(tmp_path: Path) -> None:
    """Without hyphens and quotes, all tokenizations are the same; one bucket holds all."""
    ref = write(tmp_path / "ref", ["Das Haus ist alt.", "Ein Baum steht dort."])
    argv = ["-i", write(tmp_path / "sys", ["Das Haus ist neu.", "Ein Baum."]), "--ref", ref]
    argv += ["--src", ref, "-l", "en-de"]
    report = score(*argv, "-cw", "2", path=tmp_path / "r.json")
    assert list(scores(report)) == ["bleu", "chrf", "ter"]
    for name in ("tokenized-bleu", "dash-split-bleu"):
        assert f"{name} is left out: it equals bleu on this text" in report["notes"]
    assert "chrf++ is left out: it equals chrf on this text" in report["notes"]
    assert report["by_source_length"] == []
    assert any("all sources have 0-9 tokens" in note for note in report["notes"])
    asked = score(*argv, "-m", "tokenized-bleu", "dash-split-bleu", path=tmp_path / "r.json")
    assert len(asked["scores"]) == 2


def test_tables_fit_100_columns_and_show_what_bleu_is_made_of(
    corpus: Corpus, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(corpus.folder)
    argv = ["-i", "sys", "--ref", "ref", "ref2", "--src", "src", "-l", "en-de"]
    main([*argv, "-ci", "-cin", "20"])
    single = capsys.readouterr().out
    main([*argv, "--baseline", "base", "-pbsn", "20"])
    assert max(map(len, (single + capsys.readouterr().out).splitlines())) <= 100
    theirs = json.loads(command("sacrebleu", "ref", "ref2", "-i", "sys", "-w", "9"))
    precisions, rest = theirs["verbose_score"].split(" (BP = ")
    (row,) = [line for line in single.splitlines() if line.startswith("BLEU ")]
    assert f" {precisions} " in row
    assert f"  {rest.split()[0]}  " in row


def columns(text: str) -> dict[str, str]:
    """What the tables say of BLEU."""
    heads: list[str] = []
    values: list[str] = []
    for line in text.splitlines():
        first, *others = re.split(" {2,}", line)
        heads += others if first == "metric" else []
        values += others if first == "BLEU" else []
    return dict(zip(heads, values, strict=True))


@pytest.mark.parametrize("width", [5, 6, 12])
@pytest.mark.parametrize("options", ["-ci -cin 20", "--baseline base -pbsn 20"])
def test_columns_that_do_not_fit_are_below(
    corpus: Corpus,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    width: int,
    options: str,
) -> None:
    monkeypatch.chdir(corpus.folder)
    argv = ["-i", "sys", "--ref", "ref", "-l", "en-de", "-q", *options.split()]
    main(argv)
    narrow = columns(capsys.readouterr().out)
    main([*argv, "-w", str(width)])
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 100
    assert columns(text).keys() == narrow.keys()
    for name, value in columns(text).items():
        first, rounded = (re.split("[ /*]", each)[0] for each in (value, narrow[name]))
        assert float(first) == pytest.approx(float(rounded), abs=0.06)


def test_text_out_is_utf8_whatever_the_locale(tmp_path: Path) -> None:
    ref = write(tmp_path / "größe", ["Das Haus ist alt."])
    result = subprocess.run(
        [sys.executable, "-m", "resmlp_mt.score", "-i", ref, "--ref", ref, "-ci", "-cin", "5"],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=True,
    )
    assert f"references:  {ref}" in result.stdout.decode()
    assert "±" in result.stdout.decode()
