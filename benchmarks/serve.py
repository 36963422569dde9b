"""Loads the server: throughput, latency, overload and memory, beside a server with CTranslate2.

    python -m benchmarks.serve --sentences text.en [--model MODEL]

MODEL is an exported folder with a sentencepiece model (by default the one that comes with the
package), TEXT has one sentence a line. Needs wrk
(Debian's package). Writes serve.json and serve.md beside this file.
"""

import argparse
import datetime
import http.client
import json
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from safetensors import safe_open
from tabulate import tabulate

from resmlp_mt.engine.pretrained import DEFAULT, FOLDER
from resmlp_mt.files import write_text
from resmlp_mt.machine import processor, usable_cores

HERE = Path(__file__).resolve().parent
CLIENTS = (1, 8, 64)
BEAM = 5
BATCH = 64


@contextmanager
def resmlp_server(model: Path, workers: int) -> Iterator[tuple[int, int]]:
    """Port and process id of our server."""
    command = [
        *(sys.executable, "-m", "resmlp_mt.serve", str(model), "--port", "0"),
        *("--workers", str(workers), "--client-requests", "0", "--beam", str(BEAM)),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline().rsplit(":", 1)[1]), process.pid
        finally:
            process.terminate()


@contextmanager
def ctranslate2_server(
    model: Path, pieces: Path, length: int, workers: int, dtype: str
) -> Iterator[int]:
    """Port of the peer."""
    port = 8000 + random.randrange(1000)
    environment = {
        **{"MODEL": str(model), "PIECES": str(pieces), "LENGTH": str(length)},
        **{"THREADS": str(workers), "TYPE": dtype},
    }
    command = [
        *(sys.executable, "-m", "uvicorn", "--app-dir", str(HERE), "serve_ctranslate2:app"),
        *("--port", str(port), "--log-level", "warning", "--no-access-log"),
    ]
    with subprocess.Popen(command, env={**os.environ, **environment}) as process:
        try:
            while True:
                try:
                    ask(http.client.HTTPConnection("127.0.0.1", port), "{}")
                    break
                except ConnectionError:
                    time.sleep(0.2)
            yield port
        finally:
            process.terminate()


