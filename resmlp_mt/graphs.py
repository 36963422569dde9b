"""Whether PyTorch records a graph, which must serve other batches too."""

import torch


def is_recording() -> bool:
    """In ``torch.compile``, ``torch.export`` and ``torch.jit.trace``.

    Then no branch and no size may depend on what the tensors hold.
    """
    return torch.compiler.is_compiling() or torch.jit._trace.is_tracing()
