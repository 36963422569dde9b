"""Damages files and draws lines by the thousand, and counts what was refused.

    python -m benchmarks.fuzz

runs the targets of tests/test_fuzz.py, and writes fuzz.json and fuzz.md beside this file after each
of them. The same command continues where it was stopped, and repeats targets that have had fewer
inputs (--inputs); --again begins anew. The inputs are the same in every run.
"""

import argparse
import datetime
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from tabulate import tabulate

from resmlp_mt.command_line import command
from resmlp_mt.files import write_text

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent


class Recorder:
    """A plugin of pytest that writes the result of each target, and skips those that are done.

    Args:
        inputs: of all targets together.
        rows: results of earlier runs.
    """

    def __init__(self, inputs: int, rows: dict[str, dict[str, Any]]) -> None:
        self.inputs, self.rows = inputs, rows

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if not self._is_done(self.rows.get(item.name))]

    def _is_done(self, row: dict[str, Any] | None) -> bool:
        return row is not None and row["passed"] and row["of"] >= self.inputs

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call":
            return
        self.rows[report.nodeid.partition("::")[2]] = {
            "passed": report.passed,
            "of": self.inputs,
            "seconds": round(report.duration),
            "date": datetime.date.today().isoformat(),
            **dict(report.user_properties),
        }
        write_text(HERE / "fuzz.json", json.dumps(self.rows, indent=1) + "\n")
        write_text(HERE / "fuzz.md", page(self.rows))


def page(rows: dict[str, dict[str, Any]]) -> str:
    """The report."""
    shown = [
        (
            _name(target),
            f"{row.get('inputs', 0):,}",
            f"{row['refused']:,}" if "refused" in row else "",
            "holds" if row["passed"] else "**fails**",
            row["seconds"],
            row["date"],
        )
        for target, row in rows.items()
    ]
    total = sum(row.get("inputs", 0) for row in rows.values())
    table = tabulate(
        shown,
        headers=("input", "inputs", "refused in a sentence", "result", "seconds", "date"),
        tablefmt="github",
        disable_numparse=True,
    )
    return f"""# Damaged files and random lines

Written by `python -m benchmarks.fuzz`; do not edit.

{total:,} inputs for {len(rows)} targets of `tests/test_fuzz.py`.
A damaged file is refused in one sentence that names it, or read as if it were whole; any other end
is a failure. Every line has a translation, and eight threads get what one gets.

{table}
"""


def _name(target: str) -> str:
    """A file by its name, other targets by what they test."""
    test, _, parameters = target.removeprefix("test_").rstrip("]").partition("[")
    return parameters.removeprefix("many").strip("-") or test.replace("_", " ")


@command
def main() -> None:
    parser = argparse.ArgumentParser(description="Damage files and draw lines by the thousand.")
    parser.add_argument("--inputs", type=int, default=100_000, metavar="N", help="of all targets")
    parser.add_argument("--again", action="store_true", help="begin anew")
    args = parser.parse_args()
    path = HERE / "fuzz.json"
    is_new = args.again or not path.exists()
    rows = {} if is_new else json.loads(path.read_text())
    os.environ["FUZZ_INPUTS"] = str(args.inputs)  # tests/fuzzing.py divides them
    options = ["-q", "-k", "many", "-p", "no:cacheprovider", "-p", "no:randomly", "--rootdir", ROOT]
    sys.exit(
        pytest.main(
            [*map(str, options), str(ROOT / "tests/test_fuzz.py")], [Recorder(args.inputs, rows)]
        )
    )


if __name__ == "__main__":
    main()
