"""A checkpoint is used with the dictionaries of its training, in every command and task."""

import shutil
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.data import Dictionary
from fairseq.tasks.language_modeling import LanguageModelingTask
from fairseq.tasks.translation import TranslationConfig, TranslationTask
from fairseq.tasks.translation_multi_simple_epoch import TranslationMultiSimpleEpochTask

from conftest import Corpus, train
from models import dictionary
from resmlp_mt.errors import UserError
from resmlp_mt.fairseq_plugin import dictionaries
from resmlp_mt.fairseq_plugin.checkpoints import DICTIONARIES
from resmlp_mt.fairseq_plugin.checkpoints import read as read_state
from resmlp_mt.fairseq_plugin.conversion import load_trained


def begin(task: Any, path: Path, *, is_new: bool = False) -> None:
    """What a training compares before it goes on with a checkpoint, or begins with its weights."""
    dictionaries.check_training(task, read_state(path, only_look=True), path, is_new=is_new)


def test_dictionaries_of_another_corpus_are_refused(
    tmp_path: Path, corpus: Corpus, trained: Path
) -> None:
    """Of the same size, so that everything fits."""
    checkpoint = trained / "checkpoint_best.pt"
    lines = (corpus.data / "dict.en.txt").read_text(encoding="utf-8").splitlines()
    counted = [f"{line.rpartition(' ')[0]} 7" for line in lines]  # counts do not matter

    def write(lines: list[str]) -> None:
        for language in ("en", "de"):
            text = "".join(f"{line}\n" for line in lines)
            (tmp_path / f"dict.{language}.txt").write_text(text, encoding="utf-8")

    write(counted)
    load_trained(checkpoint, tmp_path, corpus.spm)
    write([counted[1], counted[0], *counted[2:]])
    with pytest.raises(UserError, match=f"the source dictionary in {tmp_path} is not the one that"):
        load_trained(checkpoint, tmp_path, corpus.spm)


def test_dictionaries_of_another_size_are_refused_before_the_model_is_built(
    tmp_path: Path, corpus: Corpus, trained: Path
) -> None:
    """Its embeddings do not fit, which does not depend on the options of the model."""
    lines = (corpus.data / "dict.en.txt").read_text(encoding="utf-8").splitlines(keepends=True)
    for language in ("en", "de"):
        (tmp_path / f"dict.{language}.txt").write_text("".join(lines[:-1]), encoding="utf-8")
    checkpoint = trained / "checkpoint_best.pt"
    message = rf"the source dictionary in {tmp_path} has {len(lines) + 3} words, but the one that"
    with pytest.raises(UserError, match=message):
        load_trained(checkpoint, tmp_path, corpus.spm)
    task = TranslationTask.setup_task(
        TranslationConfig(data=str(tmp_path), source_lang="en", target_lang="de")
    )
    with pytest.raises(UserError, match=message):
        checkpoint_utils.load_model_ensemble_and_task([str(checkpoint)], task=task)
    with pytest.raises(UserError, match=message):  # --finetune-from-model
        begin(task, checkpoint, is_new=True)


def test_other_models_load_embeddings_in_their_own_way(
    tmp_path: Path, corpus: Corpus, trained: Path
) -> None:
    """fairseq's BART has one more row, for <mask>, which it cuts off."""
    task = TranslationTask.setup_task(TranslationConfig(data=str(corpus.data)))
    state = read_state(trained / "checkpoint_best.pt")
    weights = {
        **state["model"],
        "encoder.embed_tokens.weight": torch.zeros(len(task.src_dict) + 1, 4),
    }
    for name, arch in (("bart.pt", "bart_large"), ("ours.pt", "resmlp_mt_tiny")):
        args = Namespace(arch=arch)
        torch.save({"model": weights, "args": args, "cfg": None}, tmp_path / name)
    begin(task, tmp_path / "bart.pt")
    with pytest.raises(UserError, match="the source dictionary in"):
        begin(task, tmp_path / "ours.pt")


