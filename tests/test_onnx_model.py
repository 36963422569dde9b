"""A folder of ONNX graphs translates like one of safetensors."""

from pathlib import Path

import pytest

from models import build, dictionary
from resmlp_mt.engine import model_folder
from resmlp_mt.engine.beam_search import SearchOptions
from resmlp_mt.engine.folding import fold
from resmlp_mt.engine.model_folder import TranslationModel
from resmlp_mt.engine.onnx_export import DECODER_STEP, export_onnx
from resmlp_mt.engine.onnx_model import OnnxModel
from resmlp_mt.engine.translator import Translator
from resmlp_mt.engine.vocabulary import Vocabulary
from resmlp_mt.errors import UserError


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """One model in both forms."""
    parent = tmp_path_factory.mktemp("exported")
    words = Vocabulary(dictionary(20).symbols)
    translation = TranslationModel(fold(build(3).float()), "en", "de", words, words, None)
    model_folder.save(translation, parent / "safetensors")
    model_folder.save(translation, parent / "onnx", write_weights=export_onnx)
    return parent / "safetensors", parent / "onnx"


def test_both_forms_translate_alike(folders: tuple[Path, Path]) -> None:
    """Lines of all lengths, whose translations end at different steps."""
    lines = ["w1 w5 w3", "w2", "w7 w7 w1 w0 w9 w4 w4 w3", "w9 w8", "w1 w2 w3 w4 w5"]
    options = SearchOptions(beam=3)
    found = []
    for folder in folders:
        translator = Translator(model_folder.load(folder), options, batch_size=4)
        found.append(translator.translate(lines))
    assert isinstance(translator.loaded.model, OnnxModel)
    for ours, expected in zip(*found, strict=True):
        assert [t.text for t in ours] == [t.text for t in expected]
        assert [t.score for t in ours] == pytest.approx([t.score for t in expected], abs=1e-5)


def test_other_types_and_broken_graphs_are_refused(folders: tuple[Path, Path]) -> None:
    onnx = folders[1]
    with pytest.raises(UserError, match=r"--dtype int8: .* holds ONNX graphs of float32"):
        model_folder.load(onnx, "int8")
    graph = (onnx / DECODER_STEP).read_bytes()
    (onnx / DECODER_STEP).write_bytes(graph[:100])
    with pytest.raises(UserError, match="has broken ONNX graphs") as error:
        model_folder.load(onnx)
    assert "\n" not in str(error.value)
