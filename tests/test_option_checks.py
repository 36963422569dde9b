"""Values of options that end in a traceback, or in another training than meant, are refused."""

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from fairseq import options
from fairseq.criterions import CRITERION_REGISTRY
from fairseq.dataclass.configs import GenerationConfig
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.trainer import Trainer
from fairseq_cli import train
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from resmlp_mt.command_line import flag
from resmlp_mt.errors import UserError
from resmlp_mt.fairseq_plugin import evaluated_options, hydra_jobs, ignored_options, option_checks
from resmlp_mt.fairseq_plugin.model import check_choice, of_other_models
from resmlp_mt.models import resmlp_mt  # noqa: F401  registers the architectures


def parsed(given: str, arch: str = "resmlp_mt_tiny") -> Any:
    """What fairseq-train makes of its words."""
    words = ["data", "--arch", arch, *given.split()]
    return options.parse_args_and_arch(options.get_training_parser(), words)


def test_one_remedy_checks_the_options_of_all_commands_and_one_those_of_trainings() -> None:
    for original in (options.parse_args_and_arch, Trainer.__init__):
        (remedy,) = original.remedies
        assert remedy.__module__ == option_checks.__name__


@pytest.mark.parametrize("name", option_checks.LEAST)
def test_a_number_below_the_least_is_refused(name: str) -> None:
    option, least = "--" + name.replace("_", "-"), option_checks.LEAST[name]
    beside = "--lr-scheduler fixed --use-bmuf --fp16"
    assert getattr(parsed(f"{beside} {option} {least}"), name) in (least, [least], str(least))
    with pytest.raises(UserError, match=f"^{option} must be at least {least}, but is {least - 1}"):
        parsed(f"{beside} {option} {least - 1}")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("--clip-norm nan", "^--clip-norm must be a finite number, but is nan"),
        ("--lr 1e999", "^--lr must be a finite number, but is inf"),
        ("--lr=", "^--lr must be a number, but is empty"),
        ("--update-freq=", "^--update-freq must be a number, but is empty"),
        ("--disable-validation --patience 1", "^--patience needs the scores of validations: drop"),
        ("--dataset-impl fasta", "^--dataset-impl fasta is for sequences of proteins: drop it"),
    ],
)
def test_what_is_no_value_is_refused(given: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parsed(given)


def test_infinity_may_mean_no_limit_and_forbid_unknown_words() -> None:
    assert parsed("--stop-time-hours inf --clip-norm inf --stop-min-lr=-inf").clip_norm == math.inf
    words = ["data", "--path", "x", "--unkpen", "inf"]
    found = options.parse_args_and_arch(options.get_generation_parser(), words)
    assert found.unkpen == math.inf


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("--bpe sentencepiece", "^--bpe sentencepiece does nothing in fairseq-preprocess: split"),
        ("--tokenizer moses", "^--tokenizer moses does nothing in fairseq-preprocess"),
        ("--workers 0", "^--workers must be at least 1, but is 0"),
    ],
)
def test_what_preprocessing_ignores_is_refused(given: str, message: str) -> None:
    plain, found = (
        options.get_preprocessing_parser().parse_args(words) for words in ([], given.split())
    )
    option_checks.check_preprocessing("en", None, plain)
    option_checks.check_preprocessing([], args=plain, src=True)
    for call in (("en", None, found), ([],)):
        with pytest.raises(UserError, match=message):
            option_checks.check_preprocessing(*call, **({} if call[1:] else {"args": found}))


def test_a_seed_leaves_room_for_the_numbers_that_are_added_to_it() -> None:
    assert parsed(f"--seed {2**31 - 1}").seed == 2**31 - 1
    for seed in (202611271200, 2**32 - 1):
        with pytest.raises(UserError, match=f"^--seed must be at most 2147483647, but is {seed}"):
            parsed(f"--seed {seed}")


def test_commands_that_translate_refuse_it_too() -> None:
    for parser in (options.get_generation_parser(), options.get_validation_parser(),
                   options.get_interactive_generation_parser()):  # fmt: skip
        words = ["data", "--path", "x", "--log-interval", "0"]
        with pytest.raises(UserError, match=r"^--log-interval must be at least 1, but is 0"):
            options.parse_args_and_arch(parser, words)


