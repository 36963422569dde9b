"""The exported ONNX graphs, run by ONNX Runtime on arrays of numpy; docs/onnx.md describes them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from resmlp_mt.engine import earlier_folders, exported_config
from resmlp_mt.engine.onnx_graphs import Graphs, said
from resmlp_mt.engine.vocabulary import EOS
from resmlp_mt.errors import UserError, refused
from resmlp_mt.extras import installation
from resmlp_mt.machine import usable_cores

if TYPE_CHECKING:  # needs safetensors
    from resmlp_mt.engine.shortlist import Shortlist

ENCODER, DECODER_STEP, PROJECTION = "encoder.onnx", "decoder_step.onnx", "projection.onnx"
SHORTLIST_ROWS, SHORTLIST_PROJECTION = "shortlist_rows.onnx", "shortlist_projection.onnx"
GRAPHS = ENCODER, DECODER_STEP, PROJECTION
SHORTLIST_GRAPHS = SHORTLIST_ROWS, SHORTLIST_PROJECTION
ALWAYS = "always"
"""The words that every sentence may use, in the metadata of ``shortlist_projection.onnx``."""

TOLERANCE = 1e-3
"""Largest difference of the scores with and without a shortlist, as a share of the largest."""

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]
Arrays = dict[str, NDArray[Any]]
"""Inputs of a graph by name."""


@dataclass(frozen=True)
class OnnxConfig:
    """What the search over the graphs needs of the model's :class:`ModelConfig`."""

    source_vocabulary: int
    target_vocabulary: int
    max_source_positions: int
    max_target_positions: int
    longest_trained_source: int = 0


@dataclass(frozen=True)
class ChosenWords:
    """The target words that the sentences of a batch may use.

    Attributes:
        words: (words,), the special symbols first.
        allowed: which of them a sentence may use, (batch, words); None if all.
        rows: what ``shortlist_projection.onnx`` takes besides the states.
    """

    words: Indices
    allowed: NDArray[np.bool_] | None
    rows: Arrays


