"""Loads the server: throughput, latency, overload and memory, beside a server with CTranslate2.

    python -m benchmarks.serve --sentences text.en [--model MODEL]

MODEL is an exported folder with a sentencepiece model (by default the one that comes with the
package), TEXT has one sentence a line. Needs wrk (Debian's package). Writes serve.json and serve.md
beside this file, after some seven minutes on two cores.

Every wait has a limit. If a server fails, the end of its output is shown.
"""

import argparse
import datetime
import http.client
import json
import math
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import safe_open

from benchmarks.serve_report import page
from resmlp_mt.command_line import command
from resmlp_mt.engine.model_folder import SENTENCEPIECE
from resmlp_mt.engine.pretrained import DEFAULT, FOLDER
from resmlp_mt.files import write_text
from resmlp_mt.machine import processor, usable_cores

HERE = Path(__file__).resolve().parent
CLIENTS = (1, 8, 64)
BEAM = 5
BATCH = 64
QUEUE = 512  # waiting sentences of our server; twice the capacity fills it within seconds
SENDERS = 1024  # more than the queue and the workers hold, so that no request waits to be sent
READY, ANSWER, END = 120, 120, 60  # seconds for a server's start, for an answer, for its end


@contextmanager
def started(
    command: Sequence[str], log: Path, environment: dict[str, str] | None = None
) -> Iterator[tuple[int, int]]:
    """Port and process id of a server that prints its address when it is ready.

    The server and its children are ended in any case.

    Raises:
        RuntimeError: if the server ends too early, or is not ready in time.
    """
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            env={**os.environ, **(environment or {})},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield _port(process, log), process.pid
        if process.poll() is not None:
            raise RuntimeError(f"{command[0]} ended with {process.returncode}")
    except BaseException:
        print("\n".join(log.read_text().splitlines()[-30:]), file=sys.stderr, flush=True)
        raise
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(END)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _port(process: subprocess.Popen[bytes], log: Path) -> int:
    end = time.monotonic() + READY
    while process.poll() is None and time.monotonic() < end:
        if address := re.search(r"http://127\.0\.0\.1:(\d+)\b", log.read_text()):
            return int(address[1])
        time.sleep(0.1)
    raise RuntimeError(f"the server is not ready (status {process.poll()})")


def resmlp_command(model: Path, workers: int) -> list[str]:
    """Our server."""
    return [
        *("resmlp_mt.serve", str(model), "--port", "0", "--workers", str(workers)),
        *("--client-requests", "0", "--queue-size", str(QUEUE), "--beam", str(BEAM)),
    ]


PEER = [
    *("uvicorn", "--app-dir", str(HERE), "serve_ctranslate2:app"),
    *("--port", "0", "--no-access-log"),
]


def connection(port: int) -> http.client.HTTPConnection:
    """To a server on this machine."""
    return http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER)


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
        encoding="utf-8",
        check=True,
        timeout=seconds + ANSWER,
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
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(count, context, load, (model,)) as executor:
            found[name], found["length"] = in_batches(executor, lines, rounds)
    load(model)
    with ThreadPoolExecutor(workers) as executor:
        found[f"{workers} threads of one process"], _ = in_batches(executor, lines, rounds)
    return found


def overload(port: int, bodies: list[str], rate: float, seconds: float) -> dict[str, Any]:
    """Send requests at a fixed rate, without waiting for answers, and check every answer.

    Every request has a connection of its own.

    Returns:
        Counts of statuses; ``lost`` are requests without an answer, ``mixed`` are answers for
        another sentence.
    """
    with closing(connection(port)) as alone:
        right = {body: ask(alone, body)[1]["translatedText"] for body in bodies}
    texts = set(right.values())
    counts: Counter[str] = Counter()
    lock = threading.Lock()
    start = time.perf_counter()
    numbers = iter(range(int(rate * seconds)))

    def client() -> None:
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            time.sleep(max(0.0, start + number / rate - time.perf_counter()))
            body = bodies[number % len(bodies)]
            try:
                with closing(connection(port)) as own:
                    status, answer = ask(own, body)
                kinds = [str(status)]
                if status == 200 and answer["translatedText"] != right[body]:
                    kinds.append("mixed" if answer["translatedText"] in texts else "rounded")
            except (OSError, http.client.HTTPException, ValueError):
                kinds = ["lost"]
            with lock:
                counts.update(kinds)

    clients = [threading.Thread(target=client) for _ in range(min(SENDERS, int(rate * seconds)))]
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
    """MiB of a process and its children, without mapped files such as libraries.

    Other processes share those, and come and go.
    """
    pids, total = [process], 0
    for pid in pids:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            pids += map(int, (thread / "children").read_text().split())
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss_Anon:"):
                total += int(line.split()[1])
    return total / 1024


