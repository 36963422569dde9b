"""fairseq's BLEU has the tokenizer of the target language."""

from types import SimpleNamespace
from typing import Any

import pytest
import sacrebleu
import torch
from fairseq import options, scoring
from fairseq.data import Dictionary, LanguagePairDataset
from fairseq.scoring.bleu import BleuConfig, SacrebleuConfig
from fairseq.scoring.chrf import ChrFScorerConfig
from fairseq.tasks import FairseqTask
from fairseq.tasks.translation import TranslationConfig, TranslationTask
from fairseq.trainer import Trainer
from omegaconf import OmegaConf

from resmlp_mt.errors import UserError
from resmlp_mt.fairseq_plugin import bleu
from resmlp_mt.fairseq_plugin.wrapping import mend
from resmlp_mt.models import resmlp_mt  # noqa: F401  applies the remedies

TEXT = ["我们今天去图书馆看书。", "他昨天买了一辆红色的自行车。"]
OTHER = ["我们今天去图书馆看报。", "他昨天买了一辆绿色的自行车。"]


@pytest.fixture(autouse=True)
def nothing_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the commands that other tests have run in this process."""
    mend(bleu)
    for name in ("_target", "_unspaced", "_subwords", "_joined_by"):
        monkeypatch.setattr(bleu, name, None)
    monkeypatch.setattr(bleu, "_of_languages", [])


def task_of(target: str, **options: Any) -> TranslationTask:
    words = Dictionary()
    for word in [*TEXT, *OTHER]:
        words.add_symbol(word)
    config = TranslationConfig(
        data="bin", source_lang="en", target_lang=target, eval_bleu=True, **options
    )
    return TranslationTask(config, words, words)


@pytest.mark.parametrize("target", ["zh", "zh-CN", "zho_Hans", "de"])
@pytest.mark.parametrize("tokenized", [False, True])
def test_validation_measures_as_the_language_needs(
    target: str, tokenized: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = task_of(target, eval_tokenized_bleu=tokenized)
    task.tokenizer = None
    words = task.target_dictionary
    found = [[{"tokens": torch.tensor([words.index(line)])}] for line in OTHER]
    monkeypatch.setattr(task, "inference_step", lambda *_, **__: found)
    sample = {"target": torch.tensor([[words.index(line)] for line in TEXT])}
    tokenize = "none" if tokenized else "13a" if target == "de" else "zh"
    expected = sacrebleu.corpus_bleu(OTHER, [TEXT], tokenize=tokenize).score
    score = task._inference_with_bleu(None, sample, None).score
    assert score == expected
    assert (score > 50) == (tokenize == "zh")


def config(metric: str) -> Any:
    return SimpleNamespace(checkpoint=SimpleNamespace(best_checkpoint_metric=metric))


def test_bleu_of_a_language_without_spaces_chooses_no_checkpoint(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(
        UserError,
        match=r"--best-checkpoint-metric bleu: .* the words of th, .* or give --eval-token",
    ):
        Trainer(config("bleu"), task_of("th"), None, None)
    bleu.check_training(config("bleu"), task_of("th", eval_tokenized_bleu=True))
    bleu.check_training(config("bleu"), task_of("de"))
    bleu.check_training(config("loss"), task_of("zh"))
    assert not caplog.text
    bleu.check_training(config("loss"), task_of("tha"))
    assert "--eval-bleu: sacreBLEU finds the words of tha only if the text was split" in caplog.text

    def missing(**_: str) -> None:
        raise RuntimeError("Please install mecab")

    monkeypatch.setattr(sacrebleu, "BLEU", missing)
    with pytest.raises(UserError, match=r"--eval-bleu of ja needs MeCab .*'.\[ja\]' .*, or"):
        bleu.check_training(config("loss"), task_of("ja"))


PIECES = [["\u2581", *line] for line in [*TEXT, *OTHER]]


@pytest.mark.parametrize(
    ("sentences", "script"),
    [
        (PIECES, "Han"),
        ([["\u2581", *"\u30ab\u30e1\u30e9\u3092\u8cb7\u3046"]], "Katakana"),
        ([["\u0e09\u0e31\u0e19@@", "\u0e40\u0e1b\u0e47\u0e19\u0e19\u0e31\u0e01"]], "Thai"),
        ([["\u2581Hund", "\u2581l\u00e4uft"]], None),
        ([["\uc800\ub294", "\ud559\uc0dd\uc785\ub2c8\ub2e4."]], None),  # Korean has spaces
        (
            [["\u6211\u4eec", "\u4eca\u5929", "\u53bb", "\u56fe\u4e66\u9986", "\u3002"]],
            None,
        ),  # split before
        ([], None),
    ],
)
def test_the_text_tells_what_a_wrong_code_does_not(
    sentences: list[list[str]],
    script: str | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(bleu, "some_sentences", lambda *_: sentences)
    task = task_of("xx")
    text = None if script is None else f"text in {script} script"
    east = script in ("Han", "Katakana")
    assert bleu.unspaced_text(task) == text
    assert bleu.unspaced_text(task_of("zh")) is bleu.unspaced_text(task_of("th")) is None
    if text is None:
        bleu.check_training(config("bleu"), task)
    else:
        name = "binarise it under the name zh or ja, " if east else ""
        with pytest.raises(
            UserError, match=rf"words of {text}, .* another metric, {name}or give --eval-tokenized"
        ):
            bleu.check_training(config("bleu"), task)
    bleu.check_training(config("loss"), task)
    bleu._remember_target(task)
    for kind in (BleuConfig, SacrebleuConfig):
        choice = OmegaConf.structured(kind())
        choice._name = kind.__name__.removesuffix("Config").lower()
        assert scoring.build_scorer(choice, Dictionary())
    option = "tokenizer zh or ja-mecab" if east else "char-level"
    words = f"the words of {text} only if the text was split into words; else "
    advice = f"{words}give --scoring sacrebleu --sacrebleu-{option}"
    assert caplog.messages == (
        []
        if text is None
        else [
            f"--eval-bleu: sacreBLEU finds {words}valid_bleu says little",
            f"--scoring bleu finds {advice}",
            f"--scoring sacrebleu finds {advice}",
        ]
    )


def test_a_damaged_file_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(*_: object) -> None:
        raise UserError("valid.en-cn.cn.bin is damaged")

    monkeypatch.setattr(bleu, "some_sentences", damaged)
    assert bleu.unspaced_text(task_of("cn")) is None


def test_a_task_of_several_targets_has_no_tokenizer_of_its_own() -> None:
    """As online_backtranslation, whose options have no --target-lang."""
    task = task_of("zh")
    task.cfg = SimpleNamespace(data="bin", eval_bleu=True, eval_tokenized_bleu=False)
    assert bleu.unspaced_text(task) is None
    bleu.check_training(config("bleu"), task)
    given = (task, None, None, None)
    assert bleu._inference_with_bleu(lambda *parts: parts, *given) == given


def test_generation_scores_as_the_language_needs() -> None:
    made = OmegaConf.structured(SacrebleuConfig())
    OmegaConf.set_struct(made, True)
    with pytest.raises(IndexError):  # there is no model; the language was remembered before
        FairseqTask.build_generator(task_of("zh"), [], SimpleNamespace(beam=1))
    for tokenizer, sharp in (("13a", True), ("intl", False)):
        choice = OmegaConf.merge(made, {"_name": "sacrebleu", "sacrebleu_tokenizer": tokenizer})
        scorer = scoring.build_scorer(choice, None)
        for line, other in zip(TEXT, OTHER, strict=True):
            scorer.add_string(line, other)
        assert (scorer.score() > 50) == sharp
        assert choice.sacrebleu_tokenizer == tokenizer


@pytest.mark.parametrize(
    ("target", "given", "advice"),
    [
        ("de", {"_name": "bleu"}, None),
        ("de", {"_name": "sacrebleu"}, None),
        ("zh", {"_name": "bleu"}, "--scoring sacrebleu"),
        ("ja_XX", {"_name": "bleu"}, "--scoring sacrebleu"),
        ("th", {"_name": "bleu"}, "--scoring sacrebleu --sacrebleu-char-level"),
        ("tha", {"_name": "sacrebleu"}, "--scoring sacrebleu --sacrebleu-char-level"),
        ("my", {"_name": "sacrebleu", "sacrebleu_char_level": True}, None),
        ("km", {"_name": "sacrebleu", "sacrebleu_tokenizer": "char"}, None),
        ("lo", {"_name": "chrf"}, None),
    ],
)
def test_bleu_that_finds_no_words_is_told(
    target: str,
    given: dict[str, Any],
    advice: str | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(bleu, "_target", target)
    kinds = {"bleu": BleuConfig, "sacrebleu": SacrebleuConfig, "chrf": ChrFScorerConfig}
    choice = OmegaConf.merge(OmegaConf.structured(kinds[given["_name"]]()), given)
    assert scoring.build_scorer(choice, Dictionary())
    assert caplog.messages == (
        [] if advice is None else [
            f"--scoring {given['_name']} finds the words of {target} only if the text was split "
            f"into words; else give {advice}"
        ]
    )  # fmt: skip


# --- subwords ---

SUBWORDS = {
    "sentencepiece": ["\u2581A", "\u2581dog", "s"],
    "subword_nmt": ["A", "do@@", "gs"],
}


def task_of_subwords(words: list[str], **options: Any) -> TranslationTask:
    task = task_of("de", **options)
    task.tgt_dict = Dictionary()
    for word in words:
        task.tgt_dict.add_symbol(word)
    return task


@pytest.mark.parametrize("given", [None, "@@ ", "subword_nmt", "sentencepiece", "letter", "none"])
@pytest.mark.parametrize("kind", SUBWORDS)
@pytest.mark.parametrize("tokenized", [False, True])
def test_bleu_of_subwords_chooses_no_checkpoint(
    kind: str, given: str | None, tokenized: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A bare --eval-bleu-remove-bpe is "@@ ", which joins no pieces of sentencepiece."""
    task = task_of_subwords(
        SUBWORDS[kind], eval_bleu_remove_bpe=given, eval_tokenized_bleu=tokenized
    )
    told = f"--eval-bleu compares subwords, not words: give --eval-bleu-remove-bpe {kind}, or none"
    if given in (kind, "none") or (given == "@@ " and kind == "subword_nmt"):
        bleu.check_training(config("bleu"), task)
        bleu.check_training(config("loss"), task)
        assert not caplog.messages
        return
    with pytest.raises(UserError, match=f"^--best-checkpoint-metric bleu: {told}"):
        bleu.check_training(config("bleu"), task)
    bleu.check_training(config("loss"), task)
    assert [message[: len(told)] for message in caplog.messages] == [told]


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({"dog": 10_000, "\u2581": 20, "foo@@": 20}, None),  # raw text has a few
        ({"\u2581": 50} | {chr(0x4E00 + n): 10 for n in range(100)}, "sentencepiece"),  # Chinese
        ({"dog": 900, "do@@": 20}, "subword_nmt"),
        ({"dog\u2581": 50, "\u2581": 1, "do": 90}, "sentencepiece"),  # the space after a word
        ({}, None),
    ],
)
def test_subwords_are_told_by_their_share(counts: dict[str, int], expected: str | None) -> None:
    words = Dictionary()
    for word, count in counts.items():
        words.add_symbol(word, count)
    assert bleu.subwords_of(words) == expected


