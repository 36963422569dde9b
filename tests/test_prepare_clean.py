"""Cleaning against a plain reference, and its invariants over random text."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resmlp_mt.errors import UserError
from resmlp_mt.fairseq_plugin.wrapping import mend
from resmlp_mt.preparation import clean, dedup
from resmlp_mt.preparation.clean import Options
from resmlp_mt.preparation.formats import TextFiles
from resmlp_mt.scoring.lines import read_lines

OPTIONS = Options("en", "de", max_length=8, max_ratio=2.0)


def fault_of(source: str, target: str, options: Options) -> str | None:
    [index] = clean.faults([source], [target], options)
    return None if index < 0 else clean.LENGTH_FILTERS[index]


@pytest.mark.parametrize(
    ("source", "target", "fault"),
    [
        ("a b", "c", None),
        ("", "c", "empty"),
        ("a", "", "empty"),
        ("a b c", "d", "ratio"),
        ("d", "a b c", "ratio"),
        ("a b c d e f g h", "a b c d", None),
        ("a b c d e f g h i", "a b c d e", "length"),
    ],
)
def test_faults(source: str, target: str, fault: str | None) -> None:
    assert fault_of(source, target, OPTIONS) == fault


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("a b-c d.", 3),
        ("Straße “für” alle", 3),
        ("저는 학생입니다.", 2),  # Korean is written with spaces
        ("我是学生。", 4),
        ("「好」，他走了。", 4),
        ("私はカメラを買う。", 8),
        ("我用iPhone手机 每天", 7),
        ("\U00020000\U00020001", 2),
        ("ฉันเป็นนักเรียน", 4),  # 15 signs: about a word for every four
        ("ខ្ញុំជាសិស្ས", 3),
        ("འགྲོ་བ་མི་རིགས།", 4),
        ("ꦧꦱꦗꦮ", 1),
        ("\u1a20\u1a63\u1a20\u1a63\u1a20", 2),  # Tai Tham
        ("\U00011700\U00011701 a", 2),
    ],
)
def test_words_are_counted_in_scripts_without_spaces_too(text: str, count: int) -> None:
    assert clean.words(text) == count
    assert clean._word_counts([text]) == [count]


def test_chinese_beside_english_passes_the_filters_that_it_should() -> None:
    english = "The weather is very nice today, so let us walk."
    assert fault_of(english, "今天天气很好，我们去散步吧。", Options("en", "zh")) is None
    assert fault_of(english, "好。", Options("en", "zh")) == "ratio"
    assert fault_of("学" * 251, "学" * 251, Options("zh", "ja")) == "length"


@given(st.lists(st.lists(st.integers(0, 40) | st.integers(0, 2**64 - 1), max_size=30), max_size=8))
def test_the_hash_set_is_a_set(batches: list[list[int]]) -> None:
    # Slots are the low bits: small numbers share few slots of the smallest table and it must grow.
    table = dedup.HashSet(slots=8)
    seen: set[int] = set()
    for batch in batches:
        expected = []
        for value in batch:
            # 0 marks a free slot and stands for 1.
            expected.append((value or 1) not in seen)
            seen.add(value or 1)
        assert table.add(np.array(batch, dtype=np.uint64)).tolist() == expected
    assert table._count == len(seen)
    assert len(table._table) <= max(8, 4 * len(seen) + 120)


def write(folder: Path, pairs: list[tuple[str, str]], stem: str = "x") -> TextFiles:
    files = TextFiles(folder / f"{stem}.en", folder / f"{stem}.de", "plain", "en", "de")
    files.source.write_text("".join(f"{a}\n" for a, _ in pairs), encoding="utf-8", newline="\n")
    files.target.write_text("".join(f"{b}\n" for _, b in pairs), encoding="utf-8", newline="\n")
    return files


def run(
    folder: Path,
    parts: list[TextFiles],
    options: Options = OPTIONS,
    **arguments: object,
) -> tuple[list[tuple[str, str]], dict[str, object]]:
    outputs = folder / "out.en", folder / "out.de"
    arguments = {"held_out": frozenset(), **arguments}
    facts = clean.clean_train(parts, outputs, options, **arguments)  # type: ignore[arg-type]
    sides = [path.read_text(encoding="utf-8").split("\n")[:-1] for path in outputs]
    return list(zip(*sides, strict=True)), facts


def reference(
    pairs: list[tuple[str, str]], held_out: frozenset[str]
) -> tuple[list[tuple[str, str]], dict[str, int]]:
    """The same by the definitions, with Python's set."""
    kept: list[tuple[str, str]] = []
    dropped = dict.fromkeys(("empty", "length", "ratio", "held-out", "duplicate"), 0)
    for source, target in pairs:
        pair = clean.normalize(source), clean.normalize(target)
        words = [len(side.split()) for side in pair]
        if min(words) == 0:
            dropped["empty"] += 1
        elif max(words) > OPTIONS.max_length:
            dropped["length"] += 1
        elif max(words) / min(words) > OPTIONS.max_ratio:
            dropped["ratio"] += 1
        elif held_out & set(pair):
            dropped["held-out"] += 1
        elif pair in kept:
            dropped["duplicate"] += 1
        else:
            kept.append(pair)
    return kept, dropped


