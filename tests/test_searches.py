"""Searches that exclude each other, and sources and constraints that have no words."""

import inspect
import json
from argparse import Namespace
from itertools import combinations
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fairseq import token_generation_constraints
from fairseq.sequence_scorer import SequenceScorer
from fairseq.tasks import FairseqTask
from fairseq.token_generation_constraints import OrderedConstraintState, UnorderedConstraintState
from fairseq_cli import interactive
from torch import Tensor

from models import EOS, build, padded, sentences
from resmlp_mt.command_line import flag
from resmlp_mt.errors import UserError
from resmlp_mt.fairseq_plugin import fairseq_fixes, generation_fixes
from resmlp_mt.fairseq_plugin.wrapping import mend
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
    mend(generation_fixes)
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


# --- sources without words ---


def read(lines: list[str], constraints: str | None = None) -> tuple[list[Any], list[Any]]:
    """What fairseq-interactive makes of lines: its batches, and the hypotheses of each line."""
    task, model = translation_task(), build()
    cfg = SimpleNamespace(
        generation=SimpleNamespace(constraints=constraints),
        dataset=SimpleNamespace(
            max_tokens=None, batch_size=9, skip_invalid_size_inputs_valid_test=False
        ),
    )
    search = task.build_generator([model], Namespace(beam=4, constraints=constraints, max_len_b=8))
    batches = list(interactive.make_batches(lines, cfg, task, (12, 10), lambda line: line))
    found: dict[int, Any] = {}
    for batch in batches:
        net_input = {"src_tokens": batch.src_tokens, "src_lengths": batch.src_lengths}
        sample = {"net_input": net_input}
        hypotheses = task.inference_step(search, [model], sample, constraints=batch.constraints)
        found |= zip(batch.ids.tolist(), hypotheses, strict=True)
    return batches, [found[number] for number in sorted(found)]


@pytest.mark.parametrize("constraints", [None, "ordered", "unordered"])
def test_lines_without_words_are_left_empty(constraints: str | None) -> None:
    fairseq_fixes.apply()
    end = "\tw9\t\tw5\t" if constraints else ""
    lines = [f"w1 w2 w3{end}", "", f" \u3000{end}", "w4"]
    batches, found = read(lines, constraints)
    assert sum(len(batch.ids) for batch in batches) == 4
    best = [hypotheses[0]["tokens"].tolist() for hypotheses in found]
    assert best[1] == best[2] == [EOS]
    assert [hypotheses[0]["score"].item() for hypotheses in found[1:3]] == [0.0, 0.0]
    words = translation_task().target_dictionary
    if constraints:
        assert {words.index("w5"), words.index("w9")} <= set(best[0])
    _, alone = read([f"w1 w2 w3{end}", "w4"], constraints)
    assert [best[0], best[3]] == [hypotheses[0]["tokens"].tolist() for hypotheses in alone]


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize(
    "options",
    [{}, {"sampling": True}, {"match_source_len": True}, {"diverse_beam_groups": 2}],
    ids=str,
)
def test_sources_without_words_are_left_empty(left: bool, options: dict[str, Any]) -> None:
    """Those of binarised text too: stock fairseq invents a translation."""
    fairseq_fixes.apply()
    task, model, empty = translation_task(), build(), torch.tensor([EOS])
    search = task.build_generator([model], Namespace(**{"beam": 4, "max_len_b": 8} | options))

    def translated(rows: list[Tensor], step: Any = FairseqTask.inference_step) -> list[Any]:
        source = padded(rows, left=left)
        net_input = {"src_tokens": source, "src_lengths": source.ne(1).sum(1)}
        torch.manual_seed(0)
        found: list[Any] = step(task, search, [model], {"net_input": net_input})
        return [[h["tokens"].tolist() for h in hypotheses] for hypotheses in found]

    first, second = sentences([5, 3])
    one, none, other = translated([first, empty, second])
    assert none == [[EOS]]
    assert [one, other] == translated([first, second])
    assert translated([empty, empty]) == [[[EOS]], [[EOS]]]
    stock = translated([first, empty, second], inspect.unwrap(FairseqTask.inference_step))
    assert all(len(tokens) > 1 for tokens in stock[1])


def test_given_translations_of_sources_without_words_have_scores() -> None:
    fairseq_fixes.apply()
    task, model = translation_task(), build()
    target = padded(sentences([4, 3]))
    source = padded([torch.tensor([EOS]), *sentences([3])])
    net_input = {"src_tokens": source, "src_lengths": source.ne(1).sum(1)}
    net_input["prev_output_tokens"] = target.roll(1, 1)
    sample = {"net_input": net_input, "target": target, "id": torch.arange(2)}
    found = task.inference_step(SequenceScorer(task.target_dictionary), [model], sample)
    assert [len(hypotheses[0]["positional_scores"]) for hypotheses in found] == [4, 3]
    assert all(hypotheses[0]["score"] < 0 for hypotheses in found)
