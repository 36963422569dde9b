"""Scores one set of translations of newstest2014 in every way, and writes a table for the docs.

    python -m benchmarks.newstest2014_scores --system "ResMLP 6+6, ..." \\
        --generate-output gen.txt --ref newstest2014.de -l en-de

Every other option is one of ``python -m resmlp_mt.score``.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from resmlp_mt.command_line import command
from resmlp_mt.files import write_text
from resmlp_mt.machine import processor, usable_cores

OUT = Path(__file__).with_suffix(".md")


@command
def main() -> None:
    """Run the score command and turn its JSON into a page."""
    parser = argparse.ArgumentParser(description="Write newstest2014_scores.md.")
    parser.add_argument("--system", required=True, help="what translated, for the heading")
    parser.add_argument("--out", type=Path, default=OUT, help="default: %(default)s")
    args, options = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "resmlp_mt.score", *options, "--json", str(report)]
        result = subprocess.run(command, check=False)
        if result.returncode != 0:
            sys.exit(result.returncode)
        page = markdown(args.system, json.loads(report.read_text(encoding="utf-8")))
    write_text(args.out, page)


def markdown(system: str, report: dict[str, Any]) -> str:
    """Lay out the report of ``python -m resmlp_mt.score --json``."""
    references = report["test_set"] or ", ".join(_file_name(r) for r in report["references"])
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    parts = [
        f"# One set of translations, scored in every way\n\n{system}\n",
        f"{report['sentences']} sentences of {_file_name(report['system'])}, language pair "
        f"{report['language_pair']}, against {references}. Subword removal: "
        f"{report['remove_bpe']}; detokenization: {report['detokenize'] or 'none'}.\n",
        _table(
            ["metric", "score", "signature"],
            [[s["name"], f"{s['score']:.2f}", f"`{s['signature']}`"] for s in report["scores"]],
        ),
    ]
    if report["by_source_length"]:
        rows = [
            [s["bucket"], str(s["sentences"]), f"{s['score']:.2f}", f"`{s['signature']}`"]
            for s in report["by_source_length"]
            if s["sentences"]
        ]
        parts += [
            "BLEU by source length, in tokens between white space:\n",
            _table(["source tokens", "sentences", "BLEU", "signature"], rows),
        ]
    if report["significance"]:
        columns = ["metric", "baseline", "system", "p", "signature"]
        rows = [
            [
                c["name"],
                f"{c['baseline']:.2f}",
                f"{c['score']:.2f}",
                f"{c['p_value']:.4f}",
                f"`{c['signature']}`",
            ]
            for c in report["significance"]
        ]
        tests = {"bs": "paired bootstrap", "ar": "paired approximate randomization"}
        test = f"{tests[report['test']]}, {report['samples']} samples"
        parts += [f"Against {_file_name(report['baseline'])} ({test}):\n", _table(columns, rows)]
    parts += [f"- {note}" for note in report["notes"]]
    parts.append(f"\nWritten by `benchmarks/newstest2014_scores.py` on {_machine()}; {versions}.")
    return "\n".join(parts) + "\n"


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    table: str = tabulate(
        [[cell.replace("|", "\\|") for cell in row] for row in rows],
        headers=headers,
        tablefmt="github",
        disable_numparse=True,
    )
    return table + "\n"


def _file_name(origin: str) -> str:
    """The name without the folders of the machine that the script ran on."""
    return origin.rpartition("/")[2]


def _machine() -> str:
    return f"{processor()}, {usable_cores()} cores, {platform.system()}"


if __name__ == "__main__":
    main()
