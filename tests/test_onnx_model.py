"""A folder of ONNX graphs translates like one of safetensors, and without PyTorch."""

import asyncio
import os
import re
import shutil
import subprocess
import sys
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import ROOT
from models import EOS, build, sentences, translation_model
from resmlp_mt.engine import digests, exported_config, model_folder, onnx_graphs, onnx_search
from resmlp_mt.engine.beam_search import beam_search
from resmlp_mt.engine.folding import fold
from resmlp_mt.engine.model_folder import TranslationModel
from resmlp_mt.engine.onnx_export import export_int8, export_onnx
from resmlp_mt.engine.onnx_model import (
    DECODER_STEP,
    ENCODER,
    PROJECTION,
    SHORTLIST_ROWS,
    OnnxModel,
)
from resmlp_mt.engine.onnx_projection import ProjectionGraphs
from resmlp_mt.engine.options import SearchOptions
from resmlp_mt.engine.search import chosen_words
from resmlp_mt.engine.sentences import Segment
from resmlp_mt.engine.shortlist import Shortlist
from resmlp_mt.engine.translator import Translator
from resmlp_mt.errors import UserError, is_of_memory
from resmlp_mt.serving.app import _explained
from resmlp_mt.serving.limits import ModelOptions
from resmlp_mt.serving.service import Part
from resmlp_mt.serving.workers import Languages, Work, Worker


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """One model in both forms."""
    parent = tmp_path_factory.mktemp("exported")
    # 8 words for every sentence, and two for each source word
    table = np.random.default_rng(0).integers(4, 20, (20, 2))
    lexicon = Shortlist(np.array([0, 1, 2, 3, 6, 9, 12, 17]), table)
    exported = translation_model(fold(build(3).float()), shortlist=lexicon)
    model_folder.save(exported, parent / "safetensors")
    model_folder.save(exported, parent / "onnx", write_weights=export_onnx)
    return parent / "safetensors", parent / "onnx"


@pytest.fixture(scope="module")
def loaded(folders: tuple[Path, Path]) -> tuple[TranslationModel, TranslationModel]:
    return model_folder.load(folders[0]), model_folder.load(folders[1])


@pytest.mark.parametrize("use_shortlist", [False, True], ids=["all words", "shortlist"])
def test_both_forms_translate_alike(folders: tuple[Path, Path], use_shortlist: bool) -> None:
    """Lines of all lengths, whose translations end at different steps."""
    lines = ["w1 w5 w3", "w2", "w7 w7 w1 w0 w9 w4 w4 w3", "w9 w8", "w1 w2 w3 w4 w5"]
    options = SearchOptions(beam=3)
    found = []
    for folder in folders:
        translator = Translator.load(
            folder, options, batch_size=4, workers=2, use_shortlist=use_shortlist
        )
        found.append(translator.translate(lines))
    assert isinstance(translator.loaded.model, OnnxModel)
    scored, greedy = (
        translator.translate(lines, beam_size=1, return_scores=wanted) for wanted in (True, False)
    )
    assert [t[0].text for t in scored] == [t[0].text for t in greedy]
    for ours, expected in zip(*found, strict=True):
        assert [t.text for t in ours] == [t.text for t in expected]
        assert [t.score for t in ours] == pytest.approx([t.score for t in expected], abs=1e-5)


