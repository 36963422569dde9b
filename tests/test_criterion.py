"""The chunked criterion is fairseq's: loss, log-likelihood and gradients, pads left out.

R-Drop, chunked and not, is the formula of its paper.
"""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fairseq.criterions.label_smoothed_cross_entropy import (
    LabelSmoothedCrossEntropyCriterion,
    label_smoothed_nll_loss,
)
from fairseq.criterions.label_smoothed_cross_entropy_with_rdrop import (
    RdropLabelSmoothedCrossEntropyCriterion,
)
from torch.distributions import Categorical, kl_divergence

from conftest import Corpus, train
from models import build, dictionary, padded, sentences
from resmlp_mt.errors import UserError
from resmlp_mt.fairseq_plugin import criterion
from resmlp_mt.fairseq_plugin.criterion import ChunkedLabelSmoothedCrossEntropy
from resmlp_mt.fairseq_plugin.rdrop import RDropLabelSmoothedCrossEntropy

CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5, "check_dtype": False}
TASK = SimpleNamespace(target_dictionary=dictionary(20))


def sample(lengths: list[int]) -> dict[str, Any]:
    target = padded(sentences(lengths, seed=1))
    shifted = padded([torch.cat([row[-1:], row[:-1]]) for row in sentences(lengths, seed=1)])
    source = padded(sentences([4] * len(lengths)))
    inputs = {"src_tokens": source, "src_lengths": None, "prev_output_tokens": shifted}
    return {"net_input": inputs, "target": target, "ntokens": sum(lengths)}


