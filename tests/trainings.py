"""fairseq-train in processes of its own, which tests signal and kill."""

import socket
from collections.abc import Sequence
from pathlib import Path

from forks import Fork

OPTIONS = """
    --user-dir resmlp_mt --arch resmlp_mt_tiny --cpu --encoder-layers 1 --decoder-layers 1
    --encoder-embed-dim 64 --decoder-embed-dim 64 --share-all-embeddings
    --max-source-positions 40 --max-target-positions 40 --optimizer adam --lr 0.005
    --lr-scheduler inverse_sqrt --warmup-updates 20 --criterion label_smoothed_cross_entropy
    --dropout 0 --batch-size 25 --max-epoch 2 --seed 1 --num-workers 0 --log-format json
    --log-interval 1 --no-epoch-checkpoints --disable-validation
""".split()


def training(arguments: Sequence[object], log: Path, **environment: str) -> Fork:
    """fairseq-train in another process, which starts at once."""
    return Fork("train", arguments, log, environment)


def as_torchrun_starts_them(
    arguments: Sequence[object], logs: Path, processes: int = 2
) -> list[Fork]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    logs.mkdir(parents=True, exist_ok=True)
    return [
        training(
            arguments, logs / f"{rank}.log", RANK=str(rank), LOCAL_RANK=str(rank),
            WORLD_SIZE=str(processes), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
        )
        for rank in range(processes)
    ]  # fmt: skip
