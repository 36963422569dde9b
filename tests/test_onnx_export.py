"""The ONNX graphs compute what the folded model computes, at every shape."""

import copy
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import EOS, PAD, build, padded, sentences
from resmlp_mt.engine import onnx_export
from resmlp_mt.engine.folding import fold
from resmlp_mt.model.attention import Memory
from resmlp_mt.model.encoder_decoder import EncoderDecoder
from resmlp_mt.models.resmlp_mt import ResMLPModel
from test_mixing import MODELS

VOCABULARY = 20
# What folding leaves: one matrix or several, projections or none, a gate or none, and a constant or
# none; the paper's and a preset among them.
FOLDED = ["resmlp_mt_6l", "resmlp_mt_plus_6_2", "2-none-values-gate", "2-alone-gate"]


@pytest.fixture(scope="module", params=FOLDED)
def model(request: pytest.FixtureRequest) -> ResMLPModel:
    return build(vocabulary=VOCABULARY, **MODELS[request.param])


@pytest.fixture(scope="module")
def folded(model: ResMLPModel) -> EncoderDecoder:
    return fold(model).float()


def history_of(model: EncoderDecoder, batch: int, position: int, beam: int) -> torch.Size:
    """The shape of what earlier steps leave."""
    config = model.config
    heads = config.decoder_mixing.heads
    width = config.decoder_embed_dim // heads
    return torch.Size((config.decoder_layers, batch, heads, position, beam, width))


@pytest.fixture(scope="module")
def folder(folded: EncoderDecoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("onnx")
    onnx_export.export_onnx(folded, folder)
    return folder


@pytest.fixture(scope="module")
def encoder(folder: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(folder / "encoder.onnx")


@pytest.fixture(scope="module")
def decoder_step(folder: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(folder / "decoder_step.onnx")


def run(session: onnxruntime.InferenceSession, *inputs: torch.Tensor) -> list[np.ndarray]:
    names = [given.name for given in session.get_inputs()]
    return session.run(None, dict(zip(names, [i.numpy() for i in inputs], strict=True)))


def equal(outputs: list[np.ndarray], expected: tuple[torch.Tensor, ...]) -> None:
    for output, tensor in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(output, tensor.numpy(), rtol=1e-5, atol=1e-5)


def test_two_complete_files(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {"encoder.onnx", "decoder_step.onnx"}


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_encoder(folded, encoder, lengths: list[int], seed: int) -> None:
    tokens = padded(sentences(lengths, VOCABULARY, seed))
    expected = folded.encode(tokens, torch.tensor(lengths))
    keys, values, mask = run(encoder, tokens, torch.tensor(lengths))
    np.testing.assert_array_equal(mask, expected.mask.numpy())
    # what stands at pads is not the same: the graph computes it
    is_token = (mask == 0).reshape(1, len(lengths), 1, -1, 1)
    equal([keys * is_token, values * is_token], (expected.keys, expected.values))


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    beam=st.integers(1, 5),
    position=st.integers(0, 9),
    seed=st.integers(0, 99),
)
def test_decoder_step(
    folded, decoder_step, lengths: list[int], beam: int, position: int, seed: int
) -> None:
    batch = len(lengths)
    generator = torch.Generator().manual_seed(seed)
    memory = folded.encode(padded(sentences(lengths, VOCABULARY, seed)), torch.tensor(lengths))
    tokens = torch.randint(VOCABULARY, (batch, beam), generator=generator)
    history = torch.randn(history_of(folded, batch, position, beam), generator=generator)
    ancestors = torch.randint(beam, (batch, beam, position), generator=generator)
    expected = folded.step(tokens, history, ancestors, memory)
    equal(run(decoder_step, tokens, history, ancestors, *memory), expected)


def test_greedy_translation(model, folded, encoder, decoder_step) -> None:
    """The caches that a caller keeps go round: ten steps choose the tokens of the trained model."""
    model = copy.deepcopy(model).float()
    source = padded(sentences([5, 12, 1], VOCABULARY))
    lengths = torch.tensor([5, 12, 1])
    memory = Memory(*map(torch.from_numpy, run(encoder, source, lengths)))
    tokens = torch.full((3, 1), EOS)
    history = torch.zeros(history_of(folded, 3, 0, 1))
    for _ in range(10):
        step = (tokens[:, -1:], history, torch.zeros(3, 1, history.size(3), dtype=torch.long))
        scores, entries = map(torch.from_numpy, run(decoder_step, *step, *memory))
        scores[..., PAD] = -torch.inf  # no search goes on behind a pad
        tokens = torch.cat([tokens, scores.argmax(dim=2)], dim=1)
        history = torch.cat([history, entries.unsqueeze(3)], dim=3)
    scores, _ = model(source, lengths, tokens[:, :-1])
    scores[..., PAD] = -torch.inf
    assert torch.equal(scores.argmax(dim=2), tokens[:, 1:])


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
    monkeypatch.setattr(onnx_export.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="resmlp_mt\\[onnx-export\\]"):
        onnx_export.export_onnx(fold(build()), tmp_path)