def memory_over(port: int, process: int, bodies: list[str], requests: int) -> list[float]:
    """MiB after every tenth of the requests, eight at a time."""
    found = [memory(process)]

    def client(count: int) -> None:
        with closing(connection(port)) as own:
            for _ in range(count):
                status, answer = ask(own, random.choice(bodies))
                assert status == 200, answer

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
    say("the engine alone", result["engine"])
    length = max(1, round(result["engine"].pop("length")) - 1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        written = folder / "bodies"
        written.write_text("\n".join(bodies) + "\n")

        def loads(server: str, port: int) -> None:
            wrk(port, written, 8, 2)  # warm
            result[server] = {str(c): wrk(port, written, c, args.seconds) for c in CLIENTS}
            say(server, result[server])

        with started(resmlp_command(args.model, args.workers), folder / "log") as (port, process):
            loads("resmlp", port)
            capacity = max(row["rate"] for row in result["resmlp"].values())
            result["overload"] = overload(port, bodies, 2 * capacity, args.seconds)
            say("twice the capacity", result["overload"])
            result["memory"] = memory_over(port, process, bodies, args.requests)
            say("memory", result["memory"])
        hidden = peer_model(args.model, folder / "peer")
        environment = {
            **{"MODEL": str(folder / "peer"), "LENGTH": str(length), "TYPE": config["dtype"]},
            **{"PIECES": str(args.model / SENTENCEPIECE), "THREADS": str(args.workers)},
        }
        with started(PEER, folder / "log", environment) as (port, _):
            loads("ctranslate2", port)
    return {
        "date": datetime.date.today().isoformat(),
        "processor": processor(),
        "cores": usable_cores(),
        "model": {name: value for name, value in config.items() if isinstance(value, int | str)},
        "lines": len(lines),
        "workers": args.workers,
        "beam": BEAM,
        "batch": BATCH,
        "seconds": args.seconds,
        "requests": args.requests,
        "target_tokens": length + 1,
        "parameters": parameters(args.model),
        "peer_hidden": hidden,
        **result,
    }


def say(what: str, found: object) -> None:
    """Show what was measured, and when."""
    print(f"{datetime.datetime.now():%H:%M:%S} {what}: {found}", file=sys.stderr, flush=True)


def give_up(*_: object) -> None:
    """End the processes that this one waits for.

    Raises:
        TimeoutError: always, so that the servers are ended too.
    """
    for child in multiprocessing.active_children():
        child.kill()
    raise TimeoutError("the measurement takes too long")


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=FOLDER / DEFAULT, metavar="MODEL")
    parser.add_argument("--sentences", type=Path, required=True, metavar="TEXT")
    parser.add_argument("--lines", type=int, default=1000, help="of TEXT (default: 1000)")
    parser.add_argument("--workers", type=int, default=usable_cores())
    parser.add_argument("--seconds", type=int, default=30, help="of each load (default: 30)")
    parser.add_argument("--requests", type=int, default=20_000, help="for the memory")
    parser.add_argument("--rounds", type=int, default=3, help="of the engine alone")
    parser.add_argument("--minutes", type=int, default=20, help="give up after (default: 20)")
    parser.add_argument("--output", type=Path, default=HERE, help="folder of the report")
    args = parser.parse_args()
    if shutil.which("wrk") is None:
        parser.error("wrk is missing: apt-get install wrk")
    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(60 * args.minutes)
    result = measure(args)
    write_text(args.output / "serve.json", json.dumps(result, indent=1) + "\n")
    write_text(args.output / "serve.md", page(result))
    print(page(result))


if __name__ == "__main__":
    main()
