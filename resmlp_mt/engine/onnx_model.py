"""The exported ONNX graphs, run by ONNX Runtime on arrays of numpy; docs/onnx.md describes them."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from resmlp_mt.engine.vocabulary import EOS
from resmlp_mt.errors import UserError
from resmlp_mt.machine import usable_cores

ENCODER, DECODER_STEP = "encoder.onnx", "decoder_step.onnx"

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class OnnxConfig:
    """What a caller of the graphs needs to know about the model; see :class:`ModelConfig`."""

    source_vocabulary: int
    target_vocabulary: int
    decoder_layers: int
    max_source_positions: int
    max_target_positions: int
    longest_trained_source: int = 0


class Memory(NamedTuple):
    """The encoded source, as the decoder reads it.

    Keys and values are (layers, batch, heads, length, width), the mask is (batch, 1, 1, length).
    """

    keys: Floats
    values: Floats
    mask: Floats

    def rows(self, rows: NDArray[np.bool_]) -> "Memory":
        """Of some sentences."""
        return Memory(self.keys[:, rows], self.values[:, rows], self.mask[rows])


class OnnxModel:
    """The graphs of a folder.

    Args:
        config: sizes of the exported model.
        folder: holds ``encoder.onnx`` and ``decoder_step.onnx``.
        threads: of one product; by default one for each core.

    Raises:
        UserError: if onnxruntime is not installed, or a graph is missing or broken.
    """

    def __init__(self, config: OnnxConfig, folder: Path, threads: int | None = None) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise UserError(
                f"{folder} holds ONNX graphs, which need the package onnxruntime: "
                f"run pip install 'resmlp_mt[onnx]'."
            ) from error
        self.config = config
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or usable_cores()
        options.log_severity_level = 3
        sessions = []
        for name in (ENCODER, DECODER_STEP):
            try:
                sessions.append(
                    onnxruntime.InferenceSession(
                        folder / name, options, providers=["CPUExecutionProvider"]
                    )
                )
            except Exception as error:  # of the runtime's own types, without a common base
                reason = " ".join(str(error).split())
                raise UserError(f"{folder} has broken ONNX graphs: {name}: {reason}") from error
        self.encoder, self.decoder_step = sessions
        self._try(folder)

    def _try(self, folder: Path) -> None:
        """Run both graphs once: they may belong to another model, be exchanged or not finite.

        Raises:
            UserError: naming the graph.
        """
        shapes = {given.name: given.shape for given in self.decoder_step.get_inputs()}
        self._layers = self.config.decoder_layers
        if shapes.get("history", [])[:1] != [self._layers]:
            raise UserError(
                f"{folder / DECODER_STEP} does not fit config.json: decoder_layers is "
                f"{self._layers} there; export the model again."
            )
        graph = DECODER_STEP
        try:
            _, _, self._heads, _, _, self._width = shapes["history"]
            graph = ENCODER
            memory = self.encode(np.full((1, 1), EOS), np.ones(1, dtype=np.int64))
            graph = DECODER_STEP
            history = np.zeros((self._layers, 1, self._heads, 1, 1, self._width), np.float32)
            scores, entries = self.step(
                np.full((1, 1), EOS), history, np.zeros((1, 1, 1), np.int64), memory
            )
        except Exception as error:  # of the runtime's own types, without a common base
            reason = " ".join(str(error).split())
            raise UserError(
                f"{folder / graph} does not fit the other graph and config.json ({reason}): "
                "export the model again."
            ) from error
        fits = scores.shape == (1, 1, self.config.target_vocabulary)
        if not fits or entries.shape != (self._layers, 1, self._heads, 1, self._width):
            raise UserError(
                f"{folder / DECODER_STEP} is of other sizes than config.json: export the model "
                "again."
            )
        if not np.isfinite(scores).all():
            encoded = np.isfinite(memory.keys).all() and np.isfinite(memory.values).all()
            raise UserError(
                f"{folder / (DECODER_STEP if encoded else ENCODER)} computes NaN or infinity: "
                "export the model again from an earlier checkpoint."
            )

    def encode(self, tokens: Indices, lengths: Indices) -> Memory:
        """Encode source tokens, (batch, length), padded at the end; lengths are (batch,)."""
        return Memory(*self.encoder.run(None, {"tokens": tokens, "lengths": lengths}))

    def empty_history(self, batch: int, beam: int) -> Floats:
        """The history before the first step."""
        return np.zeros((self._layers, batch, self._heads, 0, beam, self._width), np.float32)

    def step(
        self, tokens: Indices, history: Floats, ancestors: Indices, memory: Memory
    ) -> tuple[Floats, Floats]:
        """Score every next token of every hypothesis; see :meth:`EncoderDecoder.step`.

        Args:
            tokens: (batch, beam), or (batch, 1) if all hypotheses are the same.
            history: (layers, batch, heads, position, beam, width).
            ancestors: (batch, beam, position).
            memory: of the same batch.

        Returns:
            Scores before the softmax, (batch, beam, vocabulary), and the entries of this step,
            (layers, batch, heads, beam, width).
        """
        inputs = {"tokens": tokens, "history": history, "ancestors": ancestors, **memory._asdict()}
        scores, entries = self.decoder_step.run(None, inputs)
        return scores, entries