words = st.lists(st.sampled_from(["a", "b", "ä\u0308", "\u200b", "c\xa0d"]), max_size=10).map(
    " ".join
)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(words, words), max_size=40), st.sets(words, max_size=3))
def test_cleaning_is_what_the_definitions_say(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str]], held: set[str]
) -> None:
    folder = tmp_path_factory.getbasetemp()
    held_out = frozenset(map(clean.normalize, held))
    pairs = [("left", "over"), *pairs]
    kept, dropped = reference(pairs, held_out)
    files = write(folder, pairs)
    result, facts = run(folder, [files], held_out=held_out)
    assert result == kept
    steps = {step["step"]: step for step in facts["steps"]}  # type: ignore[attr-defined]
    assert {name: steps[name]["dropped"] for name in dropped} == dropped
    assert steps["duplicate"]["kept"] == facts["pairs"] == len(kept)
    assert facts["read"] == len(pairs)
    changed = sum((clean.normalize(a), clean.normalize(b)) != (a, b) for a, b in pairs)
    assert steps["normalize"]["changed"] == changed
    # Cleaning what is clean changes nothing.
    again, _ = run(folder, [write(folder, result, "again")], held_out=held_out)
    assert again == result


def test_either_side_in_a_held_out_set_removes_a_pair(tmp_path: Path) -> None:
    files = write(tmp_path, [("a", "b"), ("x", "b"), ("a", "y"), ("x", "y"), ("a b", "y x")])
    kept, _ = run(tmp_path, [files], held_out=frozenset({"a", "b"}))
    assert kept == [("x", "y"), ("a b", "y x")]


def some_pairs(count: int) -> list[tuple[str, str]]:
    draw = random.Random(1)
    return [
        tuple(" ".join(draw.choices("abcdefgh", k=draw.randint(0, 5))) for _ in range(2))  # type: ignore[misc]
        for _ in range(count)
    ]


def test_the_result_does_not_depend_on_processes_or_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [write(tmp_path, some_pairs(3000)), write(tmp_path, some_pairs(1000), "y")]
    one = run(tmp_path, files, valid_every=7)
    monkeypatch.setattr(clean, "CHUNK", 101)
    assert run(tmp_path, files, valid_every=7) == one
    assert run(tmp_path, files, valid_every=7, jobs=3) == one
    assert len(one[0]) > 500


def test_invalid_utf8_names_file_and_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clean, "CHUNK", 10)
    files = write(tmp_path, [("a", "b")] * 30)
    files.target.write_bytes(b"b\n" * 24 + b"\xff\n" + b"b\n" * 5)
    with pytest.raises(UserError, match=r"x.de, line 25: byte 0xff at position 0"):
        run(tmp_path, [write(tmp_path, [("a", "b")] * 5, "first"), files])
    assert sorted(path.name for path in tmp_path.glob("out*")) == []


