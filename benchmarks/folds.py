"""What each fold of the exported translation model saves: each in turn is undone, and timed.

    python benchmarks/folds.py --threads 2

6 + 6 layers, dim 512, hidden 2048, 32,000 subwords, random weights; sentences of 27 tokens, beam
4, the step at position 20. To undo a fold is to compute an affine map of ones and zeros at its
place, so that all variants give the same scores. Writes folds.json and folds.md beside this file.
"""

import argparse
import datetime
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resmlp_mt.benchmarking.machine import describe
from resmlp_mt.benchmarking.timing import Run, interleaved, ratio
from resmlp_mt.benchmarking.translation_models import BASE, build
from resmlp_mt.engine.folding import FoldedDecoderLayer, FoldedEncoderLayer, FoldedModel, fold
from resmlp_mt.engine.model_folder import prepared
from resmlp_mt.layers import Affine
from resmlp_mt.padding import Layout

HERE = Path(__file__).resolve().parent
BEAM, LENGTH, POSITION = 4, 27, 20
DIM = BASE.embed_dim
BATCHES = (1, 16)
FOLDED = "all folded"


class UnfoldedMixing(FoldedDecoderLayer):
    """The mixing between two affine maps, its diagonal and bias apart from them."""

    pre: Affine
    post: Affine
    bias: Tensor
    diagonal: list[float]

    def forward(
        self,
        x: Tensor,
        position: int,
        history: Tensor,
        mixing: Tensor,
        keys: Tensor,
        values: Tensor,
        mask: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """As in the folded layer, computed as the equations say."""
        entry = self.pre(x)
        own = torch.add(self.bias[position], entry, alpha=self.diagonal[position])
        x = x + self.post(torch.baddbmm(own, mixing, history))
        queries = self.q_proj(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
        attended = F.scaled_dot_product_attention(queries, keys, values, mask, scale=1.0)
        x = x + self.out_proj(attended.transpose(1, 2).flatten(2))
        return x + self.fc2(self.activation(self.fc1(x))), entry


def unfold_mixing(model: FoldedModel) -> None:
    """Around the mixing of the decoder."""
    for layer in model.decoder_layers:
        assert isinstance(layer, FoldedDecoderLayer)
        layer.__class__ = UnfoldedMixing
        assert isinstance(layer, UnfoldedMixing)
        layer.pre, layer.post = Affine(DIM), Affine(DIM)
        layer.pre.alpha.copy_(layer.scale)
        # a ResMLP of random weights starts with equal scales, so one channel tells the diagonal
        layer.diagonal = ((layer.own_scale[:, 0] - 1.0) / layer.scale[0]).tolist()
        layer.bias = layer.constant.clone()


class UnfoldedEncoderMixing(FoldedEncoderLayer):
    """The mixing of the encoder between two affine maps, its bias apart from them."""

    pre: Affine
    post: Affine
    bias: Tensor

    def forward(self, x: Tensor, is_pad: Tensor | None, layout: Layout | None) -> Tensor:
        """As in the folded layer, computed as the equations say."""
        y = self.pre(x)
        if is_pad is not None:
            y = y.masked_fill(is_pad, 0.0)
        length = len(x)
        matrix = self.mixing[:length, :length]
        mixed = torch.addmm(self.bias[:length], matrix, y.reshape(length, -1)).view_as(x)
        return self.feed_forward(x + self.post(mixed), layout)


def unfold_encoder_mixing(model: FoldedModel) -> None:
    """Around the mixing of the encoder."""
    for layer in model.encoder_layers:
        assert isinstance(layer, FoldedEncoderLayer)
        layer.__class__ = UnfoldedEncoderMixing
        assert isinstance(layer, UnfoldedEncoderMixing)
        layer.pre, layer.post = Affine(DIM), Affine(DIM)
        layer.pre.alpha.copy_(layer.scale)
        assert layer.pre.beta is not None
        layer.pre.beta.copy_(layer.shift)
        # a ResMLP of random weights starts with equal scales, so one channel tells the bias
        layer.bias = layer.constant[:, :, 0].clone()


def around(name: str, in_front: bool, model: FoldedModel) -> None:
    """An affine map in front of or behind the linear layers of this name."""
    for module in list(model.modules()):
        linear = module._modules.get(name)
        if linear is not None:
            affine = Affine(DIM)  # on either side: what is in front of a hidden layer is narrow
            module._modules[name] = (
                nn.Sequential(affine, linear) if in_front else nn.Sequential(linear, affine)
            )


class Scaled(nn.Module):
    """The embeddings of the training model, which it multiplies each time."""

    def __init__(self, embedding: nn.Module) -> None:
        super().__init__()
        self.embedding = embedding

    def forward(self, tokens: Tensor) -> Tensor:
        """(...) -> (..., dim)"""
        scaled: Tensor = 1.0 * self.embedding(tokens)
        return scaled


def unfold_embeddings(model: FoldedModel) -> None:
    """In front of both sides."""
    model.source_embedding = Scaled(model.source_embedding)  # type: ignore[assignment]
    model.target_embedding = Scaled(model.target_embedding)  # type: ignore[assignment]


UNDO: dict[str, Callable[[FoldedModel], None]] = {
    "in front of the feed-forward layers": partial(around, "fc1", True),
    "behind the feed-forward layers": partial(around, "fc2", False),
    "in front of the cross-attention": partial(around, "q_proj", True),
    "behind the cross-attention": partial(around, "out_proj", False),
    "last of the encoder": partial(around, "kv_proj", True),
    "last of the decoder": partial(around, "output_projection", True),
    "around the mixing of the encoder": unfold_encoder_mixing,
    "around the mixing of the decoder": unfold_mixing,
    "scale of the embeddings": unfold_embeddings,
}


def variant(undone: list[str]) -> FoldedModel:
    """The model that translates, with some folds undone."""
    model = prepared(fold(build("resmlp", BASE, seed=1)), "float32")
    for name in undone:
        UNDO[name](model)
    return model.requires_grad_(False)


def running(model: FoldedModel, size: int) -> tuple[Run, Callable[[], Tensor]]:
    """One pass through the encoder and one step of the decoder; and the scores of the step."""
    generator = torch.Generator().manual_seed(size)
    source = torch.randint(4, BASE.vocabulary, (size, LENGTH), generator=generator)
    tokens = torch.randint(4, BASE.vocabulary, (size, BEAM), generator=generator)
    ancestors = torch.randint(BEAM, (size, BEAM, POSITION), generator=generator)
    history = torch.randn((BASE.layers, size, POSITION, BEAM, DIM), generator=generator)

    @torch.inference_mode()
    def scores() -> Tensor:
        return model.step(tokens, history, ancestors, model.encode(source))[0]

    def run(index: int) -> float:
        scores()
        return 1.0

    return run, scores


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=30)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    names = {FOLDED: [], **{name: [name] for name in UNDO}, "all undone": list(UNDO)}
    models = {name: variant(undone) for name, undone in names.items()}
    rows: dict[int, dict[str, dict[str, float]]] = {}
    for size in BATCHES:
        runs = {name: running(model, size) for name, model in models.items()}
        expected = runs[FOLDED][1]()
        for _, scores in runs.values():
            torch.testing.assert_close(scores(), expected, rtol=1e-4, atol=1e-4)
        speeds = interleaved({name: run for name, (run, _) in runs.items()}, args.rounds)
        rows[size] = {
            name: {
                "milliseconds": 1000 / speed.median,
                **{
                    part: getattr(ratio(speeds[FOLDED], speed), part)
                    for part in ("median", "low", "high")
                },
            }
            for name, speed in speeds.items()
        }
    report = {
        "date": datetime.date.today().isoformat(), **describe(args.threads),
        "rounds": args.rounds, "batches": rows,
    }  # fmt: skip
    write(HERE / "folds.json", json.dumps(report, indent=1) + "\n")
    write(HERE / "folds.md", page(report))
    print(page(report))


def page(report: dict[str, object]) -> str:
    """folds.md"""
    batches = report["batches"]
    assert isinstance(batches, dict)
    lines = [
        "| undone fold | "
        + " | ".join(f"batch {size}, ms | times as long" for size in batches)
        + " |",
        "|-|" + "-|-|" * len(batches),
    ]
    for name in next(iter(batches.values())):
        cells = [
            f"{row['milliseconds']:.1f} | {row['median']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
            for row in (rows[name] for rows in batches.values())
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    versions = report["versions"]
    assert isinstance(versions, dict)
    return (
        "# What each fold saves\n\n"
        f"{report['processor']}, {report['threads']} threads, torch {versions['torch']}; "
        f"{report['date']}. Written\nby `benchmarks/folds.py`: one pass through the encoder and "
        f"one decoder step of the 6-layer model,\nbeam {BEAM}; medians of {report['rounds']} "
        "interleaved rounds, quartiles in brackets.\n\n" + "\n".join(lines) + "\n"
    )


def write(path: Path, text: str) -> None:
    """The file appears complete or not at all."""
    partial_file = path.with_name(path.name + ".partial")
    partial_file.write_text(text)
    os.replace(partial_file, path)


if __name__ == "__main__":
    main()
