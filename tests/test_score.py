"""The numbers of the score command, against the sacrebleu command and fairseq's BLEU."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import sacrebleu
import sacremoses
from fairseq.data import Dictionary
from fairseq.scoring import bleu as fairseq_bleu
from hypothesis import given, settings
from hypothesis import strategies as st

from resmlp_mt.score import main
from translations import Corpus, command, damaged, fails, score, scores, sentences, write


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return Corpus(tmp_path_factory.mktemp("corpus"))


@pytest.mark.parametrize("references", [["ref"], ["ref", "ref2"]])
def test_equals_the_sacrebleu_command(
    corpus: Corpus, tmp_path: Path, references: list[str]
) -> None:
    refs = [corpus.file[name] for name in references]
    ours = scores(score("-i", corpus.file["sys"], "--ref", *refs, path=tmp_path / "r.json"))
    theirs = json.loads(
        command(
            "sacrebleu", *refs, "-i", corpus.file["sys"], "-m", "bleu", "chrf", "ter", "-w", "9"
        )
    )
    assert [entry["name"] for entry in theirs] == ["BLEU", "chrF2", "TER"]
    for metric, entry in zip(("bleu", "chrf", "ter"), theirs, strict=True):
        assert round(ours[metric][0], 9) == entry["score"]
        assert ours[metric][1] == entry["signature"]


def test_the_kinds_of_chrf_are_sacrebleus(corpus: Corpus, tmp_path: Path) -> None:
    system, reference = (
        Path(corpus.file[name]).read_text(encoding="utf-8").splitlines() for name in ("sys", "ref")
    )
    files = "-i", corpus.file["sys"], "--ref", corpus.file["ref"]
    ours = scores(score(*files, "-m", "chrf", "chrf++", path=tmp_path / "r.json"))
    for metric, words in (("chrf", 0), ("chrf++", 2)):
        theirs = sacrebleu.CHRF(word_order=words).corpus_score(system, [reference])
        assert ours[metric][0] == pytest.approx(theirs.score, abs=1e-9)
    assert ours["chrf"][0] != ours["chrf++"][0]


def test_prints_what_the_sacrebleu_command_prints(
    corpus: Corpus, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ("-m", "bleu", "chrf", "ter", "-w", "3")
    theirs = command(
        "sacrebleu", corpus.file["ref"], "-i", corpus.file["sys"], *argv, "-b", "-ftext"
    )
    main(["-i", corpus.file["sys"], "--ref", corpus.file["ref"], *argv, "-q"])
    rows = capsys.readouterr().out.split("\n\n")[0].splitlines()[2:]
    assert [row.split()[1] for row in rows] == theirs.split()


def test_golden_scores_of_the_sacrebleu_readme(tmp_path: Path) -> None:
    """Section "Using SacreBLEU from Python" of the README of sacreBLEU 2."""
    system = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
    first = ["The dog bit the man.", "It was not unexpected.", "The man bit him first."]
    second = ["The dog had bit the man.", "No one was surprised.", "The man had bitten the dog."]
    files = [write(tmp_path / str(i), lines) for i, lines in enumerate((system, first, second))]
    report = score("-i", files[0], "--ref", *files[1:], path=tmp_path / "r.json")
    bleu, chrf = report["scores"][:2]
    assert f"{bleu['score']:.2f}" == "48.53"
    assert bleu["verbose"].startswith("82.4/50.0/45.5/37.5 (BP = 0.943 ratio = 0.944")
    assert f"{chrf['score']:.2f}" == "59.73"


TOKENIZATIONS = {
    "tokenized-bleu": (False, "moses", False),
    "dash-split-bleu": (True, "moses-aggressive", False),
    "compound-split-bleu": (False, "moses+compound_split", True),
}


@pytest.mark.parametrize("metric", TOKENIZATIONS)
def test_tokenized_bleu_equals_the_pipeline_of_separate_tools(
    corpus: Corpus, tmp_path: Path, metric: str
) -> None:
    """sacremoses, then sacreBLEU without tokenization, and fairseq's own BLEU, as in Ott et al."""
    aggressive, name, compound_split = TOKENIZATIONS[metric]
    moses = sacremoses.MosesTokenizer(lang="de")
    # fairseq counts an empty translation as one token, so leave it out
    kept = [i for i, line in enumerate(corpus.lines["sys"]) if line]
    plain = {side: [corpus.lines[side][i] for i in kept] for side in ("sys", "ref")}

    def tokens(side: str) -> list[str]:
        lines = [moses.tokenize(x, aggressive, return_str=True) for x in plain[side]]
        if compound_split:
            lines = [re.sub(r"(\S)-(\S)", r"\1 ##AT##-##AT## \2", line) for line in lines]
        return lines

    files = [write(tmp_path / side, lines) for side, lines in plain.items()]
    argv = ("-i", files[0], "--ref", files[1], "-l", "en-de", "-m", metric)
    ours, signature = scores(score(*argv, path=tmp_path / "r.json"))[metric]
    theirs = sacrebleu.BLEU(tokenize="none", force=True)
    assert ours == theirs.corpus_score(tokens("sys"), [tokens("ref")]).score
    assert signature == (
        f"nrefs:1|case:mixed|eff:no|tok:none|smooth:exp|"
        f"pretok:sacre{name}[de]-{sacremoses.__version__}|version:{sacrebleu.__version__}"
    )
    dictionary = Dictionary()
    specials = {"pad": dictionary.pad(), "eos": dictionary.eos(), "unk": dictionary.unk()}
    scorer = fairseq_bleu.Scorer(fairseq_bleu.BleuConfig(**specials))
    for hypothesis, reference in zip(tokens("sys"), tokens("ref"), strict=True):
        scorer.add(*(dictionary.encode_line(line).int() for line in (reference, hypothesis)))
    assert ours == pytest.approx(scorer.score(), abs=1e-9)


