"""Memory of the engine while it translates sentences of random lengths.

    python -m benchmarks.memory

Translates with float32 models so small that their size does not hide growth, in batches of random
sizes, and writes memory.json and memory.md beside this file. Every row is a process of its own;
earlier rows stay until they are measured again.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.speed.machine import describe, measured_on
from resmlp_mt.command_line import command
from resmlp_mt.files import write_text

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
AFTER = (1000, 5000, 10_000, 20_000, 40_000)  # sentences
LONGEST, BATCH, TARGET = 40, 64, 8
LIBRARIES_OWN = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "1024", "LRU_CACHE_CAPACITY": "1024"}
# widths and words: layers that PyTorch's own kernels compute, and layers large enough to be packed
MODELS = {"0.6 MB": (64, 128, 500), "6 MB": (128, 1152, 1100)}
ROWS: dict[str, tuple[str, dict[str, str]]] = {
    "6 MB": ("6 MB", {}),
    "6 MB, caches as large as the libraries have them": ("6 MB", LIBRARIES_OWN),
    "0.6 MB": ("0.6 MB", {}),
}


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--sentences", type=int, default=AFTER[-1], metavar="N", help="at most")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--output", type=Path, default=HERE, metavar="DIR", help="of the report")
    parser.add_argument("--measure", choices=MODELS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        measure(args.measure, args.sentences)
        return
    path = args.output / "memory.json"
    rows = json.loads(path.read_text())["megabytes"] if path.exists() else {}
    for name in args.rows:
        model, environment = ROWS[name]
        command = ["-m", "benchmarks.memory", "--measure", model, "--sentences"]
        done = subprocess.run(
            [sys.executable, *command, str(args.sentences)],
            stdout=subprocess.PIPE,
            env={**os.environ, **environment},
            cwd=ROOT,
            check=True,
        )
        rows[name] = json.loads(done.stdout)
        print(name, rows[name], flush=True)
        report = {"machine": describe(1), "megabytes": {n: rows[n] for n in ROWS if n in rows}}
        write_text(path, json.dumps(report, indent=1) + "\n")
        write_text(args.output / "memory.md", text(report))


def measure(name: str, sentences: int) -> None:
    """Translate, and print the resident megabytes after 1000, 5000, ... sentences as JSON."""
    import torch

    from resmlp_mt.engine.folding import fold
    from resmlp_mt.engine.model_folder import TranslationModel
    from resmlp_mt.engine.options import SearchOptions
    from resmlp_mt.engine.translator import Translator
    from resmlp_mt.engine.vocabulary import Vocabulary
    from resmlp_mt.engine.weights import prepared
    from resmlp_mt.model.config import ModelConfig
    from resmlp_mt.model.encoder_decoder import EncoderDecoder

    torch.manual_seed(1)
    dim, hidden, size = MODELS[name]
    half = dim, hidden, 2
    sizes = ModelConfig(size, size, *half, *half, 4, LONGEST + 1, TARGET)
    words = Vocabulary(["<s>", "<pad>", "</s>", "<unk>", *(f"w{i}" for i in range(size - 4))])
    model = prepared(fold(EncoderDecoder(sizes)), "float32", threads=1)
    translator = Translator(
        TranslationModel(model, "en", "de", words, words, None), SearchOptions(beam=4), BATCH
    )
    rng, done, found = random.Random(1), 0, {}
    for after in AFTER:
        while done < min(after, sentences):
            batch = rng.randint(1, BATCH)
            lengths = [rng.randint(1, LONGEST) for _ in range(batch)]
            lines = [" ".join(f"w{rng.randrange(size - 4)}" for _ in range(n)) for n in lengths]
            translator.translate(lines)
            done += batch
        if after <= sentences:
            found[after] = resident()
            print(after, found[after], f"{time.process_time():.0f} s", file=sys.stderr, flush=True)
    print(json.dumps(found))


def resident() -> int:
    """Megabytes (10^6 bytes) of this process that are in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6)


def text(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    rows, machine = report["megabytes"], report["machine"]
    after = list(next(iter(rows.values())))
    lines = [
        "# Memory over sentences of random lengths",
        "",
        "Written by `python -m benchmarks.memory`; do not edit.",
        "",
        "Resident megabytes of a process with a float32 model, by the number of sentences that it "
        f"has translated. Sentences have 1 to {LONGEST} tokens and their translations at most "
        f"{TARGET - 1}; batches of 1 to {BATCH}, beam 4, one thread. " + measured_on(machine),
        "",
        "| model | " + " | ".join(f"{int(n):,}" for n in after) + " | last / first |",
        "|-|" + "-:|" * (len(after) + 1),
    ]
    for name, found in rows.items():
        values = list(found.values())
        numbers = " | ".join(f"{value:,}" for value in values)
        lines.append(f"| {name} | {numbers} | {values[-1] / values[0]:.2f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
