"""Lexical shortlists: counted as defined, and searched as if other words were impossible."""

import math
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from conftest import Corpus
from models import EOS, build, dictionary, sentences
from resmlp_mt import export, packed_linear, translate
from resmlp_mt.engine import model_folder, shortlist, shortlist_building
from resmlp_mt.engine.beam_search import WordChoice, beam_search
from resmlp_mt.engine.folding import fold
from resmlp_mt.engine.options import SearchOptions
from resmlp_mt.engine.shortlist import Shortlist
from resmlp_mt.engine.translator import Translator
from resmlp_mt.engine.vocabulary import SPECIAL, Vocabulary
from resmlp_mt.errors import UserError
from resmlp_mt.fairseq_plugin.conversion import load_trained, read_training_text
from resmlp_mt.machine import multiplies_int8_tiles
from resmlp_mt.models import resmlp_mt  # noqa: F401  registers the architectures
from resmlp_mt.packed_linear import Int8Linear, PackedLinear, quantize, selector

VOCABULARY = 20
SENTENCE = st.lists(st.integers(4, VOCABULARY - 1), min_size=1, max_size=6)


def g2(both: int, first: int, second: int, total: int) -> float:
    """Observed and expected counts of the table of two events, cell by cell."""
    result = 0.0
    for has_first in (True, False):
        for has_second in (True, False):
            of_first = first if has_first else total - first
            of_second = second if has_second else total - second
            together = both if has_first else second - both
            observed = together if has_second else of_first - together
            if observed:
                result += 2 * observed * math.log(observed * total / (of_first * of_second))
    return result


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(SENTENCE, SENTENCE), min_size=1, max_size=9), st.integers(1, 5))
def test_translations_are_those_of_the_largest_log_likelihood_ratios(
    pairs: list[tuple[list[int], list[int]]], chunk: int
) -> None:
    source, target = [s for s, _ in pairs], [t for _, t in pairs]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(shortlist_building, "SENTENCES", chunk)
        found = shortlist_building.build(
            source, target, VOCABULARY, VOCABULARY, frequent=2, per_word=3
        )
    of_source = Counter(s for tokens in source for s in set(tokens))
    of_target = Counter(t for tokens in target for t in set(tokens))
    together = Counter((s, t) for a, b in pairs for s in set(a) for t in set(b))
    for s in range(VOCABULARY):
        ratios = {
            t: g2(n, of_source[s], of_target[t], len(pairs))
            for (a, t), n in together.items()
            if a == s and n * len(pairs) > of_source[s] * of_target[t]
        }
        row = [t for t in found.by_source[s].tolist() if t != 0]
        assert len(set(row)) == len(row) == min(3, len(ratios))
        best = sorted(ratios.values(), reverse=True)[: len(row)]
        assert [ratios[t] for t in row] == pytest.approx(best, rel=1e-9)
    frequent = set(found.always.tolist()) - {0, 1, 2, 3}
    assert len(frequent) <= 2  # fewer where fewer words occur
    assert sum(of_target[t] for t in frequent) == sum(n for _, n in of_target.most_common(2))


def test_sides_of_other_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        shortlist_building.build([[4], [5]], [[4]], VOCABULARY, VOCABULARY)


