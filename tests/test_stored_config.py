"""No code runs from the configuration in a checkpoint, whichever command reads it."""

import argparse
import inspect
import re
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq import checkpoint_utils, tasks
from fairseq.criterions.cross_entropy import CrossEntropyCriterion
from fairseq.models import MODEL_DATACLASS_REGISTRY
from fairseq.models.transformer import TransformerModel
from fairseq.tasks.translation import TranslationTask
from omegaconf import OmegaConf

from conftest import Corpus, fairseq
from resmlp_mt import __version__, export
from resmlp_mt.errors import UserError
from resmlp_mt.fairseq_plugin import stored_config
from resmlp_mt.fairseq_plugin.conversion import load_trained
from resmlp_mt.models.resmlp_mt import ResMLPModel

Change = Callable[[dict[str, Any]], None]


@pytest.fixture
def touched(tmp_path: Path) -> Path:
    """The file that hostile configurations make."""
    return tmp_path / "touched"


@pytest.fixture
def state(trained: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(trained / "checkpoint_best.pt")
    del state["digest"]  # the changes of these tests are meant
    return state


def code(touched: Path) -> str:
    return f"open({str(touched)!r}, 'w').close()"


def model(name: str, **fields: Any) -> Change:
    return lambda state: state["cfg"].update(model={"_name": name, **fields})


def options(section: str, **fields: Any) -> Change:
    return lambda state: state["cfg"][section].update(fields)


def legacy(**fields: Any) -> Change:
    """The same checkpoint as fairseq before 0.10 wrote it."""

    def change(state: dict[str, Any]) -> None:
        flat = {k: v for section in state["cfg"].values() if isinstance(section, dict)
                for k, v in section.items() if not k.startswith("_")}  # fmt: skip
        flat |= {"arch": "resmlp_mt_tiny", "task": "translation", "optimizer": "adam", **fields}
        state.update(cfg=None, args=argparse.Namespace(**flat))

    return change


HOSTILE: dict[str, Callable[[str], Change]] = {
    "wav2vec2": lambda code: model("wav2vec2", conv_feature_layers=code),
    "wav2vec": lambda code: model("wav2vec", conv_feature_layers=code),
    "hubert": lambda code: model("hubert", conv_feature_layers=code),
    "fconv": lambda code: model("fconv", encoder_layers=code, arch="fconv"),
    "a key for a name": lambda code: lambda s: s["cfg"].update(
        model={"wav2vec2": {"conv_feature_layers": code}}
    ),
    "a nested model": lambda code: model(
        "wav2vec_ctc", w2v_args={"model": {"_name": "wav2vec2", "conv_feature_layers": code}}
    ),
    "blanks before": lambda code: model("wav2vec2", conv_feature_layers=" \t\n" + code),
    "a line continued": lambda code: model("wav2vec2", conv_feature_layers=code + "\\\n\n"),
    "quotes": lambda code: options("optimizer", adam_betas=repr(code)),
    "quotes in quotes": lambda code: options("optimizer", adam_betas=[repr((repr(code), 1))]),
    "an address in quotes": lambda code: options("model", extra="['http:\\x2f\\x2flocalhost:1/x']"),
    "a comprehension": lambda code: model("wav2vec2", conv_feature_layers=f"[{code} for _ in 'a']"),
    "an index": lambda code: model("wav2vec2", conv_feature_layers=f"[{code}][0]"),
    "a formatted text": lambda code: model("wav2vec2", conv_feature_layers=f'f"{{{code}}}"'),
    "a lambda": lambda code: model("wav2vec2", conv_feature_layers=f"(lambda: {code})()"),
    "memory": lambda code: model("wav2vec2", conv_feature_layers="[(1, 1, 1)] * 10 ** 12"),
    "time": lambda code: model("wav2vec2", conv_feature_layers="9 ** 9 ** 9"),
    "a list of strings": lambda code: model("wav2vec2", conv_feature_layers=[code]),
    "an options object": lambda code: lambda s: s["cfg"].update(
        model=argparse.Namespace(arch="fconv", _name="fconv", encoder_layers=code)
    ),
    "the betas of Adam": lambda code: options("optimizer", adam_betas=code),
    "a criterion": lambda code: lambda s: s["cfg"].update(
        criterion={"_name": "ctc", "wer_args": code}
    ),
    "attention of xformers": lambda code: model("transformer", xformers_att_config=code),
    "the task": lambda code: options("task", left_pad_source=code),
    "legacy": lambda code: legacy(arch="fconv", encoder_layers=code),
    "legacy for ours": lambda code: legacy(adam_betas=code),
    "a resolver": lambda code: options("task", data="${oc.env:HOME}"),
    "a resolver in a key": lambda code: options("model", **{"${oc.env:HOME}": 1}),
    "a resolver in legacy options": lambda code: legacy(data="${oc.env:HOME}"),
    "a target": lambda code: options("model", extra={"_target_": "os.system", "_args_": ["true"]}),
    "a configuration of hydra": lambda code: legacy(bpe="../../../../tmp/evil"),
    "quotes of hydra": lambda code: legacy(source_lang="en\\', x=1"),
    "an address": lambda code: lambda s: s["cfg"].update(
        bpe={"_name": "sentencepiece", "sentencepiece_model": "http://localhost:1/x"}
    ),
    "a number for a text": lambda code: options("task", source_lang=5),
    "a text for a number": lambda code: options("model", encoder_layers="1"),
    "a truth for a number": lambda code: options("model", encoder_layers=True),
    "a list for a number": lambda code: options("model", dropout=[0.1]),
    "an unknown choice": lambda code: options("common", log_format="xml"),
    "numbers for texts in a list": lambda code: options("optimization", lr=["0.1"]),
    "an unknown model": lambda code: model("no_such_model"),
    "a model without a name": lambda code: lambda s: s["cfg"].update(model={"a": 1, "b": 2}),
    "an unknown task": lambda code: options("task", _name="no_such_task"),
    "a tensor": lambda code: options("model", encoder_layers=torch.ones(1)),
    "bytes": lambda code: options("model", extra=bytearray(b"x")),
    "a huge number": lambda code: options("model", encoder_layers=10**40),
    "depth of minus signs": lambda code: options("model", extra="-" * 50_000 + "1"),
    "length": lambda code: options("model", extra="x" * 200_000),
    "a list for the configuration": lambda code: lambda s: s.update(cfg=[1]),
    "a dict for legacy options": lambda code: lambda s: s.update(args={"arch": "fconv"}),
    "no configuration": lambda code: lambda s: s.update(cfg=None, args=None),
}  # fmt: skip


def readers(path: Path, data: Path) -> list[Callable[[], Any]]:
    return [
        lambda: load_trained(path, data),
        lambda: checkpoint_utils.load_model_ensemble_and_task([str(path)]),
        lambda: ResMLPModel.from_pretrained(str(path.parent), path.name, str(data)),
        lambda: TransformerModel.from_pretrained(str(path.parent), path.name, str(data)),
        lambda: checkpoint_utils.load_checkpoint_to_cpu(str(path)),  # of the trainer
        lambda: checkpoint_utils.load_pretrained_component_from_model(None, str(path)),
    ]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_configurations_are_refused_by_all_readers(
    name: str, state: dict[str, Any], touched: Path, corpus: Corpus, tmp_path: Path
) -> None:
    HOSTILE[name](code(touched))(state)
    torch.save(state, tmp_path / "hostile.pt")
    for read in readers(tmp_path / "hostile.pt", corpus.data):
        with pytest.raises(UserError, match=r"hostile\.pt was not loaded: .*; ") as refused:
            read()
        assert "\n" not in str(refused.value)
        assert len(str(refused.value)) < 600
    assert not touched.exists()


def test_a_configuration_that_holds_itself_is_refused(
    state: dict[str, Any], corpus: Corpus, tmp_path: Path
) -> None:
    state["cfg"]["model"]["extra"] = state["cfg"]["model"]
    torch.save(state, tmp_path / "hostile.pt")
    with pytest.raises(UserError, match="nests its values more than 50 deep"):
        load_trained(tmp_path / "hostile.pt", corpus.data)


def test_models_of_others_are_not_for_our_commands(
    state: dict[str, Any], corpus: Corpus, tmp_path: Path
) -> None:
    """fairseq's own commands load them."""
    state["cfg"]["model"] = {"_name": "transformer", "dropout": 0.5}
    torch.save(state, tmp_path / "other.pt")
    assert checkpoint_utils.load_checkpoint_to_cpu(str(tmp_path / "other.pt"))
    for command in (
        lambda: load_trained(tmp_path / "other.pt", corpus.data),
        lambda: export.main([str(tmp_path / "other.pt"), "--out", str(tmp_path / "model")]),
    ):
        with pytest.raises(
            UserError, match="holds a TransformerModel, but a ResMLP model is needed"
        ):
            command()
    state["cfg"]["model"] = {"_name": "resmlp_mt_tiny"}
    state["cfg"]["task"] = {"_name": "language_modeling", "data": "x"}
    torch.save(state, tmp_path / "other.pt")
    with pytest.raises(UserError, match="its task is 'language_modeling', not translation"):
        load_trained(tmp_path / "other.pt", corpus.data)


def test_two_names_of_a_task_are_not_taken_for_one(
    state: dict[str, Any], corpus: Corpus, tmp_path: Path
) -> None:
    """fairseq goes by the entry of the section's own name where there is one."""
    state["cfg"]["task"]["task"] = "language_modeling"
    torch.save(state, tmp_path / "other.pt")
    with pytest.raises(UserError, match="its task is 'language_modeling', not translation"):
        load_trained(tmp_path / "other.pt", corpus.data)


@pytest.mark.parametrize("name", sorted(MODEL_DATACLASS_REGISTRY))
def test_the_defaults_of_every_model_pass_or_are_evaluated(
    name: str, state: dict[str, Any]
) -> None:
    """A check that refuses what fairseq itself writes would be left out by its users."""
    config = OmegaConf.structured(MODEL_DATACLASS_REGISTRY[name])
    plain = OmegaConf.to_container(config, resolve=False, enum_to_str=True)
    assert isinstance(plain, dict)
    plain = {k: v for k, v in plain.items() if "${" not in str(v) and v != "???"}
    state["cfg"]["model"] = {**plain, "_name": name}
    if "*" in str(plain.get("conv_feature_layers")):  # [(512, 3, 2)] * 4
        with pytest.raises(UserError, match=r"conv_feature_layers is .* may evaluate as code"):
            stored_config.check(state, Path("x.pt"))
        del state["cfg"]["model"]["conv_feature_layers"]
    stored_config.check(state, Path("x.pt"))


@pytest.mark.parametrize("stored", [[], {"_name": []}, {"_name": {}}, {"_name": 5}])
def test_a_part_is_named_by_a_text(stored: Any, state: dict[str, Any]) -> None:
    state["cfg"]["optimizer"] = stored
    with pytest.raises(UserError, match=r"its optimizer is .*, which is not a name"):
        stored_config.check(state, Path("x.pt"))


def test_a_message_that_cites_the_file_is_one_line(state: dict[str, Any]) -> None:
    state["cfg"]["optimizer"] = {"a\nb\x1b[2J": "${x}"}
    with pytest.raises(UserError, match=r"cfg\.optimizer\.a\\nb\\x1b\[2J is '\$\{x\}', which"):
        stored_config.check(state, Path("x.pt"))


def test_old_options_load(state: dict[str, Any], corpus: Corpus, tmp_path: Path) -> None:
    expected = load_state(state, tmp_path)
    legacy()(state)
    torch.save(state, tmp_path / "old.pt")
    found = load_trained(tmp_path / "old.pt", corpus.data)
    assert found.model.config == load_trained(tmp_path / "new.pt", corpus.data).model.config
    assert expected["cfg"].model._name == "resmlp_mt_tiny"


@pytest.mark.parametrize("off", [None, False, "none", 0, 0.0])
def test_an_option_of_another_version_is_named(
    state: dict[str, Any], corpus: Corpus, tmp_path: Path, off: object
) -> None:
    """fairseq drops it, and the model could compute something else, unless it is off."""
    state["cfg"]["model"] |= {"encoder_future_layers": 2}
    path = tmp_path / "future.pt"
    torch.save(state, path)
    for read in readers(path, corpus.data):
        with pytest.raises(UserError, match="trained with --encoder-future-layers, which resmlp_"):
            read()
    state["cfg"]["model"]["encoder_future_layers"] = off
    torch.save(state, path)
    assert load_trained(path, corpus.data)


@pytest.mark.parametrize("stored", [None, "0.9.1", "a b", 3])
def test_the_version_that_trained_it_is_named(
    state: dict[str, Any], tmp_path: Path, stored: object
) -> None:
    assert state["resmlp_mt_version"] == __version__
    del state["resmlp_mt_version"]
    state["cfg"]["model"] |= {"encoder_future_layers": 2}
    torch.save(state | {"resmlp_mt_version": stored}, tmp_path / "x.pt")
    end = ", 0.9.1." if stored == "0.9.1" else "."
    with pytest.raises(UserError, match=rf"use the version that trained it{re.escape(end)}$"):
        checkpoint_utils.load_checkpoint_to_cpu(str(tmp_path / "x.pt"))


@pytest.mark.parametrize("form", ["new", "legacy"])
@pytest.mark.parametrize("trust", ["0", "1"])
def test_an_architecture_of_another_version_is_named(
    state: dict[str, Any],
    corpus: Corpus,
    tmp_path: Path,
    form: str,
    trust: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With --trust, fairseq ends in an AssertionError."""
    monkeypatch.setenv(stored_config.TRUST, trust)
    change = legacy(arch="resmlp_mt_new") if form == "legacy" else model("resmlp_mt_new")
    change(state)
    state["resmlp_mt_version"] = "0.9.1"
    torch.save(state, tmp_path / "x.pt")
    said = rf"x\.pt was trained with --arch resmlp_mt_new, which resmlp_mt {__version__} does not "
    for read in readers(tmp_path / "x.pt", corpus.data):
        with pytest.raises(UserError, match=said + r"have: use .* trained it, 0\.9\.1\.$"):
            read()


CHUNKED = "chunked_label_smoothed_cross_entropy"


@pytest.mark.parametrize(
    ("criterion", "message"),
    [
        (
            {"_name": CHUNKED, "future": 0.5, "other": 1},
            "was trained with --future, --other, which",
        ),
        ({"_name": CHUNKED, "future": 0.0, "other": None}, None),
        ({"_name": "label_smoothed_cross_entropy", "future": 0.5}, None),  # as fairseq's loader
        (
            {"_name": "future"},
            "was trained with --criterion future, which resmlp_mt .* use the ver",
        ),
        (argparse.Namespace(criterion="future"), "was trained with --criterion future, which resm"),
    ],
)
def test_a_criterion_of_another_version_is_named(
    state: dict[str, Any], corpus: Corpus, tmp_path: Path, criterion: Any, message: str | None
) -> None:
    """fairseq-validate builds the criterion of the checkpoint."""
    if isinstance(criterion, dict) and criterion["_name"] != "future":
        criterion = {**state["cfg"]["criterion"], **criterion}
    state["cfg"]["criterion"] = criterion
    torch.save(state, tmp_path / "x.pt")
    overrides = {"data": str(corpus.data)}
    _, cfg, task = checkpoint_utils.load_model_ensemble_and_task(
        [str(tmp_path / "x.pt")], arg_overrides=overrides
    )
    with pytest.raises(UserError, match=message) if message else nullcontext():
        assert task.build_criterion(cfg.criterion).eps == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({"_name": "theirs", "more": 1}, "trained with --criterion theirs, which resmlp_mt"),
        ({"_name": CHUNKED, "future": 0.5}, "trained with --future, which resmlp_mt"),
    ],
)
@pytest.mark.parametrize("is_read_before", [False, True])
def test_another_criterion_than_the_checkpoints_is_built(
    state: dict[str, Any],
    corpus: Corpus,
    tmp_path: Path,
    stored: dict[str, Any],
    message: str,
    is_read_before: bool,
) -> None:
    """Of --model-overrides, or of a program; the file may be gone by then."""
    state["cfg"]["criterion"] = stored
    state["resmlp_mt_version"] = "0.9.1"
    path = tmp_path / "x.pt"
    torch.save(state, path)
    own = {"_name": "cross_entropy", "sentence_avg": False}

    def load(**overrides: Any) -> tuple[Any, Any]:
        arguments = {"data": str(corpus.data), **overrides}
        read = None
        if is_read_before:
            read = checkpoint_utils.load_checkpoint_to_cpu(str(path), arguments)
        _, cfg, task = checkpoint_utils.load_model_ensemble_and_task(
            [str(path)], arg_overrides=arguments, state=read
        )
        return cfg.criterion, task

    overridden, task = load(criterion=own)
    assert type(task.build_criterion(overridden)) is CrossEntropyCriterion
    criterion, task = load()
    path.unlink()
    for given in (OmegaConf.create(own), "cross_entropy"):
        assert type(task.build_criterion(given)) is CrossEntropyCriterion
    with pytest.raises(UserError, match=rf"x\.pt was {message} .* trained it, 0\.9\.1\.$"):
        task.build_criterion(criterion)
    with pytest.raises(UserError, match=r"^--criterion other is unknown: give its --user-dir\.$"):
        task.build_criterion(OmegaConf.create({"_name": "other"}))


def test_the_criterion_of_a_checkpoint_in_shards_is_that_of_the_last(
    state: dict[str, Any], corpus: Corpus, tmp_path: Path
) -> None:
    """Which fairseq's configuration is of."""
    for part, name in enumerate(("theirs", "others")):
        state["cfg"]["criterion"] = {"_name": name}
        torch.save(state, tmp_path / f"x_part{part}.pt")
    _, cfg, task = checkpoint_utils.load_model_ensemble_and_task(
        [str(tmp_path / "x.pt")],
        arg_overrides={"data": str(corpus.data)},
        strict=False,
        num_shards=2,
    )
    with pytest.raises(UserError, match=r"x_part1\.pt was trained with --criterion others, which"):
        task.build_criterion(cfg.criterion)


def test_a_validation_with_a_criterion_of_another_plugin_ends_in_a_sentence(
    state: dict[str, Any], corpus: Corpus, tmp_path: Path
) -> None:
    state["cfg"]["criterion"] = {"_name": "theirs"}
    torch.save(state, tmp_path / "x.pt")
    refused = fairseq(
        "validate", corpus.data, "--user-dir", "resmlp_mt", "--path", tmp_path / "x.pt", "--cpu",
        "--batch-size", 5, expect=1,
    ).stdout  # fmt: skip
    assert "Traceback" not in refused
    assert f"{tmp_path / 'x.pt'} was trained with --criterion theirs, which" in refused


def test_options_of_fairseqs_models_are_dropped_as_without_the_plugin() -> None:
    """Checkpoints of other versions of fairseq load; it looks at the arguments of build_model."""
    arguments = inspect.getfullargspec(TranslationTask.build_model).args
    assert arguments == ["self", "cfg", "from_checkpoint"]
    assert TranslationTask.build_model.remedies  # type: ignore[attr-defined]


def load_state(state: dict[str, Any], folder: Path) -> dict[str, Any]:
    torch.save(state, folder / "new.pt")
    loaded: dict[str, Any] = checkpoint_utils.load_checkpoint_to_cpu(str(folder / "new.pt"))
    return loaded


def test_what_the_user_overrides_is_checked_alike(
    state: dict[str, Any], touched: Path, tmp_path: Path
) -> None:
    torch.save(state, tmp_path / "x.pt")

    def load(**overrides: Any) -> Any:
        return checkpoint_utils.load_checkpoint_to_cpu(str(tmp_path / "x.pt"), overrides)["cfg"]

    assert load(dropout=0, data="data (1)/bin").model.dropout == 0
    assert load(model={"dropout": 0.5}).model.dropout == 0.5
    for overrides, message in (
        ({"adam_betas": code(touched)}, "may evaluate as code"),
        ({"optimizer": {"adam_betas": code(touched)}}, "may evaluate as code"),
        ({"dropout": "0.1"}, "model.dropout is '0.1', but should be of type float"),
        ({"model": {"dropout": "0.1"}}, "model.dropout is '0.1'"),
        ({"source_lang": "${oc.env:HOME}"}, "stands for something else"),
        ({"_name": "no_such_model"}, "no_such_model' is unknown; give the --user-dir of the code"),
    ):
        with pytest.raises(UserError, match=message):
            load(**overrides)
    assert not touched.exists()


def test_a_training_is_refused_if_its_checkpoints_would_be(
    state: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(stored_config.TRUST, raising=False)
    stored = state["cfg"]
    stored["common"] |= {"wandb_project": "resmlp(small)", "aim_repo": "aim://host:53800"}
    stored["model"]["encoder_embed_path"] = "vectors(1).txt"
    stored_config.check_training(stored)
    stored["task"]["eval_bleu_detok_args"] = "print(1)"
    with pytest.raises(UserError, match=r"would not be loaded: cfg\.task\.eval_bleu_detok_args is"):
        stored_config.check_training(stored)
    monkeypatch.setenv(stored_config.TRUST, "1")
    stored_config.check_training(stored)


def test_trust_is_the_users_to_give(
    state: dict[str, Any],
    touched: Path,
    corpus: Corpus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With it the code does run: only the check prevented it. Our commands have no such option."""
    HOSTILE["wav2vec2"](code(touched))(state)
    torch.save(state, tmp_path / "hostile.pt")
    command = (
        "generate", corpus.data, "--user-dir", "resmlp_mt", "--cpu", "--path",
        tmp_path / "hostile.pt",
    )  # fmt: skip
    refused = fairseq(*command, expect=1).stdout
    assert "give --trust or set RESMLP_MT_TRUST=1" in refused
    assert "Traceback" not in refused
    assert not touched.exists()
    monkeypatch.setenv(stored_config.TRUST, "1")
    with pytest.raises(UserError, match="was not loaded"):
        load_trained(tmp_path / "hostile.pt", corpus.data)
    assert not touched.exists()
    monkeypatch.delenv(stored_config.TRUST)
    fairseq(*command, "--trust", expect=1)
    assert touched.exists()


WRONG_TYPES = {"encoder_layers": "2", "dropout": "0.1", "share_all_embeddings": 1}


@pytest.mark.parametrize("form", ["legacy", "namespace", "mapping"])
@pytest.mark.parametrize("name", WRONG_TYPES)
def test_fields_have_their_declared_types_in_every_form(form: str, name: str) -> None:
    def state(**fields: Any) -> dict[str, Any]:
        named = {"_name": "resmlp_mt_tiny", **fields}
        task = {"_name": "translation"}
        if form == "legacy":
            return {"args": argparse.Namespace(arch="resmlp_mt_tiny", task="translation", **fields)}
        return {
            "cfg": {
                "model": argparse.Namespace(**named) if form == "namespace" else named,
                "task": task,
            }
        }

    stored_config.check(state(encoder_layers=2), Path("x.pt"), plugin_only=True)
    with pytest.raises(UserError, match=rf"\.{name} is .*, but should be of type"):
        stored_config.check(state(**{name: WRONG_TYPES[name]}), Path("x.pt"), plugin_only=True)


@pytest.mark.parametrize("task", sorted({*tasks.TASK_REGISTRY} - {"translation"}))
@pytest.mark.parametrize("legacy_options", [False, True])
def test_models_of_other_tasks_are_refused(task: str, legacy_options: bool) -> None:
    """Some put tokens of languages around a sentence, which translation would leave out."""
    state: dict[str, Any] = {"model": {}}
    if legacy_options:
        state["args"] = argparse.Namespace(arch="resmlp_mt_tiny", task=task)
    else:
        state["cfg"] = {"model": {"_name": "resmlp_mt_tiny"}, "task": {"_name": task}}
    with pytest.raises(UserError, match=rf"its task is '{task}', not translation") as error:
        stored_config.check(state, Path("x.pt"), plugin_only=True)
    assert "\n" not in str(error.value)
