"""Translates corpora with Ray Data: tasks read the files, actors translate and write parts."""

import logging
import pickle
import platform
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import ray
import ray.data

from resmlp_mt.engine import digests
from resmlp_mt.engine.translator import Translator
from resmlp_mt.errors import UserError, is_of_memory, one_line, reason
from resmlp_mt.sharding.manifest import Done, Record
from resmlp_mt.sharding.parts import CorpusFile, Shard, shards, translate

COLUMN = "pickled"


def _rows(files: pyarrow.Table, size: int, done: Done) -> Iterator[pyarrow.Table]:
    """The shards of a file, one per row; it is read once, from beginning to end."""
    file = _value(files[COLUMN][0].as_py())
    try:
        for shard in shards(file, size, done):
            yield _table(shard)
    except UserError as error:
        yield _table(str(error))


def _table(value: Shard | Record | str) -> pyarrow.Table:
    """A row; a text is an error message, which Ray would otherwise wrap in tracebacks."""
    return pyarrow.table({COLUMN: [pickle.dumps(value)]})


class Worker:
    """An actor that translates shards, one after the other.

    Without the model, it answers each with the same error: Ray would wrap one that is raised here
    in tracebacks.

    Args:
        load: makes its translator.
        model: the folder that ``load`` reads.
        digest: of the model that the run began with.
        folder: for the output.
    """

    def __init__(
        self, load: Callable[[], Translator], model: Path, digest: str, folder: Path
    ) -> None:
        self._folder = folder
        self._translator: Translator | str
        try:
            self._translator = load()
            if digests.total(model) != digest:
                raise UserError(
                    f"{model} on {platform.node()} is not the model that this run began with: give "
                    "all machines the same one, and change it only between runs."
                )
        except UserError as error:
            self._translator = str(error)
        except Exception as error:
            if not is_of_memory(error):
                raise
            self._translator = (
                f"{platform.node()} has not enough memory for as many workers with {model} "
                f"({one_line(reason(error))}): give fewer --workers."
            )

    def __call__(self, rows: pyarrow.Table) -> pyarrow.Table:
        shard = _value(rows[COLUMN][0].as_py())
        if not isinstance(shard, Shard):
            return rows
        if isinstance(self._translator, str):
            return _table(self._translator)
        try:
            return _table(translate(shard, self._translator, self._folder))
        except UserError as error:
            return _table(str(error))


def _value(content: bytes) -> Any:
    # written by processes of this program
    return pickle.loads(content)  # nosec B301


def connect(address: str, workers: int | None, threads: int) -> int:
    """Start Ray on this machine or join a cluster; returns the number of workers.

    Args:
        address: ``local``, ``auto`` or ``host:port``.
        workers: number of workers; by default one for every ``threads`` processors.

    Raises:
        UserError: if there is no such cluster, or it has too few processors.
    """
    own = {"num_cpus": workers * threads} if address == "local" and workers else {}
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, logging_level="error", **own)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(f"--address {address} has no cluster of Ray ({reason(error)}).") from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray's would end the program with status 15
    processors = int(ray.cluster_resources().get("CPU", 0))
    workers = workers or max(processors // threads, 1)
    if workers * threads > processors:
        raise UserError(
            f"--workers {workers} of {threads} threads need {workers * threads} processors, but "
            f"the cluster has {processors}: give fewer."
        )
    return workers


def run(
    files: Sequence[CorpusFile],
    folder: Path,
    size: int,
    done: Done,
    load: Callable[[], Translator],
    model: Path,
    digest: str,
    workers: int,
    threads: int,
) -> Iterator[Record]:
    """Translate files; yields a record for each part as soon as it is finished.

    A worker that dies is replaced, and its unfinished parts are given to others.

    Args:
        load, model, digest: see :class:`Worker`.

    Raises:
        UserError: if a file cannot be read or written, or a worker has no model or another one.
    """
    context = ray.data.DataContext.get_current()
    context.target_max_block_size = 1  # every shard is a block, and blocks are given to workers
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    # One file is one input of the workers, but every part of it is given to another one.
    warnings.filterwarnings("ignore", "The minimum number of concurrent actors", UserWarning)
    corpus = ray.data.from_items(
        [{COLUMN: pickle.dumps(file)} for file in files], override_num_blocks=len(files)
    )
    parts = corpus.map_batches(
        _rows,
        batch_size=1,
        batch_format="pyarrow",
        fn_kwargs={"size": size, "done": done},
        num_cpus=0,  # they mostly wait until their parts are taken
    )
    records = parts.map_batches(
        Worker,
        batch_size=1,
        batch_format="pyarrow",
        fn_constructor_args=(load, model, digest, folder),
        num_cpus=threads,
        compute=ray.data.ActorPoolStrategy(size=workers),
    )
    for row in records.iter_rows():
        found = _value(row[COLUMN])
        if isinstance(found, str):
            raise UserError(found)
        yield found
