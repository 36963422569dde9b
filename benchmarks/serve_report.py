"""The report of serve.py."""

from typing import Any

from tabulate import tabulate


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
        headers=(f"engine in batches of {result['batch']}", "sentences/s"),
        tablefmt="github",
        disable_numparse=True,
    )
    return f"""# The server under load

{result["processor"]}, {result["cores"]} cores, which the clients share; {result["date"]}. Written by `benchmarks/serve.py`.
Model: {model["source_lang"]}-{model["target_lang"]}, {model["encoder_layers"]} + {model["decoder_layers"]} layers, width {model["encoder_embed_dim"]}, {model["dtype"]}; beam {result["beam"]}; {result["workers"]} workers.
Each request is one of {result["lines"]} sentences, of {result["target_tokens"]} target tokens in the mean. `wrk` asks for {result["seconds"]:g} seconds; every client asks again as soon as it has its answer.
The peer is FastAPI over CTranslate2 (`benchmarks/serve_ctranslate2.py`) with a Transformer of as many parameters ({result["parameters"] / 1e6:.1f} M; hidden size {result["peer_hidden"]}) and random weights, told to write as many tokens.

{table}

Without a server, the same engine translates, also from one process or from threads:

{alone}

The server at its best reaches {100 * most / direct:.0f} % of the engine in batches, with batches of what happens to wait.

At twice that load ({over["rate"]:.0f} requests/s for {over["seconds"]:.0f} seconds): {over["sent"]} sent, {over.get("200", 0)} answered, {refused} refused with 429 or 503, {other} other errors, {over["lost"]} lost, {over["mixed"]} mixed up, {over.get("rounded", 0)} worded differently than alone (sums of other batches round differently).

Memory of the server and its workers, without their libraries' files, over {result["requests"]} requests, after each tenth, MiB: {memory_shown}.
"""  # noqa: E501
