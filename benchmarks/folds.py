"""Times what each fold of the exported translation model saves, by undoing one at a time.

    python -m benchmarks.folds --threads 2

6 + 6 layers, dim 512, hidden 2048, 32,000 subwords, random weights; sentences of 27 tokens, beam
4, the step at position 20. To undo a fold, an affine map of ones and zeros is computed in its
place, so that all variants have the same scores. Writes folds.json and folds.md beside this file.
"""

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.speed.machine import describe
from benchmarks.speed.timing import Run, interleaved, ratio
from benchmarks.speed.translation_models import BASE, build
from resmlp_mt.command_line import command
from resmlp_mt.engine.folding import fold
from resmlp_mt.engine.weights import prepared
from resmlp_mt.files import write_text
from resmlp_mt.layers import Affine
from resmlp_mt.model.encoder_decoder import EncoderDecoder

HERE = Path(__file__).resolve().parent
BEAM, LENGTH, POSITION = 4, 27, 20
DIM = BASE.embed_dim
BATCHES = (1, 16)
FOLDED = "all folded"


def around(stack: str, name: str, model: EncoderDecoder) -> None:
    """Undo the fold of an affine map in every layer of the encoder or the decoder."""
    for layer in getattr(model, stack).layers:
        setattr(layer, name, Affine(DIM))


def last(stack: str, model: EncoderDecoder) -> None:
    """After all layers."""
    getattr(model, stack).final_affine = Affine(DIM)


class Scaled(nn.Module):
    """The embeddings as in training, which are multiplied by their scale each time."""

    def __init__(self, embedding: nn.Module) -> None:
        super().__init__()
        self.embedding = embedding

    def forward(self, tokens: Tensor) -> Tensor:
        """(...) -> (..., dim)"""
        scaled: Tensor = 1.0 * self.embedding(tokens)
        return scaled


def unfold_embeddings(model: EncoderDecoder) -> None:
    """Undo the fold of the scale of the embeddings, on both sides."""
    for side in (model.encoder, model.decoder):
        side.embed_tokens = Scaled(side.embed_tokens)  # type: ignore[assignment]


def both(name: str, model: EncoderDecoder) -> None:
    """Undo the fold of an affine map in every layer of both sides."""
    for stack in ("encoder", "decoder"):
        around(stack, name, model)


UNDO: dict[str, Callable[[EncoderDecoder], None]] = {
    "before the feed-forward layers": partial(both, "ffn_pre"),
    "after the feed-forward layers": partial(both, "ffn_post"),
    "before the cross-attention": partial(around, "decoder", "encoder_attn_pre"),
    "after the cross-attention": partial(around, "decoder", "encoder_attn_post"),
    "last of the encoder": partial(last, "encoder"),
    "last of the decoder": partial(last, "decoder"),
    "after the mixing of the encoder": partial(around, "encoder", "mixing_post"),
    "after the mixing of the decoder": partial(around, "decoder", "mixing_post"),
    "scale of the embeddings": unfold_embeddings,
}


def variant(undone: list[str]) -> EncoderDecoder:
    """The exported model, with some folds undone."""
    model = prepared(fold(build("resmlp", BASE, seed=1)), "float32")
    for name in undone:
        UNDO[name](model)
    return model.requires_grad_(False)


def running(model: EncoderDecoder, size: int) -> tuple[Run, Callable[[], Tensor]]:
    """A run of one encoder pass and one decoder step, and a function for the step's scores."""
    generator = torch.Generator().manual_seed(size)
    source = torch.randint(4, BASE.vocabulary, (size, LENGTH), generator=generator)
    tokens = torch.randint(4, BASE.vocabulary, (size, BEAM), generator=generator)
    ancestors = torch.randint(BEAM, (size, BEAM, POSITION), generator=generator)
    history = torch.randn((BASE.layers, size, 1, POSITION, BEAM, DIM), generator=generator)

    @torch.inference_mode()
    def scores() -> Tensor:
        return model.step(tokens, history, ancestors, model.encode(source))[0]

    def run(index: int) -> float:
        scores()
        return 1.0

    return run, scores


@torch.no_grad()
@command
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
        **describe(args.threads),
        "rounds": args.rounds, "batches": rows,
    }  # fmt: skip
    write_text(HERE / "folds.json", json.dumps(report, indent=1) + "\n")
    write_text(HERE / "folds.md", page(report))
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


if __name__ == "__main__":
    main()
