"""The exported ONNX graphs behind the methods of an :class:`EncoderDecoder`.

ONNX Runtime runs them.
"""

from pathlib import Path

import torch
from torch import Tensor

from resmlp_mt.engine.onnx_export import DECODER_STEP, ENCODER
from resmlp_mt.engine.vocabulary import EOS
from resmlp_mt.errors import UserError
from resmlp_mt.model.attention import Memory
from resmlp_mt.model.cache import Cache
from resmlp_mt.model.config import ModelConfig


class OnnxModel:
    """Translates like the model that was exported; uses as many threads as PyTorch does.

    Args:
        config: sizes of the exported model.
        folder: holds ``encoder.onnx`` and ``decoder_step.onnx``.

    Raises:
        UserError: if onnxruntime is not installed, or a graph is missing or broken.
    """

    def __init__(self, config: ModelConfig, folder: Path) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise UserError(
                f"{folder} holds ONNX graphs, which need the package onnxruntime: "
                f"run pip install 'resmlp_mt[onnx]'."
            ) from error
        self.config = config
        self.device = torch.device("cpu")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        try:
            self.encoder, self.decoder_step = (
                onnxruntime.InferenceSession(
                    folder / name, options, providers=["CPUExecutionProvider"]
                )
                for name in (ENCODER, DECODER_STEP)
            )
        except Exception as error:  # of the runtime's own types, without a common base
            reason = " ".join(str(error).split())
            raise UserError(f"{folder} has broken ONNX graphs: {reason}") from error
        self._try(folder)

    def _try(self, folder: Path) -> None:
        """Run both graphs once: they may be of another model, exchanged or not finite.

        Raises:
            UserError: naming the folder.
        """
        config = self.config
        heads = max(1, config.decoder_mixing.heads)
        shapes = {node.name: node.shape for node in self.decoder_step.get_inputs()}
        if shapes.get("history", [])[:1] != [config.decoder_layers]:  # else it would be made
            raise UserError(
                f"{folder} has ONNX graphs that do not fit config.json: decoder_layers is "
                f"{config.decoder_layers}; export the model again."
            )
        width = config.decoder_embed_dim // heads
        tokens, ancestors = torch.full((1, 1), EOS), torch.zeros(1, 1, 1, dtype=torch.long)
        try:
            memory = self.encode(tokens)
            history = torch.zeros(config.decoder_layers, 1, heads, 1, 1, width)
            scores, entries = self.step(tokens, history, ancestors, memory)
        except Exception as error:  # of the runtime's own types, without a common base
            reason = " ".join(str(error).split())
            raise UserError(
                f"{folder} has ONNX graphs that do not fit config.json ({reason}): export the "
                "model again."
            ) from error
        fits = scores.shape == (1, 1, config.target_vocabulary)
        if not fits or entries.shape != (config.decoder_layers, 1, heads, 1, width):
            raise UserError(
                f"{folder} has ONNX graphs of other sizes than config.json: export the model again."
            )
        if not bool(scores.isfinite().all()):
            raise UserError(
                f"{folder} has ONNX graphs whose scores are NaN or infinity: export the model "
                "again from an earlier checkpoint."
            )

    def encode(self, tokens: Tensor, lengths: Tensor | None = None) -> Memory:
        """See :meth:`EncoderDecoder.encode`."""
        if lengths is None:
            lengths = torch.full((tokens.size(0),), tokens.size(1))
        found = self.encoder.run(None, {"tokens": tokens.numpy(), "lengths": lengths.numpy()})
        return Memory(*(torch.from_numpy(array) for array in found))

    def step(
        self, tokens: Tensor, history: Tensor, ancestors: Tensor, memory: Memory
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`EncoderDecoder.step`; histories and memories with gaps are copied."""
        inputs = {"tokens": tokens, "history": history, "ancestors": ancestors}
        inputs |= {name: value for name, value in memory._asdict().items() if value is not None}
        arrays = {name: value.contiguous().numpy() for name, value in inputs.items()}
        scores, entries = (torch.from_numpy(a) for a in self.decoder_step.run(None, arrays))
        return scores, entries

    def cache(self, memory: Memory, beam: int) -> Cache:
        """See :meth:`EncoderDecoder.cache`."""
        config = self.config
        return Cache.empty(memory, config.decoder_embed_dim, config.decoder_mixing.heads, beam)

    def advance(self, tokens: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        """See :meth:`EncoderDecoder.advance`."""
        ancestors = cache.ancestors[:, : tokens.size(1)]
        scores, entries = self.step(tokens, cache.past(), ancestors, cache.memory)
        return scores, cache.appended(entries)
