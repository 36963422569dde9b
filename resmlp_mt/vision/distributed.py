"""The processes of torchrun, and the device of this process."""

import os
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from resmlp_mt.errors import UserError, reason, refused
from resmlp_mt.machine import processor
from resmlp_mt.vision.libraries import timm

T = TypeVar("T")

#: what srun sets for each of its tasks, but a SLURM job does not for a plain command
TASKS = "SLURM_STEP_NUM_TASKS"


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

    def of_all(self, value: T) -> list[T]:
        """The values of all processes."""
        said = [value] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(said, value)
        return said

    def union(self, values: Iterable[T]) -> set[T]:
        """The values that any process has."""
        return set().union(*self.of_all([*values]))

    def of_first(self, value: T) -> T:
        """The first process's value."""
        return self.of_all(value)[0]


def find_device(name: str | None) -> torch.device:
    """The device of ``--device``; by default CUDA if there is one, else the CPU.

    Raises:
        UserError: if there is no such device.
    """
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    unknown = f"--device {name} is not a device of PyTorch: give cpu or cuda."
    with refused(lambda _: unknown, RuntimeError):
        device = torch.device(name)
    if device.type == "cuda":  # no test allocation: all processes would use the first GPU
        if (device.index or 0) >= torch.cuda.device_count():
            raise UserError(
                f"--device {name}: PyTorch finds no such CUDA device here; use --device cpu."
            )
        return device
    with refused(
        lambda error: f"--device {name} cannot be used here: {textwrap.shorten(str(error), 120)}",
        *(RuntimeError, AssertionError),
    ):
        torch.zeros(1, device=device).item()  # a meta device cannot be read
    return device


def measured_on(device: torch.device) -> dict[str, Any]:
    """The machine and versions that a time was measured with."""
    return {
        "machine": processor(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def start_process(device: str | None) -> Process:
    """Join the processes of torchrun or srun, if there are any: nccl on GPUs, gloo on CPUs.

    Raises:
        UserError: if there is no such device, this machine has fewer GPUs than processes, or the
            processes cannot meet.
    """
    here = find_device(device)
    given = os.environ.keys()
    processes = os.environ.get("WORLD_SIZE") or os.environ.get(TASKS, "1")
    is_meant = "WORLD_SIZE" not in given or given >= {"RANK", "MASTER_ADDR"}
    if processes == "1" or not is_meant:
        # timm would wait for all tasks that a SLURM job may start
        if here.type == "cuda" and here.index is not None:
            torch.cuda.set_device(here)
        return Process(here)
    if not given >= {"MASTER_ADDR", "MASTER_PORT"}:  # each would train for itself
        raise UserError(
            f"this is one of {processes} processes, which do not know where to meet: start one, or "
            "set MASTER_ADDR and MASTER_PORT to an address and port of the first."
        )
    address, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    if not (port.isdecimal() and 0 < int(port) < 2**16):
        raise UserError(f"MASTER_PORT is {port!r}: set it to a number from 1 to {2**16 - 1}.")
    with refused(
        lambda error: (
            f"the {processes} processes cannot meet at MASTER_ADDR {address} and MASTER_PORT "
            f"{port} ({textwrap.shorten(reason(error), 200).rstrip('.')}): set them to the address "
            "of the first one's machine and a free port of it."
        ),
        *(RuntimeError, ValueError, OSError),
    ):
        local, _, _ = timm.utils.distributed.world_info_from_env()
        if here.type == "cuda" and local >= (gpus := torch.cuda.device_count()):
            raise UserError(
                f"--device {here}: process {local} of this machine, counted from 0, sees {gpus} "
                "GPUs: start as many processes as GPUs and let each see all of them, or give "
                "--device cpu."
            )
        found = timm.utils.distributed.init_distributed_device_so(str(here))
    return Process(
        torch.device(found["device"]),
        found["global_rank"],
        found["local_rank"],
        found["world_size"],
    )