@pytest.mark.parametrize(
    ("section", "name", "value", "message"),
    [
        ("checkpoint", "save_interval", 0, "^--save-interval must be at least 1, but is 0"),
        ("optimization", "update_freq", [2, 0], "^--update-freq must be at least 1, but is 0"),
        ("lr_scheduler", "warmup_updates", 0, "^--warmup-updates must be at least 1, but is 0"),
        ("checkpoint", "best_checkpoint_metric", "bleu", "^--best-checkpoint-metric bleu is better "
         "if it is larger: give --maximize-best-checkpoint-metric"),
        ("criterion", "_name", "nat_loss", "^--criterion nat_loss is for models of another kind"),
        ("optimizer", "_name", "adamm", r"^optimizer._name=adamm is unknown \(did you mean"),
        ("model", "encoder_layer", 3, "^model.encoder_layer is no option of resmlp_mt_tiny "
         r"\(did you mean encoder_layers"),
        ("model", "encoder_layers", "x", "^model.encoder_layers=x: Value 'x' of type 'str' could "),
    ],
)  # fmt: skip
def test_options_of_a_configuration_are_checked_too(
    section: str, name: str, value: Any, message: str
) -> None:
    given = convert_namespace_to_omegaconf(parsed("--lr-scheduler inverse_sqrt --optimizer adam"))
    cfg = OmegaConf.create(OmegaConf.to_container(given))  # as hydra has it
    cfg[section][name] = value
    with pytest.raises(UserError, match=message):
        Trainer(cfg, None, None, None)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("polynomial_decay", "--total-num-update must be at least 1, but is 0"),
        ("polynomial_decay --max-update 9", None),
        ("cosine --max-update 9 --warmup-updates 9", "--lr-scheduler cosine divides by --max-up"),
        ("cosine --max-update 9 --warmup-updates 8", None),
        ("cosine --max-update 9 --warmup-updates 9 --lr-period-updates 5", None),
        ("triangular --max-lr 1 --lr-period-updates 1", "--lr-period-updates must be at least 2"),
        ("tri_stage --phase-ratio (0.1,0.4,0.5) --max-update 10", None),
        ("tri_stage --decay-steps 0", "--decay-steps must be at least 1, but is 0"),
        ("step --lr-deacy-period 0", "--lr-deacy-period must be at least 1, but is 0"),
    ],
)
def test_schedules_do_not_divide_by_zero(given: str, message: str | None) -> None:
    with pytest.raises(UserError, match=message) if message else nullcontext():
        cfg = convert_namespace_to_omegaconf(parsed(f"--optimizer adam --lr-scheduler {given}"))
        option_checks.check_sections(cfg)


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize(
    ("metric", "rises"), [("bleu", True), ("accuracy", True), ("loss", False), ("ppl", False)]
)
def test_the_best_checkpoint_is_not_the_worst(metric: str, rises: bool, maximize: bool) -> None:
    flag = "--maximize-best-checkpoint-metric"
    given = f"--best-checkpoint-metric {metric} {flag if maximize else ''}"
    message = f"larger: give {flag}" if rises else f"smaller: drop {flag}"
    with pytest.raises(UserError, match=message) if rises != maximize else nullcontext():
        parsed(given)
    parsed(given.replace(metric, "my_metric"))


@pytest.mark.parametrize("decay", [-0.1, 1, 1.5])
def test_averages_do_not_move_away(decay: float) -> None:
    parsed("--store-ema --ema-decay 0")
    with pytest.raises(UserError, match=rf"^--ema-decay must be .* below 1, but is {decay}"):
        parsed(f"--store-ema --ema-decay {decay}")


def test_what_needs_another_model_is_refused_for_a_resmlp() -> None:
    with pytest.raises(UserError, match=r"^--use-plasma-view needs a part of pyarrow"):
        parsed("--use-plasma-view", arch="transformer_tiny")
    quantized = "--quantization-config-path x"
    parsed(quantized, arch="transformer_tiny")
    with pytest.raises(UserError, match=r"^--quantization-config-path trains a ResMLP that noth"):
        parsed(quantized)
    with pytest.raises(UserError, match=r"^--optimizer composite needs groups"):
        parsed("--optimizer composite", arch="transformer_tiny")
    with pytest.raises(UserError, match=r"^--sentencepiece-enable-sampling does nothing in a tr"):
        parsed("--bpe sentencepiece --sentencepiece-model x --sentencepiece-enable-sampling")
    with pytest.raises(UserError, match=r"^--keep-interval-updates-pattern 0 names no update"):
        parsed("--keep-interval-updates-pattern 0")
    parsed("--keep-interval-updates-pattern -1")


