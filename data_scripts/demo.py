"""``make demo`` makes a scored translation model from a grammar, in a few minutes, offline.

    python data_scripts/demo.py --output demo

Every step is a command that a user would type, and is printed before it runs. Finished steps are
not repeated: to start again, delete the folder.
"""

import json
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

from resmlp_mt.command_line import Parser, command, flags
from resmlp_mt.files import replacing

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = 10
ESCAPE = "surrogateescape"  # for bytes in the names of files that are not UTF-8

TRAINING = """
    --user-dir resmlp_mt --arch resmlp_mt_tiny --cpu --distributed-world-size 1
    --share-all-embeddings --layer-scale-init 1.0
    --max-source-positions 64 --max-target-positions 64
    --optimizer adam --adam-betas (0.9,0.98) --lr 4e-3 --lr-scheduler inverse_sqrt
    --warmup-updates 400 --clip-norm 1.0
    --criterion chunked_label_smoothed_cross_entropy --label-smoothing 0.1 --dropout 0.1
    --max-tokens 2000 --max-epoch 8 --no-epoch-checkpoints
    --log-format json --log-interval 20 --num-workers 0 --seed 1
""".split()


@command
def main() -> None:
    parser = Parser("", __doc__.splitlines()[0], prog="demo.py")
    parser.add_argument(
        *flags("output"), type=Path, default=Path("demo"), help="folder for all results"
    )
    out: Path = parser.parse_args().output.resolve()
    out.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    data, model = out / "data", out / "model"
    best = model / "checkpoint_best.pt"
    fairseq = [sys.executable, "-m"]

    run([sys.executable, "data_scripts/prepare.py", "demo", "--output", data, "--vocab-size", 1000])
    if not (model / "finished").exists():
        run(
            [*fairseq, "fairseq_cli.train", data / "bin", *TRAINING, "--save-dir", model],
            log=out / "train.log",
        )
        (model / "finished").touch()
    plot(out / "train.log", out / "curve.png")
    run(
        [*fairseq, "fairseq_cli.generate", data / "bin", "--user-dir", "resmlp_mt", "--path", best,
         "--cpu", "--beam", 4, "--batch-size", 64, "--remove-bpe", "sentencepiece",
         "--scoring", "sacrebleu"],
        log=out / "generate.txt", quiet=True,
    )  # fmt: skip
    print_samples((out / "generate.txt").read_text(encoding="utf-8", errors=ESCAPE))
    run(
        [sys.executable, "-m", "resmlp_mt.score", "--generate-output", out / "generate.txt",
         "--ref", data / "raw/test.de", "-l", "en-de", "-m", "bleu", "chrf",
         "--length-buckets", 10],
    )  # fmt: skip
    print(
        f"\nThe training curve is in {out / 'curve.png'}; all in {time.monotonic() - start:.0f} s."
    )


def run(command: list[object], log: Path | None = None, quiet: bool = False) -> None:
    """Print and run a command; show its output and write it to ``log``, complete or not at all."""
    words = [str(word) for word in command]
    print("\n$ " + shlex.join(words), flush=True)
    process = subprocess.Popen(
        words, cwd=ROOT, stdout=None if log is None else subprocess.PIPE,
        encoding="utf-8", errors=ESCAPE,  # which the commands write, whatever the locale is
    )  # fmt: skip
    if log is not None:
        partial = log.with_suffix(".partial")
        assert process.stdout is not None
        with partial.open("w", encoding="utf-8", errors=ESCAPE) as kept:
            for line in process.stdout:
                kept.write(line)
                if not quiet:
                    show_progress(line)
        if process.wait() == 0:
            partial.replace(log)
    if process.wait() != 0:
        where = "" if log is None else f"; its output is in {log.with_suffix('.partial')}"
        sys.exit(f"demo: the command above ended with status {process.returncode}{where}")


def show_progress(line: str) -> None:
    """One short line for every 20 updates and every epoch of a training log."""
    for kind in ("train_inner", "valid"):
        _, found, row = line.partition(f" | {kind} | ")
        if not found:
            continue
        values = json.loads(row)
        if kind == "valid":
            text = f"epoch {values['epoch']:>2}: validation perplexity {values['valid_ppl']}"
            print(f"\r{text:<70}", flush=True)
        else:
            text = (
                f"epoch {values['epoch']:>2}, update {values['num_updates']}: loss {values['loss']}"
            )
            print(f"\r{text:<70}", end="", flush=True)


def plot(log: Path, picture: Path) -> None:
    """Draw training loss by update and validation perplexity by epoch, as a PNG."""
    rows: dict[str, list[tuple[float, float]]] = {"train_inner": [], "valid": []}
    for line in log.read_text(encoding="utf-8", errors=ESCAPE).splitlines():
        for kind, key, updates in (
            ("train_inner", "nll_loss", "num_updates"),
            ("valid", "valid_nll_loss", "valid_num_updates"),
        ):
            _, found, row = line.partition(f" | {kind} | ")
            if found:
                values = json.loads(row)
                rows[kind].append((float(values[updates]), 2 ** float(values[key])))
    from matplotlib.figure import Figure  # takes a second, and --help needs none

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(*zip(*rows["train_inner"], strict=True), color="0.7", label="training")
    axes.plot(*zip(*rows["valid"], strict=True), "o-", color="C0", label="validation")
    axes.set(
        title="resmlp_mt_tiny on the demo corpus",
        xlabel="updates", ylabel="perplexity", yscale="log",
    )  # fmt: skip
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    with replacing(picture) as partial:
        figure.savefig(partial, dpi=120, format="png")


def print_samples(output: str) -> None:
    """Ten test sentences with their reference and translation."""
    found: dict[int, dict[str, str]] = {}
    for letter, number, text in re.findall(r"^([STD])-(\d+)\t(.*)$", output, flags=re.MULTILINE):
        found.setdefault(int(number), {})[letter] = text.split("\t")[-1]
    print()
    for number in sorted(found)[:SAMPLES]:
        print(f"  source       {found[number]['S']}")
        print(f"  reference    {found[number]['T']}")
        print(f"  translation  {found[number]['D']}\n")


if __name__ == "__main__":
    main()
