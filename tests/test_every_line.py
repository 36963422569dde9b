"""One line out for one line in, whatever the numbers are; weights are finite or refused."""

import io
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from conftest import Corpus
from models import EOS, build, sentences, translation_model
from resmlp_mt import translate
from resmlp_mt.engine import model_folder
from resmlp_mt.engine.beam_search import beam_search
from resmlp_mt.engine.folding import fold
from resmlp_mt.engine.onnx_export import export_onnx
from resmlp_mt.engine.options import SearchOptions
from resmlp_mt.engine.translator import Translator
from resmlp_mt.errors import UserError
from resmlp_mt.fairseq_plugin.conversion import load_trained
from resmlp_mt.model.attention import Memory
from resmlp_mt.model.cache import Cache
from resmlp_mt.model.encoder_decoder import EncoderDecoder
from resmlp_mt.models import resmlp_mt  # noqa: F401  registers the architectures


class WithoutScores(EncoderDecoder):
    """Some source words make all scores of their sentence NaN, infinite, or -infinite for EOS."""

    word, value = 4, math.nan

    def advance(
        self, tokens: Tensor, cache: Cache, output_projection: nn.Module | None = None
    ) -> tuple[Tensor, Cache]:
        scores, following = super().advance(tokens, cache, output_projection)
        # the first column of the values carries the mark through reordered and shrunken batches
        marked = cache.memory.values[0, :, 0, 0, 0] == 7.0
        scores[marked, :, EOS] = self.value
        if self.value != -math.inf:
            scores[marked] = self.value
        return scores, following

    def encode(self, tokens: Tensor, lengths: Tensor | None = None) -> Memory:
        memory = super().encode(tokens, lengths)
        memory.values[0, :, 0, 0, 0] = torch.where((tokens == self.word).any(1), 7.0, 0.0)
        return memory


def without_scores(value: float) -> EncoderDecoder:
    model = fold(build(3))
    model.__class__ = WithoutScores
    model.value = value  # type: ignore[assignment]
    return model


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    st.sampled_from([math.nan, math.inf, -math.inf]),
    st.lists(st.tuples(st.integers(1, 10), st.booleans()), min_size=1, max_size=6),
    st.integers(1, 4),
    st.integers(0, 3),
    st.floats(0, 2),
)
def test_a_sentence_without_scores_has_no_hypothesis_and_disturbs_no_other(
    value: float, batch: list[tuple[int, bool]], beam: int, min_len: int, max_len_a: float
) -> None:
    model = without_scores(value)
    options = SearchOptions(beam=beam, min_len=min_len, max_len_a=max_len_a, max_len_b=4)
    rows = [row.tolist() for row in sentences([length for length, _ in batch], seed=beam)]
    for row, (_, broken) in zip(rows, batch, strict=True):
        row[:] = [token if token != 4 else 5 for token in row]
        if broken:
            row.insert(0, 4)
    found = beam_search(model, rows, options)
    plain = fold(build(3))
    plain.__class__ = WithoutScores
    plain.word = -1  # type: ignore[assignment]
    for row, hypotheses in zip(rows, found, strict=True):
        if row[0] == 4:
            assert hypotheses == []
            continue
        (alone,) = beam_search(plain, [row], options)
        assert [h.tokens for h in hypotheses] == [h.tokens for h in alone]
        assert 1 <= len(hypotheses) <= beam


def test_the_line_is_named_and_left_empty(caplog: pytest.LogCaptureFixture) -> None:
    loaded = translation_model(without_scores(math.nan))
    translator = Translator(loaded, SearchOptions(beam=3), batch_size=2)
    lines = ["w1 w2", "w0 w3", "", "w5"]  # w0 is word 4
    found = translator.translate(lines)
    assert [len(line) for line in found] == [3, 1, 1, 3]
    assert found[1][0].text == ""
    assert found[1][0].score == -math.inf
    assert translator.failed == 1
    (message,) = caplog.messages
    assert message.startswith("the line that begins with 'w0 w3' has no translation with a finite")


