"""The modules behind the score command: cleaning, generate output, tokenization."""

import random
import shutil
import subprocess
from pathlib import Path

import pytest
from fairseq.data.data_utils import post_process
from hypothesis import given, settings
from hypothesis import strategies as st

from resmlp_mt.errors import UserError
from resmlp_mt.scoring.cleaning import SYMBOLS, Cleaning, remove_subwords
from resmlp_mt.scoring.generate_output import read_generate_output
from resmlp_mt.scoring.lines import Sentences, read_lines
from resmlp_mt.scoring.measures import moses_tokenizer

PIECES = st.sampled_from(["▁", "@@", "@@ ", " ", "  ", "_", "|", "_EOW", "ab", "ß", "😀", "<unk>"])


@given(symbol=st.sampled_from(SYMBOLS), pieces=st.lists(PIECES, max_size=12))
def test_subword_removal_equals_fairseq(symbol: str, pieces: list[str]) -> None:
    sentence = "".join(pieces)
    assert remove_subwords(sentence, symbol) == post_process(sentence, symbol)


def test_byte_pieces_are_joined_to_characters() -> None:
    line = "\u25815 \u2581 <0xE2> <0x82> <0xAC> <0x0A>"
    assert remove_subwords(line, "sentencepiece") == "5 €"
    assert remove_subwords(line, "wordpiece") == line.replace(" ", "")
    spelt = "▁byte ▁< 0 x 41 > ▁is ▁ <0x41>"  # only a whole piece is a byte
    assert remove_subwords(spelt, "sentencepiece") == "byte <0x41> is A"


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(st.characters(exclude_characters="\n\r\0\ufeff", codec="utf-8"))))
def test_reading_returns_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str]
) -> None:
    path = tmp_path_factory.mktemp("lines") / "file"
    path.write_bytes("".join(line + "\n" for line in lines).encode())
    assert read_lines(str(path)) == lines


def test_carriage_returns_and_a_byte_order_mark_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "windows"
    path.write_bytes("\ufeff▁a\r\nb\rc\r\n\r\nlast".encode())
    assert read_lines(str(path)) == ["▁a", "b\rc", "", "last"]


def generate(*lines: str, folder: Path) -> str:
    path = folder / "gen.txt"
    path.write_bytes("".join(line + "\n" for line in lines).encode())
    return str(path)


def run(*texts: str) -> list[str]:
    """The lines of a run without subwords, in an order that is not the corpus's."""
    lines = []
    for i, text in reversed(list(enumerate(texts))):
        lines += [f"S-{i}\tsource {i}", f"T-{i}\ttarget {i}"]
        lines += [f"{kind}-{i}\t-0.25\t{text}" for kind in "HD"] + [f"P-{i}\t-0.1"]
    return lines


def test_corpus_order_is_restored(tmp_path: Path) -> None:
    output = read_generate_output(generate(*run("a", "", "c 😀"), folder=tmp_path))
    assert output.hypotheses.lines == ["a", "", "c 😀"]
    assert output.sources is not None
    assert output.sources.lines == ["source 0", "source 1", "source 2"]
    assert output.targets is not None
    assert output.targets.lines == ["target 0", "target 1", "target 2"]


def test_more_than_ten_sentences_are_sorted_by_number(tmp_path: Path) -> None:
    texts = [f"text {i}" for i in range(25)]
    lines = run(*texts)
    random.Random(0).shuffle(lines)
    assert read_generate_output(generate(*lines, folder=tmp_path)).hypotheses.lines == texts


def test_a_dropped_batch_is_refused(tmp_path: Path) -> None:
    lines = [line for line in run(*"abcdefgh") if line[2] not in "36"]
    expected = r"gen.txt: 2 of 8 sentences have no H- line \(the first ids: 3, 6\); .*multiple 1"
    with pytest.raises(match=expected):
        read_generate_output(generate(*lines, folder=tmp_path))


@pytest.mark.parametrize("prefix", ["2026-01-01 12:00:00 | INFO | {} | ", "INFO:{}:"])
def test_a_dropped_end_is_found_in_the_log(tmp_path: Path, prefix: str) -> None:
    log = prefix.format("fairseq.data.data_utils") + "loaded 1,003 examples from: bin/test.de"
    with pytest.raises(match=r"1001 of 1003 .* \(the first ids: 2, 3, 4, 5, 6\)"):
        read_generate_output(generate(log, *run("a", "b"), folder=tmp_path))


