"""Worker processes that translate.

They are processes and not threads, because the search is Python code between many small products,
in which threads wait for each other. A worker computes with one thread, for the same reason.
"""

import asyncio
import json
import logging
import multiprocessing
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from resmlp_mt import signals
from resmlp_mt.errors import UserError, is_of_memory, one_line, reason
from resmlp_mt.extras import missing
from resmlp_mt.serving.limits import ModelOptions

if TYPE_CHECKING:
    # the server's own process does not import torch
    from resmlp_mt.engine.translation import Translation
    from resmlp_mt.engine.translator import Translator


Result = TypeVar("Result")
logger = logging.getLogger(__name__)

# Between two tries to load models again; each pause is twice the one before.
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds

MEMORY_REMEDY = "divide the text, or start the server with fewer --workers"


class Translated(NamedTuple):
    """A translation of a sentence.

    Attributes:
        score: its log-probability per token, base e.
        pieces: its pieces, without end-of-sentence, if asked for.
        attention: attention of each piece to each source piece, if asked for; ONNX graphs give
            none.
    """

    text: str
    score: float
    pieces: Sequence[str] = ()
    attention: Sequence[Sequence[float]] = ()


class Answer(NamedTuple):
    """A worker's answer for a sentence.

    Attributes:
        tokens: number of source tokens, end-of-sentence included.
        longest: largest number of tokens that the model or the server takes.
        translations: best first; none if the sentence is too long or has no translation with a
            finite score.
        pieces: source pieces, without end-of-sentence, if asked for.
        is_servers: whether ``longest`` is the server's, and the model would take more.
    """

    tokens: int
    longest: int
    translations: list[Translated]
    pieces: Sequence[str] = ()
    is_servers: bool = False


class Languages(NamedTuple):
    """The language pair of a model."""

    source: str
    target: str


Digests = dict[Languages, str]
"""The digest of each model."""


class Work(NamedTuple):
    """The work on a sentence; all sentences of a batch have the same.

    Attributes:
        explained: return pieces and attention too.
    """

    languages: Languages
    explained: bool = False


class WorkerDiedError(Exception):
    """A worker's process ended in the middle of its work, or has no models."""


class WorkerGoneError(WorkerDiedError):
    """A worker's process had ended before the work began, which is not at fault."""


class Worker:
    """A process with its own copy of the models; a new one takes its place if it dies.

    Args:
        folders: exported models.

    Attributes:
        failure: why the models cannot be loaded, while :meth:`ready` waits to try it again.
    """

    def __init__(self, folders: Sequence[Path], options: ModelOptions) -> None:
        self._folders = [folder.absolute() for folder in folders]  # a new process has this one's
        self._options = options
        self.failure: str | None = None
        self._first: Digests | None = None
        self._start()

    def _start(self) -> None:
        self._executor: ProcessPoolExecutor | None = None
        executor: ProcessPoolExecutor | None = None
        try:
            _check_threads()
            # spawned: a fork of a process with threads may hold locks that are never released
            executor = ProcessPoolExecutor(
                max_workers=1,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_load,
                initargs=(self._folders, self._options),
            )
            self._loading: Future[Digests | str] = executor.submit(_loaded)
            self._executor = executor
        except (OSError, RuntimeError) as error:  # the latter if no thread can be started
            if executor is not None:
                for process in executor._processes.values():  # it would wait for work for ever
                    process.kill()
                executor.shutdown(wait=False)
            self._loading = Future()
            self._loading.set_result(one_line(f"a worker cannot be started: {reason(error)}."))

    def _restart(self) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=False)
        self._start()

    def languages(self) -> list[Languages]:
        """The language pairs of the models; waits until they are loaded.

        Raises:
            UserError: if a model cannot be used, or differs from the one at the start.
        """
        return self._languages(self._loading)

    def _languages(self, loading: Future[Digests | str]) -> list[Languages]:
        try:
            found = loading.result()
        except BrokenProcessPool as error:
            raise UserError(
                "a worker died while it loaded its models: look for lack of memory, or give fewer "
                "--workers."
            ) from error
        if isinstance(found, str):
            raise UserError(found)
        self._first = self._first or found
        if found != self._first:
            raise UserError("other models are in the folders now: start the server again.")
        return list(found)

    async def ready(self) -> None:
        """Wait until the models are loaded; where they cannot be, this is tried again and again."""
        pause = FIRST_PAUSE
        while True:
            loading = self._loading
            with suppress(BrokenProcessPool):
                await asyncio.wrap_future(loading)
            if loading is not self._loading:  # a matrix was asked for, and found the process gone
                continue
            try:
                self._languages(loading)
                self.failure = None
                return
            except UserError as error:
                self.failure = str(error)
            logger.error("a worker cannot go on; next try in %g s: %s", pause, self.failure)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
            self._restart()

    async def translate(self, work: Work, lines: list[str]) -> list[Answer]:
        """Translate sentences in one batch, or in as few batches as possible.

        Raises:
            WorkerDiedError: if the process ends, or has not loaded the models of the start: await
                :meth:`ready` before the next call.
        """
        return await self._run(_translate, work, lines)

    async def mixing(self, languages: Languages, layer: int, length: int) -> bytes:
        """A mixing matrix of the encoder, the mean over its heads, after the current batch.

        Returns:
            A :class:`MixingResponse` in JSON, which the server then need not write.

        Raises:
            LookupError: if the model has no such layer, or fewer positions.
            WorkerDiedError: see :meth:`translate`.
        """
        return await self._run(_mixing, languages, layer, length)

    async def _run(self, function: Callable[..., Result], *arguments: object) -> Result:
        executor = self._executor
        if executor is None or not self._has_models():
            raise WorkerGoneError
        try:
            future = executor.submit(function, *arguments)
        except BrokenProcessPool as error:  # its process ended while it had nothing to do
            self._restart()
            raise WorkerGoneError from error
        try:
            return await asyncio.wrap_future(future)
        except BrokenProcessPool as error:
            if executor is self._executor:
                self._restart()
            raise WorkerDiedError from error

    def _has_models(self) -> bool:
        """Whether the process has loaded the models of the start."""
        loading = self._loading
        return loading.done() and loading.exception() is None and loading.result() == self._first

    def stop(self) -> None:
        """End the process after its current batch."""
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)