def test_the_command_writes_every_line_and_fails_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = translation_model(without_scores(math.nan))
    monkeypatch.setattr(translate, "load", lambda args: loaded)
    text = b"w1 w2\nw0 w3\nw5\nw0\n\n"
    stdin = SimpleNamespace(buffer=io.BytesIO(text), isatty=lambda: False)
    monkeypatch.setattr(sys, "stdin", stdin)
    with pytest.raises(UserError, match="2 of 5 lines have no translation with a finite score"):
        translate.main([str(tmp_path), "--buffer-size", "2", "--print-scores"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[0] for line in lines] == [f"D-{n}" for n in range(5)]
    assert [line.split("\t")[1] == "-inf" for line in lines] == [False, True, False, True, False]


@pytest.mark.parametrize("temperature", [1e-38, 1e-46, 5e-324, 1e-3, 1e30])
def test_any_temperature_above_zero_translates(temperature: float) -> None:
    """The lowest leave the best word alone, as the search with one hypothesis does."""
    model = fold(build(3).float())
    rows = [row.tolist() for row in sentences([3, 9, 1, 6], seed=3)]
    found = beam_search(model, rows, SearchOptions(beam=1, temperature=temperature))
    greedy = beam_search(model, rows, SearchOptions(beam=1))
    assert all(len(f) == 1 for f in found)
    if temperature < 1e-2:
        assert [f[0].tokens[:-1] for f in found] == [g[0].tokens[:-1] for g in greedy]


def test_huge_numbers_of_the_search_are_bounded_or_refused() -> None:
    for lenpen in (1e9, -1e9, 10.1):
        with pytest.raises(UserError, match=r"--lenpen must be at (least -10|most 10)"):
            SearchOptions(lenpen=lenpen)
    assert SearchOptions(max_len_a=1e38).max_len(1000, 50) == 49
    assert SearchOptions(max_len_b=10**18).max_len(3, 50) == 49
    with pytest.raises(UserError, match=f"--max-len-b must be at most {2**63 - 1}"):
        SearchOptions(max_len_b=10**400)
    assert SearchOptions(max_len_a=0.5, max_len_b=2).max_len(7, 50) == 5


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, value: float, dtype: str) -> None:
    model_folder.save(translation_model(), tmp_path / "model", dtype)
    path = tmp_path / "model" / model_folder.WEIGHTS
    tensors = load_file(path)
    name = next(n for n, t in tensors.items() if t.is_floating_point())
    tensors[name].flatten()[-1] = value
    save_file(tensors, path)
    with pytest.raises(UserError, match=rf"{model_folder.WEIGHTS} has NaN or infinity in {name}"):
        model_folder.load(tmp_path / "model")


@pytest.mark.parametrize("kind", [torch.complex64, torch.float8_e4m3fn, torch.int64, torch.bool])
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_weights_of_other_types_are_refused(tmp_path: Path, kind: torch.dtype, dtype: str) -> None:
    """The NaN of a complex number would pass for a finite weight, and be cut off."""
    model_folder.save(translation_model(), tmp_path / "model", dtype)
    (tmp_path / "model" / "SHA256SUMS").unlink()
    path = tmp_path / "model" / model_folder.WEIGHTS
    tensors = load_file(path)
    name = next(n for n, t in tensors.items() if t.is_floating_point())
    tensors[name] = tensors[name].to(kind)
    save_file(tensors, path)
    with pytest.raises(UserError, match=rf"has {name} of {kind}: expected floats"):
        model_folder.load(tmp_path / "model")


def test_a_checkpoint_that_is_not_finite_is_refused(
    trained: Path, corpus: Corpus, tmp_path: Path
) -> None:
    state = torch.load(trained / "checkpoint_best.pt")
    name = next(n for n, value in state["model"].items() if value.dim() == 1 and len(value) > 8)
    state["model"][name][3] = math.nan
    torch.save(state, tmp_path / "nan.pt")
    with pytest.raises(UserError, match=r"nan\.pt has NaN or infinity in "):
        load_trained(tmp_path / "nan.pt", corpus.data)


def test_graphs_that_are_exchanged_or_not_finite_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    model_folder.save(translation_model(), folder, write_weights=export_onnx)
    graphs = folder / "encoder.onnx", folder / "decoder_step.onnx"
    encoder, step = (graph.read_bytes() for graph in graphs)
    graphs[0].write_bytes(step)
    graphs[1].write_bytes(encoder)
    with pytest.raises(UserError, match=r"encoder\.onnx does not fit the other graphs"):
        model_folder.load(folder)

    broken = fold(build().float())
    broken.decoder.output_projection.bias[5] = math.nan
    export_onnx(broken, folder)
    with pytest.raises(UserError, match=r"projection\.onnx computes NaN or infinity"):
        model_folder.load(folder)


def test_half_a_surrogate_does_not_stop_the_others(corpus: Corpus, trained: Path) -> None:
    loaded = load_trained(trained / "checkpoint_best.pt", corpus.data, corpus.spm)
    found = Translator(loaded, SearchOptions()).translate(["one two", "th\ud800ree", "four"])
    assert [len(line) >= 1 for line in found] == [True] * 3
    assert found[0][0].text
    assert found[2][0].text
    (alone,) = Translator(loaded, SearchOptions()).translate(["th\ufffdree"])
    assert found[1][0].text == alone[0].text


def test_what_was_read_before_an_input_error_is_translated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Failing(io.BytesIO):
        parts = iter([b"w1 w2\n", b"w3\n"])

        def read1(self, size: int = -1) -> bytes:
            if part := next(self.parts, b""):
                return part
            raise OSError(5, "Input/output error")

    loaded = translation_model(fold(build(3)))
    monkeypatch.setattr(translate, "load", lambda args: loaded)
    stdin = SimpleNamespace(buffer=Failing(), isatty=lambda: False)
    monkeypatch.setattr(sys, "stdin", stdin)
    with pytest.raises(UserError, match="--input - cannot be read after line 2: Input/output"):
        translate.main([str(tmp_path)])
    assert len(capsys.readouterr().out.splitlines()) == 2
