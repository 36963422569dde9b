"""Readers: lines, sgm, TED files, TMX, TSV, and what they refuse."""

from __future__ import annotations

import gzip
from contextlib import nullcontext
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resmlp_mt import unpacking
from resmlp_mt.errors import UserError
from resmlp_mt.preparation import formats
from resmlp_mt.preparation.formats import TextFiles
from resmlp_mt.preparation.sources import Inputs, refuse_headers, warn_of_unusual_text
from tests import corpus_server

SEPARATORS = "a\u2028b\u2029c\x85d\x0ce\x0bf\x1cg\rh"


def read(
    tmp_path: Path, source: bytes, target: bytes, form: str = "plain", **options: int
) -> list[tuple[str, str]]:
    files = TextFiles(tmp_path / "x.en", tmp_path / "x.de", form, "en", "de", **options)
    files.source.write_bytes(source)
    files.target.write_bytes(target)
    return [(a.decode(), b.decode()) for a, b in formats.pairs(files)]


def test_only_a_line_feed_ends_a_line(tmp_path: Path) -> None:
    # str.splitlines would make eight lines of the first one.
    text = f"{SEPARATORS}\nsecond\n".encode()
    assert read(tmp_path, text, b"eins\nzwei\n") == [(SEPARATORS, "eins"), ("second", "zwei")]


@pytest.mark.parametrize("block", [1, 2, 3, 4, 5, formats.BLOCK_BYTES])
def test_line_ends_of_windows_and_a_missing_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(formats, "BLOCK_BYTES", block)
    assert read(tmp_path, b"one\r\ntwo\r\n", b"eins\nzwei") == [("one", "eins"), ("two", "zwei")]


def test_empty_lines_are_lines(tmp_path: Path) -> None:
    assert read(tmp_path, b"\n\n", b"a\n\n") == [("", "a"), ("", "")]


@pytest.mark.parametrize(("source", "target", "line"), [(3, 5, 4), (5, 3, 4), (0, 1, 1)])
def test_misaligned_files_are_an_error(tmp_path: Path, source: int, target: int, line: int) -> None:
    message = rf"x.en has {source} lines but .*x.de has {target}: line {line} has no partner"
    with pytest.raises(UserError, match=message):
        read(tmp_path, b"a\n" * source, b"b\n" * target)


def test_another_count_than_expected_is_an_error(tmp_path: Path) -> None:
    assert len(read(tmp_path, b"a\n" * 3, b"b\n" * 3, lines=3)) == 3
    with pytest.raises(UserError, match=r"x.en has 2 pairs where 3 are expected"):
        read(tmp_path, b"a\n" * 2, b"b\n" * 2, lines=3)


def test_invalid_utf8_names_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "x.en"
    with pytest.raises(
        UserError, match=r"x.en, line 7: byte 0xe4 at position 2 is not valid UTF-8"
    ):
        formats.decode("ab\xe4cd".encode("latin-1"), path, 7)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_cut_gzip_is_an_error(tmp_path: Path, share: float) -> None:
    path = tmp_path / "x.en.gz"
    content = gzip.compress("".join(f"line {n * n}\n" for n in range(5000)).encode())
    path.write_bytes(content[: int(len(content) * share)] or b"no gzip")
    with pytest.raises(UserError, match=r"x.en.gz: the gzip file is cut off or damaged"):
        list(formats.pairs(TextFiles(path, path, "plain", "en", "de")))


def test_gzip_files_of_several_members_are_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.en.gz"
    path.write_bytes(gzip.compress(b"one\n") + gzip.compress(b"two\n"))
    assert list(formats.pairs(TextFiles(path, path, "plain", "en", "de"))) == [
        (b"one", b"one"),
        (b"two", b"two"),
    ]


def test_a_line_without_end_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "MAX_LINE_BYTES", 100)
    for block in (7, formats.BLOCK_BYTES):
        monkeypatch.setattr(formats, "BLOCK_BYTES", block)
        assert len(read(tmp_path, b"x" * 99 + b"\n", b"b\n")) == 1
        for size in (100, 1000):
            with pytest.raises(UserError, match=r"x.en, line 2: longer than 100 bytes"):
                read(tmp_path, b"a\n" + b"x" * size + b"\n", b"b\n" * 2)