def ask(connection: http.client.HTTPConnection, body: str) -> tuple[int, Any]:
    """Status and answer."""
    connection.request("POST", "/translate", body.encode(), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def wrk(port: int, bodies: Path, clients: int, seconds: int) -> dict[str, float]:
    """Requests a second and milliseconds to the answer, each client asking as soon as it can."""
    environment = {"SENTENCES": str(bodies), "SEED": str(clients)}
    done = subprocess.run(
        [
            *("wrk", "-t1", f"-c{clients}", f"-d{seconds}s", "--timeout", "60s"),
            *("-s", HERE / "serve.lua", f"http://127.0.0.1:{port}"),
        ],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    found["rate"] = found["requests"] / found["seconds"]
    return found


_translator: Any = None


def load(model: Path) -> None:
    """Load the model in this process, with one thread."""
    import torch

    from resmlp_mt.engine import model_folder
    from resmlp_mt.engine.options import SearchOptions
    from resmlp_mt.engine.translator import Translator

    global _translator
    torch.set_num_threads(1)
    _translator = Translator(model_folder.load(model), SearchOptions(beam=BEAM), BATCH)


def translate(lines: list[str]) -> int:
    """Target tokens of the best translations."""
    return sum(len(found[0].positional_scores) for found in _translator.translate(lines))


def in_batches(executor: Executor, lines: list[str], rounds: int) -> tuple[float, float]:
    """Sentences per second of the engine without a server, and the mean length of translations."""
    batches = [lines[i : i + BATCH] for i in range(0, len(lines), BATCH)]
    list(executor.map(translate, batches[:2]))
    start = time.perf_counter()
    tokens = sum(sum(executor.map(translate, batches)) for _ in range(rounds))
    sentences = rounds * len(lines)
    return sentences / (time.perf_counter() - start), tokens / sentences


def engines(model: Path, lines: list[str], workers: int, rounds: int) -> dict[str, float]:
    """Sentences per second with processes and with threads, and the length of translations."""
    found = {}
    for name, count in (("1 process", 1), (f"{workers} processes", workers)):
        context = get_context("spawn")
        with ProcessPoolExecutor(count, context, load, (model,)) as executor:
            found[name], found["length"] = in_batches(executor, lines, rounds)
    load(model)
    with ThreadPoolExecutor(workers) as executor:
        found[f"{workers} threads of one process"], _ = in_batches(executor, lines, rounds)
    return found


def overload(port: int, bodies: list[str], rate: float, seconds: float) -> dict[str, Any]:
    """Send requests at a fixed rate, without waiting for answers, and check every answer.

    Returns:
        Counts of statuses; ``lost`` are requests without an answer, ``mixed`` are answers for
        another sentence.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port)
    right = {body: ask(connection, body)[1]["translatedText"] for body in bodies}
    owners: dict[str, set[str]] = {}
    for body, text in right.items():
        owners.setdefault(text, set()).add(body)
    counts: Counter[str] = Counter()
    lock = threading.Lock()
    start = time.perf_counter()
    numbers = iter(range(int(rate * seconds)))

    def client() -> None:
        own = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            time.sleep(max(0.0, start + number / rate - time.perf_counter()))
            body = bodies[number % len(bodies)]
            try:
                status, answer = ask(own, body)
                kinds = [str(status)]
                if status == 200:
                    text = answer["translatedText"]
                    if text != right[body]:
                        kinds.append("mixed" if text in owners else "rounded")
            except OSError:
                kinds = ["lost"]
                own.close()
            with lock:
                counts.update(kinds)

    clients = [threading.Thread(target=client) for _ in range(256)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    return {
        "rate": rate,
        "sent": int(rate * seconds),
        "seconds": time.perf_counter() - start,
        "lost": 0,
        "mixed": 0,
        **counts,
    }


def memory(process: int) -> float:
    """MiB of a process and its children."""
    pids, total = [process], 0
    for pid in pids:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            pids += map(int, (thread / "children").read_text().split())
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return total / 1024


def memory_over(port: int, process: int, bodies: list[str], requests: int) -> list[float]:
    """MiB after every tenth of the requests, eight at a time."""
    found = [memory(process)]

    def client(count: int) -> None:
        own = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        for _ in range(count):
            assert ask(own, random.choice(bodies))[0] == 200

    for _ in range(10):
        with ThreadPoolExecutor(8) as executor:
            list(executor.map(client, [requests // 80] * 8))
        found.append(memory(process))
    return found


def parameters(model: Path) -> int:
    """Numbers in a model's file."""
    with safe_open(model / "model.safetensors", "numpy") as stored:
        names: list[str] = stored.keys()
        return sum(math.prod(stored.get_slice(name).get_shape()) for name in names)


def peer_model(model: Path, folder: Path) -> int:
    """A Transformer for CTranslate2 with random weights; returns its hidden size.

    It has as many layers and channels, and feed-forward layers that make the parameters equal.
    """
    from fairseq.data import Dictionary

    from benchmarks.speed.generation_rows import save_for_ctranslate2
    from benchmarks.speed.translation_models import Sizes

    config = json.loads((model / "config.json").read_text())
    words = Dictionary.load(str(model / f"dict.{config['target_lang']}.txt"))
    dim, layers = config["encoder_embed_dim"], config["encoder_layers"]
    decoder_layers = config["decoder_layers"]
    attention = (4 * layers + 8 * decoder_layers) * dim**2
    rest = parameters(model) - len(words) * dim - attention
    hidden: int = max(round(rest / (2 * dim * (layers + decoder_layers)) / 8) * 8, 8)
    sizes = Sizes(
        dim,
        hidden,
        layers,
        config["decoder_attention_heads"],
        len(words),
        config["max_source_positions"],
        decoder_layers=decoder_layers,
    )
    folder.mkdir()
    save_for_ctranslate2(sizes, words, folder, seed=1)
    return hidden


def measure(args: argparse.Namespace) -> dict[str, Any]:
    config = json.loads((args.model / "config.json").read_text())
    lines = [line for line in args.sentences.read_text().splitlines() if line.strip()]
    lines = lines[: args.lines]
    pair = {"source": config["source_lang"], "target": config["target_lang"]}
    bodies = [json.dumps({"q": line, **pair}) for line in lines]
    result: dict[str, Any] = {"engine": engines(args.model, lines, args.workers, args.rounds)}
    length = max(1, round(result["engine"].pop("length")) - 1)
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "bodies"
        written.write_text("\n".join(bodies) + "\n")

        def loads(port: int) -> dict[str, dict[str, float]]:
            wrk(port, written, 8, 2)  # warm
            return {str(c): wrk(port, written, c, args.seconds) for c in CLIENTS}

        with resmlp_server(args.model, args.workers) as (port, process):
            result["resmlp"] = loads(port)
            capacity = max(row["rate"] for row in result["resmlp"].values())
            result["overload"] = overload(port, bodies, 2 * capacity, args.seconds)
            result["memory"] = memory_over(port, process, bodies, args.requests)
        hidden = peer_model(args.model, Path(folder) / "peer")
        pieces = args.model / "sentencepiece.model"
        dtype = config["dtype"]
        peer = ctranslate2_server(Path(folder) / "peer", pieces, length, args.workers, dtype)
        with peer as port:
            result["ctranslate2"] = loads(port)
    return {
        "date": datetime.date.today().isoformat(),
        "processor": processor(),
        "cores": usable_cores(),
        "model": {name: value for name, value in config.items() if isinstance(value, int | str)},
        "lines": len(lines),
        "workers": args.workers,
        "seconds": args.seconds,
        "requests": args.requests,
        "target_tokens": length + 1,
        "parameters": parameters(args.model),
        "peer_hidden": hidden,
        **result,
    }


def page(result: dict[str, Any]) -> str:
    """The report."""
    model = result["model"]
    rows = [
        (server, clients, f"{row['rate']:.0f}", *(f"{row[p]:.0f}" for p in ("p50", "p95", "p99")),
         f"{row['errors']:.0f}")
        for server in ("resmlp", "ctranslate2")
        for clients, row in result[server].items()
    ]  # fmt: skip
    most = max(row["rate"] for row in result["resmlp"].values())
    engine = result["engine"]
    direct = engine[f"{result['workers']} processes"]
    over = result["overload"]
    refused = sum(over.get(status, 0) for status in ("429", "503"))
    other = over["sent"] - refused - over.get("200", 0) - over["lost"]
    memory_shown = ", ".join(f"{value:.0f}" for value in result["memory"])
    table = tabulate(
        rows,
        headers=("server", "clients", "requests/s", "p50, ms", "p95, ms", "p99, ms", "errors"),
        tablefmt="github",
        disable_numparse=True,
    )
    alone = tabulate(
        [(name, f"{rate:.0f}") for name, rate in engine.items()],
        headers=("engine in batches of " + str(BATCH), "sentences/s"),
        tablefmt="github",
        disable_numparse=True,
    )
    return f"""# The server under load

{result["processor"]}, {result["cores"]} cores, which the clients share; {result["date"]}. Written by `benchmarks/serve.py`.
Model: {model["source_lang"]}-{model["target_lang"]}, {model["encoder_layers"]} + {model["decoder_layers"]} layers, width {model["encoder_embed_dim"]}, {model["dtype"]}; beam {BEAM}; {result["workers"]} workers.
Each request is one of {result["lines"]} sentences, of {result["target_tokens"]} target tokens in the mean. `wrk` asks for {result["seconds"]:g} seconds; every client asks again as soon as it has its answer.
The peer is FastAPI over CTranslate2 (`benchmarks/serve_ctranslate2.py`) with a Transformer of as many parameters ({result["parameters"] / 1e6:.1f} M; hidden size {result["peer_hidden"]}) and random weights, told to write as many tokens.

{table}

Without a server, the same engine translates, also from one process or from threads:

{alone}

The server at its best reaches {100 * most / direct:.0f} % of the engine in batches, with batches of what happens to wait.

At twice that load ({over["rate"]:.0f} requests/s for {over["seconds"]:.0f} seconds): {over["sent"]} sent, {over.get("200", 0)} answered, {refused} refused with 429 or 503, {other} other errors, {over["lost"]} lost, {over["mixed"]} mixed up, {over.get("rounded", 0)} worded differently than alone (sums of other batches round differently).

Memory of the server and its workers over {result["requests"]} requests, after each tenth, MiB: {memory_shown}.
"""  # noqa: E501


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=FOLDER / DEFAULT, metavar="MODEL")
    parser.add_argument("--sentences", type=Path, required=True, metavar="TEXT")
    parser.add_argument("--lines", type=int, default=1000, help="of TEXT (default: 1000)")
    parser.add_argument("--workers", type=int, default=usable_cores())
    parser.add_argument("--seconds", type=int, default=30, help="of each load (default: 30)")
    parser.add_argument("--requests", type=int, default=20_000, help="for the memory")
    parser.add_argument("--rounds", type=int, default=3, help="of the engine alone")
    parser.add_argument("--output", type=Path, default=HERE, help="folder of the report")
    args = parser.parse_args()
    if shutil.which("wrk") is None:
        parser.error("wrk is missing: apt-get install wrk")
    result = measure(args)
    write_text(args.output / "serve.json", json.dumps(result, indent=1) + "\n")
    write_text(args.output / "serve.md", page(result))
    print(page(result))


if __name__ == "__main__":
    main()
