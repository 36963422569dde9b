"""Times one encoder pass and one decoder step of the folded model in every backend, in turn.

    python -m benchmarks.engine_backends --threads 2

6 + 6 layers, dim 512, hidden 2048, 32,000 subwords, random weights; sentences of 27 tokens, beam
4, the step at position 20. Writes engine_backends.json and engine_backends.md beside this file.
"""

import argparse
import json
import logging
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import onnxruntime
import openvino
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch._inductor import config as inductor
from torch.nn import functional as F

from benchmarks.speed.machine import describe, measured_on
from benchmarks.speed.timing import Spread, interleaved
from resmlp_mt.command_line import command
from resmlp_mt.engine.folding import empty
from resmlp_mt.engine.onnx_export import export_int8, export_onnx
from resmlp_mt.engine.onnx_model import GRAPHS
from resmlp_mt.engine.weights import prepared
from resmlp_mt.files import write_text
from resmlp_mt.model.config import ModelConfig
from resmlp_mt.model.encoder_decoder import EncoderDecoder

HERE = Path(__file__).resolve().parent
SIZES = ModelConfig(
    source_vocabulary=32000,
    target_vocabulary=32000,
    share_all_embeddings=True,
    encoder_embed_dim=512,
    encoder_ffn_embed_dim=2048,
    encoder_layers=6,
    decoder_embed_dim=512,
    decoder_ffn_embed_dim=2048,
    decoder_layers=6,
    decoder_attention_heads=8,
    activation_fn="gelu",
    max_source_positions=256,
    max_target_positions=256,
)
BEAM, LENGTH, POSITION = 4, 27, 20


class Batch(NamedTuple):
    """The inputs of a pass through the encoder and a step of the decoder."""

    source: Tensor
    lengths: Tensor
    tokens: Tensor
    history: Tensor
    ancestors: Tensor
    of_graph: dict[str, NDArray[Any]]
    """The inputs of ``decoder_step.onnx`` but for what the encoder gives."""


Backend = Callable[[Batch], object]
"""Runs the encoder and one step."""


def model() -> EncoderDecoder:
    """A model with random weights, the same at every call."""
    generator = torch.Generator().manual_seed(1)
    built = empty(SIZES)
    for parameter in built.parameters():
        parameter.copy_(0.03 * torch.randn(parameter.shape, generator=generator))
    return built


def batch(size: int) -> Batch:
    """A batch of random sentences, all of one length."""
    generator = torch.Generator().manual_seed(size)
    history = torch.randn(
        (SIZES.decoder_layers, size, 1, POSITION, BEAM, SIZES.decoder_embed_dim),
        generator=generator,
    )
    tokens = torch.randint(4, SIZES.target_vocabulary, (size, BEAM), generator=generator)
    ancestors = torch.randint(BEAM, (size, BEAM, POSITION), generator=generator)
    past = {f"past.{layer}": of_one.flatten(2, 3) for layer, of_one in enumerate(history)}
    of_graph = {
        "tokens": tokens,
        "position": torch.tensor([POSITION]),
        "positions": torch.arange(POSITION).repeat_interleave(BEAM),
        "descends": F.one_hot(ancestors, BEAM).flatten(2).float(),
        **past,
    }
    return Batch(
        torch.randint(4, SIZES.source_vocabulary, (size, LENGTH), generator=generator),
        torch.full((size,), LENGTH),
        tokens,
        history,
        ancestors,
        {name: array.numpy() for name, array in of_graph.items()},
    )


def pytorch(folded: EncoderDecoder, compiled: bool = False) -> Backend:
    """The model itself, or ``torch.compile`` of it with frozen weights and free sizes."""
    encode, step = folded.encode, folded.step
    if compiled:
        inductor.freezing = True
        encode, step = torch.compile(encode, dynamic=True), torch.compile(step, dynamic=True)

    def run(given: Batch) -> object:
        with torch.no_grad():
            memory = encode(given.source, None)
            return step(given.tokens, given.history, given.ancestors, memory)

    return run