LOADED = "INFO | fairseq.data.data_utils | loaded {} examples from: bin/{}.en-de.de"
TELLS = [
    "INFO | fairseq_cli.generate | {{'dataset': {{'gen_subset': '{}', 'x': 1}}}}",
    "Generate {} with beam=5: BLEU = 1.00",
]


@pytest.mark.parametrize("tells", TELLS)
def test_only_the_set_that_was_translated_counts(tmp_path: Path, tells: str) -> None:
    """Other sets are looked at, or belong to another part of the command."""
    logs = [LOADED.format("1,014", "valid"), LOADED.format(2, "test"), LOADED.format(9, "test1")]
    lines = [*logs, *run("a", "b")]
    output = read_generate_output(generate(*lines, tells.format("test"), folder=tmp_path))
    assert output.hypotheses.lines == ["a", "b"]
    for told, count in (("test1", 9), ("valid", 1014)):
        with pytest.raises(match=f"{count - 2} of {count} sentences have no"):
            read_generate_output(generate(*lines, tells.format(told), folder=tmp_path))
    with pytest.raises(match="1012 of 1014"):
        read_generate_output(generate(*lines, folder=tmp_path))


def test_the_other_shards_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "out" / "shard-0-of-2"
    folder.mkdir(parents=True)
    lines = [LOADED.format(4, "test"), *(line for line in run(*"abcd") if line[2] in "02")]
    path = shutil.move(generate(*lines, folder=tmp_path), folder / "generate-test.txt")
    whole = tmp_path / "out" / "shard-*" / "generate-test.txt"
    with pytest.raises(UserError) as refused:
        read_generate_output(str(path))
    assert str(refused.value).endswith(
        f"they are in the files of other processes: give all, cat {whole}"
    )


def test_the_best_hypothesis_is_the_first(tmp_path: Path) -> None:
    lines = ["D-0\t-0.5\tfirst", "D-0\t-0.5\tas good", "D-0\t-2\tworse", "D-1\t-3\tonly"]
    lines += ["S-0\ta", "S-1\tb"]
    assert read_generate_output(generate(*lines, folder=tmp_path)).hypotheses.lines == [
        *("first", "only")
    ]


def test_hypotheses_come_from_d_lines_else_from_h_lines(tmp_path: Path) -> None:
    lines = ["H-0\t-1\t▁a ▁b", "D-0\t-1\ta b"]
    assert read_generate_output(generate(*lines, folder=tmp_path)).hypotheses.lines == ["a b"]
    output = read_generate_output(generate(lines[0], folder=tmp_path))
    assert output.hypotheses.lines == ["▁a ▁b"]
    assert output.hypotheses.origin.endswith("gen.txt (H- lines)")


def test_a_progress_bar_in_the_same_file_hides_nothing(tmp_path: Path) -> None:
    first, *rest = run("a", "b")
    bar = "\r  0%|          | 0/1 [00:00<?, ?it/s]"
    output = read_generate_output(generate(bar + first, *rest, folder=tmp_path))
    assert output.sources is not None
    assert output.sources.lines == ["source 0", "source 1"]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([*run("a"), *run("b")], "line 6: S-0 occurs a second time, so the file holds more than"),
        (
            ["D-0\t-1\ta", "D-1\t-1\tb", "D-0\t-2\tc", "D-1\t-2\td"],
            "line 3: D-0 occurs a second time, and without S- or T- lines an n-best list",
        ),
        (["H-0\t-1\ta", "H-0\t-1\ta"], "line 2: H-0 occurs a second time, and without"),
        (["nothing here"], "holds no D- or H- lines: give the output of fairseq-generate"),
        (["D-0\ttext without score"], "line 1 is damaged: expected id, score and text"),
        (["D-0\tscore\ttext"], "line 1 is damaged"),
        (["D-0\t-1\ta", "D-99999999999\t-1\tb"], "99999999998 of 100000000000 sentences have no"),
        (
            ["D-0\t-1\ta", "D-1\t-1\tb", "T-1\tb"],
            r"1 of 2 sentences have no T- line \(the first ids: 0\)",
        ),
    ],
)
def test_damaged_output_is_refused(tmp_path: Path, lines: list[str], expected: str) -> None:
    with pytest.raises(match=expected):
        read_generate_output(generate(*lines, folder=tmp_path))


