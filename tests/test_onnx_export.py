"""The ONNX graphs compute what the folded model computes, at every shape."""

import copy
import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from models import EOS, PAD, build, padded, sentences
from resmlp_mt import onnx_exporter
from resmlp_mt.engine import onnx_export
from resmlp_mt.engine.folding import fold
from resmlp_mt.engine.onnx_projection import ProjectionGraphs
from resmlp_mt.engine.shortlist import Shortlist
from resmlp_mt.errors import UserError
from resmlp_mt.model.encoder_decoder import EncoderDecoder
from resmlp_mt.models.resmlp_mt import ResMLPModel
from test_mixing import MODELS

VOCABULARY = 20
# What folding leaves: one matrix or several, projections or none, a gate or none, and a constant or
# none; the paper's and a preset among them.
FOLDED = ["resmlp_mt_6l", "resmlp_mt_plus_6_2", "2-none-values-gate", "2-alone-gate", "1-alone"]


@pytest.fixture(scope="module", params=FOLDED)
def model(request: pytest.FixtureRequest) -> ResMLPModel:
    return build(vocabulary=VOCABULARY, **MODELS[request.param])


@pytest.fixture(scope="module")
def folded(model: ResMLPModel) -> EncoderDecoder:
    return fold(model).float()


@pytest.fixture(scope="module")
def folder(folded: EncoderDecoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("onnx")
    onnx_export.export_onnx(folded, folder)
    return folder


Graph = Callable[..., dict[str, torch.Tensor]]
"""A graph: its outputs by name, from its inputs by name."""


@pytest.fixture(scope="module")
def graph(folder: Path) -> Callable[[str], Graph]:
    def load(name: str) -> Graph:
        session = onnxruntime.InferenceSession(folder / name)
        names = [output.name for output in session.get_outputs()]

        def run(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            found = session.run(names, {name: array.numpy() for name, array in inputs.items()})
            return dict(zip(names, map(torch.from_numpy, found), strict=True))

        return run

    return functools.cache(load)


def by_layer(name: str, arrays: torch.Tensor) -> dict[str, torch.Tensor]:
    """The inputs or outputs of all layers."""
    return {f"{name}.{layer}": array.contiguous() for layer, array in enumerate(arrays)}


def equal(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_three_complete_files(folder: Path) -> None:
    graphs = {"encoder.onnx", "decoder_step.onnx", "projection.onnx"}
    assert {path.name for path in folder.iterdir()} == graphs


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_encoder(folded, graph, lengths: list[int], seed: int) -> None:
    tokens = padded(sentences(lengths, VOCABULARY, seed))
    expected = folded.encode(tokens, torch.tensor(lengths))
    found = graph("encoder.onnx")({"tokens": tokens, "lengths": torch.tensor(lengths)})
    assert torch.equal(found["mask"], expected.mask)
    # what stands at pads is not the same: the graph computes it
    is_token = (expected.mask == 0).view(len(lengths), 1, -1, 1)
    for name, arrays in (("keys", expected.keys), ("values", expected.values)):
        for layer, array in enumerate(arrays):
            equal(found[f"{name}.{layer}"] * is_token, array)


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    beam=st.integers(1, 5),
    position=st.integers(0, 9),
    seed=st.integers(0, 99),
)
def test_decoder_step(
    folded, graph, lengths: list[int], beam: int, position: int, seed: int
) -> None:
    """The entries of all earlier steps, in any order."""
    batch, config = len(lengths), folded.config
    generator = torch.Generator().manual_seed(seed)
    memory = folded.encode(padded(sentences(lengths, VOCABULARY, seed)), torch.tensor(lengths))
    tokens = torch.randint(VOCABULARY, (batch, beam), generator=generator)
    heads = config.decoder_mixing.heads
    size = (config.decoder_layers, batch, heads, position, beam, config.decoder_embed_dim // heads)
    history = torch.randn(size, generator=generator)
    ancestors = torch.randint(beam, (batch, beam, position), generator=generator)
    hidden, entries, _ = folded.decoder.step(tokens, history, ancestors, memory)
    order = torch.randperm(position * beam, generator=generator)
    past = history.flatten(3, 4)[:, :, :, order]
    found = graph("decoder_step.onnx")(
        {
            "tokens": tokens,
            "position": torch.tensor([position]),
            "positions": torch.arange(position).repeat_interleave(beam)[order],
            "descends": F.one_hot(ancestors, beam).flatten(2)[:, :, order].float(),
            "mask": memory.mask,
            **by_layer("keys", memory.keys),
            **by_layer("values", memory.values),
            **by_layer("past", past),
        }
    )
    equal(found["states"], hidden)
    for name, array in by_layer("present", torch.cat([past, entries], dim=3)).items():
        equal(found[name], array)
    scores = graph("projection.onnx")({"states": hidden})["scores"]
    equal(scores, folded.decoder.output_projection(hidden))


def test_greedy_translation(model, folded, graph) -> None:
    """The past that a caller keeps goes round: ten steps choose the tokens of the trained model."""
    model = copy.deepcopy(model).float()
    source = padded(sentences([5, 12, 1], VOCABULARY))
    lengths = torch.tensor([5, 12, 1])
    memory = graph("encoder.onnx")({"tokens": source, "lengths": lengths})
    tokens = torch.full((3, 1), EOS)
    config = folded.config
    heads = config.decoder_mixing.heads
    past = {
        f"past.{layer}": torch.zeros(3, heads, 0, config.decoder_embed_dim // heads)
        for layer in range(config.decoder_layers)
    }
    for position in range(10):
        outputs = graph("decoder_step.onnx")(
            {
                "tokens": tokens[:, -1:],
                "position": torch.tensor([position]),
                "positions": torch.arange(position),
                "descends": torch.ones(3, 1, position),
                **memory,
                **past,
            }
        )
        past = {name: outputs[name.replace("past", "present")] for name in past}
        scores = graph("projection.onnx")({"states": outputs["states"]})["scores"]
        scores[..., PAD] = -torch.inf  # no search goes on after a pad
        tokens = torch.cat([tokens, scores.argmax(dim=2)], dim=1)
    scores, _ = model(source, lengths, tokens[:, :-1])
    scores[..., PAD] = -torch.inf
    assert torch.equal(scores.argmax(dim=2), tokens[:, 1:])


@pytest.mark.parametrize("is_int8", [False, True], ids=["float32", "int8"])
def test_scores_of_some_words(tmp_path: Path, is_int8: bool) -> None:
    """Those that every sentence may use, then the others; in int8 as close as 7 bits are."""
    folded = fold(build(vocabulary=VOCABULARY).float())
    shortlist = Shortlist(np.array([0, 1, 2, 3, 9]), np.zeros((VOCABULARY, 1), dtype=np.int64))
    graphs = ProjectionGraphs(folded.decoder.output_projection, {}, is_int8)
    graphs.write_shortlist(shortlist, tmp_path)
    rows, projection = (
        onnxruntime.InferenceSession(tmp_path / f"shortlist_{name}.onnx")
        for name in ("rows", "projection")
    )
    states = torch.randn(3, 2, folded.config.decoder_embed_dim)
    every = folded.decoder.output_projection(states)
    for words in ([7, 4, 19], [5], []):
        names = [output.name for output in rows.get_outputs()]
        found = rows.run(names, {"words": np.array(words, dtype=np.int64)})
        inputs = {"states": states.numpy(), **dict(zip(names, found, strict=True))}
        (scores,) = projection.run(["scores"], inputs)
        expected = every[..., [0, 1, 2, 3, 9, *words]]
        error = (torch.from_numpy(scores) - expected).abs().max()
        assert error < (0.05 if is_int8 else 1e-5) * every.abs().max()


def test_a_full_folder_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: object, path: Path, **_: object) -> None:
        path.write_bytes(b"half a graph")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch.onnx.ONNXProgram, "save", full)
    with pytest.raises(OSError, match="No space left"):
        onnx_export.export_onnx(fold(build()), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_without_the_exporter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"'\.\[onnx-export\]'"):
        onnx_export.export_onnx(fold(build()), tmp_path)


def test_a_graph_that_is_too_large_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch would write its weights beside a file that is renamed."""
    folded = fold(build(vocabulary=VOCABULARY).float())
    monkeypatch.setattr(onnx_exporter, "LARGEST", 100)
    for write in (onnx_export.export_onnx, onnx_export.export_int8):
        with pytest.raises(UserError, match=r"^encoder\.onnx would hold \d\.\d GB of weights, but"):
            write(folded, tmp_path)
    graphs = ProjectionGraphs(folded.decoder.output_projection, {}, is_int8=False)
    with pytest.raises(
        UserError, match=r"^projection\.onnx would hold .*: export without --format"
    ):
        graphs.write(tmp_path)
    assert list(tmp_path.iterdir()) == []