def _check_threads() -> None:
    """Start as many threads as a pool, whose second one starts unseen; without it, all wait."""
    ended = threading.Event()
    try:
        for _ in range(2):
            threading.Thread(target=ended.wait).start()
    finally:
        ended.set()


# In a worker's process: its models and their digests, or the reason why they cannot be used.
_translators: "Mapping[Languages, Translator] | str" = {}
_digests: Digests = {}


def _load(folders: Sequence[Path], options: ModelOptions) -> None:
    signals.follow_parent()

    global _translators
    loaded = {}
    try:
        from resmlp_mt.engine import digests, model_folder
        from resmlp_mt.engine.options import SearchOptions
        from resmlp_mt.engine.translator import Translator

        for folder in folders:
            model = model_folder.load(
                folder, options.dtype, "cpu", options.threads, options.shortlist
            )
            languages = Languages(model.source_lang, model.target_lang)
            if languages in loaded:
                raise UserError(
                    f"{folder} is a second model from {languages.source} to {languages.target}: "
                    f"start another server for it."
                )
            loaded[languages] = Translator(
                model,
                SearchOptions(beam=options.beam, lenpen=options.lenpen),
                max_tokens=options.max_batch_tokens,
                use_shortlist=options.shortlist,
            )
            loaded[languages].memory_remedy = MEMORY_REMEDY
            _digests[languages] = digests.total(folder)
    except UserError as error:
        _translators = str(error)  # an exception in an initializer would be lost
    except ModuleNotFoundError as error:
        _translators = str(missing(error))
    except Exception as error:
        # others are of libraries that do not fit the system
        if not (is_of_memory(error) or isinstance(error, ImportError | OSError)):
            raise
        _translators = one_line(f"a worker could not load its models: {error!r}.")
    else:
        _translators = loaded


def _loaded() -> Digests | str:
    return _translators if isinstance(_translators, str) else _digests


def _translator(languages: Languages) -> "Translator":
    if isinstance(_translators, str):
        raise WorkerDiedError(_translators)
    return _translators[languages]


def _translate(work: Work, lines: list[str]) -> list[Answer]:
    from resmlp_mt.engine.subwords import is_unknown

    translator = _translator(work.languages)
    is_servers = translator.longest < translator.loaded.model.config.max_source_positions
    answers, fitting = [], []
    for line in lines:
        tokens, pieces = translator.encode(line), translator.pieces(line) if work.explained else []
        answer = Answer(len(tokens), translator.longest, [], pieces, is_servers)
        if is_unknown(line, tokens, translator.loaded):  # names in another script stay as they are
            answer.translations.append(Translated(line, 0.0, pieces))
        elif answer.tokens <= answer.longest:
            fitting.append((line, answer))
        answers.append(answer)
    attention = work.explained and translator.has_attention
    found = translator.translate([line for line, _ in fitting], return_attention=attention)
    for (_, answer), translations in zip(fitting, found, strict=True):
        answer.translations.extend(_finite(translations, work.explained))
    return answers


def _mixing(languages: Languages, layer: int, length: int) -> bytes:
    translator = _translator(languages)
    if not translator.has_attention:
        raise LookupError("the model is ONNX graphs, which do not give the mixing matrix")
    layers = translator.encoder_layers
    if not (layer < layers and length <= translator.longest):
        raise LookupError(f"the model has {layers} layers and {translator.longest} positions")
    matrix = translator.mixing_matrix(layer, length).mean(0).tolist()
    return json.dumps({"layers": layers, "matrix": matrix}).encode()


def _finite(translations: "list[Translation]", explained: bool) -> list[Translated]:
    return [
        Translated(
            t.text,
            t.score,
            t.pieces.split() if explained else (),
            () if t.attention is None else t.attention[:-1, :-1].tolist(),
        )
        for t in translations
        if t.score > -float("inf")
    ]
