"""This process among those of torchrun."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from timm.utils.distributed import init_distributed_device_so

from resmlp_mt.errors import UserError


@dataclass
class Process:
    """This process among those of torchrun."""

    device: torch.device
    rank: int = 0
    local_rank: int = 0
    world_size: int = 1

    def sum(self, *values: float) -> list[float]:
        """The values, summed over all processes."""
        if self.world_size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        result: list[float] = tensor.tolist()
        return result

    def union(self, names: Iterable[str]) -> set[str]:
        """The names of all processes, each once."""
        found = [list(names)]
        if self.world_size > 1:
            mine, found = found[0], [[] for _ in range(self.world_size)]
            dist.all_gather_object(found, mine)
        return set().union(*found)


def start_process(device: str | None) -> Process:
    """Join the processes of torchrun, if there are any: nccl on GPUs, gloo on CPUs.

    Args:
        device: ``--device``; by default CUDA if there is one, else the CPU.

    Raises:
        UserError: if there is no such device.
    """
    name = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        kind = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"--device {name} is no device of PyTorch's: give cpu or cuda.") from error
    if kind.type == "cuda":  # nothing is put there: all processes would meet on the first GPU
        if (kind.index or 0) >= torch.cuda.device_count():
            raise UserError(
                f"--device {name}: PyTorch finds no such CUDA device here; use --device cpu."
            )
    else:
        try:
            torch.zeros(1, device=kind).item()
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"--device {name} cannot be used here: {reason}") from error
    found = init_distributed_device_so(name)
    return Process(
        torch.device(found["device"]),
        found["global_rank"],
        found["local_rank"],
        found["world_size"],
    )
