"""Times what each gradient by hand saves, by putting plain autograd in its place, one at a time.

    python -m benchmarks.gradients --threads 1

An update of the paper's model with the chunked criterion, dropout 0.1, in batches with pads: 3 + 3
layers of dim 128 with 4,000 subwords, 6 + 6 of dim 512 with 32,000, and 6 + 6 of dim 16, which has
hardly anything to multiply: its time is that of Python and of starting operations, for which a GPU
waits in small batches. All variants compute the same loss and gradients; plus and fairseq's
Transformer, which compute their own, are beside them. Writes gradients.json and gradients.md beside
this file.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.speed.lengths import default_lengths
from benchmarks.speed.machine import describe
from benchmarks.speed.timing import Run, interleaved, ratio
from benchmarks.speed.training_rows import CHUNKED, Training, batches
from benchmarks.speed.translation_models import BASE, Sizes
from resmlp_mt.command_line import Parser, command
from resmlp_mt.fairseq_plugin import criterion
from resmlp_mt.files import write_text
from resmlp_mt.machine import set_threads
from resmlp_mt.mixing_products import mix
from resmlp_mt.model import residual
from resmlp_mt.option_types import POSITIVE, PROCESSES
from resmlp_mt.padding import Layout

HERE = Path(__file__).resolve().parent
# name: sizes, and the places of a batch
SIZES = {
    "3 + 3 layers, dim 128": (Sizes(128, 512, 3, 4, 4_000, 128), 2000),
    "6 + 6 layers, dim 512": (BASE, 1024),
    "6 + 6 layers, dim 16": (Sizes(16, 32, 6, 2, 100, 256), 128),
}
BY_HAND, NONE = "all by hand", "none by hand"
OTHERS = {"ResMLP plus, all by hand": "plus", "fairseq's Transformer": "transformer"}
SEED = 1


def activated_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    alpha: Tensor,
    beta: Tensor,
    activation: Callable[[Tensor], Tensor] | None,
) -> Tensor:
    product = F.linear(x if activation is None else activation(x), weight, bias)
    return torch.addcmul(beta, product, alpha)


def affine_mixing(
    x: Tensor,
    alpha: Tensor,
    beta: Tensor,
    matrix: Tensor,
    offset: Tensor | None,
    post_alpha: Tensor,
    post_beta: Tensor,
    layout: Layout,
    causal: bool,
) -> Tensor:
    mixed = mix(matrix, offset, layout.pad(torch.addcmul(beta, x, alpha)), causal)
    return torch.addcmul(post_beta, layout.pack(mixed), post_alpha)


def smoothed_cross_entropy(
    features: Tensor, weight: Tensor, target: Tensor, epsilon: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    full = torch.promote_types(dtype, torch.float32)
    log_probs = F.linear(features.to(dtype), weight.to(dtype)).log_softmax(1, dtype=full)
    nll = -log_probs.gather(1, target.unsqueeze(1)).sum()
    of_all = epsilon / (len(weight) - 1)
    return (1 - epsilon - of_all) * nll - of_all * log_probs.sum(), nll.detach()


# the function by hand, where it is looked up, and plain autograd
PLAIN: dict[str, tuple[Any, Callable[..., Any]]] = {
    "ActivatedLinear": (residual, activated_linear),
    "AffineMixing": (residual, affine_mixing),
    "_SmoothedCrossEntropy": (criterion, smoothed_cross_entropy),
}


@contextmanager
def plain(names: list[str]) -> Iterator[None]:
    """Puts plain autograd in the place of these functions."""
    with ExitStack() as replaced:
        for name in names:
            owner, function = PLAIN[name]
            replaced.enter_context(mock.patch.object(owner, name, SimpleNamespace(apply=function)))
        yield


def running(names: list[str], training: Training, data: list[dict[str, Any]]) -> Run:
    """A run of one update with plain autograd in the place of these functions."""

    def run(index: int) -> float:
        with plain(names):
            training.step(data[index % len(data)])
        return 1.0

    return run


def kept(names: list[str], training: Training, batch: dict[str, Any]) -> int:
    """Bytes of all tensors that a forward pass keeps for its gradients, besides parameters."""
    seen: dict[int, int] = {}

    def look(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with plain(names), torch.autograd.graph.saved_tensors_hooks(look, lambda tensor: tensor):
        training.backward(batch)
    for parameter in training.model.parameters():
        seen.pop(parameter.untyped_storage().data_ptr(), None)
    return sum(seen.values())


def measured(sizes: Sizes, places: int, rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds of an update, times as long as by hand, and megabytes, for each variant."""
    variants = {BY_HAND: [], **{name: [name] for name in PLAIN}, NONE: list(PLAIN)}
    data = batches(default_lengths(), sizes, places, count=rounds, device="cpu", seed=SEED)
    trainings = {
        name: Training(f"{model}{CHUNKED}", sizes, device="cpu", bf16=False, seed=SEED)
        for name, model in {BY_HAND: "resmlp", **OTHERS}.items()
    }
    chosen = [(name, names, trainings[BY_HAND]) for name, names in variants.items()]
    chosen += [(name, [], trainings[name]) for name in OTHERS]
    runs = {name: running(names, training, data) for name, names, training in chosen}
    speeds = interleaved(runs, rounds)
    found = {}
    for name, names, training in chosen:
        times = ratio(speeds[BY_HAND], speeds[name])
        found[name] = {
            "milliseconds": 1000 / speeds[name].median,
            **{part: getattr(times, part) for part in ("median", "low", "high")},
            "megabytes": kept(names, training, data[0]) / 1e6,
        }
    return found


@command
def main() -> None:
    parser = Parser("benchmarks.gradients", "Measure what gradients by hand save.")
    parser.add_argument("--threads", type=PROCESSES, default=1, metavar="N")
    parser.add_argument("--rounds", type=POSITIVE, default=15, metavar="N")
    args = parser.parse_args()
    set_threads(args.threads)
    report = {
        **describe(args.threads),
        "rounds": args.rounds,
        "sizes": {
            name: measured(sizes, places, args.rounds) for name, (sizes, places) in SIZES.items()
        },
    }
    write_text(HERE / "gradients.json", json.dumps(report, indent=1) + "\n")
    write_text(HERE / "gradients.md", page(report))
    print(page(report))


def page(report: dict[str, Any]) -> str:
    """gradients.md"""
    sizes = report["sizes"]
    lines = [
        "| model | " + " | ".join(f"{size}, ms | times as long | MB kept" for size in sizes) + " |",
        "|-|" + "-|-|-|" * len(sizes),
    ]
    for name in next(iter(sizes.values())):
        cells = [
            f"{row['milliseconds']:.1f} | {row['median']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
            f" | {row['megabytes']:.1f}"
            for row in (rows[name] for rows in sizes.values())
        ]
        shown = name if name in OTHERS else f"ResMLP (paper), {name}"
        if name in PLAIN:
            shown = f"ResMLP (paper), plain autograd for `{name}`"
        lines.append(f"| {shown} | " + " | ".join(cells) + " |")
    return (
        "# What gradients by hand save\n\n"
        f"{report['processor']}, {report['threads']} threads, torch {report['versions']['torch']}; "
        f"{report['date']}. Written\nby `benchmarks/gradients.py`: an update with the chunked "
        f"criterion; medians\nof {report['rounds']} interleaved rounds, quartiles "
        "in brackets. MB: what the forward pass keeps for its gradients.\n\n"
        + "\n".join(lines)
        + "\n"
    )


if __name__ == "__main__":
    main()
