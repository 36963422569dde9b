"""Processes that translate.

Processes rather than threads: the search is Python between many small products, so that threads
wait for each other. A worker computes with one thread, which never waits for another either.
"""

import asyncio
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from resmlp_mt.errors import UserError

if TYPE_CHECKING:
    # the server's own process does without torch
    from resmlp_mt.engine.translation import Translation
    from resmlp_mt.engine.translator import Translator


Result = TypeVar("Result")


@dataclass(frozen=True)
class ModelOptions:
    """How every worker loads its models.

    Attributes:
        beam, lenpen: of the search.
        max_batch_tokens: most source tokens in a batch, pads included.
        dtype: type to compute in; None for that of the weights.
        threads: of a worker.
        use_shortlist: choose among the words of the model's shortlist alone.
    """

    beam: int
    lenpen: float
    max_batch_tokens: int
    dtype: str | None = None
    threads: int = 1
    use_shortlist: bool = False


class Translated(NamedTuple):
    """A translation of a sentence.

    Attributes:
        score: its log-probability per token, base e.
        pieces: its tokens, without end-of-sentence; like ``attention`` only if asked for.
        attention: of each piece to each piece of the source.
    """

    text: str
    score: float
    pieces: Sequence[str] = ()
    attention: Sequence[Sequence[float]] = ()


class Answer(NamedTuple):
    """What a worker found for a sentence.

    Attributes:
        tokens: of the source, end-of-sentence included.
        longest: how many the model takes.
        translations: best first; none if the sentence is too long or has no translation of a
            finite score.
        pieces: of the source, without end-of-sentence, if asked for.
    """

    tokens: int
    longest: int
    translations: list[Translated]
    pieces: Sequence[str] = ()


class Languages(NamedTuple):
    """The pair that a model translates."""

    source: str
    target: str


class Work(NamedTuple):
    """What is done to a sentence; a batch has sentences of one kind.

    Attributes:
        explained: return pieces and attention too.
    """

    languages: Languages
    explained: bool = False


class Mixing(NamedTuple):
    """A mixing matrix of the encoder, the mean over its heads.

    Attributes:
        layers: how many there are.
        matrix: row i is what position i is made from.
    """

    layers: int
    matrix: list[list[float]]


class WorkerDiedError(Exception):
    """A worker's process ended in the middle of its work."""


class Worker:
    """A process with its own copy of the models; a new one takes its place if it dies.

    Args:
        folders: exported models.
    """

    def __init__(self, folders: Sequence[Path], options: ModelOptions) -> None:
        self._folders = list(folders)
        self._options = options
        self._executor = self._start()
        self._languages = self._executor.submit(_languages)

    def _start(self) -> ProcessPoolExecutor:
        # spawned: a copy of a process with threads may hold locks that nobody will open
        return ProcessPoolExecutor(
            max_workers=1,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_load,
            initargs=(self._folders, self._options),
        )

    def languages(self) -> list[Languages]:
        """The pairs of the models; waits until they are loaded.

        Raises:
            UserError: if a model cannot be used.
        """
        try:
            found = self._languages.result()
        except BrokenProcessPool as error:
            raise UserError(
                "a worker died while it loaded its models: look for lack of memory, or give fewer "
                "--workers."
            ) from error
        if isinstance(found, str):
            raise UserError(found)
        return found

    async def translate(self, work: Work, lines: list[str]) -> list[Answer]:
        """Translate sentences in one batch, or as few as fit.

        Raises:
            WorkerDiedError: if the process ends; the next call finds a new one.
        """
        return await self._run(_translate, work, lines)

    async def mixing(self, languages: Languages, layer: int, length: int) -> Mixing:
        """A matrix, when the batch that is in work is done.

        Raises:
            LookupError: if the model has no such layer, or is not as long.
            WorkerDiedError: see :meth:`translate`.
        """
        return await self._run(_mixing, languages, layer, length)

    async def _run(self, function: Callable[..., Result], *arguments: object) -> Result:
        executor = self._executor
        try:
            return await asyncio.get_running_loop().run_in_executor(executor, function, *arguments)
        except BrokenProcessPool as error:
            if executor is self._executor:
                executor.shutdown(wait=False)
                self._executor = self._start()
            raise WorkerDiedError from error

    def stop(self) -> None:
        """End the process, when it has finished its batch."""
        self._executor.shutdown(cancel_futures=True)


# Within a worker's process: its models, or why they cannot be used.
_translators: "Mapping[Languages, Translator] | str" = {}


def _load(folders: Sequence[Path], options: ModelOptions) -> None:
    # The server decides when a worker ends, also where a terminal sends signals to both.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_server, daemon=True).start()

    from resmlp_mt.engine import model_folder
    from resmlp_mt.engine.options import SearchOptions
    from resmlp_mt.engine.translator import Translator

    global _translators
    loaded = {}
    try:
        for folder in folders:
            model = model_folder.load(folder, options.dtype, threads=options.threads)
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
                use_shortlist=options.use_shortlist,
            )
    except UserError as error:
        _translators = str(error)  # an initializer that raises would lose it
    else:
        _translators = loaded


def _end_with_the_server() -> None:
    """Where the server is killed, nobody else would end its workers."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _languages() -> list[Languages] | str:
    return _translators if isinstance(_translators, str) else list(_translators)


def _translate(work: Work, lines: list[str]) -> list[Answer]:
    assert not isinstance(_translators, str)
    translator = _translators[work.languages]
    tokens = [len(translator.encode(line)) for line in lines]
    fitting = [line for line, count in zip(lines, tokens, strict=True) if _fits(translator, count)]
    found = iter(translator.translate(fitting, return_attention=work.explained))
    return [
        Answer(
            count,
            translator.longest,
            _finite(next(found)) if _fits(translator, count) else [],
            translator.pieces(line) if work.explained else [],
        )
        for line, count in zip(lines, tokens, strict=True)
    ]


def _mixing(languages: Languages, layer: int, length: int) -> Mixing:
    assert not isinstance(_translators, str)
    translator = _translators[languages]
    layers = translator.encoder_layers
    if not (layer < layers and length <= translator.longest):
        raise LookupError(f"the model has {layers} layers and {translator.longest} positions")
    return Mixing(layers, translator.mixing_matrix(layer, length).mean(0).tolist())


def _fits(translator: "Translator", tokens: int) -> bool:
    return tokens <= translator.longest


def _finite(translations: "list[Translation]") -> list[Translated]:
    return [
        Translated(t.text, t.score)
        if t.attention is None
        else Translated(t.text, t.score, t.pieces.split(), t.attention[:-1, :-1].tolist())
        for t in translations
        if t.score > -float("inf")
    ]