@pytest.mark.parametrize("epsilon", [0.0, 0.1])
@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("rows", [1, 4, 256])
def test_loss_and_gradients_are_fairseqs(
    epsilon: float, share: bool, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """17 tokens, in chunks that divide them and that do not.

    Tolerance 1e-5: fairseq rounds log-probabilities to float32.
    """
    monkeypatch.setattr(criterion, "ROWS", rows)
    results = []
    for kind in (LabelSmoothedCrossEntropyCriterion, ChunkedLabelSmoothedCrossEntropy):
        model = build(share_all_embeddings=share)
        loss, size, logged = kind(TASK, False, epsilon)(model, sample([2, 9, 6]))
        loss.backward()
        gradients = {name: p.grad for name, p in model.named_parameters()}
        results.append((loss.detach(), size, logged, gradients))
    (loss, size, logged, gradients), (chunked_loss, chunked_size, chunked_logged, chunked) = results
    torch.testing.assert_close(chunked_loss, loss, **CLOSE)
    assert chunked_size == size == 17
    assert chunked_logged.keys() == logged.keys()
    torch.testing.assert_close(chunked_logged["nll_loss"], logged["nll_loss"], **CLOSE)
    torch.testing.assert_close(chunked, gradients, **CLOSE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_of_half_precision_models_are_float32(dtype: torch.dtype) -> None:
    """12,000 rows: their sum is beyond float16, and between the steps of bfloat16."""
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(12000, 8, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(2000, 8, generator=generator).to(dtype)
    target = torch.randint(2000, (12000,), generator=generator)
    with torch.autocast("cpu", torch.bfloat16):
        loss, nll = criterion.smoothed_cross_entropy(features, weight, target, 0.1)
    if dtype == torch.float16:  # whose products are in float32
        scores = features.detach().float() @ weight.float().t()
    else:
        scores = features.detach() @ weight.t()
    lprobs = scores.log_softmax(1, dtype=torch.float32)
    expected, expected_nll = label_smoothed_nll_loss(lprobs, target.unsqueeze(1), 0.1)
    torch.testing.assert_close((loss, nll), (expected, expected_nll), rtol=1e-5, atol=0.0)
    loss.backward()
    assert features.grad is not None
    assert features.grad.isfinite().all()


@pytest.mark.parametrize("is_autocast", [False, True])
def test_bfloat16_is_fairseqs(is_autocast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss is fairseq's, whose gradients are no nearer to those of double precision."""
    monkeypatch.setattr(criterion, "ROWS", 64)  # 8 parts, whose gradients are added
    generator = torch.Generator().manual_seed(1)
    features, weight = torch.randn(500, 64), torch.randn(300, 64, generator=generator)
    target = torch.randint(300, (500,), generator=generator)

    def losses(kind: str) -> tuple[torch.Tensor, list[torch.Tensor]]:
        dtype = torch.float32 if is_autocast else torch.bfloat16
        x, w = (
            each.bfloat16().to(torch.double if kind == "exact" else dtype).requires_grad_()
            for each in (features, weight)
        )
        with torch.autocast("cpu", torch.bfloat16, enabled=is_autocast):
            if kind == "ours":
                loss, _ = criterion.smoothed_cross_entropy(x, w, target, 0.1)
            else:
                scores = torch.nn.functional.linear(x, w)
                lprobs = scores.log_softmax(1, dtype=None if kind == "exact" else torch.float32)
                loss, _ = label_smoothed_nll_loss(lprobs, target.unsqueeze(1), 0.1)
        loss.backward()
        assert x.grad is not None
        assert w.grad is not None
        assert (x.grad.dtype, w.grad.dtype) == (x.dtype, w.dtype)
        return loss.detach(), [x.grad.double(), w.grad.double()]

    (ours, grads), (fairseqs, others), (_, exact) = map(losses, ("ours", "fairseq", "exact"))
    torch.testing.assert_close(ours, fairseqs, rtol=1e-5, atol=0.0)
    for grad, other, expected in zip(grads, others, exact, strict=True):
        assert (grad - expected).norm() <= 1.1 * (other - expected).norm()


@pytest.mark.parametrize("frozen", ["features", "weight", "both"])
def test_frozen_parts_get_no_gradient_and_change_no_other(frozen: str) -> None:
    generator = torch.Generator().manual_seed(1)
    target = torch.tensor([3, 0, 3, 6])
    found = []
    for chunked in (True, False):
        draw = generator.manual_seed(1)
        features = torch.randn(4, 5, generator=draw, dtype=torch.double)
        weight = torch.randn(7, 5, generator=draw, dtype=torch.double)
        features.requires_grad_(frozen == "weight")
        weight.requires_grad_(frozen == "features")
        if chunked:
            loss, _ = criterion.smoothed_cross_entropy(features, weight, target, 0.3)
        else:
            lprobs = (features @ weight.t()).log_softmax(1)
            loss, _ = label_smoothed_nll_loss(lprobs, target.unsqueeze(1), 0.3)
        if frozen != "both":
            (2 * loss).backward()
        found.append((loss.detach(), features.grad, weight.grad))
    for ours, fairseqs in zip(*found, strict=True):
        assert (ours is None) == (fairseqs is None)
        if ours is not None:
            torch.testing.assert_close(ours, fairseqs)


def test_validation_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor are they computed."""
    model, batch = build(), sample([3, 5])
    monkeypatch.setattr(torch.Tensor, "addmm_", None, raising=False)
    with torch.no_grad():
        chunked = ChunkedLabelSmoothedCrossEntropy(TASK, False, 0.1)(model, batch)[0]
        plain = LabelSmoothedCrossEntropyCriterion(TASK, False, 0.1)(model, batch)[0]
        unreduced = ChunkedLabelSmoothedCrossEntropy(TASK, False, 0.1)(model, batch, reduce=False)
    torch.testing.assert_close(chunked, plain, **CLOSE)
    torch.testing.assert_close(unreduced[0].sum(), plain, **CLOSE)


def test_what_it_cannot_do_is_refused() -> None:
    with pytest.raises(UserError, match="--report-accuracy"):
        ChunkedLabelSmoothedCrossEntropy(TASK, False, 0.1, report_accuracy=True)


BOTH = pytest.mark.parametrize(
    "kind", [RDropLabelSmoothedCrossEntropy, ChunkedLabelSmoothedCrossEntropy]
)


@BOTH
@pytest.mark.parametrize("rows", [4, 256])
def test_rdrop_is_the_formula_of_its_paper(
    kind: Any, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """-log P1 - log P2 + alpha / 2 (KL(P1 || P2) + KL(P2 || P1)), equation 4 of arXiv:2106.14448.

    Token by token, with label smoothing as fairseq has it: epsilon over all other words.
    """
    monkeypatch.setattr(criterion, "ROWS", rows)
    model, batch, epsilon, alpha = build(dropout=0.3).train(), sample([2, 9, 6]), 0.1, 3.0
    torch.manual_seed(5)
    loss, size, logged = kind(TASK, False, epsilon, rdrop_alpha=alpha)(model, batch)
    torch.manual_seed(5)
    inputs = {k: v if v is None else v.repeat(2, 1) for k, v in batch["net_input"].items()}
    passes = model(**inputs)[0].chunk(2)
    expected = nll = divergence = torch.zeros(())
    for sentence, token in batch["target"].ne(1).nonzero().tolist():
        p1, p2 = (Categorical(logits=scores[sentence, token]) for scores in passes)
        word = batch["target"][sentence, token]
        for p in (p1, p2):
            others = p.logits.sum() - p.logits[word]
            expected = expected - (1 - epsilon) * p.logits[word] - epsilon / 19 * others
            nll = nll - p.logits[word] / 2
        divergence = divergence + (kl_divergence(p1, p2) + kl_divergence(p2, p1)) / 2
    assert divergence > 0.1
    torch.testing.assert_close(loss, expected + alpha * divergence, **CLOSE)
    torch.testing.assert_close(logged["nll_loss"], nll.detach(), **CLOSE)
    torch.testing.assert_close(logged["rdrop_kl_loss"], divergence.detach(), **CLOSE)
    assert size == logged["ntokens"] == 17


@BOTH
def test_rdrop_has_the_gradients_of_fairseqs_rdrop(kind: Any) -> None:
    results = []
    for each in (kind, RdropLabelSmoothedCrossEntropyCriterion):
        model = build(dropout=0.3).train()
        torch.manual_seed(5)
        loss, _, _ = each(TASK, False, 0.1, rdrop_alpha=3.0)(model, sample([2, 9, 6]))
        loss.backward()
        results.append({name: p.grad for name, p in model.named_parameters()})
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5, check_dtype=False)


def test_the_divergence_in_bfloat16_adds_the_gradients_of_its_parts_in_float32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Compared with double precision, several parts are no worse than one."""
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(1000, 64, generator=generator).bfloat16()
    weight = torch.randn(300, 64, generator=generator).bfloat16()

    def gradient(rows: int, dtype: torch.dtype) -> torch.Tensor:
        monkeypatch.setattr(criterion, "ROWS", rows)
        learned = weight.to(dtype).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
            criterion.chunked_divergence(features.to(dtype), learned).backward()
        assert learned.grad is not None
        return learned.grad.double()

    exact = gradient(500, torch.double)
    at_once, in_parts = (gradient(rows, torch.float32) - exact for rows in (500, 5))
    assert in_parts.norm() <= 1.02 * at_once.norm()


@BOTH
def test_rdrop_is_for_training_alone(kind: Any) -> None:
    """In validation, and with alpha 0, everything is as without; the batch is left alone."""
    model, batch = build(), sample([3, 5])
    expected = LabelSmoothedCrossEntropyCriterion(TASK, False, 0.1)(model, batch)
    torch.testing.assert_close(kind(TASK, False, 0.1, rdrop_alpha=5.0)(model, batch), expected,
                               **CLOSE)  # fmt: skip
    before = batch["target"].clone()
    for alpha in (0.0, 5.0):
        loss, _, logged = kind(TASK, False, 0.1, rdrop_alpha=alpha)(model.train(), batch)
        assert ("rdrop_kl_loss" in logged) == (alpha > 0)
        # without dropout both passes are the same
        torch.testing.assert_close(loss, expected[0] * (1 if alpha == 0 else 2), **CLOSE)
        assert torch.equal(batch["target"], before)
    with pytest.raises(UserError, match="--rdrop-alpha must be a number of 0 or more"):
        kind(TASK, False, 0.1, rdrop_alpha=-1.0)
    for smoothing in (-0.1, 1.0, float("nan")):
        with pytest.raises(
            UserError, match=r"^--label-smoothing must be at least 0 and below 1, bu"
        ):
            kind(TASK, False, smoothing)


@pytest.mark.parametrize(
    ("arch", "name"),
    [
        ("resmlp_mt_tiny", "chunked_label_smoothed_cross_entropy"),
        ("transformer_tiny", "rdrop_label_smoothed_cross_entropy"),
    ],
)
def test_fairseq_train_with_rdrop(corpus: Corpus, tmp_path: Any, arch: str, name: str) -> None:
    """By name from the command line, for fairseq's Transformer too, with validation; 2 updates."""
    log = train(
        corpus, tmp_path, "--arch", arch, "--criterion", name, "--rdrop-alpha", 1,
        "--max-update", 2, "--validate-interval-updates", 2,
    )  # fmt: skip
    assert '"train_rdrop_kl_loss": ' in log
    assert "valid_nll_loss" in log
    assert "valid_rdrop_kl_loss" not in log
