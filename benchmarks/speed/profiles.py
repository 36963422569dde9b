"""Where the time of a measured run goes, by kind of operator."""

import re
from dataclasses import replace

from torch.profiler import ProfilerActivity, profile

from benchmarks.speed.report import Row
from benchmarks.speed.timing import Run

# The first of these parts that is in an operator's name gives its kind.
KINDS = {
    "attention": "scaled_dot_product",
    "matrix products": r"mm_?$|linear|convolution|bmm",
    "GELU": "gelu",
    "softmax and loss": "softmax|nll_loss|logsumexp|cross_entropy",
    "dropout": "dropout|bernoulli",
    "optimizer": "Optimizer|adam",
    "choosing words": "topk|sort|argmax",
    "moving data": "copy|cat$|clone|contiguous|index|gather|scatter|embedding|fill|zero",
    "arithmetic": "add|mul|div|sub|sum|mean|sqrt|exp|pow|neg|where|max|min|clamp|eq|ne|lt|gt",
}
OTHER = "other operators"


def explained(row: Row, run: Run) -> Row:
    """The row with the profile of one more run, if it misses its goal on the CPU."""
    if row.met is not False or row.less_is_better or "CUDA" in row.measured:
        return row
    return replace(row, profile=shares(run))


def shares(run: Run) -> dict[str, float]:
    """Shares of a run's operator time by kind, the largest first; operators of the CPU alone.

    There is no warm-up: call it after the measurement of the same run.
    """
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        run(0)
    seconds: dict[str, float] = {}
    for event in recorded.events():
        # fairseq's Adam is made of ordinary operators
        kind = kind_of(event.name)
        parent = event.cpu_parent
        while parent is not None:
            if kind_of(parent.name) == "optimizer":
                kind = "optimizer"
            parent = parent.cpu_parent
        seconds[kind] = seconds.get(kind, 0.0) + event.self_cpu_time_total
    total = sum(seconds.values())
    ordered = sorted(seconds.items(), key=lambda item: -item[1])
    return {kind: value / total for kind, value in ordered}


def kind_of(operator: str) -> str:
    """The kind of an operator, given its name in PyTorch's profiler."""
    found = (kind for kind, pattern in KINDS.items() if re.search(pattern, operator))
    return next(found, OTHER)