@pytest.mark.parametrize(
    ("raw", "decoded", "is_detokenized", "is_run_together"),
    [
        (["▁Das ▁Haus", "▁x"], ["Das Haus", "x"], False, False),  # --bpe sentencepiece
        (["Das H@@ aus .", "x"], ["Das Haus .", "x"], False, False),  # --bpe subword_nmt
        (["Das Haus .", "x"], ["Das Haus .", "x"], False, False),  # --remove-bpe
        (["Das Haus .", "x"], ["Das Haus.", "x"], True, False),  # --remove-bpe --tokenizer moses
        (["Das H@@ aus .", "x"], ["Das Haus.", "x"], True, False),  # --bpe --tokenizer
        (["Das Haus", "x"], ["DasHaus", "x"], False, True),  # --remove-bpe and --bpe
        (["So .", "x"], ["So.", "x"], True, False),  # --tokenizer, no two words in a line
    ],
)
def test_what_fairseq_did_is_seen_from_its_lines(
    tmp_path: Path, raw: list[str], decoded: list[str], is_detokenized: bool, is_run_together: bool
) -> None:
    lines = [f"H-{i}\t-1\t{text}" for i, text in enumerate(raw)]
    lines += [f"D-{i}\t-1\t{text}" for i, text in enumerate(decoded)]
    output = read_generate_output(generate(*lines, folder=tmp_path))
    assert output.is_run_together == is_run_together
    assert output.is_detokenized == is_detokenized or is_run_together


def test_subwords_are_not_removed_twice() -> None:
    cleaning = Cleaning(remove_bpe="sentencepiece")
    once = cleaning.plain(Sentences(["▁Das ▁ist ▁ein ▁H aus .", ""], "sys"))
    assert once.lines == ["Das ist ein Haus.", ""]
    with pytest.raises(match=r"sys holds no '▁', .* drop --remove-bpe sentencepiece"):
        cleaning.plain(once)


def test_detokenization_follows_subword_removal() -> None:
    cleaning = Cleaning(remove_bpe="subword_nmt", detokenize="de")
    tokens = "&quot; E-@@ Mail-@@ Adres@@ se &quot; , rich @-@ text , z.B. 50 % ( so ) ."
    (line,) = cleaning.plain(Sentences([tokens], "sys")).lines
    assert line == '"E-Mail-Adresse", rich-text, z.B. 50% (so).'


def test_the_wrong_scheme_is_noticed() -> None:
    with pytest.raises(match=r"sys, line 1 still carries subword marks \('@@'\)"):
        Cleaning(detokenize="de").plain(Sentences(["H@@ aus"], "sys"))
    with pytest.raises(match=r"gen, sentence 1 still carries subword marks \('▁'\)"):
        Cleaning(remove_bpe="subword_nmt").plain(Sentences(["ok", "▁H aus"], "gen", "sentence"))


def test_moses_tokenization_of_a_compound() -> None:
    """The example of nlp.stanford.edu/projects/nmt and the documentation of tokenizer.perl -a."""
    text = "rich-text format"
    assert moses_tokenizer("en", "moses")(text) == "rich-text format"
    assert moses_tokenizer("en", "moses-aggressive")(text) == "rich @-@ text format"
    compound_split = moses_tokenizer("en", "moses+compound_split")
    assert compound_split(text) == "rich ##AT##-##AT## text format"


@pytest.mark.skipif(shutil.which("perl") is None, reason="needs perl")
def test_compound_split_equals_the_perl_substitution() -> None:
    """tensor2tensor's get_ende_bleu.sh and fairseq's compound_split_bleu.sh apply it to tokens."""
    rng = random.Random(0)
    texts = ["".join(rng.choices("ab-ü 1.-😀,", k=rng.randint(1, 30))) for _ in range(500)]
    tokens = [moses_tokenizer("de", "moses")(text) for text in texts]
    perl = subprocess.run(
        ["perl", "-ple", r"s{(\S)-(\S)}{$1 ##AT##-##AT## $2}g"],
        input="".join(line + "\n" for line in tokens).encode(),
        capture_output=True,
        check=True,
    )
    compound_split = moses_tokenizer("de", "moses+compound_split")
    assert [compound_split(text) for text in texts] == perl.stdout.decode().split("\n")[:-1]
