"""The engine runs where its model is: every tensor that it makes is on that device.

The meta device stands for a GPU: an operation that mixes it with the CPU fails there too. What
depends on data, the end of a search, cannot run on it.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from models import EOS, build, sentences, translation_model
from resmlp_mt import packed_linear
from resmlp_mt.engine.beam_search import (
    SearchOptions,
    WordChoice,
    _Beams,
    _best,
    _step,
    beam_search,
)
from resmlp_mt.engine.folding import fold
from resmlp_mt.engine.restrictions import restricted
from resmlp_mt.engine.search import chosen_words
from resmlp_mt.engine.shortlist import Shortlist
from resmlp_mt.engine.translator import Translator
from resmlp_mt.engine.weights import placed, prepared
from resmlp_mt.errors import UserError
from resmlp_mt.mixing import MixingConfig
from resmlp_mt.model.encoder_decoder import EncoderDecoder
from resmlp_mt.packed_linear import PackedLinear
from test_mixing import options

CONFIGS = [MixingConfig(), MixingConfig(2, "alone", decay=True, values=True, gate=True)]


@pytest.fixture(autouse=True)
def small_weights_are_packed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_linear, "LARGEST_UNPACKED", 0)


def engine(config: MixingConfig, dtype: str = "float32") -> EncoderDecoder:
    return prepared(fold(build(vocabulary=40, **options(config)).float()), dtype)


@pytest.mark.parametrize("config", CONFIGS, ids=["paper", "all"])
@torch.inference_mode()
def test_a_search_makes_its_tensors_where_the_model_is(config: MixingConfig) -> None:
    model = placed(engine(config), "meta")
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert not [module for module in model.modules() if isinstance(module, PackedLinear)]
    search = SearchOptions(beam=3, unkpen=1.0, temperature=2.0, min_len=2)
    memory = model.encode(torch.full((4, 5), EOS, device="meta"))
    with torch.device("meta"):
        allowed = torch.ones(4, 30, dtype=torch.bool)
        words = WordChoice(torch.arange(30), allowed, torch.nn.Linear(8, 30))
    for choice in (None, words):
        copies = replace(model.cache(memory, 3))
        beams = _Beams(copies, [40, 38, 36, 34], choice)
        tokens = torch.full((4, 1), EOS, device="meta")
        scores = torch.zeros(4, 1, device="meta")
        for position in range(5):
            logits = _step(model, tokens, beams, choice)
            at_limit = [1] if position == 3 else []
            logits, log_total = restricted(logits, None, position, at_limit, search, None)
            scores, parents, tokens = _best(logits, log_total, scores, 6)
            scores, parents, tokens = scores[:, :3], parents[:, :3], tokens[:, :3]
            if position == 2:
                order = beams.remove([0, 3])
                scores, parents, tokens = scores[order], parents[order], tokens[order]
            beams.extend(position, parents, tokens, scores)
            assert {t.device.type for t in (logits, scores, tokens)} == {"meta"}
        assert beams.cache.history.entries.device.type == "meta"


def test_a_model_that_was_moved_translates_alike() -> None:
    model = engine(CONFIGS[1])
    rows = [row.tolist() for row in sentences([5, 3, 9])]
    expected = beam_search(model, rows, SearchOptions(beam=3))
    for name, module in list(model.named_modules()):
        if isinstance(module, PackedLinear):
            model.set_submodule(name, module.unpacked())
    found = beam_search(model, rows, SearchOptions(beam=3))
    for ours, theirs in zip(found, expected, strict=True):
        assert [h.tokens for h in ours] == [h.tokens for h in theirs]
        assert [h.score for h in ours] == pytest.approx([h.score for h in theirs], abs=1e-5)


def test_the_translator_takes_a_device() -> None:
    loaded = translation_model(engine(CONFIGS[0]))
    expected = Translator(loaded, SearchOptions()).translate(["w1 w2"])
    assert Translator(loaded, SearchOptions(), device="cpu").translate(["w1 w2"]) == expected
    Translator(loaded, SearchOptions(), device="meta")
    assert loaded.model.device.type == "meta"


def test_a_shortlist_is_where_the_model_is() -> None:
    by_source = np.random.default_rng(0).integers(4, 40, (40, 2))
    loaded = translation_model(engine(CONFIGS[0]), shortlist=Shortlist(np.arange(12), by_source))
    loaded.move("meta")
    choice = chosen_words(loaded, SearchOptions(beam=3))([[5, 6, 7, EOS], [8, EOS]])
    assert choice.allowed is not None
    tensors = [choice.words, choice.allowed, *choice.output_projection.parameters()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="has what must be missing here")
def test_devices_that_cannot_be_used_are_named() -> None:
    with pytest.raises(UserError, match="--device cuda cannot be used: ") as error:
        placed(engine(CONFIGS[0]), "cuda")
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="--device nonsense cannot be used"):
        prepared(fold(build().float()), "float32", "nonsense")
    with pytest.raises(UserError, match="--dtype int8 is for CPUs, not for --device meta"):
        placed(engine(CONFIGS[0], "int8"), "meta")
    with pytest.raises(UserError, match="--dtype int8 is for CPUs, not for --device meta"):
        prepared(fold(build().float()), "int8", "meta")
