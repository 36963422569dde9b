"""The paths of a GPU: what they compute is what the CPU computes.

``python -m benchmarks.gpu`` runs these where there is one.
"""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fairseq.criterions.label_smoothed_cross_entropy import LabelSmoothedCrossEntropyCriterion

from models import EOS, PAD, build, padded, sentences, translation_model
from resmlp_mt.engine.beam_search import beam_search
from resmlp_mt.engine.folding import fold
from resmlp_mt.engine.options import SearchOptions
from resmlp_mt.engine.translator import Translator
from resmlp_mt.engine.weights import placed, prepared
from resmlp_mt.fairseq_plugin.criterion import ChunkedLabelSmoothedCrossEntropy
from resmlp_mt.mixing import MixingConfig
from resmlp_mt.model.encoder_decoder import EncoderDecoder
from resmlp_mt.vision import create_model
from test_mixing import options

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
CONFIGS = [MixingConfig(), MixingConfig(2, "alone", decay=True, values=True, gate=True)]
several = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
DEVICES = ["cuda:0", pytest.param("cuda:1", marks=several)]


def engine(config: MixingConfig) -> EncoderDecoder:
    return prepared(fold(build(vocabulary=40, **options(config)).float()), "float32")


def batch(device: str) -> dict[str, Any]:
    source, target = padded(sentences([5, 3, 9])), padded(sentences([4, 8, 2], seed=1))
    inputs = target.roll(1, 1)
    inputs[:, 0] = EOS
    net = {
        "src_tokens": source,
        "src_lengths": source.ne(PAD).sum(1),
        "prev_output_tokens": inputs,
    }
    return {
        "net_input": {name: value.to(device) for name, value in net.items()},
        "target": target.to(device),
        "ntokens": int(target.ne(PAD).sum()),
    }


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("config", CONFIGS, ids=["paper", "all"])
def test_a_search_finds_what_the_cpu_finds(config: MixingConfig, device: str) -> None:
    """Also on a device that is not the current one, and on a stream of its own."""
    rows = [row.tolist() for row in sentences([5, 3, 9], 40)]
    expected = beam_search(engine(config), rows, SearchOptions(beam=3))
    model = placed(engine(config), device)
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        found = beam_search(model, rows, SearchOptions(beam=3))
    for ours, theirs in zip(found, expected, strict=True):
        assert [h.tokens for h in ours] == [h.tokens for h in theirs]
        assert [h.score for h in ours] == pytest.approx([h.score for h in theirs], abs=1e-4)


def test_workers_share_a_gpu() -> None:
    lines = ["w1 w2", "w3", "w4 w5 w6", "w7 w8 w9 w1"] * 3
    texts = []
    for device, workers in (("cpu", 1), ("cuda", 3)):
        loaded = translation_model(engine(CONFIGS[1]))
        translator = Translator(loaded, SearchOptions(), 2, device=device, workers=workers)
        texts.append([t[0].text for t in translator.translate(lines)])
    assert texts[0] == texts[1]


@pytest.mark.parametrize("criterion", [LabelSmoothedCrossEntropyCriterion,
                                       ChunkedLabelSmoothedCrossEntropy])  # fmt: skip
@pytest.mark.parametrize("config", CONFIGS, ids=["paper", "all"])
def test_loss_and_gradients_are_those_of_the_cpu(config: MixingConfig, criterion: Any) -> None:
    found = []
    for device in ("cpu", "cuda"):
        model = build(**options(config)).float().to(device).train()
        task = SimpleNamespace(target_dictionary=model.decoder.dictionary)
        loss, _, _ = criterion(task, False, 0.1)(model, batch(device))
        loss.backward()
        gradients = {n: p.grad.cpu() for n, p in model.named_parameters() if p.grad is not None}
        found.append((loss.detach().cpu(), gradients))
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("option", ["checkpoint_activations", "offload_activations"])
def test_gradients_do_not_depend_on_what_is_kept(option: str) -> None:
    """With dropout, and without pads, so that no argument of a layer but its states is a tensor."""
    found = []
    for changes in ({}, {option: True}):
        model = build(dropout=0.5, activation_dropout=0.5, **changes).cuda().train()
        source, target = (padded(sentences([6, 6], seed=seed)).cuda() for seed in (0, 1))
        torch.manual_seed(0)
        model(source, None, target)[0].square().sum().backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        found.append(gradients)
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("config", CONFIGS, ids=["paper", "all"])
def test_an_update_in_half_precision_is_finite(config: MixingConfig, dtype: torch.dtype) -> None:
    """Under autocast, and with the whole model in that type, as ``--bf16`` and ``--fp16``."""
    for is_whole in (False, True):
        model = build(**options(config)).float().cuda().train()
        model = model.to(dtype) if is_whole else model
        task = SimpleNamespace(target_dictionary=model.decoder.dictionary)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        with torch.autocast("cuda", dtype, enabled=not is_whole):
            loss, size, _ = LabelSmoothedCrossEntropyCriterion(task, False, 0.1)(
                model, batch("cuda")
            )
        (loss / size).backward()
        optimizer.step()
        assert loss.isfinite()
        assert all(bool(p.isfinite().all()) for p in model.parameters())


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_images_are_classified_as_on_the_cpu(memory_format: torch.memory_format) -> None:
    torch.manual_seed(0)
    model = create_model("resmlp_s12", img_size=32).eval()
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(pixels)
        found = model.cuda()(pixels.cuda().contiguous(memory_format=memory_format))
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=1e-3)
