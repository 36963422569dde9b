"""Times `python -m resmlp_mt.bulk` on a corpus with 1 and 2 workers, beside one `translate`.

    python -m benchmarks.bulk --sentences TEXT [--model MODEL]

TEXT has one sentence a line. Everything computes with one thread. Writes bulk.json and bulk.md
beside this file.
"""

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tabulate import tabulate

from resmlp_mt.command_line import command
from resmlp_mt.engine.pretrained import DEFAULT, FOLDER
from resmlp_mt.files import write_text
from resmlp_mt.machine import processor, usable_cores

HERE = Path(__file__).resolve().parent
ROWS = ("translate", "bulk --workers 1", "bulk --workers 2")


def measure(model: Path, text: Path, lines: int, size: int, row: str) -> dict[str, float]:
    """Seconds of one command, and lines per second after its start.

    The rate counts only lines that were written after the first part.
    """
    name, *options = row.split()
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "out"
        command = [sys.executable, "-m", f"resmlp_mt.{name}", model, "--input", text]
        command += ["--output", output, *options, "--threads", 1]
        if name == "bulk":
            command += ["--shard-size", size, "--address", "local"]
        else:
            command += ["--buffer-size", size]
        begin = time.monotonic()
        subprocess.run(
            [str(word) for word in command], check=True, capture_output=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        seconds = time.monotonic() - begin
        if name == "translate":
            return {"seconds": seconds, "rate": lines / seconds}
        parts = sorted(output.glob("*/part-*"), key=lambda path: path.stat().st_mtime_ns)
        span = (parts[-1].stat().st_mtime_ns - parts[0].stat().st_mtime_ns) / 1e9
        return {"seconds": seconds, "rate": (len(parts) - 1) * size / span}


def page(result: dict[str, Any]) -> str:
    """The table in Markdown."""
    base = statistics.median(run["rate"] for run in result["runs"][ROWS[1]])
    rows = []
    for row in ROWS:
        rates = [run["rate"] for run in result["runs"][row]]
        seconds = statistics.median(run["seconds"] for run in result["runs"][row])
        middle = statistics.median(rates)
        spread = f"{middle:.0f} [{min(rates):.0f}, {max(rates):.0f}]"
        rows.append([row, f"{seconds:.1f}", spread, f"{middle / base:.2f}"])
    head = ["", "seconds in all", "lines/s at work", "beside 1 worker"]
    return (
        f"# A corpus with 1 and with 2 workers\n\n{result['lines']:,} sentences, model "
        f"{result['model']}, beam 5, parts of {result['shard_size']} lines, one thread each; "
        f"medians and ranges of {result['rounds']} rounds.\n{result['machine']}; "
        f"{result['date']}. Written by `benchmarks/bulk.py`.\n\n"
        f"{tabulate(rows, head, tablefmt='github')}\n\n"
        "*Seconds in all* includes the start of Python and, with `bulk`, of Ray and the workers. "
        "Lines/s of `bulk` leave it out;\nthose of `translate` do not.\n"
    )


@command
def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sentences", type=Path, required=True, metavar="TEXT")
    parser.add_argument("--model", type=Path, default=FOLDER / DEFAULT, metavar="MODEL")
    parser.add_argument("--lines", type=int, default=8000, help="of TEXT, a multiple of the parts")
    parser.add_argument("--shard-size", type=int, default=200, help="lines of a part")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    lines = args.sentences.read_text(encoding="utf-8").split("\n")[: args.lines]
    if len(lines) % args.shard_size or len(lines) < 2 * args.shard_size:
        parser.error(f"TEXT has {len(lines)} lines: give whole parts of {args.shard_size}")
    runs: dict[str, list[dict[str, float]]] = {row: [] for row in ROWS}
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text"
        text.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        for _ in range(args.rounds):
            for row in ROWS:
                runs[row].append(measure(args.model, text, len(lines), args.shard_size, row))
                print(row, runs[row][-1], flush=True)
    result = {
        "machine": f"{processor()}, {usable_cores()} cores",
        "date": datetime.date.today().isoformat(),
        "model": args.model.name,
        "lines": len(lines),
        "shard_size": args.shard_size,
        "rounds": args.rounds,
        "runs": runs,
    }
    write_text(HERE / "bulk.json", json.dumps(result, indent=1) + "\n")
    write_text(HERE / "bulk.md", page(result))
    print(page(result))


if __name__ == "__main__":
    main()