@pytest.mark.parametrize("use_shortlist", [False, True], ids=["all words", "shortlist"])
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=5),
    seed=st.integers(0, 999),
    options=st.builds(
        SearchOptions,
        beam=st.integers(1, 8),
        lenpen=st.floats(-1, 2),
        unnormalized=st.booleans(),
        unkpen=st.floats(-2, 2),
        temperature=st.sampled_from([1.0, 0.7, 1.5]),
        min_len=st.integers(0, 3),
        max_len_a=st.floats(0, 2),
        max_len_b=st.integers(3, 12),
    ),
)
def test_the_search_is_that_of_pytorch(
    loaded: tuple[TranslationModel, TranslationModel],
    use_shortlist: bool,
    lengths: list[int],
    seed: int,
    options: SearchOptions,
) -> None:
    """A batch of sentences that may use different words, too."""
    batch = [row.tolist() for row in sentences(lengths, 20, seed)]
    words: list[Any] = [None, None]
    if use_shortlist:
        options = replace(options, beam=min(options.beam, 3))
        words = [chosen_words(one, options)(batch) for one in loaded]
    expected = beam_search(loaded[0].model, batch, options, words[0])
    found = onnx_search.beam_search(loaded[1].model, batch, options, words[1])
    if options.beam == 1:  # no score is asked for
        unscored = onnx_search.beam_search(
            loaded[1].model, batch, options, words[1], is_scored=False
        )
        assert [[h.tokens for h in hs] for hs in unscored] == [
            [h.tokens for h in hs] for hs in expected
        ]
    for ours, theirs in zip(found, expected, strict=True):
        assert [h.tokens for h in ours] == [h.tokens for h in theirs]
        assert [h.score for h in ours] == pytest.approx(
            [h.score for h in theirs], abs=2e-5, rel=1e-6
        )
        for mine, other in zip(ours, theirs, strict=True):
            assert mine.positional_scores == pytest.approx(other.positional_scores, abs=1e-4)


@pytest.mark.parametrize("temperature", [0.1, 5.0])
def test_greedy_search_chooses_the_same_words_with_scores_and_without(
    loaded: tuple[TranslationModel, TranslationModel], temperature: float
) -> None:
    """Scores are divided by the temperature before ``unkpen`` is subtracted."""
    options = SearchOptions(beam=1, temperature=temperature, unkpen=-0.8)
    batch = [row.tolist() for row in sentences([5, 1, 9, 4, 7, 3], 20)]
    scored, unscored = (
        onnx_search.beam_search(loaded[1].model, batch, options, is_scored=wanted)
        for wanted in (True, False)
    )
    assert [[h.tokens for h in hs] for hs in scored] == [[h.tokens for h in hs] for hs in unscored]
    with warnings.catch_warnings(action="error"):  # numpy's, of infinities that are no mistake
        for options in (SearchOptions(b, unkpen=-3e38, min_len=8) for b in (1, 8)):
            onnx_search.beam_search(loaded[1].model, batch, options)


def test_the_best_of_a_large_vocabulary_are_found_through_chunks() -> None:
    logits = np.random.default_rng(0).standard_normal((2, 3, 1000), dtype=np.float32)
    best, index = onnx_search._top(logits, 3)
    for row, expected, where in zip(
        logits.reshape(6, -1), best.reshape(6, -1), index.reshape(6, -1), strict=True
    ):
        assert sorted(expected) == sorted(row)[-3:]
        np.testing.assert_array_equal(row[where], expected)