def test_the_three_tokenized_scores_differ(corpus: Corpus, tmp_path: Path) -> None:
    argv = ("-i", corpus.file["sys"], "--ref", corpus.file["ref"], "-l", "en-de", "-m")
    found = scores(score(*argv, *TOKENIZATIONS, path=tmp_path / "r.json"))
    assert len({value for value, _ in found.values()}) == 3


@pytest.mark.parametrize(("test", "samples"), [("bs", 120), ("ar", 150)])
def test_significance_equals_the_sacrebleu_command(
    corpus: Corpus, tmp_path: Path, test: str, samples: int
) -> None:
    argv = (f"--paired-{test}", f"--paired-{test}-n", str(samples), "-m", "bleu", "chrf", "ter")
    systems = (corpus.file["base"], corpus.file["sys"])
    report = score(
        *("-i", systems[1], "--baseline", systems[0], "--ref", corpus.file["ref"]),
        *argv,
        path=tmp_path / "r.json",
    )
    # its JSON fails on numpy's float32
    printed = command(
        *("sacrebleu", corpus.file["ref"], "-i", *systems, *argv),
        *("-w", "9", "--format", "latex", "--no-color"),
    )
    rows = [line.split(" & ")[1:] for line in printed.splitlines() if line.count(" & ") == 3]
    baseline, system = ([re.findall(r"\d+\.\d+", cell) for cell in row] for row in rows[1:])
    assert len(report["significance"]) == 3
    for ours, first, second in zip(report["significance"], baseline, system, strict=True):
        values = [ours[key] for key in ("baseline", "baseline_mean", "baseline_ci")]
        assert [f"{value:.9f}" for value in values if value is not None] == first
        values = [ours[key] for key in ("score", "mean", "ci")]
        shown = [f"{value:.9f}" for value in values if value is not None]
        assert [*shown, f"{ours['p_value']:.4f}"] == second
        assert len(second) == (4 if test == "bs" else 2)
        assert f" {ours['signature']}\n" in printed


