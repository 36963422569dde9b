"""Rows of measurements, as Markdown and JSON."""

from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.speed.timing import Spread, ratio


@dataclass(frozen=True)
class Row:
    """A measured quantity of ours and of a peer."""

    measured: str
    unit: str
    ours: Spread
    peer_name: str
    peer: Spread
    goal: float | None = None
    """Least ratio ours / peer; the largest one where ``less_is_better``."""
    less_is_better: bool = False
    floor: float | None = None
    """Our quantity if the matrix products and copies ran at the machine's full rate."""
    work_ratio: float | None = None
    """Operations of the peer divided by ours: the ratio at equal rates."""
    note: str = ""
    profile: dict[str, float] = field(default_factory=dict)
    """Shares of the time of ours by kind of operator, where a goal is missed."""

    @property
    def ratio(self) -> Spread:
        """Ours / peer, round by round."""
        return ratio(self.ours, self.peer)

    @property
    def met(self) -> bool | None:
        """Whether the median ratio meets the goal; None without a goal."""
        if self.goal is None:
            return None
        median = self.ratio.median
        return median <= self.goal if self.less_is_better else median >= self.goal


@dataclass(frozen=True)
class Unmeasured:
    """A quantity that could not be measured, and why."""

    measured: str
    reason: str


Rows = list[Row | Unmeasured]

COLUMNS = ("measured", "unit", "ResMLP", "floor", "peer", "ResMLP / peer", "goal", "by operations")


def markdown(rows: Rows) -> str:
    """The rows as a table: medians, with quartiles in brackets."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|-" * len(COLUMNS) + "|"]
    for row in rows:
        if isinstance(row, Unmeasured):
            lines.append(f"| {row.measured} | {row.reason} |" + " |" * (len(COLUMNS) - 2))
            continue
        cells = (
            row.measured + (f" ({row.note})" if row.note else ""),
            row.unit,
            _spread(row.ours),
            "" if row.floor is None else _number(row.floor),
            f"{row.peer_name}: {_spread(row.peer)}",
            _spread(row.ratio),
            _goal(row),
            "" if row.work_ratio is None else f"{row.work_ratio:.2f}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def missed(rows: Rows) -> str:
    """A line for every missed goal that has a profile."""
    return "".join(
        f"* {row.measured}{f' ({row.note})' if row.note else ''}, {row.ratio.median:.2f}: "
        + ", ".join(f"{kind} {100 * share:.0f} %" for kind, share in row.profile.items())
        + ".\n"
        for row in rows
        if isinstance(row, Row) and row.profile
    )


def as_json(rows: Rows) -> list[dict[str, Any]]:
    """The rows with all samples."""
    return [
        {**asdict(row), "ratio": asdict(row.ratio), "met": row.met}
        if isinstance(row, Row)
        else asdict(row)
        for row in rows
    ]


def from_json(entries: list[dict[str, Any]]) -> Rows:
    """What :func:`as_json` was given.

    Raises:
        KeyError: for an entry that is not a row.
        TypeError: for a value that a row does not have.
    """
    rows: Rows = []
    for entry in entries:
        if "reason" in entry:
            rows.append(Unmeasured(**entry))
            continue
        values = {name: value for name, value in entry.items() if name not in ("ratio", "met")}
        both = {name: Spread(**values[name]) for name in ("ours", "peer")}
        rows.append(Row(**{**values, **both}))
    return rows


def _goal(row: Row) -> str:
    if row.goal is None:
        return ""
    sign = "<=" if row.less_is_better else ">="
    ends = row.ratio.low, row.ratio.high
    noise = ", within noise" if min(ends) < row.goal < max(ends) else ""
    return f"{sign} {row.goal:g}: " + ("met" if row.met else "**missed**") + noise


def _spread(value: Spread) -> str:
    if len(value.samples) == 1:
        return _number(value.median)
    return f"{_number(value.median)} [{_number(value.low)}, {_number(value.high)}]"


def _number(value: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