@given(st.lists(st.text(st.characters(exclude_characters="\n\r", exclude_categories=["Cs"]))))
def test_any_text_without_line_feeds_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, sentences: list[str]
) -> None:
    folder = tmp_path_factory.getbasetemp()
    text = corpus_server.lines(sentences)
    assert read(folder, text, text) == [(sentence, sentence) for sentence in sentences]


def test_sgm_gives_the_segments_with_entities_resolved(tmp_path: Path) -> None:
    sentences = [f"Tom & Jerry {n} <3" for n in range(5)]
    sgm = corpus_server.sgm([text.replace("<", "&lt;") for text in sentences], "srcset", "x")
    assert b"&amp;" in sgm
    doubly = sgm.replace(b"&amp;lt;", b"&lt;")
    assert read(tmp_path, doubly, doubly, "sgm") == [(text, text) for text in sentences]


def test_a_segment_without_end_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"x.en, line 2: <seg> without </seg>"):
        read(tmp_path, b'<doc>\n<seg id="1">open\n', b"<doc>\n", "sgm")


def test_ted_files_keep_title_and_description_of_the_tag_lines(tmp_path: Path) -> None:
    english, german = corpus_server.text("en", 3), corpus_server.text("de", 3)
    tags = corpus_server.ted_tags(english, "en"), corpus_server.ted_tags(german, "de")
    pairs = read(tmp_path, *tags, form="ted")
    assert pairs[0] == ("A talk about trees", "Ein Vortrag über Bäume")
    assert pairs[2:] == list(zip(english, german, strict=True))


def test_ted_test_sets_are_sgm(tmp_path: Path) -> None:
    english, german = corpus_server.text("en", 4), corpus_server.text("de", 4)
    xml = corpus_server.ted_xml(english, "x"), corpus_server.ted_xml(german, "x")
    assert read(tmp_path, *xml, form="sgm") == list(zip(english, german, strict=True))


TMX = """<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE tmx SYSTEM "tmx14.dtd">
<tmx version="1.4"><header srclang="en" datatype="plaintext"/><body>
<tu><tuv xml:lang="EN-gb"><seg>Press <bpt i="1"/>the
key<ept i="1"/> &amp; wait</seg></tuv><tuv xml:lang="de"><seg>Taste drücken</seg></tuv></tu>
<tu><tuv xml:lang="fr"><seg>oui</seg></tuv><tuv xml:lang="en"><seg>yes</seg></tuv></tu>
<tu><tuv lang="de_AT"><seg>Nein</seg></tuv><tuv lang="en"><seg>No</seg></tuv></tu>
</body></tmx>
"""


def pair_file(
    tmp_path: Path, content: bytes, form: str, source: str = "en", target: str = "de"
) -> list[tuple[bytes, bytes]]:
    path = tmp_path / f"x.{form}"
    path.write_bytes(content)
    return list(formats.pairs(TextFiles(path, path, form, source, target)))


def test_tmx(tmp_path: Path) -> None:
    assert pair_file(tmp_path, TMX.encode(), "tmx") == [
        (b"Press the key & wait", "Taste drücken".encode()),
        (b"No", b"Nein"),
    ]


def test_tmx_with_a_namespace(tmp_path: Path) -> None:
    spaced = TMX.replace("<tmx ", '<tmx xmlns="http://www.lisa.org/tmx14" ').encode()
    assert pair_file(tmp_path, spaced, "tmx") == pair_file(tmp_path, TMX.encode(), "tmx")


def test_tmx_languages(tmp_path: Path) -> None:
    tags = ("en", "pt-PT", "pt-BR", "de_AT")
    variants = "".join(f'<tuv xml:lang="{tag}"><seg>{tag}</seg></tuv>' for tag in tags)
    tmx = f"<tmx><body><tu>{variants}</tu></body></tmx>".encode()
    for source, target, pair in (
        ("EN", "pt-br", (b"en", b"pt-BR")),
        ("en-GB", "pt", (b"en", b"pt-BR")),
        ("pt_PT", "de", (b"pt-PT", b"de_AT")),
        ("eng", "por_Latn_BR", (b"en", b"pt-BR")),
    ):
        assert pair_file(tmp_path, tmx, "tmx", source, target) == [pair]
    with pytest.raises(
        UserError, match=r"x.tmx has no unit with both en and pt-AO; it has: de-at, en, pt-br"
    ):
        pair_file(tmp_path, tmx, "tmx", "en", "pt-AO")


