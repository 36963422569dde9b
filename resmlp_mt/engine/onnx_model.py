"""The exported ONNX graphs, run by ONNX Runtime on arrays of numpy; docs/onnx.md describes them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from resmlp_mt.engine import exported_config
from resmlp_mt.engine.vocabulary import EOS
from resmlp_mt.errors import UserError
from resmlp_mt.machine import usable_cores

ENCODER, DECODER_STEP = "encoder.onnx", "decoder_step.onnx"

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]
#: the fixed sizes of a graph's input or output
Sizes = dict[tuple[str, str], list[int]]


@dataclass(frozen=True)
class OnnxConfig:
    """What a caller of the graphs needs to know about the model; see :class:`ModelConfig`."""

    source_vocabulary: int
    target_vocabulary: int
    decoder_embed_dim: int
    decoder_layers: int
    decoder_attention_heads: int
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
        stored: all that ``config.json`` holds.
        threads: of one product; by default one for each core.

    Raises:
        UserError: if onnxruntime is not installed, or a graph is missing, broken or of other sizes.
    """

    def __init__(
        self,
        config: OnnxConfig,
        folder: Path,
        stored: Mapping[str, Any],
        threads: int | None = None,
    ) -> None:
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
        sessions, metadata = [], {}
        sizes: Sizes = {}
        for name in (ENCODER, DECODER_STEP):
            try:
                session = onnxruntime.InferenceSession(
                    folder / name, options, providers=["CPUExecutionProvider"]
                )
                # names are decoded here, and need not be UTF-8
                metadata[name] = session.get_modelmeta().custom_metadata_map
                for array in (*session.get_inputs(), *session.get_outputs()):
                    sizes[name, array.name] = [n for n in array.shape if isinstance(n, int)]
            except Exception as error:  # of the runtime's own types, without a common base
                reason = " ".join(str(error).split())
                raise UserError(f"{folder} has broken ONNX graphs: {name}: {reason}") from error
            sessions.append(session)
        self.encoder, self.decoder_step = sessions
        for name, held in metadata.items():
            exported_config.check(stored, held, folder / name)
        self._layers, self._heads, self._width = self._check_sizes(sizes, folder)
        self._try(folder)

    def _check_sizes(self, found: Sizes, folder: Path) -> list[int]:
        """Compare what the graphs say of their arrays with ``config.json``.

        Returns:
            Layers, heads and width of the history.

        Raises:
            UserError: naming the graph.
        """
        config = self.config
        layers, dim = config.decoder_layers, config.decoder_embed_dim
        heads = config.decoder_attention_heads
        memory = [layers, heads, dim // heads if heads else 0]
        _, mixing_heads, _ = [*found.get((DECODER_STEP, "history"), []), 1, 1, 1][:3]
        history = [layers, mixing_heads, dim // mixing_heads if mixing_heads else 0]
        expected = {
            **{
                (graph, name): memory
                for graph in (ENCODER, DECODER_STEP)
                for name in ("keys", "values")
            },
            **{(DECODER_STEP, name): history for name in ("history", "entries")},
            (DECODER_STEP, "scores"): [config.target_vocabulary],
        }
        for (graph, name), sizes in expected.items():
            if found.get((graph, name)) != sizes:
                raise UserError(
                    f"{folder / graph} does not fit config.json: the sizes of {name} are "
                    f"{found.get((graph, name))}, but should be {sizes}; export the model again."
                )
        return history

    def _try(self, folder: Path) -> None:
        """Run both graphs once: they may belong to another model, be exchanged or not finite.

        Raises:
            UserError: naming the graph.
        """
        graph = ENCODER
        last_source = self.config.source_vocabulary - 1  # a smaller table does not have it
        last_target = self.config.target_vocabulary - 1
        try:
            memory = self.encode(np.array([[last_source, EOS]]), np.array([2]))
            graph = DECODER_STEP
            history = np.zeros((self._layers, 1, self._heads, 1, 1, self._width), np.float32)
            scores, entries = self.step(
                np.array([[last_target]]), history, np.zeros((1, 1, 1), np.int64), memory
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