def test_rare_pairs_are_forgotten_where_there_are_too_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of pairs that occur together once, twice and so on, the frequent ones stay."""
    source = [[4 + n] for n in range(8) for _ in range(n + 1)]
    monkeypatch.setattr(shortlist_building, "MOST_PAIRS", 3)
    found = shortlist_building.build(source, source, VOCABULARY, VOCABULARY, frequent=1, per_word=1)
    listed = found.by_source[4:12, 0].tolist()
    assert listed == [0, 0, 0, 0, 0, 9, 10, 11]


def test_with_joint_words_every_word_may_stay() -> None:
    pairs = [[4], [5], [6]], [[7], [8], [9]]
    found = shortlist_building.build(
        *pairs, VOCABULARY, VOCABULARY, frequent=1, per_word=1, joint=True
    )
    words, allowed = found.words([[4, 15, 2], [5, 2]])
    assert {7, 4, 15} <= set(words[allowed[0]].tolist())
    assert 15 not in words[allowed[1]]


def test_paths_may_be_text(tmp_path: Path) -> None:
    few = Shortlist(np.arange(5), np.zeros((6, 1), dtype=np.int64))
    path = str(tmp_path / "shortlist.safetensors")
    few.save(path)
    np.testing.assert_array_equal(Shortlist.load(path, 6, 5).always, few.always)
    words = Vocabulary([*SPECIAL, "w1"])
    words.write(str(tmp_path / "dict.txt"))
    assert Vocabulary.read(str(tmp_path / "dict.txt")).symbols == words.symbols


def test_words_of_a_batch() -> None:
    table = np.zeros((VOCABULARY, 2), dtype=np.int64)
    table[5], table[6] = [9, 7], [7, 12]
    words, allowed = Shortlist(np.array([0, 1, 2, 3, 8]), table).words([[5, 2], [6, 2]])
    assert words.tolist() == [0, 1, 2, 3, 7, 8, 9, 12]
    assert words[allowed[0]].tolist() == [0, 1, 2, 3, 7, 8, 9]
    assert words[allowed[1]].tolist() == [0, 1, 2, 3, 7, 8, 12]


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=5),
    st.integers(1, 3),
    st.sampled_from([0.0, 2.0]),
    st.integers(0, 1000),
)
def test_the_search_equals_that_of_a_model_without_the_other_words(
    lengths: list[int], beam: int, unkpen: float, seed: int
) -> None:
    """Sentence by sentence, with a bias of minus infinity for what the sentence may not use."""
    model = fold(build(seed))
    batch = [row.tolist() for row in sentences(lengths, seed=seed)]
    table = np.random.default_rng(seed).integers(4, VOCABULARY, (VOCABULARY, 2))
    lexicon = Shortlist(np.arange(7), table)
    options = SearchOptions(beam=beam, unkpen=unkpen, min_len=1)
    words, allowed = map(torch.from_numpy, lexicon.words(batch))
    some = WordChoice(words, allowed, selector(model.decoder.output_projection)(words))
    found = beam_search(model, batch, options, some)
    bias = model.decoder.output_projection.bias
    for index, tokens in enumerate(batch):
        impossible = torch.full_like(bias, -torch.inf)
        impossible[words[allowed[index]]] = 0.0
        model.decoder.output_projection.bias = nn.Parameter(bias + impossible, requires_grad=False)
        (expected,) = beam_search(model, [tokens], options)
        assert [h.tokens for h in found[index]] == [h.tokens for h in expected]
        for ours, theirs in zip(found[index], expected, strict=True):
            assert ours.positional_scores == pytest.approx(theirs.positional_scores, abs=1e-5)


def test_a_beam_that_the_words_do_not_fill_is_refused() -> None:
    model = fold(build())
    words = torch.tensor([0, 1, 2, 3, 7])
    some = WordChoice(words, torch.ones(1, 5, dtype=torch.bool), nn.Identity())
    with pytest.raises(UserError, match="--beam 2 is too large for a vocabulary of 5"):
        beam_search(model, [[4, EOS]], SearchOptions(beam=2), some)


@pytest.mark.parametrize("has_tiles", [False, True], ids=["FBGEMM", "oneDNN"])
@pytest.mark.parametrize("count", [1, 10], ids=["one row", "rows"])
@pytest.mark.parametrize("kind", ["linear", "packed", "int8", "shared int8"])
def test_some_outputs_of_a_layer_are_those_of_the_whole_layer(
    kind: str, count: int, has_tiles: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if has_tiles and not multiplies_int8_tiles():
        pytest.skip("without tiles, oneDNN's sums of two products of 8 bits may be cut off")
    monkeypatch.setattr(packed_linear, "multiplies_int8_tiles", lambda: has_tiles)
    torch.manual_seed(0)
    linear = nn.Linear(64, 90).requires_grad_(False)
    layers = {
        "linear": lambda: linear,
        "packed": lambda: PackedLinear(linear),
        "int8": lambda: Int8Linear(*quantize(linear.weight), linear.bias),
        "shared int8": lambda: Int8Linear(
            *quantize(linear.weight), linear.bias, columns=torch.rand(64)
        ),
    }
    layer = layers[kind]()
    rows = torch.tensor([3, 4, 50, 89])
    x = torch.randn(count, 1, 64)
    some = selector(layer)(rows)
    assert type(some) is type(layer)
    torch.testing.assert_close(some(x), layer(x)[..., rows], rtol=1e-5, atol=1e-6)


def test_other_layers_have_no_selector() -> None:
    with pytest.raises(TypeError, match="ReLU is not a linear layer"):
        selector(nn.ReLU())


def arguments(corpus: Corpus, trained: Path, folder: Path) -> list[str]:
    """Of an export with a shortlist."""
    return [
        str(trained / "checkpoint_best.pt"),
        f"--out={folder}",
        f"--sentencepiece-model={corpus.spm}",
        f"--shortlist={corpus.data}",
    ]


def test_a_few_words_suffice(corpus: Corpus, trained: Path, tmp_path: Path) -> None:
    """Word-by-word translations: of each source word, two target words."""
    loaded = load_trained(trained / "checkpoint_best.pt", corpus.data, corpus.spm)
    text = [
        [loaded_side.encode(" ".join(loaded.sentencepiece.encode(line, out_type=str)).split())
         for line in corpus.sentences("train", language)]
        for language, loaded_side in (("en", loaded.source), ("de", loaded.target))
    ]  # fmt: skip
    sizes = len(loaded.source), len(loaded.target)
    loaded.shortlist = shortlist_building.build(*text, *sizes, frequent=3, per_word=2)
    lines = corpus.sentences("valid", "en")
    words, _ = loaded.shortlist.words([loaded.source.encode(["x"])])
    assert len(words) <= 4 + 3 + 4 < len(loaded.target) / 2
    for dtype in ("float32", "int8"):
        model_folder.save(loaded, tmp_path / dtype, dtype)
        model = model_folder.load(tmp_path / dtype)
        found = Translator(model, SearchOptions(beam=2), use_shortlist=True).translate(lines)
        alone = Translator(model, SearchOptions(beam=2), 1, use_shortlist=True).translate(lines)
        assert [t[0].text for t in alone] == [t[0].text for t in found]
        pairs = zip(found, corpus.sentences("valid", "de"), strict=True)
        assert sum(t[0].text == line for t, line in pairs) >= 0.5 * len(lines)


@pytest.mark.parametrize("form", ["safetensors", "onnx"])
def test_export_and_translate(
    corpus: Corpus,
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    form: str,
) -> None:
    """All of so few words are in the shortlist: it changes nothing."""
    folder = tmp_path / "model"
    export.main([*arguments(corpus, trained, folder), f"--format={form}"])
    capsys.readouterr()
    outputs = []
    for options in ([], ["--shortlist"]):
        translate.main([str(folder), f"--input={corpus.folder / 'test.en'}", *options])
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] != ""
    found = model_folder.load(folder).shortlist
    assert found is not None
    assert found.by_source.shape[1] == shortlist_building.PER_WORD + 1  # joint: and the word itself


def test_all_parts_of_the_training_text_are_read(
    corpus: Corpus, trained: Path, tmp_path: Path
) -> None:
    """``train`` and ``train1``, the second of the other direction, as fairseq's task reads them."""
    loaded = load_trained(trained / "checkpoint_best.pt", corpus.data, corpus.spm)
    for path in corpus.data.glob("dict.*"):
        shutil.copy(path, tmp_path)
    for split, part in (("train.en-de", "train.en-de"), ("valid.en-de", "train1.de-en")):
        for path in corpus.data.glob(f"{split}.*"):
            shutil.copy(path, tmp_path / path.name.replace(split, part))
    source, target = read_training_text(tmp_path, loaded)
    for side, language, words in ((source, "en", loaded.source), (target, "de", loaded.target)):
        lines = [*corpus.sentences("train", language), *corpus.sentences("valid", language)]
        assert len(side) == len(lines)
        for index in (0, 499, 500, 520):
            pieces = loaded.sentencepiece.encode(lines[index], out_type=str)
            assert side[index].tolist() == words.encode(pieces)
    (tmp_path / "train1.de-en.de.bin").write_bytes(b"")
    (tmp_path / "train1.de-en.de.idx").write_bytes(b"TNTIDX\x00\x00")
    with pytest.raises(UserError, match=r"train1\.de-en\.de\.idx is damaged or not what fairseq"):
        read_training_text(tmp_path, loaded)