def test_dictionaries_are_those_of_the_checkpoint_with_the_suffix(
    tmp_path: Path, corpus: Corpus, trained: Path
) -> None:
    task = TranslationTask.setup_task(TranslationConfig(data=str(corpus.data)))
    state = read_state(trained / "checkpoint_best.pt")
    for name, digests in (("x.pt", {"source": "another"}), ("x_a.pt", state[DICTIONARIES])):
        torch.save({**state, DICTIONARIES: digests}, tmp_path / name)
    load = checkpoint_utils.load_model_ensemble_and_task
    load([str(tmp_path / "x.pt")], task=task, suffix="_a")
    with pytest.raises(
        UserError, match=r"the source dictionary in .* is not the one that .*/x\.pt"
    ):
        load([str(tmp_path / "x.pt")], task=task)


def test_a_task_of_many_languages_has_its_dictionaries(tmp_path: Path) -> None:
    words, others = dictionary(8), dictionary(8)
    others.symbols.reverse()
    task = object.__new__(TranslationMultiSimpleEpochTask)
    task.args = Namespace(data="bin")
    task.source_langs, task.target_langs = ["en", "fr"], ["de"]
    task.data_manager = SimpleNamespace(
        get_source_dictionary=lambda _: words, get_target_dictionary=lambda _: words
    )
    trainer = SimpleNamespace(task=task)
    state = dictionaries._state_dict(lambda _: {"model": {}, "cfg": {"task": task.args}}, trainer)
    torch.save({**state, "cfg": None}, tmp_path / "x.pt")
    begin(task, tmp_path / "x.pt")
    task.data_manager.get_target_dictionary = lambda _: others
    with pytest.raises(UserError, match="the target dictionary in bin is not the one"):
        begin(task, tmp_path / "x.pt")


def test_a_language_model_has_its_dictionary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fairseq-generate --lm-path reads the one beside the binarised text."""
    words, others = dictionary(8), dictionary(8)
    others.symbols.reverse()
    task = LanguageModelingTask(Namespace(data="bin"), words)
    state = dictionaries._state_dict(
        lambda _: {"model": {}, "cfg": {"task": task.args}}, SimpleNamespace(task=task)
    )
    torch.save({**state, "cfg": None, "args": task.args}, tmp_path / "lm.pt")
    monkeypatch.setattr(dictionaries, "_loading", [tmp_path / "lm.pt"])
    dictionaries._check(task)
    with pytest.raises(
        UserError, match=r"the source dictionary in bin is not .*lm\.pt was trained"
    ):
        dictionaries._check(LanguageModelingTask(task.args, others))


def test_the_task_is_named_where_another_was_trained(
    tmp_path: Path, corpus: Corpus, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The task of many languages adds a word for each: its dictionaries are no others."""
    path = tmp_path / "many.pt"
    state = torch.load(trained / "checkpoint_best.pt", weights_only=False)
    state["cfg"]["task"]["_name"] = "translation_multi_simple_epoch"
    weight = state["model"]["encoder.embed_tokens.weight"]
    state["model"]["encoder.embed_tokens.weight"] = torch.cat((weight, weight[:2]))
    torch.save(state, path)
    monkeypatch.setattr(dictionaries, "_loading", [path])
    config = TranslationConfig(data=str(corpus.data), source_lang="en", target_lang="de")
    task = TranslationTask.setup_task(config)
    with pytest.raises(UserError, match="trained with --task translation_multi_simple_epoch: give"):
        dictionaries._check(task)
    monkeypatch.setattr(dictionaries, "_loading", [trained / "checkpoint_best.pt"])
    dictionaries._check(task)