@pytest.mark.parametrize("name", sorted(of_other_models("criterion").values()))
def test_criterions_of_other_models_are_refused(name: str) -> None:
    told = f"^--criterion {name} is for models of another kind than a ResMLP: use --criterion label"
    for option in ("criterion", "underlying_criterion"):
        option_checks.check({"arch": "transformer_tiny", option: name})
        with pytest.raises(UserError, match=told):
            option_checks.check({"arch": "resmlp_mt_tiny", option: name})
    of_a_user = type("CriterionOfAUser", (CRITERION_REGISTRY[name],), {})
    check_choice("criterion", of_a_user)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("--gen-subset valid", "^--gen-subset has no effect in fairseq-train: drop it"),
        ("--lr-scheduler manual", "^--lr-scheduler manual needs --epoch2lr or --update2lr"),
        (
            "--pipeline-model-parallel",
            "^--pipeline-model-parallel is for pipeline_parallel_transformer alone",
        ),
        ("--suppress-crashes", "^--suppress-crashes is for fairseq-hydra-train: drop it"),
        ("--load-alignments", "^--load-alignments changes nothing without --criterion label"),
        (
            "--criterion label_smoothed_cross_entropy_with_alignment",
            "^--criterion label_smoothed_cross_entropy_with_alignment changes nothing without --lo",
        ),
    ],
)
def test_what_changes_nothing_is_refused_for_a_resmlp(given: str, message: str) -> None:
    parsed(given, arch="transformer_tiny")
    with pytest.raises(UserError, match=message):
        parsed(given)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--left-pad-source False", "False; --left-pad-source takes no value, and means False"),
        ("--share-all-embeddings True --fp16", "True; --share-all-embeddings takes no value, and"),
        ("--max-source-positons 3", "--max-source-positons 3 (did you mean --max-source-positions"),
        ("--nothing-of-the-kind", "--nothing-of-the-kind\n"),
    ],
)
def test_words_that_fairseq_does_not_know(
    words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parsed(words)
    assert f"error: unrecognized arguments: {message}" in capsys.readouterr().err


@pytest.mark.parametrize("suppress", [False, True])
def test_a_parser_keeps_an_error_of_its_own(suppress: bool) -> None:
    parser = options.get_training_parser()
    with mock.patch.object(parser, "error", side_effect=SystemExit) as own:
        with pytest.raises(SystemExit):
            options.parse_args_and_arch(
                parser,
                ["data", "--arch", "resmlp_mt_tiny", "--left-pad-source", "False"],
                suppress_defaults=suppress,
            )
        message = "--left-pad-source takes no value, and means False"
        own.assert_called_once_with(f"unrecognized arguments: False; {message}")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("common.fp16_init_scale=4", "^--fp16-init-scale changes nothing without --fp16"),
        ("common.fp16_init_scale=4 common.fp16=false", None),  # as in the first run of a sweep
        ("ema.ema_decay=0.5", "^--ema-decay changes nothing without --store-ema"),
        ("ema.ema_decay=0.5 ema.store_ema=true", None),
        ("task.eval_bleu_print_samples=true", "^--eval-bleu-print-samples changes nothing"),
        ("generation.lenpen=0.6", None),  # the hub takes it from the checkpoint
        ("common_eval.path=x", "^common_eval.path has no effect in a training: drop it"),
        ("optimization.max_update=3", None),
    ],
)
def test_a_job_of_hydra_has_nothing_that_changes_nothing(
    words: str, message: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = convert_namespace_to_omegaconf(parsed("--optimizer adam"))
    cfg = OmegaConf.create(OmegaConf.to_container(given, enum_to_str=True))
    cfg.scoring, cfg.job_logging_cfg = None, {}
    cfg = OmegaConf.merge(cfg, OmegaConf.from_dotlist(words.split()))
    option_checks._check_call(cfg, train.main)  # of fairseq-train, whose words were checked
    job = OmegaConf.create({"overrides": {"task": words.split()}})
    monkeypatch.setattr(HydraConfig, "initialized", lambda: True)
    monkeypatch.setattr(HydraConfig, "get", lambda: job)
    with pytest.raises(UserError, match=message) if message else nullcontext():
        option_checks._check_call(cfg, train.main)


@pytest.mark.parametrize(
    ("recipe", "changes", "message"),
    [
        ("", "task: {data: data}", None),
        ("common: {fp16_init_scale: 4}", "", "^--fp16-init-scale changes nothing"),
        ("", "common: {fp16_init_scale: 4}", "^--fp16-init-scale changes nothing"),
        ("", "common_eval: {path: x}", "^common_eval.path has no effect in a training"),
        ("", "defaults: [more, common: of_it]", "^--fp16-init-scale changes nothing"),
    ],
)
def test_a_recipe_may_turn_off_what_one_of_ours_has_on(
    recipe: str,
    changes: str,
    message: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The values that belonged to it stay, as those of the other file."""
    given = convert_namespace_to_omegaconf(parsed("--optimizer adam"))
    cfg = OmegaConf.create(OmegaConf.to_container(given, enum_to_str=True))
    cfg.scoring, cfg.job_logging_cfg, cfg.dataset.disable_validation = None, {}, True
    cfg.common.fp16_init_scale, cfg.checkpoint.patience, cfg.common_eval.path = 4, 3, "x"
    cfg.task.load_alignments = True
    (tmp_path / "mine.yaml").write_text(f"defaults: [_self_, ours, changes]\n{recipe}")
    (tmp_path / "changes.yaml").write_text(changes)
    for name in ("folder", "common"):
        (tmp_path / name).mkdir()
    (tmp_path / "folder/ours.yaml").write_text("common_eval: {path: x}")
    (tmp_path / "common/of_it.yaml").write_text("fp16_init_scale: 4")
    monkeypatch.setattr(hydra_jobs, "FOLDER", tmp_path / "folder")
    places = (tmp_path, tmp_path / "folder")
    job = {
        "overrides": {"task": ["task.data=data"]},
        "job": {"config_name": "mine"},
        "runtime": {"config_sources": [{"path": str(p), "schema": "file"} for p in places]},
    }
    monkeypatch.setattr(HydraConfig, "initialized", lambda: True)
    monkeypatch.setattr(HydraConfig, "get", lambda: OmegaConf.create(job))
    with pytest.raises(UserError, match=message) if message else nullcontext():
        option_checks._check_call(cfg, train.main)


def test_what_changes_something_is_not_refused() -> None:
    parsed("--lr-scheduler manual --epoch2lr {'1':0.1}")
    parsed("--load-alignments --criterion label_smoothed_cross_entropy_with_alignment")
    parsed("--fp16 --fp16-init-scale 4")
    parsed("--memory-efficient-fp16 --threshold-loss-scale 1")
    parsed("--fp16-init-scale 4", arch="transformer_tiny")


@pytest.mark.parametrize(
    ("command", "given", "message"),
    [
        ("generation", "--valid-subset valid", "generate: give --gen-subset, or drop it"),
        ("generation", "--batch-size-valid 3", "generate: give --batch-size, or drop it"),
        ("generation", "--bf16", "generate: give --fp16, or drop it"),
        ("generation", "--memory-efficient-bf16", "generate: give --fp16, or drop it"),
        ("generation", "--iter-decode-max-iter=2", "generate: drop it"),
        ("generation", "--eos-token w3", "generate: drop it"),
        ("generation", "--eval-bleu-args {}", None),
        ("generation", "--eval-bleu-print-samples", "generate: drop it"),
        ("generation", "--model-parallel-size 1 --lr-scheduler fixed --no-early-stop", None),
        ("generation", "--max-tokens 9 --memory-efficient-fp16 --num-workers 0", None),
        ("interactive_generation", "--amp", "interactive: give --fp16, or drop it"),
        ("interactive_generation", "--valid-subset test", "interactive: drop it"),
        ("interactive_generation", "--buffer-size 3", None),
        ("validation", "--gen-subset x", "validate: give --valid-subset, or drop it"),
        ("validation", "--max-sentences-valid 3", "validate: give --batch-size, or drop it"),
        ("validation", "--criterion label_smoothed_cross_entropy --report-accuracy", None),
        ("validation", "--valid-subset test --fp16 --eval-bleu", None),
    ],
)
def test_what_a_command_never_reads_is_refused_for_a_resmlp(
    command: str, given: str, message: str | None
) -> None:
    for suppress in (False, True)[: 1 + (command == "validation")]:
        parser = getattr(options, f"get_{command}_parser")()
        words = ["data", "--path", "x", *given.split()]
        options.parse_args_and_arch(parser, words, suppress_defaults=suppress)
    ignored_options.check_checkpoint({"cfg": {"model": {"_name": "transformer_tiny"}}})
    name = given.replace("=", " ").split()[0].replace("max-sentences", "batch-size")
    told = f"^{name} has no effect in fairseq-{message}"
    with pytest.raises(UserError, match=told) if message else nullcontext():
        ignored_options.check_checkpoint({"cfg": {"model": {"_name": "resmlp_mt_tiny"}}})


def test_a_model_that_translates_is_no_language_model() -> None:
    options.parse_args_and_arch(options.get_eval_lm_parser(), ["data", "--path", "x"])
    ignored_options.check_checkpoint({"cfg": {"model": {"_name": "transformer_lm"}}})
    with pytest.raises(UserError, match=r"^fairseq-eval-lm is for language models, but this one t"):
        ignored_options.check_checkpoint({"cfg": {"model": {"_name": "resmlp_mt_tiny"}}})


def test_bfloat16_trains_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """fairseq would look for a TPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for option in ("--bf16", "--memory-efficient-bf16"):
        given = parsed(f"{option} --optimizer adam")
        assert given.bf16
        assert not given.tpu
        option_checks.check_sections(convert_namespace_to_omegaconf(given))
    monkeypatch.setattr(option_checks, "find_spec", lambda _: True)
    assert parsed("--bf16").tpu


@pytest.mark.parametrize("is_there", [False, True])
def test_what_needs_another_machine_is_refused(
    monkeypatch: pytest.MonkeyPatch, is_there: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: is_there)
    monkeypatch.setattr(option_checks, "find_spec", lambda _: is_there or None)
    with nullcontext() if is_there else pytest.raises(UserError, match=r"^--profile needs a GPU"):
        parsed("--profile")
    cfg = convert_namespace_to_omegaconf(parsed("--tpu --optimizer adam"))
    with nullcontext() if is_there else pytest.raises(UserError, match=r"^--tpu needs a TPU"):
        option_checks.check_sections(cfg)


@pytest.mark.parametrize(
    ("needed", "name"),
    [
        (needed, name)
        for needed, names in (ignored_options.NEEDED | ignored_options.NEEDED_FOR_RESMLP).items()
        for name in names
    ],
)
def test_what_changes_nothing_without_another_option_is_refused(needed: str, name: str) -> None:
    """Such as --lm-path, whose --lm-weight is 0 by default."""
    make, words = options.get_training_parser, ["data", "--arch", "resmlp_mt_tiny"]
    if hasattr(GenerationConfig, name):
        make, words = options.get_generation_parser, ["data", "--path", "x"]
    known = make()
    options.parse_args_and_arch(known, words)  # adds the options of the task

    def given(name: str) -> list[str]:
        has_value = known._option_string_actions[flag(name)].nargs != 0
        usual = "0.7" if name == "ema_decay" else "7"
        value = evaluated_options.JSON.get(name) or evaluated_options.CHOICES.get(name, [usual])[0]
        return [flag(name), value] if has_value else [flag(name)]

    more = given("save_interval_updates") if "interval" in name else []
    options.parse_args_and_arch(make(), [*words, *given(name), *given(needed), *more])
    message = (
        rf"^{flag(name)} changes nothing without {flag(needed)}: add it, or drop {flag(name)}\.$"
    )
    with pytest.raises(UserError, match=message):
        options.parse_args_and_arch(make(), [*words, *given(name)])


@pytest.mark.parametrize("word", [["--lm-weight", "0"], ["--lm-weight=0"]])
def test_an_option_with_its_default_is_given_too(word: list[str]) -> None:
    """As in the first run of a sweep."""
    words = ["data", "--path", "x", "--lm-path", "lm.pt", *word]
    assert options.parse_args_and_arch(options.get_generation_parser(), words).lm_weight == 0


def test_a_validation_has_the_bleu_of_the_checkpoint() -> None:
    """fairseq-validate changes the task of the training by the options that are given."""
    words = ["data", "--path", "x", "--eval-bleu-remove-bpe", "sentencepiece"]
    for suppress in (False, True):
        found = options.parse_args_and_arch(
            options.get_validation_parser(), words, suppress_defaults=suppress
        )
        assert found.eval_bleu_remove_bpe == "sentencepiece"