def test_max_pairs_takes_an_equal_share_of_each_part(tmp_path: Path) -> None:
    parts = [
        write(tmp_path, [(f"{name}{n}", f"{name}{n}") for n in range(10)], name) for name in "xyz"
    ]
    kept, facts = run(tmp_path, parts, max_pairs=5)
    assert [source for source, _ in kept] == ["x0", "x1", "y0", "y1", "z0"]
    assert facts["read"] == 5


def test_every_nth_pair_is_held_out_and_removed(tmp_path: Path) -> None:
    part = write(tmp_path, [(f"x{n}", f"y{n}") for n in range(1, 11)])
    chunks = clean.valid_chunks([part], None, 4)
    valid = [(chunk.source, chunk.target) for chunk in chunks]
    assert valid == [(b"x4", b"y4"), (b"x8", b"y8")]
    kept, facts = run(tmp_path, [part], valid_every=4)
    assert [source for source, _ in kept] == [f"x{n}" for n in (1, 2, 3, 5, 6, 7, 9, 10)]
    assert facts["steps"][1] == {"step": "validation", "kept": 8, "dropped": 2}  # type: ignore[index]


def test_held_out_sets_are_normalised_but_never_filtered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = [("a\xa0 b", "c"), ("", "d"), ("a\xa0 b", "c"), ("x " * 50, "y\rz"), ("e", "\0f\0\0g")]
    files = write(tmp_path, pairs)
    raw = tmp_path / "raw.en", tmp_path / "raw.de"
    text = tmp_path / "text.en", tmp_path / "text.de"
    items = clean.chunks([files])
    count, seen = clean.clean_held_out(items, raw, text, clean.Cleaner(OPTIONS))
    assert count == 5
    assert seen >= {"a b", "c", "d", "y z", "fg"}
    assert "warning: 1 of the 5 pairs of " in capsys.readouterr().err
    assert raw[0].read_text().split("\n")[:3] == ["a\xa0 b", "", "a\xa0 b"]
    assert raw[1].read_bytes() == b"c\nd\nc\ny z\nfg\n"
    assert read_lines(str(raw[1]))[-1] == "fg"  # `score` refuses NUL bytes
    assert text[0].read_text().split("\n")[:3] == ["a b", "", "a b"]


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no training pair is left of 2 \(dropped: empty 2\)"):
        run(tmp_path, [write(tmp_path, [("", "a"), ("b", " ")])])
    held_out = frozenset({"a", "c"})
    with pytest.raises(UserError, match="valid or test has the same sentences"):
        run(tmp_path, [write(tmp_path, [("a", "b"), ("c", "d"), ("", "e")])], held_out=held_out)
    with pytest.raises(UserError, match="the training files are empty"):
        run(tmp_path, [write(tmp_path, [])])


def test_moses_is_what_fairseq_does(tmp_path: Path) -> None:
    from fairseq.data.encoders.moses_tokenizer import MosesTokenizer, MosesTokenizerConfig

    text = 'It\'s "well-known" & done.'
    options = Options("en", "de", tokenizer="moses")
    [(source, _)], _ = run(tmp_path, [write(tmp_path, [(text, text)])], options)
    expected = MosesTokenizer(MosesTokenizerConfig(source_lang="en", target_lang="en"))
    assert source == expected.encode(text)
    assert "@-@" in source
    assert expected.decode(source) == text
    punctuated = Options("en", "de", normalize_punctuation=True)
    [(source, _)], _ = run(
        tmp_path, [write(tmp_path, [("„a“ \u2013 b…", "„a“ \u2013 b…")])], punctuated
    )
    assert source == '"a" - b...'


