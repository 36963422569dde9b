"""The benchmark: statistics, floors, batches, equal work for all peers, and the command itself."""

import copy
import json
import math
import re
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import gradients
from benchmarks.speed import command as benchmark
from benchmarks.speed import (
    generation_rows,
    lengths,
    peak_memory,
    preset_rows,
    timing,
    training_rows,
    translation_models,
)
from benchmarks.speed.floors import Rates, operations, products
from benchmarks.speed.machine import describe
from benchmarks.speed.profiles import explained, kind_of
from benchmarks.speed.report import Row, Unmeasured, as_json, from_json, markdown, missed
from benchmarks.speed.timing import Spread, interleaved, ratio, spread
from benchmarks.speed.training_rows import Training, batches
from benchmarks.speed.translation_models import BASE, QUICK, build, dictionary
from conftest import ROOT
from resmlp_mt.engine.model_folder import TranslationModel
from resmlp_mt.engine.weights import prepared


def row(ours: float, peer: float, goal: float | None, less_is_better: bool = False) -> Row:
    return Row("training", "tokens/s", spread([ours]), "peer", spread([peer]), goal, less_is_better)


def test_runs_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A and B once untimed, then A B A B; speeds are amounts by seconds of the clock."""
    clock = iter(range(100))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    calls: list[tuple[str, int]] = []
    amounts = {"a": 3.0, "b": 5.0}

    def run(name: str) -> timing.Run:
        return lambda index: calls.append((name, index)) or amounts[name]

    speeds = interleaved({name: run(name) for name in amounts}, 2)
    assert calls == [("a", 0), ("b", 0), ("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    assert {name: s.samples for name, s in speeds.items()} == {"a": [3, 3], "b": [5, 5]}


def test_spread_is_median_and_quartiles() -> None:
    samples = [4.0, 1.0, 2.0, 3.0, 100.0]
    assert spread(samples) == Spread(3.0, 2.0, 4.0, samples)
    assert spread([7.0]) == Spread(7.0, 7.0, 7.0, [7.0])
    with pytest.raises(ValueError, match="nothing was measured"):
        spread([])


def test_ratio_is_taken_round_by_round() -> None:
    """A load that slows one round of both down leaves the ratio alone; medians would not."""
    ours, peer = spread([10.0, 1.0, 9.0]), spread([5.0, 0.5, 4.5])
    assert ratio(ours, peer).samples == [2.0, 2.0, 2.0]


@pytest.mark.parametrize(
    ("ours", "goal", "less_is_better", "met"),
    [(1.5, 1.4, False, True), (1.3, 1.4, False, False), (0.8, 0.8, True, True),
     (0.9, 0.8, True, False), (1.0, None, False, None)],
)  # fmt: skip
def test_goals(ours: float, goal: float | None, less_is_better: bool, met: bool | None) -> None:
    assert row(ours, 1.0, goal, less_is_better).met is met


def test_table_and_json_tell_the_same() -> None:
    rows = [row(3.0, 2.0, 1.4), row(1.0, 2.0, 0.6, True), Unmeasured("training, GPU", "no GPU")]
    lines = markdown(rows).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert ">= 1.4: met" in lines[2]
    assert "<= 0.6: met" in lines[3]
    assert "no GPU" in lines[4]
    assert [(entry.get("met"), entry.get("reason")) for entry in as_json(rows)] == [
        (True, None), (True, None), (None, "no GPU"),
    ]  # fmt: skip
    assert from_json(json.loads(json.dumps(as_json(rows)))) == rows


def test_a_missed_goal_is_explained_by_where_the_time_goes() -> None:
    """A goal that is met needs no profile."""
    matrix = torch.randn(512, 512)

    def run(index: int) -> float:
        torch.mm(matrix, matrix).add_(1.0)
        return 1.0

    assert explained(row(2.0, 1.0, 1.5), run).profile == {}
    profile = explained(row(1.0, 1.0, 1.5), run).profile
    assert sum(profile.values()) == pytest.approx(1.0)
    assert profile.keys() >= {"matrix products", "arithmetic"}
    assert list(profile.values()) == sorted(profile.values(), reverse=True)
    text = missed([explained(row(1.0, 1.0, 1.5), run), row(2.0, 1.0, 1.5)])
    assert re.match(r"\* training, 1\.00: [a-z ]+ \d+ %", text)
    assert text.count("\n") == 1


@pytest.mark.parametrize(
    ("operator", "kind"),
    [("aten::addmm_", "matrix products"), ("mkldnn::_linear_pointwise", "matrix products"),
     ("quantized::linear_dynamic", "matrix products"), ("aten::gelu_backward", "GELU"),
     ("aten::_log_softmax", "softmax and loss"), ("aten::index_select", "moving data"),
     ("aten::addcmul_", "arithmetic"), ("aten::_scaled_dot_product_flash_attention_for_cpu",
     "attention"), ("Optimizer.step#Adam.step", "optimizer"), ("aten::view", "other operators")],
)  # fmt: skip
def test_kinds_of_operators(operator: str, kind: str) -> None:
    assert kind_of(operator) == kind


def test_operations_are_those_of_the_matrix_products() -> None:
    """2 n m k of a product; twice as many again in backward; attention by its two products."""
    linear, x = nn.Linear(5, 7), torch.randn(3, 5)
    assert operations(lambda: linear(x)) == 2 * 3 * 5 * 7
    total, left, right = torch.zeros(3, 5), torch.zeros(3, 7), torch.zeros(7, 5)
    assert operations(lambda: total.addmm_(left, right)) == 2 * 3 * 5 * 7
    assert operations(lambda: linear(x.requires_grad_()).sum().backward()) == 3 * 2 * 3 * 5 * 7
    heads = torch.randn(1, 2, 4, 8)
    attend = nn.functional.scaled_dot_product_attention
    assert operations(lambda: attend(heads, heads, heads)) == 2 * 2 * (2 * 4 * 4 * 8)


def test_operations_of_a_translation_are_those_counted_by_hand() -> None:
    """One sentence of 3 tokens, into 4 and end-of-sentence, with a beam of 4."""
    sizes = replace(QUICK, embed_dim=8, ffn_embed_dim=16, layers=1, heads=1, vocabulary=20)
    source, steps, beam, dim = 3, 5, generation_rows.BEAM, 8
    assert beam == 4
    ffn, square, words = 2 * 2 * dim * 16, 2 * dim**2, 2 * dim * 20
    attention = 2 * 2 * dim  # of one query to one key
    # feed-forward, projections of queries and outputs, cross-attention, scores of words
    decoder = beam * steps * (ffn + 2 * square + attention * source + words)
    memory = source * 2 * square  # keys and values for the decoder
    # each hypothesis weights the entries of all hypotheses at earlier positions
    mixing = 2 * dim * source**2 + 2 * dim * beam * beam * sum(range(steps))
    ours = source * ffn + memory + decoder + mixing
    self_attention = source * (4 * square + attention * source)
    self_attention += beam * (steps * 4 * square + attention * sum(range(1, steps + 1)))
    for is_fairseq, projected in ((True, beam), (False, 1)):
        peers = source * ffn + projected * memory + decoder + self_attention
        found = generation_rows.work_ratio([(3, 5)], sizes, 1, is_fairseq, sentences=1)
        assert found == peers / ours


def test_floor_is_the_larger_of_computing_and_moving() -> None:
    rates = Rates(matrix={"fp32": 100.0, "int8": 400.0}, bandwidth=10.0)
    assert rates.seconds(200.0) == 2.0
    assert rates.seconds(200.0, 50.0) == 5.0
    assert rates.seconds(200.0, dtype="int8") == 0.5


def test_default_lengths_are_those_of_the_test_set() -> None:
    """Means of all 3,000 sentences of newstest2013: 27.14 and 28.73 subwords."""
    source, target = zip(*lengths.default_lengths(), strict=True)
    assert len(source) == 400
    assert statistics.mean(source) == pytest.approx(27.14, abs=1)
    assert statistics.mean(target) == pytest.approx(28.73, abs=1)


def test_lengths_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_text("▁a ▁b c\t▁d\n▁e\t▁f ▁g\n")
    assert lengths.read_lengths(path) == [(4, 2), (2, 3)]
    assert set(lengths.draw([(4, 2), (2, 3)], 20, seed=1)) == {(4, 2), (2, 3)}


@pytest.mark.parametrize(
    "content", [b"a\tb\tc\n", b"a b\n", b"\xff\tb\n", b"\tb\n", b"a\t \n", b""]
)
def test_a_file_that_holds_no_pairs_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"pairs\.tsv"):
        lengths.read_lengths(path)


def test_batches_hold_as_few_pads_as_those_of_a_large_corpus() -> None:
    """A few hundredths; batches of the 400 pairs alone are 15 % pads."""
    data = batches(lengths.default_lengths(), BASE, 1024, count=30, device="cpu", seed=1)
    counts = [
        (int(side.eq(1).sum()), side.numel())
        for batch in data
        for side in (batch["net_input"]["src_tokens"], batch["net_input"]["prev_output_tokens"])
    ]
    share = sum(pads for pads, _ in counts) / sum(total for _, total in counts)
    assert 0.003 < share < 0.05
    assert training_rows.share_of_pads(data) == pytest.approx(share)


def test_one_pair_is_enough() -> None:
    (batch,) = batches([(9, 7)], QUICK, 90, count=1, device="cpu", seed=1)
    assert set(batch["target"].ne(1).sum(dim=1).tolist()) <= {6, 7, 8}


@pytest.mark.parametrize("name", [*training_rows.LIKE_FOR_LIKE, *training_rows.PEERS])
def test_every_peer_learns_on_the_same_batches(name: str) -> None:
    """Twenty updates on one batch bring the loss down: every peer trains, and on all its tokens."""
    (batch,) = batches(lengths.default_lengths(), QUICK, 256, count=1, device="cpu", seed=1)
    assert batch["target"].ne(1).sum() == batch["ntokens"]
    assert batch["ntokens"] <= 256
    training = Training(name, QUICK, device="cpu", bf16=False, seed=1)
    for group in training.optimizer.param_groups:
        group["lr"] = 1e-2

    def loss() -> float:
        with torch.no_grad():
            value, _, _ = training.criterion(training.model.eval(), batch)
        training.model.train()
        return float(value / batch["ntokens"])

    before = loss()
    for _ in range(20):
        assert training.step(batch) == batch["ntokens"]
    assert loss() < before - 0.5


def test_both_criteria_need_the_same_operations_without_pads() -> None:
    pairs = translation_models.sentence_pairs([(7, 9)] * 4, dictionary(QUICK.vocabulary), seed=1)
    batch = pairs.collater([pairs[index] for index in range(4)])
    fairseqs, chunked = (
        Training(name, QUICK, device="cpu", bf16=False, seed=1).operations(batch)
        for name in ("resmlp", "resmlp_chunked")
    )
    # the chunked one sums over words, and over tokens, by products with ones
    sums = 2 * QUICK.embed_dim * (QUICK.vocabulary + batch["ntokens"])
    assert chunked == fairseqs + sums


def test_torch_transformer_does_not_look_ahead() -> None:
    model = build("torch", QUICK, seed=1).eval()
    source, target = torch.randint(4, 100, (2, 9)), torch.randint(4, 100, (2, 6))
    changed = target.clone()
    changed[:, 4:] = 5
    first, second = (model(source, tokens)[0] for tokens in (target, changed))
    torch.testing.assert_close(first[:, :4], second[:, :4], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(first[:, 4:], second[:, 4:])


def test_ctranslate2_computes_fairseqs_transformer(tmp_path: Path) -> None:
    """The peer is the model that it is said to be: log-probabilities of forced targets agree."""
    ctranslate2 = pytest.importorskip("ctranslate2")
    words = dictionary(QUICK.vocabulary)
    generation_rows.save_for_ctranslate2(QUICK, words, tmp_path, seed=1)
    source = torch.tensor([[10, 11, 12, 13, words.eos()]])
    target = torch.tensor([[20, 21, 22, words.eos()]])
    model = build("transformer", QUICK, seed=1).eval()
    with torch.no_grad():
        scores = model(source, torch.tensor([5]), target.roll(1, 1))[0].log_softmax(2)
    expected = scores.gather(2, target.unsqueeze(2)).flatten()
    translator = ctranslate2.Translator(str(tmp_path), compute_type="float32")
    (found,) = translator.score_batch(
        [[words[int(t)] for t in source[0, :-1]]], [[words[int(t)] for t in target[0, :-1]]]
    )
    torch.testing.assert_close(torch.tensor(found.log_probs), expected, rtol=1e-4, atol=1e-4)


def test_peers_choose_among_the_same_words_of_a_shortlist(tmp_path: Path) -> None:
    """Every hypothesis of a wide beam is in the shortlist, and some are not without it."""
    ctranslate2 = pytest.importorskip("ctranslate2")
    words = dictionary(QUICK.vocabulary)
    generation_rows.save_for_ctranslate2(QUICK, words, tmp_path, seed=1)
    shortlist = preset_rows.random_shortlist(QUICK.vocabulary, seed=1)
    (tmp_path / "vmap.txt").write_text(preset_rows.vocabulary_map(shortlist, words))
    source = [10, 11, 12]
    allowed = {words[token] for token in shortlist.words([[*source, words.eos()]])[0].tolist()}
    assert 20 < len(allowed) < 60
    translator = ctranslate2.Translator(str(tmp_path), compute_type="float32")

    def found(use_vmap: bool) -> set[str]:
        (result,) = translator.translate_batch(
            [[words[token] for token in source]], beam_size=20, num_hypotheses=20,
            max_decoding_length=3, use_vmap=use_vmap,
        )  # fmt: skip
        return {token for hypothesis in result.hypotheses for token in hypothesis}

    assert found(True) <= allowed
    assert not found(False) <= allowed


def test_words_per_second_are_sentences_per_second_times_their_words() -> None:
    """newstest2013 has 56,089 English words in 3,000 sentences of 26.14 subwords."""
    task = generation_rows.Task(["a b c d", "a b"], 5, {})
    in_sentences = replace(row(3.0, 2.0, None), floor=4.0)
    in_words = preset_rows.in_words(in_sentences, task)
    words = 3 * 56_089 / 3_000 / 26.14
    assert in_words.ours.median == pytest.approx(3.0 * words)
    assert in_words.floor == pytest.approx(4.0 * words)
    assert in_words.ratio.median == pytest.approx(in_sentences.ratio.median)


def test_products_alone_are_those_of_the_run_and_leave_out_the_rest() -> None:
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 2), torch.nn.GELU(), torch.nn.Linear(7, 5), torch.nn.Softmax(-1)
    )
    x = torch.randn(2, 3, 8, 8)
    alone = products(lambda: model(x))
    assert operations(alone) == operations(lambda: model(x))
    with torch.profiler.profile() as profile:
        alone()
    names = {event.name for event in profile.events()}
    assert not {name for name in names if "gelu" in name or "softmax" in name}


def test_plain_autograd_has_the_gradients_by_hand() -> None:
    data = batches(lengths.default_lengths(), QUICK, 256, count=1, device="cpu", seed=1)

    def found(names: list[str]) -> list[torch.Tensor]:
        training = Training("resmlp_chunked", QUICK, device="cpu", bf16=False, seed=1)
        training.model.double()
        torch.manual_seed(2)
        with gradients.plain(names):
            training.backward(data[0])
        return [parameter.grad for parameter in training.model.parameters()]

    expected = found([])
    for name in gradients.PLAIN:
        torch.testing.assert_close(found([name]), expected)


def test_the_table_of_gradients_by_hand() -> None:
    rows = gradients.measured(QUICK, 256, 1)
    assert rows[gradients.BY_HAND]["megabytes"] < rows[gradients.NONE]["megabytes"]
    report = {"date": "", "rounds": 1, "sizes": {"quick": rows}, **describe(1)}
    for name in gradients.PLAIN:
        assert f"plain autograd for `{name}` | " in gradients.page(report)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All groups of rows, at a size that takes seconds.

    Most of the command's time goes into exporting graphs and starting processes: here the engine's
    model stands for the graphs, and memory is measured in this process.
    """

    def stand_in(
        loaded: TranslationModel, folder: Path, threads: int, dtype: str = "int8"
    ) -> TranslationModel:
        return replace(loaded, model=prepared(copy.deepcopy(loaded.model), dtype))

    def measured_here(_: list[str], input: str, **options: Any) -> SimpleNamespace:
        return SimpleNamespace(stdout=str(peak_memory.peak(json.loads(input))))

    for module in (generation_rows, preset_rows):
        monkeypatch.setattr(module, "as_graphs", stand_in)
    process = SimpleNamespace(run=measured_here, PIPE=subprocess.PIPE)
    monkeypatch.setattr(training_rows, "subprocess", process)
    monkeypatch.setattr(sys, "argv", ["benchmark", *EVERYTHING, "--output", str(tmp_path)])
    benchmark.main()
    check_report(tmp_path)


