"""The report of one run, as tables."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from resmlp_mt.scoring.measures import Comparison, LengthScore, Score

COLUMNS = 100
TESTS = {"bs": "paired bootstrap resampling", "ar": "paired approximate randomization"}


@dataclass(frozen=True)
class Report:
    """All results and their origin.

    Attributes:
        remove_bpe, detokenize: cleaning of the system's text before scoring.
        source: origin of the source lengths, None without length buckets.
        test, samples: the significance test, None without a baseline.
        notes: sentences that a reader of the numbers needs to know.
        versions: versions of Python and of the libraries that computed the numbers.
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
        parts += [self._scores(width), _signatures(self.scores)]
        if self.by_source_length:
            rows = [
                (s.bucket, str(s.sentences), f"{s.score:.{width}f}") for s in self.by_source_length
            ]
            parts.append(_table(("source tokens", "sentences", "BLEU"), rows))
            first = self.by_source_length[0]
            every = first.signature.replace(f"tokens_{first.bucket}", "tokens_N")
            parts.append(_wrapped(f"BLEU|{every}"))
        if self.significance:
            parts += [self._significance(width, quiet), _signatures(self.significance)]
        if self.notes and not quiet:
            parts.append("\n".join(_filled(f"note: {note}", "      ") for note in self.notes))
        return "\n\n".join(parts)

    def _scores(self, width: int) -> str:
        rows = [
            (
                s.name,
                _estimate(s.score, s.mean, s.ci, width),
                "" if s.precisions is None else "/".join(f"{p:.1f}" for p in s.precisions),
                "" if s.brevity_penalty is None else f"{s.brevity_penalty:.3f}",
                "" if s.ratio is None else f"{s.ratio:.3f}",
            )
            for s in self.scores
        ]
        headers = ("metric", "score", "n-gram precisions", "BP", "length ratio")
        columns = [i for i in range(5) if i < 2 or any(row[i] for row in rows)]
        return _table([headers[i] for i in columns], [[row[i] for i in columns] for row in rows])

    def _header(self) -> str:
        subwords = [] if self.remove_bpe == "none" else [f"subwords ({self.remove_bpe})"]
        tokens = [] if self.detokenize is None else [f"Moses tokenization ({self.detokenize})"]
        removed = " and ".join(subwords + tokens) or "nothing"
        lines = [
            f"system:      {self.system}",
            f"references:  {', '.join(self.references)}",
            f"sentences:   {self.sentences}",
            f"removed:     {removed}",
        ]
        return "\n".join(_filled(line, " " * 13) for line in lines)

    def _significance(self, width: int, quiet: bool) -> str:
        rows = [
            (
                c.name,
                _estimate(c.baseline, c.baseline_mean, c.baseline_ci, width),
                _estimate(c.score, c.mean, c.ci, width),
                f"{c.p_value:.4f}" + ("*" if c.p_value < 0.05 else ""),
            )
            for c in self.significance
        ]
        table = _table(("metric", "baseline", "system", "p"), rows)
        if quiet:
            return table
        assert self.test is not None
        explained = _filled(
            f"{TESTS[self.test]} against {self.baseline}, {self.samples} samples; "
            f"* p < 0.05: such a difference is unlikely between equal systems"
        )
        return f"{table}\n{explained}"


def _estimate(score: float, mean: float | None, ci: float | None, width: int) -> str:
    more = "" if mean is None else f" ({mean:.{width}f} ± {ci:.{width}f})"
    return f"{score:.{width}f}{more}"


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of at most ``COLUMNS``; columns that do not fit are in another one below it."""
    from tabulate import tabulate  # so that --help needs no package

    count = len(headers)
    while True:
        align = ["left" if name == "metric" else "right" for name in headers[:count]]
        shown = [row[:count] for row in rows]
        text = tabulate(shown, headers=headers[:count], colalign=align, disable_numparse=True)
        lines = [line.rstrip() for line in text.splitlines()]
        if count == 2 or max(map(len, lines)) <= COLUMNS:
            break
        count -= 1
    table = "\n".join(lines)
    rest = [[row[0], *row[count:]] for row in rows if any(row[count:])]
    return f"{table}\n\n{_table([headers[0], *headers[count:]], rest)}" if rest else table


def _signatures(scores: Sequence[Score] | Sequence[Comparison]) -> str:
    """A line for each score, as sacreBLEU joins name and signature."""
    return "\n".join(_wrapped(f"{score.name}|{score.signature}") for score in scores)


def _wrapped(signature: str) -> str:
    """Lines of at most ``COLUMNS`` that break only after a field."""
    lines = [""]
    for field in signature.split("|"):
        if len(lines[-1]) + len(field) + 1 > COLUMNS:
            lines.append("    ")
        lines[-1] += f"{field}|"
    return "\n".join(lines).removesuffix("|")


def _filled(text: str, indent: str = "") -> str:
    """Lines of at most ``COLUMNS`` that do not break file names."""
    return textwrap.fill(
        text,
        COLUMNS,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