def test_the_documented_loop_is_greedy_search(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (program,) = re.findall(
        r"^```python\n(.+?)^```$", (ROOT / "docs/onnx.md").read_text(), re.DOTALL | re.MULTILINE
    )
    (folders[1].parent / "model").symlink_to(folders[1])
    monkeypatch.chdir(folders[1].parent)
    names: dict[str, Any] = {}
    exec(program, names)
    model = model_folder.load(folders[1]).model
    for row in sentences([5, 1, 9], 20, seed=2):
        options = SearchOptions(beam=1, min_len=0)
        ((found,),) = onnx_search.beam_search(model, [row.tolist()], options)
        limit = len(found.tokens)
        documented = names["greedy"](row.tolist(), limit)
        assert documented[: limit - 1] == found.tokens[: limit - 1]
        # as long as the model can be
        assert names["greedy"](row.tolist())[: limit - 1] == found.tokens[: limit - 1]


@pytest.mark.parametrize("use_shortlist", [False, True], ids=["all words", "shortlist"])
def test_nothing_but_numpy_sentencepiece_and_onnxruntime_is_needed(
    folders: tuple[Path, Path], use_shortlist: bool, tmp_path: Path
) -> None:
    """Only a shortlist that is used needs safetensors. Nothing is left in the home."""
    options = ["--beam", "3", "--print-scores"]
    absent, more = ["torch", "fairseq", "sacrebleu"], {"safetensors"}
    if use_shortlist:
        options.append("--shortlist")
    else:
        absent, more = [*absent, "safetensors"], set()
    program = (
        "import runpy, sys;"
        f"sys.modules.update(dict.fromkeys({absent}));"
        "earlier = set(sys.modules) | set(sys.stdlib_module_names);"
        "runpy.run_module('resmlp_mt.translate', run_name='__main__');"
        "loaded = {name.partition('.')[0] for name in set(sys.modules) - earlier} - earlier;"
        f"needed = {more | {'resmlp_mt', 'numpy', 'sentencepiece', 'onnxruntime'}};"
        "sys.exit(f'loaded: {loaded - needed}' if loaded - needed else 0)"
    )
    outputs = []
    for folder, start in zip(
        folders, (["-m", "resmlp_mt.translate"], ["-c", program]), strict=True
    ):
        done = subprocess.run(
            [sys.executable, *start, str(folder), *options],
            input="w1 w5 w3\n\nw2\n",
            cwd=ROOT,
            capture_output=True,
            text=True,
            env=os.environ | {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)},
        )
        assert done.returncode == 0, done.stderr
        assert not os.listdir(tmp_path)
        outputs.append([line.split("\t") for line in done.stdout.splitlines()])
    for ours, expected in zip(*outputs, strict=True):
        assert (ours[0], ours[2]) == (expected[0], expected[2])
        assert float(ours[1]) == pytest.approx(float(expected[1]), abs=1e-4)


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> tuple[TranslationModel, Path]:
    """A model of dimension 64 with a shortlist, and its folders ``float32`` and ``int8``.

    They are below a path that is not UTF-8.
    """
    folder = tmp_path_factory.mktemp("int8") / os.fsdecode(b"caf\xe9")
    sizes = {"encoder_embed_dim": 64, "decoder_embed_dim": 64, "encoder_ffn_embed_dim": 256}
    table = np.random.default_rng(0).integers(4, 60, (60, 4))
    lexicon = Shortlist(np.arange(30), table)
    exported = translation_model(fold(build(3, vocabulary=60, **sizes).float()), shortlist=lexicon)
    model_folder.save(exported, folder / "float32", write_weights=export_onnx)
    model_folder.save(exported, folder / "int8", "int8", export_int8)
    return exported, folder


def test_int8_graphs_are_smaller_and_compute_nearly_the_same(
    int8: tuple[TranslationModel, Path],
) -> None:
    """Every graph: keys and values, states and past, scores of all words and of some."""
    _, folder = int8
    graphs = (ENCODER, DECODER_STEP, PROJECTION)
    sizes = [
        sum((folder / kind / graph).stat().st_size for graph in graphs)
        for kind in ("float32", "int8")
    ]
    assert sizes[1] < 0.6 * sizes[0]
    tokens, one = np.array([[5, 6, 7, EOS]]), np.ones((1, 1, 1), np.float32)
    found: list[list[Any]] = []
    for kind in ("float32", "int8"):
        model = model_folder.load(folder / kind).model
        assert isinstance(model, OnnxModel)
        memory, past = model.encode(tokens, np.array([4])), model.first_past(1)
        first, none = np.array([0]), np.array([], np.int64)
        _, past = model.step(np.array([[EOS]]), first, none, one[:, :, :0], memory, past)
        states, past = model.step(np.array([[9]]), np.array([1]), np.array([0]), one, memory, past)
        rows = model.choose(tokens.tolist()).rows
        found.append([memory["keys.0"], memory["values.0"], past["past.0"], states,
                      model.scores(states), model.scores(states, rows)])  # fmt: skip
    for exact, rounded in zip(*found, strict=True):
        assert 0 < np.abs(exact - rounded).max() < 0.1 * np.abs(exact).max()