def onnx_runtime(folder: Path, threads: int) -> Backend:
    """ONNX Runtime on the exported graphs, tensors passed without copies."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.force_spinning_stop", "1")  # as the engine does
    encoder, decoder, projection = (
        onnxruntime.InferenceSession(folder / name, options, providers=["CPUExecutionProvider"])
        for name in GRAPHS
    )
    encoded = [output.name for output in encoder.get_outputs()]

    def run(given: Batch) -> object:
        source = {"tokens": given.source.numpy(), "lengths": given.lengths.numpy()}
        memory = dict(zip(encoded, encoder.run(None, source), strict=True))
        states, *_ = decoder.run(None, {**given.of_graph, **memory})
        return projection.run(None, {"states": states})

    return run


def open_vino(folder: Path, threads: int) -> Backend:
    """OpenVINO on the exported graphs."""
    core = openvino.Core()
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    models = [core.compile_model(folder / name, "CPU", settings) for name in GRAPHS]
    encoder, decoder, projection = (model.create_infer_request() for model in models)
    encoded = [output.any_name for output in models[0].outputs]

    def run(given: Batch) -> object:
        source = {"tokens": given.source.numpy(), "lengths": given.lengths.numpy()}
        results = encoder.infer(source, share_inputs=True, share_outputs=True)
        inputs = {**given.of_graph, **{name: results[name] for name in encoded}}
        states = decoder.infer(inputs, share_inputs=True, share_outputs=True)["states"]
        return projection.infer({"states": states}, share_inputs=True, share_outputs=True)

    return run


def backends(folder: Path, threads: int) -> dict[str, Backend]:
    """All backends by name; ``folder`` receives their files."""
    float32, int8 = folder / "float32", folder / "int8"
    float32.mkdir()
    int8.mkdir()
    export_onnx(model(), float32)
    export_int8(model(), int8)
    found = {
        "PyTorch eager": pytorch(model()),
        "PyTorch eager, oneDNN packed weights (the engine)": pytorch(prepared(model(), "float32")),
        "torch.compile, frozen weights": pytorch(model(), compiled=True),
        "ONNX Runtime": onnx_runtime(float32, threads),
        "OpenVINO": open_vino(float32, threads),
        "PyTorch eager, int8 (the engine)": pytorch(prepared(model(), "int8")),
        "ONNX Runtime, int8": onnx_runtime(int8, threads),
        "OpenVINO, int8 of ONNX Runtime": open_vino(int8, threads),
    }
    return found


def measure(run: Backend, given: Batch) -> Callable[[int], float]:
    """A run for :func:`interleaved`."""

    def once(_: int) -> float:
        run(given)
        return 1.0

    return once


def markdown(seconds: dict[int, dict[str, Spread]], setting: str) -> str:
    """Milliseconds, median and quartiles."""
    sizes = list(seconds)
    lines = [
        "| backend | " + " | ".join(f"batch {size}, ms" for size in sizes) + " |",
        "|-|" + "-:|" * len(sizes),
    ]
    for name in seconds[sizes[0]]:
        cells = []
        for size in sizes:
            speed = seconds[size][name]
            cells.append(
                f"{1e3 / speed.median:.1f} [{1e3 / speed.high:.1f}, {1e3 / speed.low:.1f}]"
            )
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    head = ["# Backends for the engine", "", "Written by `benchmarks/engine_backends.py`.", ""]
    return "\n".join([*head, *lines, "", setting, ""])


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 16])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        runs = backends(Path(folder), args.threads)
        seconds = {
            size: interleaved(
                {name: measure(run, batch(size)) for name, run in runs.items()}, args.rounds
            )
            for size in args.batch_sizes
        }
    machine = describe(args.threads)
    setting = (
        f"One encoder pass and one decoder step, beam {BEAM}, {LENGTH} source tokens, position "
        f"{POSITION}; median and quartiles of {args.rounds} interleaved rounds. "
        f"{measured_on(machine)} onnxruntime {onnxruntime.__version__}, openvino "
        f"{openvino.__version__.split('-')[0]}."
    )
    report = {
        "setting": setting,
        "machine": machine,
        "per_second": {
            str(size): {name: speed.samples for name, speed in found.items()}
            for size, found in seconds.items()
        },
        "wall_seconds": time.monotonic() - start,
    }
    write_text(HERE / "engine_backends.json", json.dumps(report, indent=1) + "\n")
    write_text(HERE / "engine_backends.md", markdown(seconds, setting))
    print(markdown(seconds, setting))


if __name__ == "__main__":
    main()
