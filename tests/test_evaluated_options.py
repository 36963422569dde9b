"""Options that fairseq evaluates as Python are checked before anything is loaded."""

from contextlib import nullcontext
from typing import Any

import pytest
from fairseq import options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.distributed import utils as distributed_utils
from fairseq_cli import train

from resmlp_mt.errors import UserError
from resmlp_mt.fairseq_plugin import evaluated_options
from resmlp_mt.models import resmlp_mt  # noqa: F401  applies the remedies


def parsed(*given: str) -> Any:
    """What fairseq-train makes of its words."""
    words = ["data", "--arch", "resmlp_mt_tiny", *given]
    return options.parse_args_and_arch(options.get_training_parser(), words)


@pytest.mark.parametrize("name", evaluated_options.DICTIONARIES)
def test_dictionaries_have_texts_for_keys(name: str) -> None:
    example = evaluated_options.DICTIONARIES[name]
    for good in (example, "{}", {"a": 1}, None):
        evaluated_options.check({name: good})
    option = "--" + name.replace("_", "-")
    for wrong in ("{max_source_positions:256}", "{lr:0.1}", "0.1", "{1: 2}", "{", "", [1]):
        with pytest.raises(UserError) as error:
            evaluated_options.check({name: wrong})
        assert str(error.value).startswith(f"{option} {wrong} must be a dictionary of Python, its ")
        assert str(error.value).endswith(f': give {option} "{example}".')


@pytest.mark.parametrize("name", evaluated_options.PAIRS)
def test_betas_and_epsilons_are_two_numbers(name: str) -> None:
    example, _ = evaluated_options.PAIRS[name]
    for good in (example, "0.9, 0.98", [0, 0.5], (0.9, 0.999), None):
        evaluated_options.check({name: good})
    option = "--" + name.replace("_", "-")
    for wrong in ("0.9", "(0.9,)", "beta", "(a, b)", "(0.1, 0.2, 0.3)", "(-1, 0.9)", 0.9, [0.9]):
        with pytest.raises(UserError) as error:
            evaluated_options.check({name: wrong})
        assert str(error.value).startswith(f"{option} {wrong} must be two numbers from 0")
        assert str(error.value).endswith(f": give {option} '{example}'.")
    if name != "adafactor_eps":
        with pytest.raises(UserError, match="two numbers from 0 below 1: give"):
            evaluated_options.check({name: "(0.9, 1)"})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"eval_bleu_args": "[1]"}, r"^--eval-bleu-args \[1\] must be a dictionary of JSON: give"),
        ({"eval_bleu_args": "{beam:4}"}, r"^--eval-bleu-args {beam:4} must be a dictionary of JSO"),
        ({"eval_bleu_args": '{"beam_size": 4}'}, "^--eval-bleu-args: Key 'beam_size' not in 'Gene"),
        ({"eval_bleu_args": '{"beam": "4"}'}, "^--eval-bleu-args: beam is '4', not 4"),
        ({"eval_bleu_args": '{"beam": "x"}'}, "^--eval-bleu-args: Value 'x' of type 'str' could n"),
        ({"eval_bleu_args": '{"beam": 4, "lenpen": 1, "print_alignment": "hard"}'}, None),
        ({"eval_bleu_detok_args": "x"}, "^--eval-bleu-detok-args x must be a dictionary of JSON"),
        ({"eval_bleu_detok": "mosse"}, "^--eval-bleu-detok mosse is unknown: give moses, nltk, sp"),
        ({"eval_bleu_remove_bpe": "bpe"}, "^--eval-bleu-remove-bpe bpe is unknown: give sentencep"),
        ({"post_process": "bpe"}, "^--remove-bpe bpe is unknown: give sentencepiece, subword_nmt"),
        ({"post_process": "@@ ", "eval_bleu_detok": "space"}, None),
    ],
)
def test_what_fairseq_looks_up_late_is_checked(given: Any, message: str | None) -> None:
    with pytest.raises(UserError, match=message) if message else nullcontext():
        evaluated_options.check(given)


@pytest.mark.parametrize("name", evaluated_options.SWITCHES)
def test_switches_are_true_or_false(name: str) -> None:
    for good in ("True", "False", "0", True, None):
        evaluated_options.check({name: good})
    with pytest.raises(UserError, match=r"yes must be True or False: give --left-pad-.* 'True'"):
        evaluated_options.check({name: "yes"})


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (["--optimizer-overrides", "{lr:0.1}"], "--optimizer-overrides"),
        (["--optimizer", "adam", "--adam-betas", "0.9"], "--adam-betas"),
        (["--optimizer", "adamax", "--adamax-betas", "beta"], "--adamax-betas"),
        (["--optimizer", "adafactor", "--adafactor-eps", "1e-3"], "--adafactor-eps"),
        (["--optimizer", "lamb", "--lamb-betas", "(0.9,)"], "--lamb-betas"),
        (["--lr-scheduler", "manual", "--epoch2lr", "{1:0.1}"], "--epoch2lr"),
        (["--task", "translation_multi_simple_epoch", "--left-pad-source", "no"],
         "--left-pad-source"),
    ],
)  # fmt: skip
def test_a_command_line_is_checked(given: list[str], named: str) -> None:
    with pytest.raises(UserError, match=f"^{named} .* must be "):
        parsed(*given)


def test_commands_that_translate_and_validate_are_checked() -> None:
    for make in (options.get_generation_parser, options.get_interactive_generation_parser,
                 options.get_validation_parser):  # fmt: skip
        words = ["data", "--path", "x", "--model-overrides", "{max_source_positions:256}"]
        with pytest.raises(UserError, match=r"^--model-overrides {max_source_positions:256} must "):
            options.parse_args_and_arch(make(), words)


@pytest.mark.parametrize(
    ("section", "name", "value", "message"),
    [
        ("optimizer", "adam_betas", 0.9, "^--adam-betas 0.9 must be two numbers"),
        ("checkpoint", "optimizer_overrides", "{lr:1}", "^--optimizer-overrides {lr:1} must be a"),
        ("common", "seed", -1, "^--seed must be at least 0, but is -1"),
        ("common", "seed", 2**32 - 1, "^--seed must be at most 2147483647, but is 4294967295"),
    ],
)
def test_a_configuration_is_checked_before_its_training_begins(
    section: str, name: str, value: Any, message: str
) -> None:
    """That of fairseq-hydra-train has no command line of fairseq's."""
    cfg = convert_namespace_to_omegaconf(parsed("--optimizer", "adam"))
    cfg[section][name] = value
    with pytest.raises(UserError, match=message):
        distributed_utils.call_main(cfg, train.main)
