"""What to say if memory runs out, here or in the processes that read images."""

from collections.abc import Iterator
from contextlib import contextmanager

from resmlp_mt.errors import UserError, is_of_memory, reason

#: beginning of PyTorch's messages about one of them
WORKER = "DataLoader worker (pid"


@contextmanager
def memory_told() -> Iterator[None]:
    """In the block, errors of memory become sentences, which name the options to change.

    Raises:
        UserError: if memory ran out, or a process of ``--workers`` has ended.
    """
    try:
        yield
    except Exception as error:
        if is_of_memory(error):
            raise UserError("there is not enough memory: give a smaller --batch-size.") from error
        if isinstance(error, RuntimeError) and str(error).startswith(WORKER):
            said = reason(error).partition(". ")[0].rstrip(".")
            raise UserError(
                f"a process of --workers ended ({said}): memory or /dev/shm is too small; give "
                "--workers 0, or docker run --ipc=host."
            ) from error
        raise
