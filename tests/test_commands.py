"""The fairseq commands with the plugin, as a user types them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.criterions.cross_entropy import CrossEntropyCriterion
from fairseq.sequence_scorer import SequenceScorer

from conftest import PIP, ROOT, Corpus, fairseq, train
from resmlp_mt.__main__ import hint
from resmlp_mt.errors import UserError
from resmlp_mt.models.resmlp_mt import ResMLPTiny
from resmlp_mt.scoring.generate_output import read_generate_output


def epochs(log: str, kind: str, key: str) -> list[float]:
    """One value per epoch from a log in JSON format."""
    rows = [
        json.loads(line.split(f" | {kind} | ")[1])
        for line in log.splitlines()
        if f" | {kind} | {{" in line
    ]
    return [float(row[key]) for row in rows if key in row]


def lines_of(output: str, letter: str) -> dict[int, str]:
    """The text after S-, T-, H-, D-, P- or A- by sentence number."""
    found = re.findall(rf"^{letter}-(\d+)\t(.*)$", output, flags=re.MULTILINE)
    return {int(number): text for number, text in found}


def hypotheses(output: str) -> dict[int, str]:
    """Translations by sentence number, without their scores."""
    return {number: text.split("\t")[1] for number, text in lines_of(output, "H").items()}


def generate(corpus: Corpus, checkpoint: Path, *arguments: object) -> str:
    return fairseq(
        "generate", corpus.data, "--user-dir", "resmlp_mt", "--path", checkpoint, "--cpu",
        "--beam", 4, "--remove-bpe", "sentencepiece", *arguments,
    ).stdout  # fmt: skip


def interactive(corpus: Corpus, checkpoint: Path, text: bytes, *arguments: object) -> str:
    return fairseq(
        "interactive", corpus.data, "--user-dir", "resmlp_mt", "--path", checkpoint, "--cpu",
        "--beam", 2, "--bpe", "sentencepiece", "--sentencepiece-model", corpus.spm,
        "-s", "en", "-t", "de", *arguments, typed=text,
    ).stdout  # fmt: skip


def parameters(checkpoint: Path) -> dict[str, torch.Tensor]:
    state = torch.load(checkpoint, weights_only=True)
    model: dict[str, torch.Tensor] = state["model"]
    return model


def test_training_lowers_the_loss_and_learns_the_task(
    corpus: Corpus, trained: Path, tmp_path: Path
) -> None:
    log = (trained / "train.log").read_text()
    losses = epochs(log, "train", "train_loss")
    assert losses[1] < losses[0]
    assert losses[-1] < 0.5 * losses[0]
    assert epochs(log, "valid", "valid_loss")[-1] < losses[0]
    output = generate(corpus, trained / "checkpoint_best.pt", "--scoring", "sacrebleu")
    right = sum(
        hypotheses(output)[number] == sentence
        for number, sentence in enumerate(corpus.sentences("test", "de"))
    )
    assert right >= 7, output
    assert re.search(r"Generate test with beam=4: BLEU = \d", output)
    (tmp_path / "generate.txt").write_text(output)  # with its log
    assert len(read_generate_output(str(tmp_path / "generate.txt")).hypotheses.lines) == 13


def test_same_seed_same_model_other_seed_other_model(corpus: Corpus, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(corpus, tmp_path / name, "--max-epoch", 1, "--seed", seed)
    a, b, c = (parameters(tmp_path / name / "checkpoint_last.pt") for name in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not any(torch.equal(a[name], c[name]) for name in a if name.endswith("fc1.weight"))


def test_resumed_training_equals_uninterrupted_training(corpus: Corpus, tmp_path: Path) -> None:
    train(corpus, tmp_path / "whole", "--max-epoch", 3)
    train(corpus, tmp_path / "parts", "--max-epoch", 3, "--max-update", 20)  # inside epoch 2
    log = train(corpus, tmp_path / "parts", "--max-epoch", 3)
    assert "Loaded checkpoint" in log
    whole, parts = (
        parameters(tmp_path / name / "checkpoint_last.pt") for name in ("whole", "parts")
    )
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def by_threes(corpus: Corpus, trained: Path) -> dict[int, str]:
    """Translations of the test set in batches of three sentences."""
    return hypotheses(generate(corpus, trained / "checkpoint_best.pt", "--batch-size", 3))


@pytest.mark.parametrize(
    "limits",
    ["--batch-size 1", "--batch-size 7", "--batch-size 13", "--max-tokens 40",
     "--batch-size 64 --left-pad-source", "--batch-size 8 --required-batch-size-multiple 8"],
)  # fmt: skip
def test_every_sentence_is_translated_alike_at_any_batch_size(
    corpus: Corpus, trained: Path, by_threes: dict[int, str], limits: str
) -> None:
    assert sorted(by_threes) == list(range(13))
    found = generate(corpus, trained / "checkpoint_best.pt", *limits.split())
    assert hypotheses(found) == by_threes


def test_score_reference_is_the_loss_of_the_same_pairs(corpus: Corpus, trained: Path) -> None:
    checkpoint = str(trained / "checkpoint_best.pt")
    (model,), _, task = checkpoint_utils.load_model_ensemble_and_task(
        [checkpoint], {"data": str(corpus.data)}
    )
    model.eval().double()
    task.load_dataset("test")
    criterion = CrossEntropyCriterion(task, sentence_avg=False)
    dataset = task.dataset("test")
    batch = dataset.collater([dataset[index] for index in range(13)])
    loss, _, logging = criterion(model, batch, reduce=False)
    per_sentence = -loss.view(13, -1).sum(dim=1)
    scored = SequenceScorer(task.target_dictionary).generate([model], batch)
    for row, hypothesis in enumerate(scored):
        total = hypothesis[0]["positional_scores"].sum()
        torch.testing.assert_close(total, per_sentence[row], rtol=0, atol=1e-5)

    # the same statement through the commands, in base 2 and to the digits that they print
    output = generate(corpus, trained / "checkpoint_best.pt", "--score-reference")
    scores = [float(v) for line in lines_of(output, "P").values() for v in line.split()]
    assert len(scores) == logging["ntokens"]
    log = fairseq(
        "validate", corpus.data, "--user-dir", "resmlp_mt", "--task", "translation",
        "--path", checkpoint, "--valid-subset", "test", "--cpu", "--batch-size", 5,
        "--log-format", "json",
    ).stdout  # fmt: skip
    (nll_loss,) = epochs(log, "test", "test_nll_loss")
    assert -sum(scores) / len(scores) == pytest.approx(nll_loss, abs=6e-4)


def test_validation_goes_on_after_a_set_with_fewer_sentences_than_shards(
    corpus: Corpus, trained: Path
) -> None:
    """The set named test has 13 sentences, and the share of the last shard of 14 is empty."""
    log = fairseq(
        "validate", corpus.data, "--user-dir", "resmlp_mt", "--path",
        trained / "checkpoint_best.pt", "--valid-subset", "test,valid", "--cpu", "--batch-size", 5,
        "--num-shards", 14, "--shard-id", 13, "--log-format", "json",
    ).stdout  # fmt: skip
    assert "--shard-id 13: nothing to do, the set test has fewer sentences than shards." in log
    assert epochs(log, "test", "test_nll_loss") == []
    assert len(epochs(log, "valid", "valid_nll_loss")) == 1


def test_alignments_and_replaced_unknown_words(corpus: Corpus, trained: Path) -> None:
    checkpoint = trained / "checkpoint_best.pt"
    output = generate(corpus, checkpoint, "--print-alignment", "--batch-size", 13)
    alone = generate(corpus, checkpoint, "--print-alignment", "--batch-size", 1)
    alignments = lines_of(output, "A")
    assert sorted(alignments) == list(range(13))
    assert alignments == lines_of(alone, "A")  # padding on the left does not shift positions
    tokens = lines_of(generate(corpus, checkpoint, "--remove-bpe=none"), "S")
    for number, text in alignments.items():
        source_positions = {int(pair.split("-")[0]) for pair in text.split()}
        assert source_positions <= set(range(len(tokens[number].split())))


def test_replaced_unknown_words_come_from_the_source(
    corpus: Corpus, trained: Path, tmp_path: Path
) -> None:
    for language in ("en", "de"):
        dictionary = (corpus.folder / "dict.txt").read_bytes()
        (tmp_path / f"dict.{language}.txt").write_bytes(dictionary)
        (tmp_path / f"test.en-de.{language}").write_text("▁QQQ ▁one\n" * 2)
    output = fairseq(
        "generate", tmp_path, "--user-dir", "resmlp_mt", "--path", trained / "checkpoint_best.pt",
        "--cpu", "--dataset-impl", "raw", "-s", "en", "-t", "de", "--unkpen", -100, "--beam", 1,
        "--max-len-b", 3, "--replace-unk",
    ).stdout  # fmt: skip
    for text in hypotheses(output).values():
        assert text
        assert set(text.split()) <= {"▁QQQ", "▁one", "</s>"}
        assert "<unk>" not in text


HOSTILE = [
    b"one two three",
    b"",
    "\U0001f600".encode(),
    "שלום עולם مرحبا".encode(),
    b"one\x00two",
    b"\x00",
    b"one two " * 5000,
    b"one two\r",
    b"one \xff\xfe two",
    b"\xc3",
    "one\u2028two\x0bthree\x0cfour".encode(),
    b"\xef\xbb\xbfone",
    b"q",
    b"nine eight",
]


@pytest.mark.parametrize("buffer", [1, 5, 100])
def test_interactive_answers_every_line_in_order(
    corpus: Corpus, trained: Path, buffer: int
) -> None:
    checkpoint = trained / "checkpoint_best.pt"
    output = interactive(
        corpus, checkpoint, b"\n".join(HOSTILE), "--buffer-size", buffer, "--batch-size", buffer
    )
    numbers = [int(number) for number in re.findall(r"^H-(\d+)\t", output, flags=re.MULTILINE)]
    assert numbers == list(range(len(HOSTILE)))
    found = hypotheses(output)
    spelt = "one\xa0two\u200b th\xadree\nn\ufeffine\u3000 eight".encode()
    alone = hypotheses(
        interactive(corpus, checkpoint, b"one two three\nnine eight\none two\n" + spelt)
    )
    assert (found[0], found[13], found[7]) == (alone[0], alone[1], alone[2])
    # Text is prepared as the training text was.
    assert (alone[3], alone[4]) == (alone[0], alone[1])
    assert found[1] == found[5] == found[6] == ""
    message = r"has 10001 tokens, but at most 40 .*--max-source-positions"
    assert len(re.findall(message, output)) == 1, output
    assert len(re.findall(r"line (9|10) is not valid UTF-8", output)) == 2
    assert "Traceback" not in output


def test_a_line_longer_than_max_tokens_is_answered_too(corpus: Corpus, trained: Path) -> None:
    text = b"one two\n" + b"one two " * 8 + b"\nnine"
    output = interactive(
        corpus, trained / "checkpoint_best.pt", text, "--buffer-size", 3, "--max-tokens", 12
    )
    assert hypotheses(output)[1] == ""
    assert sorted(hypotheses(output)) == [0, 1, 2]
    assert re.search(r"at most 12 are allowed: .* or raise --max-tokens", output)


def test_hub_interface_answers_every_sentence_in_order(corpus: Corpus, trained: Path) -> None:
    hub = ResMLPTiny.from_pretrained(
        trained,
        checkpoint_file="checkpoint_best.pt",
        data_name_or_path=corpus.data,
        bpe="sentencepiece",
        sentencepiece_model=corpus.spm,
    )
    with pytest.raises(UserError, match="missing does not exist: give the folder"):
        ResMLPTiny.from_pretrained(trained, "checkpoint_best.pt", corpus.data / "missing")
    texts = [line.decode(errors="replace") for line in HOSTILE]
    answers = hub.translate(texts, beam=2)
    assert len(answers) == len(texts)
    assert answers[1] == answers[5] == answers[6] == ""
    for index in (0, 2, 13):
        assert answers[index] == hub.translate(texts[index], beam=2) != ""
    assert hub.translate("one\xa0two\u200b th\xadree", beam=2) == hub.translate(
        "one two three", beam=2
    )
    expected = generate(corpus, trained / "checkpoint_best.pt", "--beam", 5)
    found = hub.translate(corpus.sentences("test", "en"), beam=5)
    decoded = [hub.decode(hub.binarize(hub.apply_bpe(text))) for text in found]
    assert decoded == [hypotheses(expected)[number] for number in range(13)]


def test_generation_is_capped_at_the_limit_and_long_references_are_named(
    corpus: Corpus, tmp_path: Path
) -> None:
    train(
        corpus, tmp_path, "--max-source-positions", 9, "--max-target-positions", 6,
        "--max-epoch", 1, "--skip-invalid-size-inputs-valid-test",
    )  # fmt: skip
    checkpoint = tmp_path / "checkpoint_last.pt"
    output = interactive(corpus, checkpoint, b"one two three\none", "--max-len-b", "200")
    assert sorted(hypotheses(output)) == [0, 1]
    for positions in lines_of(output, "P").values():
        assert len(positions.split()) <= 6
    refused = fairseq(
        "generate", corpus.data, "--user-dir", "resmlp_mt", "--path", checkpoint, "--cpu",
        "--max-source-positions", 9, expect=1,
    ).stdout  # fmt: skip
    assert "Traceback" not in refused
    sentence = refused.splitlines()[-1]
    assert "--skip-invalid-size-inputs-valid-test" in sentence
    assert "--max-source-positions" in sentence
    skipping = generate(corpus, checkpoint, "--skip-invalid-size-inputs-valid-test")
    assert 0 < len(hypotheses(skipping)) < 13


def test_training_skips_what_is_too_long_by_fairseqs_convention(
    corpus: Corpus, tmp_path: Path
) -> None:
    limits = ("--max-source-positions", 6, "--max-target-positions", 6)
    refused = train(corpus, tmp_path / "a", *limits, expect=1)
    assert "Traceback" not in refused
    assert "--skip-invalid-size-inputs-valid-test" in refused.splitlines()[-1]
    log = train(corpus, tmp_path / "b", *limits, "--skip-invalid-size-inputs-valid-test")
    assert "have invalid sizes and will be skipped" in log


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (("--max-target-positions", 0), "--max-target-positions"),
        (("--decoder-attention-heads", 5), "--decoder-attention-heads"),
        (("--fp16",), "--fp16"),
        (("--bf16",), "--bf16"),
    ],
    ids=str,
)
def test_wrong_options_stop_at_start_up_with_one_sentence(
    corpus: Corpus, tmp_path: Path, arguments: tuple[object, ...], option: str
) -> None:
    output = train(corpus, tmp_path, *arguments, expect=1)
    assert "Traceback" not in output
    assert output.splitlines()[-1].startswith(option)


def test_sharing_embeddings_of_different_dictionaries_stops_at_start_up(
    corpus: Corpus, tmp_path: Path
) -> None:
    prefixes = [corpus.folder / f"{split}.spm" for split in ("train", "valid")]
    fairseq(
        "preprocess", "-s", "en", "-t", "de", "--trainpref", prefixes[0],
        "--validpref", prefixes[1], "--destdir", tmp_path / "bin",
    )  # fmt: skip
    output = train(corpus._replace(data=tmp_path / "bin"), tmp_path / "run", expect=1)
    assert output.splitlines()[-1].startswith("--share-all-embeddings needs one dictionary")


def test_adagrad_with_the_papers_settings_trains_resumes_and_generates(
    corpus: Corpus, tmp_path: Path
) -> None:
    options = ("--optimizer", "adagrad", "--lr", 0.2, "--warmup-updates", 8)
    log = train(corpus, tmp_path, *options)
    losses = epochs(log, "train", "train_loss")
    assert losses[1] < losses[0]
    log = train(corpus, tmp_path, *options, "--max-epoch", 3)
    assert "Loaded checkpoint" in log
    assert len(hypotheses(generate(corpus, tmp_path / "checkpoint_last.pt"))) == 13


def test_amp_on_cpu_computes_in_bfloat16_and_trains_alike(corpus: Corpus, tmp_path: Path) -> None:
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        assert "--amp on CPU" in train(corpus, tmp_path, "--amp", expect=1).splitlines()[-1]
        return
    log = train(corpus, tmp_path / "amp", "--amp")
    plain = train(corpus, tmp_path / "plain")
    ours, exact = (epochs(text, "train", "train_loss") for text in (log, plain))
    assert ours == pytest.approx(exact, rel=0.03)
    rounded, whole = (
        parameters(tmp_path / name / "checkpoint_last.pt") for name in ("amp", "plain")
    )
    assert not any(torch.equal(rounded[name], whole[name]) for name in rounded if "fc1" in name)
    floating = [value for value in rounded.values() if value.is_floating_point()]
    assert all(value.dtype == torch.float32 for value in floating)


def test_plugin_folder_is_printed() -> None:

    done = subprocess.run(
        [sys.executable, "-m", "resmlp_mt"], capture_output=True, text=True, check=True
    )
    assert Path(done.stdout.strip()) == ROOT / "resmlp_mt"
    wrong = subprocess.run(
        [sys.executable, "-m", "resmlp_mt", "translate", "MODEL"], capture_output=True, text=True
    )
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.strip().endswith("error: the command is python -m resmlp_mt.translate")
    for word in ("vision.train", "vision-train", "resmlp-vision-train"):
        assert hint(word) == "the command is python -m resmlp_mt.vision.train"
    for word in ("files", "vision", "train"):
        assert hint(word).startswith(f"unknown command {word}: run python -m resmlp_mt.COMMAND")
        assert ", translate, " in hint(word)
        assert ", vision.train" in hint(word)


def test_the_wheel_works_outside_the_checkout(
    corpus: Corpus, trained: Path, wheel: Path, tmp_path: Path
) -> None:
    site = tmp_path / "site"
    subprocess.run([*PIP, "install", "--no-deps", "--target", site, wheel], check=True)
    elsewhere = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": str(site)}}
    done = subprocess.run(
        [sys.executable, "-m", "resmlp_mt"], capture_output=True, text=True, check=True, **elsewhere
    )
    assert Path(done.stdout.strip()) == site / "resmlp_mt"
    output = fairseq(
        "generate", corpus.data, "--user-dir", done.stdout.strip(), "--cpu",
        "--path", trained / "checkpoint_best.pt", folder=tmp_path,
        environment={"PYTHONPATH": str(site)},
    ).stdout  # fmt: skip
    assert len(hypotheses(output)) == 13
