"""Translates corpora with Ray Data: tasks read the files, actors translate and write parts."""

import logging
import pickle
import platform
import signal
import threading
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow
import ray
import ray.data
import ray.exceptions

from resmlp_mt.engine import digests, pretrained
from resmlp_mt.engine.translator import Translator
from resmlp_mt.errors import UserError, is_of_memory, one_line, reason, refused
from resmlp_mt.sharding.manifest import Done, Manifest, Record, check_is_of_run
from resmlp_mt.sharding.parts import CorpusFile, Shard, shards, translate

COLUMN = "pickled"
RESTARTS, RETRIES = 10, 3
"""How often a worker is replaced, and a part translated again, where their processes die."""
logger = logging.getLogger(__name__)


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
        model: what ``load`` reads, as :func:`resmlp_mt.engine.pretrained.portable` gives it.
        digest: of the model that the run began with.
        folder: for the output.
        settings: of the manifest there.
    """

    def __init__(
        self,
        load: Callable[[], Translator],
        model: Path | None,
        digest: str,
        folder: Path,
        settings: dict[str, Any],
    ) -> None:
        self._folder = folder
        self._translator: Translator | str
        try:
            check_is_of_run(folder, settings)
            self._translator = load()
            place = pretrained.located(model)
            if digests.total(place) != digest:
                raise UserError(
                    f"{place} on {platform.node()} is not the model that this run began with: give "
                    "all machines the same one, and change it only between runs."
                )
        except UserError as error:
            self._translator = str(error)
        except Exception as error:
            if not is_of_memory(error):
                raise
            self._translator = (
                f"{platform.node()} has not enough memory for as many workers with "
                f"{model or pretrained.DEFAULT} ({one_line(reason(error))}): give fewer --workers."
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


@contextmanager
def connected(address: str, workers: int | None, threads: int) -> Iterator[int]:
    """Start Ray on this machine or join a cluster, and leave it at the end of the block.

    Where Ray runs in this program already, it is used, and goes on.

    Args:
        address: ``local``, ``auto`` or ``host:port``.
        workers: number of workers; by default one for every ``threads`` processors.

    Yields:
        The number of workers.

    Raises:
        UserError: if there is no such cluster, or it has too few processors.
    """
    is_running, level = ray.is_initialized(), logging.getLogger("ray").level
    try:
        if not is_running:
            _start(address, workers * threads if workers else None)
        elif address != "local":
            logger.warning("Ray runs in this program already: --address %s has no effect", address)
        processors = int(ray.cluster_resources().get("CPU", 0))
        workers = workers or max(processors // threads, 1)
        if workers * threads > processors:
            raise UserError(
                f"--workers {workers} of {threads} threads need {workers * threads} processors, "
                f"but the cluster has {processors}: give fewer."
            )
        yield workers
    finally:
        if not is_running:
            ray.shutdown()
            logging.getLogger("ray").setLevel(level)


def _start(address: str, processors: int | None) -> None:
    own = {"num_cpus": processors} if address == "local" and processors else {}
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, logging_level="error", **own)
    except (OSError, ValueError, RuntimeError) as error:
        wrong = f"--address {address} has no cluster of Ray"
        wrong = "Ray cannot be started on this machine" if address == "local" else wrong
        if name := getattr(error, "filename", None):
            wrong = f"Ray needs a HOME and a TMPDIR that can be written, and cannot use {name}"
        raise UserError(f"{wrong} ({reason(error)}).") from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray's would end the program with status 15


def run(
    files: Sequence[CorpusFile],
    size: int,
    manifest: Manifest,
    load: Callable[[], Translator],
    model: Path | None,
    digest: str,
    workers: int,
    threads: int,
) -> Generator[Record, None, None]:
    """Translate files; yields a record for each part as soon as it is finished.

    A worker that dies is replaced, and its unfinished parts are given to others, but not for ever.

    Args:
        size: number of lines in a part.
        manifest: of the output folder; parts that are done are not translated again.
        load, model, digest: see :class:`Worker`.

    Raises:
        UserError: if a file cannot be read or written, workers die again and again, or one has no
            model, another one or another output folder.
    """
    deaths = refused(
        lambda _: (
            "workers died again and again, most often because memory runs out: give fewer "
            "--workers or a smaller --batch-size, and parts that are done stay."
        ),
        *(ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError),
    )
    with _settings(), deaths:
        corpus = ray.data.from_items(
            [{COLUMN: pickle.dumps(file)} for file in files], override_num_blocks=len(files)
        )
        parts = corpus.map_batches(
            _rows,
            batch_size=1,
            batch_format="pyarrow",
            fn_kwargs={"size": size, "done": manifest.done},
            num_cpus=0,  # they mostly wait until their parts are taken
        )
        records = parts.map_batches(
            Worker,
            batch_size=1,
            batch_format="pyarrow",
            fn_constructor_args=(load, model, digest, manifest.folder, manifest.settings),
            num_cpus=threads,
            compute=ray.data.ActorPoolStrategy(size=workers),
            max_restarts=RESTARTS,
            max_task_retries=RETRIES,
        )
        for row in records.iter_rows():
            found = _value(row[COLUMN])
            if isinstance(found, str):
                raise UserError(found)
            yield found


@contextmanager
def _settings() -> Iterator[None]:
    """Ray Data as it has to be set for a run; a program that uses it too has its own afterwards."""
    context, log = ray.data.DataContext.get_current(), logging.getLogger("ray.data")
    before = context.target_max_block_size, context.enable_progress_bars, log.level
    context.target_max_block_size = 1  # every shard is a block, and blocks are given to workers
    context.enable_progress_bars = False
    log.setLevel(logging.CRITICAL)  # its errors are raised, too
    try:
        with warnings.catch_warnings():
            # there is no other way to limit restarts
            warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")
            # One file is one input of the workers, but every part of it is given to another one.
            warnings.filterwarnings(
                "ignore", "The minimum number of concurrent actors", UserWarning
            )
            yield
    finally:
        context.target_max_block_size, context.enable_progress_bars = before[:2]
        log.setLevel(before[2])