@pytest.mark.slow
def test_the_command_by_itself(tmp_path: Path) -> None:
    """The same, with graphs of ONNX and a process for each measurement of memory."""
    done = subprocess.run(
        [sys.executable, "-m", "resmlp_mt.benchmark", *EVERYTHING, "--output", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    check_report(tmp_path)


EVERYTHING = ["--quick", "--repeats", "2", "--threads", "1"]


def check_report(folder: Path) -> None:
    """Both files and the plot, with all groups of rows."""
    result = json.loads((folder / "benchmark.json").read_text())
    assert list(result) == list(benchmark.GROUPS)
    entries = [entry for group in result.values() for entry in group["rows"]]
    rows = [entry for entry in entries if "ours" in entry]
    names = " ".join(entry["measured"] for entry in rows)
    for part in ("training, CPU fp32", "peak memory", "fairseq-generate", "translate", "int8",
                 "plus 6-2, greedy", "plus 12-1, greedy", "int8, shortlist",
                 "image inference", "image training", "length 64, decoding"):  # fmt: skip
        assert part in names
    for entry in rows:
        assert entry["ours"]["median"] > 0
        assert math.isclose(statistics.median(entry["ratio"]["samples"]), entry["ratio"]["median"])
    floors = [
        (entry["floor"] / entry["ours"]["median"]) ** (-1 if entry["less_is_better"] else 1)
        for entry in rows
        if entry["floor"]
    ]
    assert len(floors) == len(rows)
    # how far a time is from the machine's limit depends on what else runs
    assert all(0 < floor < math.inf for floor in floors)
    table = (folder / "benchmark.md").read_text()
    assert all(entry["measured"] in table for entry in entries)
    assert {path.name for path in folder.iterdir()} == {
        "benchmark.json", "benchmark.md", "length.png",
    }  # fmt: skip


def test_groups_that_are_not_measured_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    speeds = iter([3.0, 5.0, 7.0])
    monkeypatch.setattr(benchmark, "device_rates", dict)
    monkeypatch.setattr(
        benchmark, "measure", lambda group, *_, **__: ([row(next(speeds), 2.0, 1.4)], {})
    )

    def measured(*groups: str) -> dict[str, float]:
        monkeypatch.setattr(sys, "argv", ["", "--rows", *groups, "--output", str(tmp_path)])
        benchmark.main()
        result = json.loads((tmp_path / "benchmark.json").read_text())
        return {name: group["rows"][0]["ours"]["median"] for name, group in result.items()}

    assert measured("training", "images") == {"training": 3.0, "images": 5.0}
    assert measured("images") == {"training": 3.0, "images": 7.0}
    headings = re.findall("^## (.*)$", (tmp_path / "benchmark.md").read_text(), re.M)
    assert headings == ["training", "images"]


@pytest.mark.parametrize("content", ["{", "[]", '{"training": {"rows": []}}', '{"date": "1"}'])
def test_a_foreign_result_is_not_overwritten(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "benchmark.json").write_text(content)
    monkeypatch.setattr(sys, "argv", ["", "--rows", "images", "--output", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"benchmark\.json is not a result of this command"):
        benchmark.main()
    assert (tmp_path / "benchmark.json").read_text() == content


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--lengths-from", "none.tsv"], "--lengths-from .*none.tsv"),
     (["--output", "/dev/null/x"], "--output /dev/null/x cannot be made a folder"),
     (["--threads", "0"], "--threads: must be at least 1")],
)  # fmt: skip
def test_wrong_options_are_answered_with_a_sentence(
    options: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark", *options])
    with pytest.raises(SystemExit) as stopped:
        benchmark.main()
    assert re.search(message, f"{stopped.value} {capsys.readouterr().err}")
