"""What README says of the recipe on Multi30k is what was measured."""

import json

from benchmarks.multi30k import HERE, finished_epochs, summary
from conftest import ROOT


def test_readme_says_of_which_updates_and_epoch_the_bleu_is() -> None:
    result = json.loads((HERE / "multi30k.json").read_text())
    told = summary(result)
    assert f"{told}\n<!-- end of multi30k -->" in (ROOT / "README.md").read_text(encoding="utf-8")
    for row, log in zip(
        (row for row in result["equal_time"] if row["model"] == "resmlp"),
        result["logs"]["resmlp"],
        strict=True,
    ):
        assert f"{row['updates']:,} updates, in epoch {finished_epochs(log) + 1}." in told
        assert f"of epoch {row['best_epoch']}, reached BLEU {row['bleu']:.2f}" in told