class OnnxModel:
    """The graphs of a folder, which a forked process opens again.

    Args:
        config: sizes of the exported model.
        folder: holds ``encoder.onnx``, ``decoder_step.onnx`` and ``projection.onnx``.
        stored: all that ``config.json`` holds.
        threads: of one product; by default one for each core.
        shortlist: of the folder, if it is used: its graphs are ``shortlist_rows.onnx`` and
            ``shortlist_projection.onnx``.

    Raises:
        UserError: if onnxruntime is not installed, or a graph is missing, broken or of other sizes.
    """

    def __init__(
        self,
        config: OnnxConfig,
        folder: Path,
        stored: Mapping[str, Any],
        threads: int | None = None,
        shortlist: "Shortlist | None" = None,
    ) -> None:
        try:
            import onnxruntime  # noqa: F401
        except ImportError as error:
            raise UserError(
                f"{folder} holds ONNX graphs, which need the package onnxruntime: "
                f"run {installation('onnxruntime')}."
            ) from error
        self.config = config
        self.is_int8 = stored.get("dtype") == "int8"
        self._shortlist = shortlist
        self._graphs = Graphs(folder, threads or usable_cores())
        metadata = {}
        sizes: dict[str, list[int]] = {}  # those that are fixed, of the inputs of all graphs
        with refused(
            lambda error: f"{folder} has broken ONNX graphs: {name}: {said(error)}",
            Exception,  # the runtime's own types have no common base
        ):
            for name in GRAPHS if shortlist is None else (*GRAPHS, *SHORTLIST_GRAPHS):
                graph = self._graphs.open(name)
                # names are decoded here, and need not be UTF-8
                metadata[name] = graph.get_modelmeta().custom_metadata_map
                for array in graph.get_inputs():
                    sizes[array.name] = [n for n in array.shape if isinstance(n, int)]
                if earlier_folders.INPUT in sizes:  # it lacks other graphs, too
                    raise UserError(
                        f"{folder} holds ONNX graphs of an earlier version, which took other "
                        "arrays: export the model again."
                    )
        for name, held in metadata.items():
            exported_config.check(stored, held, folder / name)
        if shortlist is not None:
            always = json.dumps(shortlist.always.tolist())
            if metadata[SHORTLIST_PROJECTION].get(ALWAYS) != always:
                raise UserError(
                    f"{folder / SHORTLIST_PROJECTION} was exported with another shortlist than the "
                    "one beside it: export the model again."
                )
        self._heads, self._width = [*sizes.get("past.0", []), 1, 1][:2]
        self._past = [name for name in sizes if name.startswith("past.")]
        self._outputs = ["states", *(name.replace("past", "present") for name in self._past)]
        self._try(folder)

    @staticmethod
    def check_device(device: str) -> None:
        """Refuse all devices but the CPU.

        Raises:
            UserError: naming the option.
        """
        if str(device).partition(":")[0] != "cpu":  # a device of PyTorch, too
            raise UserError(f"--device {device}: the model is ONNX graphs, which run on the CPU.")

    def _try(self, folder: Path) -> None:
        """Run all graphs once: they may belong to other models, be exchanged or not finite."""
        config = self.config
        last_source = config.source_vocabulary - 1  # a smaller table does not have it
        last_target = np.array([config.target_vocabulary - 1])
        one, first = np.ones((1, 1, 1), np.float32), np.array([0])
        past = {name: np.zeros((1, self._heads, 1, self._width), np.float32) for name in self._past}
        longer = (1, self._heads, 2, self._width)
        computed: dict[str, Arrays] = {}
        graph, is_alike = ENCODER, True
        with refused(
            lambda error: (
                f"{folder / graph} does not fit the other graphs and config.json "
                f"({said(error)}): export the model again."
            ),
            Exception,
        ):
            memory = computed[graph] = self.encode(np.array([[last_source, EOS]]), np.array([2]))
            graph = DECODER_STEP
            states, past = self.step(last_target[None], first, first, one, memory, past)
            computed[graph] = {"states": states, **past}
            graph = PROJECTION
            scores = self.scores(states)
            computed[graph] = {"scores": scores}
            if self._shortlist is not None:
                graph = SHORTLIST_ROWS
                rows = computed[graph] = self._rows(last_target)
                graph = SHORTLIST_PROJECTION
                some = self.scores(states, rows)
                computed[graph] = {"scores": some}
                expected = scores[..., [*self._shortlist.always, *last_target]]
                tolerance = TOLERANCE * float(np.abs(expected).max())
                is_alike = np.allclose(some, expected, rtol=0.0, atol=tolerance)
        for graph, arrays in computed.items():
            if not all(np.isfinite(array).all() for array in arrays.values()):
                raise UserError(
                    f"{folder / graph} computes NaN or infinity: export the model again from an "
                    "earlier checkpoint."
                )
        if not is_alike:
            raise UserError(
                f"{folder / SHORTLIST_PROJECTION} and {SHORTLIST_ROWS} give other scores than "
                f"{PROJECTION}: export the model again."
            )
        fits = scores.shape == (1, 1, config.target_vocabulary)
        if not fits or any(array.shape != longer for array in past.values()):
            raise UserError(
                f"{folder / (DECODER_STEP if fits else PROJECTION)} does not fit config.json: "
                "export the model again."
            )

    def encode(self, tokens: Indices, lengths: Indices) -> Arrays:
        """Encode source tokens, (batch, length), padded at the end; lengths are (batch,).

        Returns:
            What a step takes: keys and values of all layers, and the mask.
        """
        return _named_outputs(self._graphs[ENCODER], {"tokens": tokens, "lengths": lengths})

    def first_past(self, batch: int) -> Arrays:
        """The past before the first step."""
        return {
            name: np.zeros((batch, self._heads, 0, self._width), np.float32) for name in self._past
        }

    def step(
        self,
        tokens: Indices,
        position: Indices,
        positions: Indices,
        descends: Floats,
        memory: Arrays,
        past: Arrays,
    ) -> tuple[Floats, Arrays]:
        """Decode the newest token of every hypothesis.

        Args:
            tokens: (batch, beam), or (batch, 1) if all hypotheses are the same.
            position: the number of earlier steps, (1,).
            positions: the step of each entry of the past, (entries,).
            descends: 1 where a hypothesis goes back to an entry, else 0: (batch, beam, entries).
            memory: of the same batch.
            past: the entries, (batch, heads, entries, width) for each layer.

        Returns:
            The states that :meth:`scores` takes, (batch, beam, dim), and the past with an entry
            more for each of ``tokens``.
        """
        inputs = {
            "tokens": tokens, "position": position, "positions": positions, "descends": descends,
            **memory, **past,
        }  # fmt: skip
        states, *present = self._graphs[DECODER_STEP].run(self._outputs, inputs)
        return states, dict(zip(self._past, present, strict=True))

    def scores(self, states: Floats, rows: Arrays | None = None) -> Floats:
        """Scores before the softmax, (batch, beam, words), of all words or those of a choice."""
        graph = PROJECTION if rows is None else SHORTLIST_PROJECTION
        (scores,) = self._graphs[graph].run(["scores"], {"states": states, **(rows or {})})
        return cast(Floats, scores)

    def choose(self, sentences: list[list[int]]) -> ChosenWords:
        """The words of the shortlist for a batch of source tokens."""
        assert self._shortlist is not None
        always = self._shortlist.always
        words, allowed = self._shortlist.words(sentences)
        own = np.setdiff1d(words, always, assume_unique=True)
        ordered = np.concatenate([always, own])
        every = None if allowed.all() else allowed[:, np.searchsorted(words, ordered)]
        return ChosenWords(ordered, every, self._rows(own))

    def _rows(self, words: Indices) -> Arrays:
        return _named_outputs(self._graphs[SHORTLIST_ROWS], {"words": words})


def _named_outputs(graph: Any, inputs: Arrays) -> Arrays:
    names = [output.name for output in graph.get_outputs()]
    return dict(zip(names, graph.run(names, inputs), strict=True))