@pytest.mark.parametrize(
    ("wanted", "tags", "taken"),
    [
        ("zh-TW", ["zh"], None),
        ("zh", ["zh-TW"], None),
        ("zh", ["zh-TW", "zh-CN"], "zh-CN"),
        ("zh-Hant", ["zh", "zh-TW"], "zh-TW"),
        ("sr-Latn", ["sr"], None),
        ("sr", ["sr-Latn", "sr-RS"], "sr-RS"),
        ("pt", ["pt-PT", "pt-BR"], "pt-BR"),
        ("pt-PT", ["pt-BR", "pt"], "pt"),
        ("en", ["en-AU", "en-US"], "en-US"),
        ("en", ["en-NZ", "en-AU"], "en-AU"),
        ("de", ["de-AT"], "de-AT"),
    ],
)
def test_tmx_takes_no_other_script(
    tmp_path: Path, wanted: str, tags: list[str], taken: str | None
) -> None:
    """Nor does it depend on the order of the variants."""
    for order in (tags, tags[::-1]):
        variants = "".join(
            f'<tuv xml:lang="{tag}"><seg>{tag}</seg></tuv>' for tag in ("fi", *order)
        )
        tmx = f"<tmx><body><tu>{variants}</tu></body></tmx>".encode()
        if taken is None:
            with pytest.raises(UserError, match=f"no unit with both fi and {wanted}"):
                pair_file(tmp_path, tmx, "tmx", "fi", wanted)
        else:
            assert pair_file(tmp_path, tmx, "tmx", "fi", wanted) == [(b"fi", taken.encode())]


def test_what_is_left_out_of_tmx_is_counted(tmp_path: Path) -> None:
    units = [["en", "de"], ["en"], ["fr", "en"], ["de", "en", "de", "fr", "fr"], ["en", "en", "de"]]
    units.append(["en-GB", "en-US", "de"])  # whichever is taken, the other is left out
    variants = [
        "".join(f'<tuv xml:lang="{tag}"><seg>{tag}{n}</seg></tuv>' for n, tag in enumerate(unit))
        for unit in units
    ]
    path = tmp_path / "x.tmx"
    path.write_text(f"<tmx><body><tu>{'</tu><tu>'.join(variants)}</tu></body></tmx>")
    files = TextFiles(path, path, "tmx", "en", "de")
    for _ in range(2):  # once each time that it is read
        read = list(formats.pairs(files))
        assert read == [(b"en0", b"de1"), (b"en1", b"de0"), (b"en0", b"de2"), (b"en-US1", b"de2")]
        assert files.left_out == {formats.ONE_SIDED: 2, formats.REPEATED: 3}


def test_one_text_of_tmx_is_not_both_sides(tmp_path: Path) -> None:
    tmx = b'<tmx><body><tu><tuv xml:lang="pt-PT"><seg>x</seg></tuv></tu></body></tmx>'
    with pytest.raises(UserError, match="no unit with both pt and pt-PT; it has: pt-pt"):
        pair_file(tmp_path, tmx, "tmx", "pt", "pt-PT")


@pytest.mark.parametrize("encoding", ["GBK", "Shift_JIS", "nonsense", "UTF-32", "hex", "punycode"])
def test_an_encoding_that_cannot_be_read_is_named(tmp_path: Path, encoding: str) -> None:
    tmx = TMX.replace("UTF-8", encoding).encode("ascii", errors="ignore")
    with pytest.raises(UserError, match=r"x.tmx has an encoding .*: convert it to UTF-8") as error:
        pair_file(tmp_path, tmx, "tmx")
    assert "\n" not in str(error.value)


def test_tmx_inline_codes_are_no_text(tmp_path: Path) -> None:
    codes = "a<bpt>&lt;b></bpt>b<hi>c<ph>x<sub>y</sub></ph>d</hi><ept>&lt;/b></ept>"
    codes += "<it>z</it>e<ut>u</ut>"
    sides = "".join(f'<tuv xml:lang="{tag}"><seg>{codes}</seg></tuv>' for tag in ("en", "de"))
    tmx = f"<tmx><body><tu>{sides}</tu></body></tmx>".encode()
    assert pair_file(tmp_path, tmx, "tmx") == [(b"abcde", b"abcde")]


