"""Whether this version translates as an earlier one: hypotheses of the same checkpoint, compared.

    git worktree add BEFORE 43583f3
    python -m benchmarks.same_translations --before BEFORE --data PREPARED --work DIR

The earlier version trains on PREPARED, a folder of ``data_scripts/prepare.py`` with a test set.
Both translate the first sentences of the test set with ``fairseq-generate``, and with
``translate`` after an export of their own. Writes same_translations.json and same_translations.md
beside this file.
"""

import argparse
import datetime
import json
import re
import sys
from pathlib import Path
from typing import Any

import sacrebleu

from benchmarks.against import Version
from benchmarks.against_worker import model_options
from benchmarks.quality_report import versions
from benchmarks.quality_runs import HERE, ROOT
from resmlp_mt.command_line import command
from resmlp_mt.files import write_text
from resmlp_mt.machine import processor

BEAM = 4


def train(version: Version, data: Path, updates: int) -> Path:
    """A checkpoint of the paper's model, small, that a version trained."""
    folder = version.work.resolve() / f"checkpoints-{updates}"
    checkpoint = folder / "checkpoint_last.pt"
    if not checkpoint.exists():
        version.call(
            sys.executable, "-m", "fairseq_cli.train", data / "bin", "--user-dir", "resmlp_mt",
            "--cpu", *model_options("small"), "--layer-scale-init", 1.0,
            "--criterion", "label_smoothed_cross_entropy", "--label-smoothing", 0.1,
            "--optimizer", "adam", "--adam-betas", "(0.9,0.98)", "--clip-norm", 1.0,
            "--lr", "6e-3", "--lr-scheduler", "inverse_sqrt", "--warmup-updates", 300,
            "--max-tokens", 2000, "--max-update", updates, "--disable-validation",
            "--save-dir", folder,
        )  # fmt: skip
    return checkpoint


def generated(version: Version, checkpoint: Path, data: Path) -> list[tuple[str, float]]:
    """Hypotheses of ``fairseq-generate`` and their scores, in the order of the test set."""
    printed = version.call(
        sys.executable, "-m", "fairseq_cli.generate", data / "bin", "--user-dir", "resmlp_mt",
        "--cpu", "--path", checkpoint, "--beam", BEAM, "--remove-bpe", "sentencepiece",
    )  # fmt: skip
    found = re.findall(r"^H-(\d+)\t(\S+)\t(.*)$", printed, re.MULTILINE)
    return [(text, float(score)) for _, score, text in sorted(found, key=lambda h: int(h[0]))]


def translated(version: Version, checkpoint: Path, data: Path, text: Path) -> list[str]:
    """Translations of ``translate``, with a folder that this version exported."""
    model = version.exported(checkpoint, data, f"{checkpoint.parent.name}-exported")
    printed = version.call(
        sys.executable, "-m", "resmlp_mt.translate", model, "--beam", BEAM, "--input", text
    )
    return printed.splitlines()


def page(result: dict[str, Any]) -> str:
    """The report in Markdown."""
    count = result["sentences"]
    lines = ["| command | equal hypotheses | BLEU before | BLEU now |", "|-|-:|-:|-:|"]
    lines += [
        f"| {row['command']} | {row['equal']} of {count} | {row['before']:.2f} | {row['now']:.2f} |"
        for row in result["rows"]
    ]
    named = ", ".join(map(" ".join, result["versions"].items()))
    return "\n\n".join(
        [
            f"# The translations of this version beside those of {result['before']}",
            f"{result['machine']}; {named}; {result['date']}.\n"
            "Written by `benchmarks/same_translations.py`.",
            f"The first {count} sentences of {result['text']}, beam {BEAM}. One checkpoint of the "
            f"paper's model, which the earlier version trained for {result['updates']} updates. "
            f"The scores of `fairseq-generate` differ by at most {result['difference']:.1g}.",
            "\n".join(lines),
        ]
    )


@command
def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, required=True, help="tree of the earlier version")
    parser.add_argument("--data", type=Path, required=True, help="prepared corpus")
    parser.add_argument("--work", type=Path, required=True, help="folder for models")
    parser.add_argument("--updates", type=int, default=1500, help="of the training")
    parser.add_argument("--sentences", type=int, default=500)
    args = parser.parse_args()
    data, count = args.data.resolve(), args.sentences
    source, reference = sorted((data / "raw").glob("test.*"), key=lambda file: file.suffix != ".en")
    lines = source.read_text(encoding="utf-8").splitlines()[:count]
    references = reference.read_text(encoding="utf-8").splitlines()[:count]
    earlier = Version(args.before, data, args.work / "before")
    present = Version(ROOT, data, args.work / "now")
    text = args.work.resolve() / source.name
    write_text(text, "\n".join(lines) + "\n")
    checkpoint = train(earlier, data, args.updates)
    both = earlier, present
    scored = [generated(version, checkpoint, data)[:count] for version in both]
    found = {
        "`fairseq-generate`": [[hypothesis for hypothesis, _ in each] for each in scored],
        "`python -m resmlp_mt.translate`": [
            translated(version, checkpoint, data, text) for version in both
        ],
    }
    rows = []
    for name, (before, now) in found.items():
        bleu = [sacrebleu.corpus_bleu(each, [references]).score for each in (before, now)]
        equal = sum(a == b for a, b in zip(before, now, strict=True))
        rows.append({"command": name, "equal": equal, "before": bleu[0], "now": bleu[1]})
    result = {
        "machine": processor(),
        "versions": versions(),
        "date": datetime.date.today().isoformat(),
        "before": earlier.call("git", "log", "-1", "--format=%h of %as").strip(),
        "text": source.name,
        "sentences": len(lines),
        "updates": args.updates,
        "difference": max(abs(a - b) for (_, a), (_, b) in zip(*scored, strict=True)),
        "rows": rows,
    }
    write_text(HERE / "same_translations.json", json.dumps(result, indent=1) + "\n")
    write_text(HERE / "same_translations.md", page(result) + "\n")
    print(page(result))


if __name__ == "__main__":
    main()