def test_a_training_does_not_go_on_with_other_dictionaries(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """But it may begin with the weights of another vocabulary."""
    words, others = dictionary(8), Dictionary()
    for symbol in reversed(words.symbols[words.nspecial :]):
        others.add_symbol(symbol)
    task = object.__new__(TranslationTask)
    task.cfg = SimpleNamespace(data="data-bin")
    task.src_dict = task.tgt_dict = words
    torch.save({"model": {}, DICTIONARIES: dictionaries._digests(task)}, tmp_path / "x.pt")
    begin(task, tmp_path / "x.pt")
    task.tgt_dict = others
    with pytest.raises(UserError, match="the target dictionary in data-bin is not the one that"):
        begin(task, tmp_path / "x.pt")
    assert not caplog.text
    begin(task, tmp_path / "x.pt", is_new=True)
    assert "the target dictionary in data-bin is not the one that" in caplog.text
    assert "embeddings begin with the vectors of other words" in caplog.text
    (tmp_path / "x.pt").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"x\.pt cannot be read because it is damaged"):
        begin(task, tmp_path / "x.pt", is_new=True)


def test_a_task_without_a_config_saves_its_dictionaries() -> None:
    """Tasks of older plugins keep the arguments of the command line."""
    words = Dictionary()
    task = object.__new__(TranslationTask)
    task.src_dict = task.tgt_dict = words
    options = Namespace(data="bin")
    state = dictionaries._state_dict(
        lambda _: {"cfg": {"task": options}}, SimpleNamespace(task=task)
    )
    assert state["cfg"]["task"] is options
    assert set(state[DICTIONARIES]) == {"source", "target"}


# --- directions ---


def two_languages(source: str, target: str) -> TranslationTask:
    """A task with one dictionary for both."""
    task = object.__new__(TranslationTask)
    task.cfg = SimpleNamespace(data="bin", source_lang=source, target_lang=target)
    task.src_dict = task.tgt_dict = dictionary(8)
    return task


@pytest.mark.parametrize(
    ("before", "now", "is_refused"),
    [
        (("en", "de"), ("en", "de"), False),
        (("en", "de"), ("de", "en"), True),
        (("en", "de"), ("en", "fr"), True),
        (("en", "zh_CN"), ("en", "zh"), False),
        ((None, None), ("de", "en"), False),
    ],
)
def test_a_training_goes_on_in_its_direction(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    before: tuple[str | None, str | None],
    now: tuple[str, str],
    is_refused: bool,
) -> None:
    """A joint dictionary serves both directions, and all weights fit."""
    path, task = tmp_path / "x.pt", two_languages(*now)
    stored = dict(zip(("source_lang", "target_lang"), before, strict=True))
    torch.save({"model": {}, "cfg": {"task": stored}}, path)
    if is_refused:
        with pytest.raises(UserError, match=rf"^{path} was trained to translate from en to de, an"):
            begin(task, path)
    else:
        begin(task, path)
    assert not caplog.text
    begin(task, path, is_new=True)  # --finetune-from-model
    assert ("used the other way round" in caplog.text) == (now == before[::-1])


def test_a_training_with_one_language_is_one_of_the_other_direction(
    tmp_path: Path, corpus: Corpus, trained: Path
) -> None:
    path = tmp_path / "checkpoint_last.pt"
    shutil.copy(trained / "checkpoint_last.pt", path)
    log = train(corpus, tmp_path, "-s", "de", "--max-epoch", 1, expect=1)
    assert log.endswith(
        f"{path} was trained to translate from en to de, and not from de to en: give another "
        f"--save-dir, or --finetune-from-model {path} to begin with its weights.\n"
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"source_lang": "de"}, ("de", "en")),
        ({"target_lang": "en"}, ("de", "en")),
        ({"source_lang": "en"}, ("en", "de")),
        ({"target_lang": "de", "source_lang": None}, ("en", "de")),
        ({"source_lang": "de", "target_lang": "en"}, ("de", "en")),
        ({}, ("en", "de")),
    ],
)
def test_one_language_turns_a_checkpoint_round(
    corpus: Corpus, trained: Path, given: dict[str, Any], expected: tuple[str, str]
) -> None:
    """As in fairseq-validate -s de, and from_pretrained(..., source_lang="de")."""
    _, _, task = checkpoint_utils.load_model_ensemble_and_task(
        [str(trained / "checkpoint_best.pt")], {"data": str(corpus.data), **given}
    )
    assert (task.cfg.source_lang, task.cfg.target_lang) == expected
