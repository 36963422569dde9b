"""The report of one run, as tables and as JSON."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tabulate import tabulate

from resmlp_mt.scoring.measures import Comparison, LengthScore, Score

TESTS = {"bs": "paired bootstrap resampling", "ar": "paired approximate randomization"}


@dataclass(frozen=True)
class Report:
    """Everything that was computed, with where it comes from.

    Attributes:
        remove_bpe, detokenize: what was done to the system's text before scoring.
        source: where the lengths come from, None without length buckets.
        test, samples: the significance test, None without a baseline.
        notes: sentences that a reader of the numbers has to know.
        versions: of Python and the libraries behind the numbers.
    """

    system: str
    test_set: str | None
    language_pair: str | None
    references: list[str]
    sentences: int
    remove_bpe: str
    detokenize: str | None
    forced: bool
    scores: list[Score]
    source: str | None
    by_source_length: list[LengthScore]
    baseline: str | None
    test: str | None
    samples: int | None
    significance: list[Comparison]
    notes: list[str]
    versions: dict[str, str]

    def text(self, width: int, quiet: bool) -> str:
        """Tables; ``width`` is the number of decimals, ``quiet`` leaves the tables alone."""
        parts = [] if quiet else [self._header()]
        parts.append(
            _table(
                ("metric", "score", "signature"),
                [(s.name, f"{s.score:.{width}f}", s.signature) for s in self.scores],
            )
        )
        if self.by_source_length:
            rows = [
                (
                    s.bucket,
                    str(s.sentences),
                    "-" if s.score is None else f"{s.score:.{width}f}",
                    s.signature or "-",
                )
                for s in self.by_source_length
            ]
            parts.append(_table(("source tokens", "sentences", "BLEU", "signature"), rows))
        if self.significance:
            parts.append(self._significance(width, quiet))
        if self.notes and not quiet:
            parts.append("\n".join(f"note: {note}" for note in self.notes))
        return "\n\n".join(parts)

    def _header(self) -> str:
        subwords = [] if self.remove_bpe == "none" else [f"subwords ({self.remove_bpe})"]
        tokens = [] if self.detokenize is None else [f"Moses tokenization ({self.detokenize})"]
        removed = " and ".join(subwords + tokens) or "nothing"
        return "\n".join(
            [
                f"system:      {self.system}",
                f"references:  {', '.join(self.references)}",
                f"sentences:   {self.sentences}",
                f"removed:     {removed}",
            ]
        )

    def _significance(self, width: int, quiet: bool) -> str:
        def estimate(score: float, mean: float | None, ci: float | None) -> str:
            more = "" if mean is None else f" ({mean:.{width}f} ± {ci:.{width}f})"
            return f"{score:.{width}f}{more}"

        rows = [
            (
                c.name,
                estimate(c.baseline, c.baseline_mean, c.baseline_ci),
                estimate(c.score, c.mean, c.ci),
                f"{c.p_value:.4f}" + ("*" if c.p_value < 0.05 else ""),
                c.signature,
            )
            for c in self.significance
        ]
        table = _table(("metric", "baseline", "system", "p", "signature"), rows)
        if quiet:
            return table
        assert self.test is not None
        return (
            f"{table}\n{TESTS[self.test]} against {self.baseline}, {self.samples} samples; "
            f"* p < 0.05: such a difference is unlikely between equal systems"
        )


def write_json(report: Report, path: Path) -> None:
    """Write the report in full precision; a file of that name is replaced in one step.

    Raises:
        OSError: if the folder does not take the file.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("x", encoding="utf-8") as file:
            json.dump(asdict(report), file, ensure_ascii=False, indent=2, allow_nan=False)
            file.write("\n")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    align = ["left" if name in ("metric", "signature") else "right" for name in headers]
    table: str = tabulate(rows, headers=headers, colalign=align, disable_numparse=True)
    return table
