"""The least time that a computation needs on this machine.

    floor = max(operations / matrix rate, bytes / bandwidth)

The operations are those of the matrix products, as PyTorch counts them. Both rates are measured.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode, flop_registry


@dataclass(frozen=True)
class Rates:
    """The machine's rates in a bare product and a bare copy."""

    matrix: dict[str, float]
    """Operations per second of a product of 1024 x 1024 matrices, by type."""
    bandwidth: float
    """Bytes per second, read and written, of a copy that no cache holds."""

    def seconds(self, operations: float, moved_bytes: float = 0.0, dtype: str = "fp32") -> float:
        """The floor of a computation."""
        return max(operations / self.matrix[dtype], moved_bytes / self.bandwidth)


def measure_rates(device: str, dtypes: dict[str, torch.dtype]) -> Rates:
    """Measure the rates of a device for the given types, which may include ``torch.int8``."""
    size = 1024
    matrix = {
        name: 2 * size**3 / _median_seconds(_product(size, dtype, device))
        for name, dtype in dtypes.items()
    }
    source = torch.ones(2**25, device=device)
    target = torch.empty_like(source)
    moved = 2 * source.numel() * source.element_size()
    return Rates(matrix, moved / _median_seconds(lambda: target.copy_(source)))


def _product(size: int, dtype: torch.dtype, device: str) -> Callable[[], object]:
    if dtype == torch.int8:
        linear = torch.ao.nn.quantized.dynamic.Linear(size, size)
        rows = torch.randn(size, size)
        return lambda: linear(rows)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return lambda: a @ b


def _median_seconds(run: Callable[[], object]) -> float:
    timer = Timer("run()", globals={"run": run}, num_threads=torch.get_num_threads())
    return float(timer.blocked_autorange(min_run_time=0.5).median)


def _added_in_place(total: torch.Size, left: torch.Size, right: torch.Size, **_: object) -> int:
    """Operations of ``total.addmm_(left, right)``, from the shapes; PyTorch counts none for it."""
    return 2 * left[0] * left[1] * right[1]


def operations(run: Callable[[], object]) -> int:
    """Operations of the matrix products, multiplications and additions counted separately."""
    counter = FlopCounterMode(
        display=False, custom_mapping={torch.ops.aten.addmm_: _added_in_place}
    )
    # The fused attention kernel of the CPU is not counted, so use the plain one.
    with counter, sdpa_kernel(SDPBackend.MATH):
        run()
    return int(counter.get_total_flops())


def products(run: Callable[[], object]) -> Callable[[], None]:
    """A call that repeats the products of ``run``, as PyTorch counts them, and nothing else."""
    recorder = _Products()
    with recorder:
        run()

    @torch.inference_mode()
    def repeat() -> None:
        for product, args, kwargs in recorder.calls:
            product(*args, **kwargs)

    return repeat


class _Products(TorchDispatchMode):
    """Keeps the operators that :func:`operations` counts, with their arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._overloadpacket in flop_registry:
            self.calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))
