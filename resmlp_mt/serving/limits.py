"""How a server translates and what its limits are, which are options of its command."""

from dataclasses import dataclass

from resmlp_mt.command_line import option, switch
from resmlp_mt.engine.options import DTYPES, LENPEN
from resmlp_mt.option_types import NOT_NEGATIVE, POSITIVE, PROCESSES, number

DAY = 24 * 60 * 60  # seconds


@dataclass(frozen=True)
class ModelOptions:
    """Translation."""

    beam: int = option(5, type=POSITIVE, help="hypotheses: there are at most N - 1 alternatives")
    lenpen: float = option(1.0, type=LENPEN, help="length penalty")
    max_batch_tokens: int = option(
        4096, type=POSITIVE, help="source tokens in a batch, and so in a sentence"
    )
    threads: int = option(1, type=PROCESSES, help="threads of a worker")
    dtype: str | None = option(None, choices=DTYPES, help="default: as the model was exported")
    shortlist: bool = switch("use the exported shortlist")


@dataclass(frozen=True)
class Limits(ModelOptions):
    """Limits."""

    max_batch_size: int = option(64, type=POSITIVE, help="sentences in a batch")
    queue_size: int = option(2048, type=POSITIVE, help="most waiting sentences, else status 503")
    max_wait: float = option(
        30.0, type=number(float, above=0, most=DAY), metavar="SECONDS",
        help="longest time until an answer, else status 503, or until a request has arrived",
    )  # fmt: skip
    max_body: int = option(
        1_000_000, type=POSITIVE, metavar="BYTES", help="largest request, else status 413"
    )
    char_limit: int = option(
        100_000, type=POSITIVE, help="most characters in the texts of a request, else status 413"
    )
    client_requests: int = option(
        256, type=NOT_NEGATIVE,
        help="most unanswered requests of one address, 0 for no limit, else status 429",
    )  # fmt: skip
