"""Options that fairseq evaluates as Python: what they hold is checked when they are read.

A shell takes their quotes and spaces away, and fairseq evaluates them late, some of them after a
model has been loaded.
"""

import ast
import functools
import json
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from fairseq.dataclass.configs import GenerationConfig
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from resmlp_mt.command_line import did_you_mean, flag
from resmlp_mt.errors import UserError

DICTIONARIES = {
    "model_overrides": "{'max_source_positions': 256}",
    "optimizer_overrides": "{'weight_decay': 0.01}",
    "epoch2lr": "{'1-3': 0.001}",
    "update2lr": "{'1-1000': 0.001}",
}
"""Options that are dictionaries with texts for keys, each with an example."""

PAIRS = {
    "adam_betas": ("(0.9, 0.98)", 1.0),
    "adamax_betas": ("(0.9, 0.98)", 1.0),
    "lamb_betas": ("(0.9, 0.98)", 1.0),
    "adafactor_eps": ("(1e-30, 1e-3)", math.inf),
}
"""Options that are two numbers of 0 or more, each with an example and what they are below."""

JSON = {"eval_bleu_args": '{"beam": 4}', "eval_bleu_detok_args": '{"target_lang": "de"}'}
"""Options that are dictionaries of JSON, each with an example."""

JOINERS = ("sentencepiece", "subword_nmt", "wordpiece", "letter", "silence", "_EOW", "none")

CHOICES = {
    "eval_bleu_detok": ("moses", "nltk", "space"),
    "eval_bleu_remove_bpe": JOINERS,
    "post_process": JOINERS,
}
"""Options that fairseq looks up late."""

SWITCHES = ("left_pad_source", "left_pad_target")
"""Options that are True or False."""


def check(values: Mapping[str, Any]) -> None:
    """Refuse what is not what fairseq expects.

    Args:
        values: options by their names, as text or as ``fairseq-hydra-train`` has read them; options
            that a command does not have are missing or None.

    Raises:
        UserError: naming the option, with an example.
    """
    for name, example in DICTIONARIES.items():
        what = "a dictionary of Python, its texts in quotes"
        _check(name, values, what, example, _is_dictionary)
    for name, (example, most) in PAIRS.items():
        what = "two numbers from 0" + (f" below {most:g}" if most < math.inf else "")
        _check(name, values, what, example, functools.partial(_is_pair, most=most))
    for name in SWITCHES:
        _check(name, values, "True or False", "True", lambda found: isinstance(found, bool | int))
    for name, example in JSON.items():
        _check(name, values, "a dictionary of JSON", example, _is_dictionary, json.loads)
    check_search("--eval-bleu-args", json.loads(values.get("eval_bleu_args") or "{}"))
    for name, choices in CHOICES.items():
        given = values.get(name)
        if given is not None and given not in (*choices, "@@ ", "@@"):  # of subword-nmt
            option = "--remove-bpe" if name == "post_process" else flag(name)
            raise UserError(f"{option} {given} is unknown: give {', '.join(choices)}.")


def _check(
    name: str,
    values: Mapping[str, Any],
    what: str,
    example: str,
    fits: Callable[[Any], bool],
    read: Callable[[str], Any] = ast.literal_eval,
) -> None:
    """Refuse a value, as text or already read, that is not what it must be."""
    found = given = values.get(name)
    if isinstance(given, str):
        with suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            found = read(given)  # else it is not Python
    if found is not None and not fits(found):
        option, quote = flag(name), '"' if "'" in example else "'"
        raise UserError(f"{option} {given} must be {what}: give {option} {quote}{example}{quote}.")


def check_search(place: str, given: Mapping[str, Any]) -> None:
    """Refuse unknown options of the search, which fairseq ignores, and values of other types.

    Args:
        place: where they were given.
        given: values by name.

    Raises:
        UserError: naming the place and the option.
    """
    known = OmegaConf.structured(GenerationConfig)
    for name, value in given.items():
        try:
            known[name] = value
        except OmegaConfBaseException as error:
            close = did_you_mean(name, map(str, known)) if name not in known else ""
            raise UserError(f"{place}: {str(error).splitlines()[0]}{close}.") from error
        if known[name] != value:  # as "4" is not 4
            raise UserError(f"{place}: {name} is {value!r}, not {known[name]!r}.")


def _is_dictionary(found: Any) -> bool:
    return isinstance(found, Mapping) and all(isinstance(key, str) for key in found)


def _is_pair(found: Any, most: float) -> bool:
    return (
        isinstance(found, list | tuple)
        and len(found) == 2
        and all(type(number) in (int, float) and 0 <= number < most for number in found)
    )