def test_a_cut_tmx_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"x.tmx is not well-formed TMX"):
        pair_file(tmp_path, TMX.encode()[:-30], "tmx")


def test_tsv(tmp_path: Path) -> None:
    assert pair_file(tmp_path, b"one\teins\r\ntwo\tzwei\n", "tsv") == [
        (b"one", b"eins"),
        (b"two", b"zwei"),
    ]
    for line in (b"one", b"one\teins\tuno"):
        with pytest.raises(UserError, match=r"x.tsv, line 2: [13] columns where two"):
            pair_file(tmp_path, b"a\tb\n" + line + b"\n", "tsv")


@pytest.mark.parametrize(
    "line",
    ["<seg " * 200_000, "<seg>" * 200_000, "<seg>x" + "</seg" * 200_000, "<seg " + ">" * 10**6],
    ids=["no tag end", "starts", "half ends", "tag ends"],
)
def test_a_long_line_of_markup_is_read_once(tmp_path: Path, line: str) -> None:
    """A megabyte that a backtracking expression would take hours for."""
    content = f"<doc>\n{line}\n</doc>\n".encode()
    with pytest.raises(UserError, match=r"x.en, line 2: (<seg> without </seg>|longer than)"):
        read(tmp_path, content, content, "sgm")


def test_several_segments_on_a_line_in_any_case(tmp_path: Path) -> None:
    line = b'<SEG id="1"> a &lt;b </SEG>x<seg\tid="2">c > d</Seg>\n'
    assert read(tmp_path, line, line, "sgm") == [("a <b", "a <b"), ("c > d", "c > d")]


def test_nested_markup_is_no_trouble(tmp_path: Path) -> None:
    text = "<hi>x" * 30_000 + "y" + "</hi>z" * 30_000
    sides = "".join(f'<tuv xml:lang="{tag}"><seg>{text}</seg></tuv>' for tag in ("en", "de"))
    [(source, target)] = pair_file(tmp_path, f"<tmx><tu>{sides}</tu></tmx>".encode(), "tmx")
    assert source == target == b"x" * 30_000 + b"y" + b"z" * 30_000


@pytest.mark.parametrize("form", ["plain", "tsv", "tmx"])
def test_a_compressed_bomb_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setattr(unpacking, "MIN_LIMIT", 100_000)
    line = {"plain": b"a b\n", "tsv": b"a\tb\n"}.get(form)
    unit = b'<tu><tuv xml:lang="en"><seg>a</seg></tuv><tuv xml:lang="de"><seg>b</seg></tuv></tu>'
    content = line * 500_000 if line else b"<tmx>" + unit * 30_000 + b"</tmx>"
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(content))
    with pytest.raises(UserError, match=r"x.gz is refused: it unpacks to over 20 times its size"):
        list(formats.pairs(TextFiles(path, path, form, "en", "de")))
    # Text that does not shrink so much is text.
    path.write_bytes(gzip.compress(content[:90_000] if line else content, 0))
    assert len(list(formats.pairs(TextFiles(path, path, form, "en", "de")))) >= 22_500


