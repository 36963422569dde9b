"""The worker of against.py: measures the version of the project that PYTHONPATH names.

Reads names of rows, one a line, and answers each with the processor seconds of one run. Only what
all versions have is called: fairseq's own interface, the translator and ``create_model``.
"""

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from fairseq import options, tasks
from fairseq.criterions.label_smoothed_cross_entropy import LabelSmoothedCrossEntropyCriterion
from fairseq.dataclass.configs import GenerationConfig
from fairseq.optim.adam import Adam

from resmlp_mt.models import resmlp_mt  # noqa: F401  registers the architectures

try:  # before the engine had a room of its own
    from resmlp_mt.translation import model_folder  # type: ignore[import-not-found]
    from resmlp_mt.translation.beam_search import SearchOptions  # type: ignore[import-not-found]
    from resmlp_mt.translation.engine import Translator  # type: ignore[import-not-found]
except ImportError:
    from resmlp_mt.engine import model_folder
    from resmlp_mt.engine.options import SearchOptions
    from resmlp_mt.engine.translator import Translator

Rows = dict[str, Callable[[], object]]
SIZES = {"base": ("512", "2048", "6", "8"), "small": ("128", "512", "3", "4")}


def model_options(size: str) -> list[str]:
    """Options of fairseq-train for a size."""
    dim, hidden, layers, heads = SIZES[size]
    sides = (("encoder", "decoder"), (dim, hidden, layers))
    names = ("embed-dim", "ffn-embed-dim", "layers")
    pairs = [(f"--{s}-{n}", v) for s in sides[0] for n, v in zip(names, sides[1], strict=True)]
    return [
        "--arch", "resmlp_mt_6l", *(word for pair in pairs for word in pair),
        "--decoder-attention-heads", heads, "--share-all-embeddings",
        "--max-source-positions", "128", "--max-target-positions", "128", "--dropout", "0.1",
    ]  # fmt: skip


def training(data: Path, size: str, max_tokens: int) -> tuple[Any, Any, Callable[[], object]]:
    """Task, model, and a function that makes one update on the same batch again."""
    torch.manual_seed(1)
    parser = options.get_training_parser()
    words = [str(data), "--cpu", "--optimizer", "adam", *model_options(size)]
    cfg = options.parse_args_and_arch(parser, words)
    task = tasks.setup_task(cfg)
    task.load_dataset("train")
    epochs = task.get_batch_iterator(task.dataset("train"), max_tokens=max_tokens, seed=1)
    batches = iter(epochs.next_epoch_itr(shuffle=True))
    batch = max((next(batches) for _ in range(20)), key=lambda each: each["ntokens"])
    model = task.build_model(cfg)
    criterion = LabelSmoothedCrossEntropyCriterion(task, False, 0.1)
    optimizer = Adam(model.parameters(), lr=1e-4, betas=(0.9, 0.98))

    def update() -> None:
        model.train()
        optimizer.zero_grad()
        loss, size, _ = criterion(model, batch)
        (loss / size).backward()
        optimizer.step()

    return task, model, update


def generation(task: Any, model: Any, sentences: int) -> Callable[[], object]:
    """fairseq's generator on the first sentences of the test set."""
    task.load_dataset("test")
    dataset = task.dataset("test")
    batch = dataset.collater([dataset[index] for index in range(sentences)])
    config = GenerationConfig(beam=4, max_len_a=0.0, max_len_b=20)
    model.eval()
    model.prepare_for_inference_(SimpleNamespace(generation=config))
    generator = task.build_generator([model], config)
    return partial(task.inference_step, generator, [model], batch)


def translation(folder: Path, lines: list[str], batch: int, dtype: str) -> Callable[[], object]:
    """The engine on some lines, loaded before."""
    search = SearchOptions(beam=4, max_len_a=0.0, max_len_b=20)
    translator = Translator(model_folder.load(folder, dtype), search, batch)
    return partial(translator.translate, lines)


def images() -> Rows:
    """ResMLP-S12: inference as the commands run it, and an update."""
    from resmlp_mt.vision import create_model
    from resmlp_mt.vision.folding import folded

    torch.manual_seed(1)
    model = create_model("resmlp_s12")
    fast = folded(create_model("resmlp_s12").eval())
    optimizer = torch.optim.AdamW(model.parameters())
    batch = torch.randn(8, 3, 224, 224)

    def inference(size: int) -> None:
        with torch.inference_mode():
            fast(batch[:size])

    def update() -> None:
        model.train()
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        optimizer.step()

    return {
        "images, S12, inference, batch 1": partial(inference, 1),
        "images, S12, inference, batch 8": partial(inference, 8),
        "images, S12, training, batch 8": update,
    }


def peak() -> float:
    """Most resident memory of this process so far, in MiB."""
    (line,) = (x for x in Path("/proc/self/status").read_text().split("\n") if "VmHWM" in x)
    return int(line.split()[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--memory", action="store_true", help="print a peak, and end")
    args = parser.parse_args()
    torch.set_num_threads(1)
    answers, sys.stdout = sys.stdout, sys.stderr
    if args.memory:
        _, _, update = training(args.data / "bin", "base", 2048)
        before = peak()
        for _ in range(3):
            update()
        print(peak() - before, file=answers, flush=True)
        return
    rows: Rows = {}
    source = (args.data / "raw/test.en").read_text(encoding="utf-8").split("\n")
    for size, tokens in (("base", 512), ("small", 2048)):
        task, _, update = training(args.data / "bin", size, tokens)
        rows[f"training, {size}, {tokens} tokens"] = update
        _, for_generation, _ = training(args.data / "bin", size, tokens)
        sentences = 8 if size == "base" else 64
        rows[f"fairseq's generator, {size}, batch {sentences}"] = generation(
            task, for_generation, sentences
        )
        for dtype in ("float32", "int8"):
            for batch, lines in ((1, 8), (64, 32 if size == "base" else 128)):
                rows[f"translate, {size}, {dtype}, batch {batch}"] = translation(
                    args.work / size, source[:lines], batch, dtype
                )
    rows |= images()
    print("\t".join(rows), file=answers, flush=True)
    for line in sys.stdin:
        run = rows[line.rstrip("\n")]
        start = time.process_time()
        run()
        print(time.process_time() - start, file=answers, flush=True)


if __name__ == "__main__":
    main()
