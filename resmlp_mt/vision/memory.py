"""What to say if memory runs out, here or in the processes that read images."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from resmlp_mt.errors import UserError, is_of_memory

#: status of a process of --workers that has no room for its batch
NO_ROOM = 12
#: ends for want of memory: killed by the system, or writing to a full /dev/shm
OF_MEMORY = re.compile(rf"by signal: (Killed|Bus error)|exit code {NO_ROOM}\b")


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
            raise UserError(
                "there is not enough memory: give a smaller --batch-size or model, or close other "
                "programs."
            ) from error
        # PyTorch may wrap what it knows of an end in an error that says only which process it was
        known = (each for each in (error.__cause__, error) if isinstance(each, RuntimeError))
        said = (str(each) for each in known)
        ended = next((text for text in said if text.startswith("DataLoader worker (pid")), None)
        if ended is None:
            raise
        what = ended.partition(". ")[0].rstrip(". ")
        advice = "--workers 0 shows where"
        if OF_MEMORY.search(what):
            advice = "memory or /dev/shm is too small; give --workers 0, or docker run --ipc=host"
        raise UserError(f"a process of --workers ended ({what}): {advice}.") from error
