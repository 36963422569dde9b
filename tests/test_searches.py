"""Searches that exclude each other, and constraints that have no words."""

import inspect
import json
from argparse import Namespace
from itertools import combinations
from typing import Any

import pytest
import torch
from fairseq import token_generation_constraints
from fairseq.sequence_scorer import SequenceScorer
from fairseq.tasks import FairseqTask
from fairseq.token_generation_constraints import OrderedConstraintState, UnorderedConstraintState
from fairseq_cli import interactive
from torch import Tensor

from models import build
from resmlp_mt.command_line import flag
from resmlp_mt.errors import UserError
from resmlp_mt.fairseq_plugin import generation_fixes
from test_generation_fixes import translation_task

SEARCHES: dict[str, Any] = {
    "sampling": True,
    "diverse_beam_groups": 2,
    "match_source_len": True,
    "diversity_rate": 0.5,
    "constraints": "ordered",
}


def generator(**options: Any) -> Any:
    """What the options build, with a beam of 4 unless they say otherwise."""
    return translation_task().build_generator([build()], Namespace(**{"beam": 4} | options))


# --- options that do not fit one another ---


@pytest.mark.parametrize(("one", "other"), combinations(SEARCHES, 2))
def test_there_is_one_search(one: str, other: str) -> None:
    """fairseq ends in a ValueError, or with constraints in a NotImplementedError later."""
    given = {name: SEARCHES[name] for name in (one, other)}
    for name, value in given.items():
        assert generator(**{name: value})
    message = f"^{flag(one)} and {flag(other)} are different searches: give one of them"
    with pytest.raises(UserError, match=message):
        generator(**given)


def test_a_rate_of_0_is_a_search_beside_constraints_alone() -> None:
    assert generator(sampling=True, diversity_rate=0.0)
    with pytest.raises(UserError, match=r"^--diversity-rate and --constraints are different"):
        generator(constraints="ordered", diversity_rate=0.0)


def test_the_searches_of_a_validation_exclude_each_other_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(FairseqTask, "build_model", lambda *_: build())
    task = translation_task()
    task.cfg.eval_bleu, task.cfg.eval_bleu_args = True, json.dumps({"beam": 4} | SEARCHES)
    with pytest.raises(
        UserError, match=r"^--sampling and --diverse-beam-groups and --match-source-len and .* diff"
    ):
        task.build_model(None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam": 3, "nbest": 4}, "--nbest 4 is above --beam 3: raise --beam"),
        ({"nbest": 5}, "--nbest 5 is above --beam 4"),
        ({"diverse_beam_groups": 3}, "--diverse-beam-groups 3 must divide --beam, but it is 4"),
    ],
)
def test_numbers_fit_the_beam(options: dict[str, Any], message: str) -> None:
    """fairseq gives fewer hypotheses than --nbest; groups that do not fit end in a ValueError."""
    with pytest.raises(UserError, match=f"^{message}"):
        generator(**options)


def test_translations_that_are_given_need_no_search() -> None:
    assert isinstance(generator(score_reference=True, nbest=9, **SEARCHES), SequenceScorer)


# --- constraints without words ---


def packed(rows: list[list[list[int]]], pack: Any) -> Tensor:
    found: Tensor = pack([[torch.tensor(words, dtype=torch.long) for words in row] for row in rows])
    return found


@pytest.mark.parametrize("state", [OrderedConstraintState, UnorderedConstraintState])
def test_constraints_without_words_are_left_out(state: Any) -> None:
    generation_fixes.apply()
    rows = [[[5], []], [[], [6, 7]], [[]], [], [[8], [], [9, 4]]]
    expected = [[[5]], [[6, 7]], [], [], [[8], [9, 4]]]
    for module in (token_generation_constraints, interactive):
        assert packed(rows, module.pack_constraints).tolist() == (
            packed(expected, module.pack_constraints).tolist()
        )
    stock = inspect.unwrap(interactive.pack_constraints)
    wrong, right = packed(rows, stock), packed(expected, stock)
    if state is UnorderedConstraintState:
        with pytest.raises(AssertionError):
            state.create(wrong[0])
    else:  # the end of a phrase is said to be inside the next
        ends = [state.create(packs[4]).sequence.endpoints for packs in (wrong, right)]
        assert ends == [[True, True, False, True], [True, False, True]]