@pytest.mark.parametrize("code", ["fr-FR", "fr_FR", "fra", "fra_Latn", "FR"])
def test_moses_knows_a_language_under_every_spelling(code: str) -> None:
    """In training, and in fairseq's commands after it."""
    from fairseq.data.encoders.moses_tokenizer import MosesTokenizer, MosesTokenizerConfig

    from resmlp_mt.fairseq_plugin import text_input

    mend(text_input)
    line = "L'eau d'été\u00a0: 1\u00a0000 «\u00a0oui\u00a0»"

    def cleaned(language: str) -> list[str]:
        options = Options(language, "en", tokenizer="moses", normalize_punctuation=True)
        cleaner = clean.Cleaner(options)
        return [*cleaner.normalize(0, [line]), *cleaner.tokenize(0, [line])]

    assert cleaned(code) == cleaned("fr") != cleaned("en")
    theirs = MosesTokenizer(MosesTokenizerConfig(source_lang=code, target_lang=code))
    assert theirs.encode("L'eau") == cleaned("fr")[1].split(" d&apos;")[0] == "L&apos; eau"
    assert theirs.decode("L&apos; eau") == "L'eau"


def numbered(count: int) -> list[tuple[str, str]]:
    return [(f"a{n}", f"b{n} c") for n in range(count)]


def test_neighbours_are_joined(tmp_path: Path) -> None:
    """Groups of three, every second of them; what a group lost stays apart."""
    pairs = numbered(24)
    pairs[10] = ("", "empty")  # in the group of 9 to 11
    pairs[16] = pairs[0]  # a duplicate in the group of 15 to 17
    options = Options("en", "de", concatenate=3, concatenate_share=0.5)
    kept, facts = run(tmp_path, [write(tmp_path, pairs)], options)
    joined = [pair for pair in kept if " " in pair[0]]
    assert joined == [(f"a{n} a{n + 1} a{n + 2}", f"b{n} c b{n + 1} c b{n + 2} c") for n in (3, 21)]
    assert facts["pairs"] == len(kept) == 24 - 2 - 2 * 2
    assert facts["steps"][-1] == {  # type: ignore[index]
        "step": "concatenate", "kept": len(kept), "dropped": 0, "joined": 2
    }  # fmt: skip
    # All words are still there, in their order.
    apart = [pair for n, pair in enumerate(pairs) if n not in (10, 16)]
    for side in (0, 1):
        assert " ".join(pair[side] for pair in kept) == " ".join(pair[side] for pair in apart)


@pytest.mark.parametrize("share", [0.1, 0.25, 1.0])
def test_the_share_that_is_joined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    monkeypatch.setattr(clean, "CHUNK", 100)
    files = [write(tmp_path, numbered(2000))]
    options = Options("en", "de", concatenate=2, concatenate_share=share)
    kept, facts = run(tmp_path, files, options)
    assert sum(" " in source for source, _ in kept) == share * 1000
    assert facts["pairs"] == 2000 - share * 1000
    assert run(tmp_path, files, options, jobs=2) == (kept, facts)


@pytest.mark.parametrize("size", [3, 7, 130])
def test_groups_do_not_end_with_a_chunk_but_with_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(clean, "CHUNK", 100)
    counts = 1001, 999
    pairs = numbered(sum(counts))
    files = [write(tmp_path, pairs[: counts[0]], "x"), write(tmp_path, pairs[counts[0] :], "y")]
    options = Options("en", "de", concatenate=size, concatenate_share=1.0, max_length=1000)
    kept, facts = run(tmp_path, files, options)
    joined = [source.split() for source, _ in kept if " " in source]
    firsts = [*range(0, counts[0] - size + 1, size)]
    firsts += range(counts[0], counts[0] + counts[1] - size + 1, size)
    assert joined == [[f"a{n}" for n in range(first, first + size)] for first in firsts]
    assert facts["steps"][-1]["joined"] == len(firsts)  # type: ignore[index]


def test_nothing_longer_than_the_limit_is_joined(tmp_path: Path) -> None:
    options = Options("en", "de", concatenate=2, concatenate_share=1.0, max_length=3)
    kept, _ = run(
        tmp_path, [write(tmp_path, [("a", "b c"), ("d", "e f"), ("g", "h"), ("i", "j k")])], options
    )
    assert kept == [("a", "b c"), ("d", "e f"), ("g i", "h j k")]