def test_a_beam_is_refused_before_anything_is_translated(corpus: Corpus, trained: Path) -> None:
    loaded = load_trained(trained / "checkpoint_best.pt", corpus.data, corpus.spm)
    table = np.zeros((len(loaded.source), 5), dtype=np.int64)
    loaded.shortlist = Shortlist(np.arange(10), table)
    with pytest.raises(
        UserError, match=r"--beam 5 is too large for a shortlist .*: choose at most 4"
    ):
        Translator(loaded, SearchOptions(beam=5), use_shortlist=True)
    Translator(loaded, SearchOptions(beam=4), use_shortlist=True)


def test_a_model_without_a_shortlist_says_so(corpus: Corpus, trained: Path) -> None:
    loaded = load_trained(trained / "checkpoint_best.pt", corpus.data, corpus.spm)
    with pytest.raises(UserError, match="--shortlist: this model has none; export it with"):
        Translator(loaded, SearchOptions(), use_shortlist=True)


@pytest.mark.parametrize("damage", ["cut", "names", "sizes", "words", "order"])
def test_broken_shortlists_are_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "shortlist.safetensors"
    always, table = np.arange(4), np.zeros((10, 2), dtype=np.int64)
    if damage == "sizes":
        table = table[:9]
    if damage == "words":
        table[0, 0] = 10
    if damage == "order":
        always = always[::-1]
    Shortlist(always, table).save(path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:50])
    if damage == "names":
        from safetensors.numpy import save_file

        save_file({"always": always}, path)
    with pytest.raises(UserError, match=r"shortlist\.safetensors .*export the model again"):
        Shortlist.load(path, 10, 10)