@pytest.mark.parametrize("use_shortlist", [False, True], ids=["all words", "shortlist"])
def test_in_int8_a_sentence_does_not_depend_on_its_neighbours(
    int8: tuple[TranslationModel, Path], use_shortlist: bool
) -> None:
    """Although a product has one scale for all rows of its input."""
    translator = Translator.load(int8[1] / "int8", use_shortlist=use_shortlist)
    drawn = np.random.default_rng(0)
    lines = [" ".join(f"w{n}" for n in drawn.integers(0, 50, size)) for size in (3, 9, 1, 6, 6, 12)]
    together, alone = translator.translate(lines), [translator.translate([x])[0] for x in lines]
    assert together == alone


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"no_repeat_ngram_size": 2}, "--no-repeat-ngram-size"),
        ({"repetition_penalty": 1.5, "coverage_penalty": 1}, "--repetition-pen.* and --coverage-p"),
        ({"disable_unk": True, "sampling": True}, "--disable-unk and --sampling"),
        ({"beam": 1}, "callback"),
    ],
    ids=str,
)
def test_what_the_graphs_lack_is_named(
    loaded: tuple[TranslationModel, TranslationModel], options: dict[str, Any], named: str
) -> None:
    callback = print if named == "callback" else None
    with pytest.raises(UserError, match=f"^ONNX graphs do not support {named}.*: export the model"):
        Translator(loaded[1], SearchOptions(**options)).translate(["w1"], callback=callback)


def test_graphs_stay_on_the_cpu(loaded: tuple[TranslationModel, TranslationModel]) -> None:
    assert Translator(loaded[1], SearchOptions(), device="cpu").translate(["w1 w2"])
    with pytest.raises(UserError, match="device cuda: the model is ONNX graphs"):
        Translator(loaded[1], SearchOptions(), device="cuda")