def test_equal_scores_are_not_significant(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """sacreBLEU gives such a pair the smallest possible p; TER ignores case here."""
    texts = {"ref": ["Ein Haus am See."] * 9, "sys": ["Ein Haus am Meer."] * 9}
    texts["base"] = [line.lower() for line in texts["sys"]]
    files = {name: write(tmp_path / name, lines) for name, lines in texts.items()}
    argv = ("--ref", files["ref"], "-i", files["sys"], "-m", "ter", "--baseline")
    report = score(*argv, files["base"], path=tmp_path / "r.json")
    (comparison,) = report["significance"]
    assert comparison["score"] == comparison["baseline"] == 25.0
    assert comparison["p_value"] == 1.0
    capsys.readouterr()
    message = f"{files['sys']} and {files['sys']} hold the same translations"
    assert message in fails(capsys, *argv, files["sys"])


def test_length_buckets_partition_the_corpus(corpus: Corpus, tmp_path: Path) -> None:
    argv = ("-i", corpus.file["sys"], "--ref", corpus.file["ref"], "--src", corpus.file["src"])
    report = score(*argv, "-m", "bleu", "--length-buckets", "5,15,40", path=tmp_path / "r.json")
    buckets = report["by_source_length"]
    assert [b["bucket"] for b in buckets] == ["0-4", "5-14", "15-39"]  # none is longer
    assert sum(b["sentences"] for b in buckets) == 150
    for bucket, (low, high) in zip(buckets, [(0, 4), (5, 14), (15, 39)], strict=True):
        chosen = [
            i for i, line in enumerate(corpus.lines["src"]) if low <= len(line.split()) <= high
        ]
        metric = sacrebleu.BLEU()
        expected = metric.corpus_score(
            [corpus.lines["sys"][i] for i in chosen], [[corpus.lines["ref"][i] for i in chosen]]
        )
        assert bucket["sentences"] == len(chosen) > 0
        assert bucket["score"] == expected.score
        plain = str(metric.get_signature())
        assert bucket["signature"] == plain.replace(
            "nrefs:1", f"nrefs:1|subset:source_tokens_{bucket['bucket']}"
        )


def test_every_printed_number_has_its_signature(
    corpus: Corpus, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["-i", corpus.file["sys"], "--ref", corpus.file["ref"], "--src", corpus.file["src"]]
    argv += ["--baseline", corpus.file["base"], "-l", "en-de", "--paired-bs-n", "10"]
    main([*argv, "--quiet"])
    parts = capsys.readouterr().out.strip().split("\n\n")
    for table, signatures in zip(parts[::2], parts[1::2], strict=True):
        header, rule, *rows = table.splitlines()
        assert set(rule) == {"-", " "}
        lines = signatures.replace("\n    ", "").splitlines()
        named = [line.partition("|")[0] for line in lines]
        measured = [row[: rule.index(" ")].strip() for row in rows]
        assert named == (measured if header.startswith("metric") else ["BLEU"])
        assert all(line.endswith(f"|version:{sacrebleu.__version__}") for line in lines)


@settings(max_examples=15, deadline=None)
@given(data=st.data(), count=st.integers(1, 12), n_best=st.integers(1, 3))
def test_the_order_of_generate_output_does_not_matter(
    data: st.DataObject, count: int, n_best: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("shuffled")
    references = sentences(count, seed=count)
    best = damaged(references, seed=9)
    lines = []
    for i in range(count):
        lines += [f"S-{i}\t{references[-i]}", f"T-{i}\t{references[i]}"]
        for rank in range(n_best):
            text = best[i] if rank == 0 else references[i][rank:]
            lines += [f"{kind}-{i}\t{-1.5 - rank}\t{text}" for kind in "HD"]
            lines.append(f"P-{i}\t-0.1 -0.2")
    lines.append("Generate test with beam=4: BLEU4 = 1.00")
    shuffled = data.draw(st.permutations(lines))
    found = [
        score(
            *("--generate-output", write(folder / name, order), "-l", "en-de"), path=folder / "json"
        )
        for name, order in (("a", lines), ("b", shuffled))
    ]
    for key in ("scores", "by_source_length"):
        assert found[0][key] == found[1][key]
    files = [write(folder / name, text) for name, text in (("sys", best), ("ref", references))]
    plain = score("-i", files[0], "--ref", files[1], "-l", "en-de", path=folder / "json")
    assert plain["scores"] == found[0]["scores"]


def test_raw_references_are_preferred_to_target_lines(corpus: Corpus, tmp_path: Path) -> None:
    pairs = enumerate(zip(corpus.lines["sys"], corpus.lines["ref2"], strict=True))
    output = write(
        tmp_path / "gen",
        [line for i, (h, t) in pairs for line in (f"T-{i}\t{t}", f"D-{i}\t-1\t{h}")],
    )
    argv = ("--generate-output", output, "-m", "bleu")
    raw = score(*argv, "--ref", corpus.file["ref"], path=tmp_path / "r.json")
    by_target = score(*argv, path=tmp_path / "r.json")
    of_file = score(
        "-i",
        corpus.file["sys"],
        "--ref",
        corpus.file["ref"],
        "-m",
        "bleu",
        path=tmp_path / "r.json",
    )
    assert raw["scores"] == of_file["scores"] != by_target["scores"]
    assert not any("T- lines" in note for note in raw["notes"])
    assert any("T- lines" in note for note in by_target["notes"])


def cached_test_set(folder: Path, corpus: Corpus) -> None:
    """What sacreBLEU leaves behind after a download of wmt14/full."""
    cache = folder / "wmt14" / "full"
    cache.mkdir(parents=True)
    empty = [""] * 150
    for field in ("src", "ref", "docid", "genre", "origlang"):
        write(cache / f"wmt14_full.en-de.{field}", corpus.lines.get(field, empty))


def test_test_set_by_name_equals_the_sacrebleu_command(corpus: Corpus, tmp_path: Path) -> None:
    cached_test_set(tmp_path, corpus)
    argv = ("-i", corpus.file["sys"], "-t", "wmt14/full", "-l", "en-de")
    theirs = json.loads(command("sacrebleu", *argv, "-w", "9", SACREBLEU=str(tmp_path)))
    result = subprocess.run(
        [sys.executable, "-m", "resmlp_mt.score", *argv, "--json", str(tmp_path / "r.json")],
        env={**os.environ, "SACREBLEU": str(tmp_path)},
        check=True,
    )
    assert result.returncode == 0
    report = json.loads((tmp_path / "r.json").read_text())
    value, signature = scores(report)["bleu"]
    assert (round(value, 9), signature) == (theirs["score"], theirs["signature"])
    assert sum(b["sentences"] for b in report["by_source_length"]) == 150