SCORERS = {"bleu": BleuConfig, "sacrebleu": SacrebleuConfig, "chrf": ChrFScorerConfig}


def told_of_scores(task: TranslationTask, caplog: pytest.LogCaptureFixture) -> list[str]:
    """Warnings of fairseq-generate, with every scorer."""
    caplog.clear()
    with pytest.raises(IndexError):  # there is no model; the dictionary was looked at before
        FairseqTask.build_generator(task, [], SimpleNamespace(beam=1))
    for name, kind in SCORERS.items():
        choice = OmegaConf.merge(OmegaConf.structured(kind()), {"_name": name})
        assert scoring.build_scorer(choice, task.target_dictionary)
    return caplog.messages


def give(options_of_generate: str) -> None:
    words = ["data", "--path", "x", *options_of_generate.split()]
    options.parse_args_and_arch(options.get_generation_parser(), words)


@pytest.mark.parametrize(
    ("kind", "given", "told"),
    [
        ("sentencepiece", "", [*SCORERS]),
        ("sentencepiece", "--remove-bpe", [*SCORERS]),
        ("sentencepiece", "--bpe subword_nmt", [*SCORERS]),
        ("sentencepiece", "--remove-bpe sentencepiece", []),
        # fairseq's own BLEU compares the pieces, unless they are read again from the text
        ("sentencepiece", "--bpe sentencepiece --sentencepiece-model x", ["bleu"]),
        ("sentencepiece", "--bpe sentencepiece --sentencepiece-model x --replace-unk", []),
        ("sentencepiece", "--bpe characters", ["bleu"]),
        ("sentencepiece", "--remove-bpe --bpe characters", []),
        ("sentencepiece", "--post-process none", []),
        (
            "sentencepiece",
            "--remove-bpe sentencepiece --bpe sentencepiece --sentencepiece-model x",
            [],
        ),
        ("sentencepiece", "--post-process none --bpe characters", []),
        ("subword_nmt", "", [*SCORERS]),
        ("subword_nmt", "--remove-bpe sentencepiece", [*SCORERS]),
        ("subword_nmt", "--remove-bpe", []),
        ("subword_nmt", "--bpe subword_nmt", ["bleu"]),
        ("subword_nmt", "--remove-bpe --bpe subword_nmt", []),
    ],
)
def test_scores_of_subwords_are_told(
    kind: str, given: str, told: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    task = task_of_subwords(SUBWORDS[kind])
    assert told_of_scores(task, caplog) == []  # in a program without these options
    give(given)
    end = ", in place of --bpe" if "--bpe" in given.split() else ""
    assert told_of_scores(task, caplog) == [
        f"--scoring {name} compares subwords, not words: give --remove-bpe {kind}, or none if "
        f"that is meant{end}"
        for name in told
    ]
    assert told_of_scores(task_of_subwords(["A", "dog"]), caplog) == []
    source = [torch.tensor([5, 2])]
    task.datasets["test"] = LanguagePairDataset(source, [2], task.source_dictionary)
    assert told_of_scores(task, caplog) == []  # nothing is scored


def test_scores_of_sentences_without_spaces_are_told(caplog: pytest.LogCaptureFixture) -> None:
    """The words that --remove-bpe leaves are pieces to --bpe."""
    give("--remove-bpe sentencepiece --bpe characters")
    assert told_of_scores(task_of_subwords(SUBWORDS["sentencepiece"]), caplog) == [
        f"--scoring {name} compares sentences without spaces, because --bpe joins the words too: "
        "drop --bpe"
        for name in SCORERS
    ]
    assert told_of_scores(task_of_subwords(["A", "dog"]), caplog) == []