def test_other_types_and_broken_graphs_are_refused(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    onnx = Path(shutil.copytree(folders[1], tmp_path / "onnx"))
    with pytest.raises(UserError, match=r"--dtype int8: .* holds ONNX graphs of float32"):
        model_folder.load(onnx, "int8")
    graph = (onnx / DECODER_STEP).read_bytes()
    damaged = [graph[:100]]
    # an input, a size without a number and metadata: none of these names is UTF-8
    damaged += [graph.replace(n, b"\xff" + n[1:]) for n in (b"tokens", b"batch", b"config")]
    for content in damaged:
        (onnx / DECODER_STEP).write_bytes(content)
        with pytest.raises(UserError, match=r"broken ONNX graphs: decoder_step\.onnx: ") as error:
            model_folder.load(onnx)
        assert "\n" not in str(error.value)


def test_graphs_of_an_earlier_version_are_refused(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    """Their step took one history for all layers."""
    folder = Path(shutil.copytree(folders[1], tmp_path / "onnx"))
    (folder / PROJECTION).unlink()
    earlier = """<ir_version: 10, opset_import: ["" : 20]>
        step (int64[batch, beam, position] ancestors) => (int64[batch, beam, position] scores) {
            scores = Identity(ancestors)
        }"""
    onnx.save(onnx.parser.parse_model(earlier), folder / DECODER_STEP)
    with pytest.raises(UserError, match=r"graphs of an earlier version.*export the model"):
        model_folder.load(folder)


def test_graphs_of_another_shortlist_are_refused(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(folders[1], tmp_path / "onnx"))
    (folder / digests.NAME).unlink()
    model_folder.load(folder)
    words = Shortlist.load(folder / model_folder.SHORTLIST, 20, 20)
    Shortlist(words.always + (words.always > 3), words.by_source).save(
        folder / model_folder.SHORTLIST
    )
    with pytest.raises(UserError, match=r"projection\.onnx was exported with another shortlist"):
        model_folder.load(folder)
    words.save(folder / model_folder.SHORTLIST)
    other = fold(build(4).float())
    metadata = exported_config.metadata(asdict(other.config))
    ProjectionGraphs(other.decoder.output_projection, metadata, is_int8=False).write_shortlist(
        words, folder
    )
    with pytest.raises(UserError, match=r"give other scores than projection\.onnx"):
        model_folder.load(folder)
    (folder / SHORTLIST_ROWS).unlink()
    with pytest.raises(UserError, match=r"broken ONNX graphs: shortlist_rows\.onnx: "):
        model_folder.load(folder)


def test_a_server_explains_them_without_attention(folders: tuple[Path, Path]) -> None:
    """The page shows texts, words and scores; there is no matrix to show."""
    options = ModelOptions(beam=3, lenpen=1.0, max_batch_tokens=100, shortlist=True)
    work = Work(Languages("en", "de"), explained=True)
    answers = []
    for folder in folders:
        worker = Worker([folder], options)
        try:
            assert worker.languages() == [work.languages]
            answers += asyncio.run(worker.translate(work, ["w1 w5 w3"]))
            if folder == folders[1]:
                with pytest.raises(LookupError, match="ONNX graphs, which do not give the mixing"):
                    asyncio.run(worker.mixing(work.languages, 0, 2))
        finally:
            worker.stop()
    expected, found = answers
    assert found.pieces == expected.pieces
    assert [t.pieces for t in found.translations] == [t.pieces for t in expected.translations]
    assert all(expected.translations[0].attention)
    segment = Segment("w1 w5 w3", 0, True)
    explained = _explained(Part(segment, found)).translations
    assert [h.words for h in explained] == [t.text.split() for t in found.translations]
    assert [h.attention for h in explained] == [[]] * 3


def test_threads_of_a_graph_stop_when_it_has_run(folders: tuple[Path, Path]) -> None:
    # else they take the processor from the next graph
    model = model_folder.load(folders[1], threads=2).model
    assert isinstance(model, OnnxModel)
    for name in (ENCODER, DECODER_STEP, PROJECTION):
        options = model._graphs[name].get_session_options()
        assert options.get_session_config_entry("session.force_spinning_stop") == "1"


IN_FORKED_PROCESSES = """
import gc, os, signal, sys, time
from pathlib import Path
from resmlp_mt import SearchOptions, Translator
from resmlp_mt.errors import UserError

FOLDER, LINES = Path(sys.argv[1]), ["w1 w5 w3", "w2", "w7 w7 w1 w0"]

def translated(translator):
    return [[t.text for t in found] for found in translator.translate(LINES)]

def refused(translator):
    try:
        translator.translate(LINES)
    except UserError as error:
        return "encoder.onnx has changed since it was loaded" in str(error)

def in_a_fork(function, *arguments):
    child = os.fork()
    if not child:
        found = function(*arguments)
        del arguments, globals()["translator"]
        gc.collect()  # graphs of the other process, whose threads are not here
        os._exit(42 if found else 1)
    end = time.monotonic() + 120
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 42, status
            return
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    sys.exit("the forked process hangs")

for given in ({"threads": 3}, {"workers": 2, "batch_size": 1, "threads": 2}):
    translator = Translator.load(FOLDER, SearchOptions(beam=2), **given)
    expected = translated(translator)
    os.chdir("/")
    in_a_fork(lambda t: translated(t) == expected, translator)
    assert translated(translator) == expected
os.utime(FOLDER / "encoder.onnx", (1, 1))
in_a_fork(refused, translator)
"""


def test_graphs_are_opened_again_in_a_forked_process(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    """Where their threads do not exist: a run, and the end of a graph, would wait for them."""
    folder = shutil.copytree(folders[1], tmp_path / "onnx")
    done = subprocess.run(
        [sys.executable, "-c", IN_FORKED_PROCESSES, str(folder)],
        cwd=ROOT, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_the_runtime_sends_no_events(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a program has imported it before, too early for the variable."""
    calls: list[str] = []
    monkeypatch.setattr(onnxruntime, "disable_telemetry_events", lambda: calls.append("off"))
    onnx_graphs.Graphs(folders[1], 1).open(ENCODER)
    assert calls == ["off"]


def test_too_little_memory_for_graphs_is_no_damage(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    class RuntimesError(Exception):
        """Its types have no common base."""

    def full(*_: object) -> None:
        raise RuntimesError("Failed to allocate memory for requested buffer of size 9")

    for place, name in ((onnx_graphs, "_session"), (OnnxModel, "encode")):
        with monkeypatch.context() as patched:
            patched.setattr(place, name, full)
            with pytest.raises(RuntimesError) as error:  # which a command makes a sentence
                model_folder.load(folders[1])
            assert is_of_memory(error.value)