def test_blocks_have_the_size_that_was_asked_for_and_the_rest(tmp_path: Path) -> None:
    files = TextFiles(tmp_path / "x.en", tmp_path / "x.de", "plain", "en", "de", lines=7)
    for path in (files.source, files.target):
        path.write_bytes(corpus_server.lines([f"{path.suffix}{n}" for n in range(7)]))
    blocks = list(formats.blocks(files, 3))
    assert [len(source) for source, _ in blocks] == [3, 3, 1]
    assert blocks[1] == ([b".en3", b".en4", b".en5"], [b".de3", b".de4", b".de5"])
    for limit in range(8):
        sizes = [len(source) for source, _ in formats.blocks(files, 3, limit)]
        assert sum(sizes) == limit
        assert all(sizes)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("the do@@ g runs", "20 of 20 lines have the marks of subwords, '@@'"),
        ("\u2581the \u2581dog", "20 of 20 lines have the marks of subwords, '\u2581'"),
        ("the dog runs .", "20 of 20 sentences end in ' .', 0 hold Moses escapes"),
        ("the dog &apos;s tail", "0 of 20 sentences end in ' .', 20 hold Moses escapes"),
        ("the ##y run", "20 of 20 lines have the marks of subwords, '##'"),
        ("the do \uffedg runs", "marks of subwords, '\uffed'"),
        ("the</w> do g</w>", "marks of subwords, '</w>'"),
        ("The \u0120dog \u0120runs", "marks of subwords, '\u0120'"),
        ("the_EOW d og_EOW", "marks of subwords, '_EOW'"),
        ("_the _do g _runs", "marks of subwords, '_'"),
        ("t h e | d o g |", "marks of subwords, '|'"),
        ("1 | 2 | 3 | 4", ""),  # a table
        ("It is _not_ that, _never_ that, but _this.", ""),  # Markdown
        ("\u72d7 \u5728 \u8dd1 \u3002", "20 of 20 sentences end in ' \u3002'"),
        ("He said &quot;yes&quot;, it&apos;s &quot;fine&quot;.", ""),  # HTML
        ("\u0120or\u0121 jikteb ## 5", ""),  # Maltese
        ("The dog runs.", ""),
        ("mail me@@home, the dog's tail .5", ""),
    ],
)
def test_text_that_was_split_before_is_told(
    tmp_path: Path, line: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = tmp_path / "train.en", tmp_path / "train.de"
    source.write_text("He runs.\n" * 20, encoding="utf-8")
    target.write_text(f"{line}\n" * 20, encoding="utf-8")
    warn_of_unusual_text([TextFiles(source, target, "plain", "en", "de")])
    told = capsys.readouterr().err
    assert told == "" if not said else said in told
    if said:
        assert told.startswith(f"prepare: warning: {target} was split before (")


@pytest.mark.parametrize(
    ("first", "is_header"),
    [
        (("en", "de"), True),
        (("EN", "deu"), True),
        (('\ufeff"English"', "German"), True),
        (("source_text", "Translation"), True),
        (("sentence1", "sentence2"), True),
        (("Text", "Text"), False),
        (("1", "1"), False),
        (("The dog runs.", "de"), False),
        (("", ""), False),
    ],
)
@pytest.mark.parametrize("form", ["plain", "tsv"])
def test_the_header_of_a_table_is_no_sentence(
    tmp_path: Path, first: tuple[str, str], is_header: bool, form: str
) -> None:
    """In the text of a data frame as in tab-separated values, and in every set."""
    lines = [first, ("The dog runs.", "Der Hund rennt.")]
    source, target = paths = (tmp_path / "x.en", tmp_path / "x.de")
    for side, path in enumerate(paths):
        path.write_text("".join(f"{line[side]}\n" for line in lines), encoding="utf-8")
    if form == "tsv":
        target = source
        source.write_text("".join("\t".join(line) + "\n" for line in lines), encoding="utf-8")
    files = [TextFiles(source, target, form, "en", "de")]
    for sets in (files, [], {}), ([], files, {}), ([], [], {"test": files}):
        told = pytest.raises(UserError, match=rf"^{source}: its first pair, '.*looks like a header")
        with told if is_header else nullcontext():
            refuse_headers(Inputs(*sets, digests={}, manifest={}, training=frozenset()))


@pytest.mark.parametrize(
    ("line", "is_told"),
    [
        ('"He said ""yes"" and left."', True),
        ('"He said yes."', False),
        ('"" is empty, and "x" is not.', False),
    ],
)
def test_the_quotes_of_a_table_are_told(
    tmp_path: Path, line: str, is_told: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.en"
    path.write_text(f'He runs.\n{line}\n"Yes, he runs."\n', encoding="utf-8")
    warn_of_unusual_text([TextFiles(path, path, "plain", "en", "de")])
    told = capsys.readouterr().err
    assert (f"{path} has the quotes of a table (CSV), as in {line}: they" in told) == is_told
    assert f"3 of the first 3 pairs of {path} are the same on both sides" in told


def test_a_pointer_of_git_lfs_is_no_text(tmp_path: Path) -> None:
    source, target = tmp_path / "train.en", tmp_path / "train.de"
    for path in (source, target):
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n")
    with pytest.raises(UserError, match=f"{source} is a pointer of Git LFS"):
        list(formats.pairs(TextFiles(source, target, "plain", "en", "de")))