def test_a_table_that_is_too_wide_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "shortlist.safetensors"
    widest = np.zeros((10, shortlist.MOST_PER_WORD), dtype=np.int64)
    Shortlist(np.arange(4), widest).save(path)
    assert Shortlist.load(path, 10, 10).by_source.shape == widest.shape
    Shortlist(np.arange(4), np.concatenate([widest, widest[:, :1]], axis=1)).save(path)
    real = shortlist.safe_open

    class NoTensors:
        """An open file that gives shapes but no numbers."""

        def __init__(self, *arguments: object, **options: object) -> None:
            self.file = real(*arguments, **options)

        def __enter__(self) -> "NoTensors":
            self.file.__enter__()
            return self

        def __exit__(self, *reason: object) -> None:
            self.file.__exit__(*reason)

        def get_slice(self, name: str) -> object:
            return self.file.get_slice(name)

    monkeypatch.setattr(shortlist, "safe_open", NoTensors)
    with pytest.raises(UserError, match=rf"^{path} has a table of \[10, 1001\], but one of"):
        Shortlist.load(path, 10, 10)


def test_other_training_text_is_refused(corpus: Corpus, trained: Path, tmp_path: Path) -> None:
    command = arguments(corpus, trained, tmp_path / "model")
    other = tmp_path / "data"
    other.mkdir()
    told = r"data has no dictionaries \(such as dict\.en\.txt\): give the folder of the binarised"
    with pytest.raises(UserError, match=told):
        export.main([*command, f"--shortlist={other}"])
    for language in ("en", "de"):
        (other / f"dict.{language}.txt").write_bytes(
            (corpus.data / f"dict.{language}.txt").read_bytes()
        )
    with pytest.raises(UserError, match=r"data has no train\.en-de: it has no text\.$"):
        export.main([*command, f"--shortlist={other}"])
    dictionary(8).save(str(other / "dict.en.txt"))
    with pytest.raises(UserError, match="is not the dictionary that the model was trained with"):
        export.main([*command, f"--shortlist={other}"])
    assert not (tmp_path / "model").exists()
