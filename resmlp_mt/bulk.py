"""``python -m resmlp_mt.bulk`` translates a corpus that is too large for one process, on Ray Data.

    python -m resmlp_mt.bulk models/en-de --input train.en --output TRANSLATED

Input is text, one sentence a line, or .jsonl, both also as .gz, or .parquet. Every file becomes a
folder with parts of --shard-size lines in the same format. The same command continues where it was
stopped. docs/bulk.md says how to start it on a cluster.
"""

import json
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resmlp_mt.command_line import Parser, command, option
from resmlp_mt.engine.options import BatchOptions, SearchOptions
from resmlp_mt.errors import UserError
from resmlp_mt.files import is_hidden
from resmlp_mt.machine import threads_kept
from resmlp_mt.option_types import POSITIVE, PROCESSES

if TYPE_CHECKING:  # so that --help answers at once
    from resmlp_mt.sharding.parts import CorpusFile

logger = logging.getLogger("resmlp_mt.bulk")


COUNTED = {
    "lines": "",
    "invalid": "are not valid UTF-8, and their wrong bytes became U+FFFD: the errors above name "
    "them",
    "too_long": "are too long for the model and were left empty",
    "failed": "",
}
"""Numbers of a :class:`Record` that are added up, and what a warning says of them."""


@dataclass(frozen=True, kw_only=True)
class Options(BatchOptions, SearchOptions):
    """Corpus and model."""

    model: Path | None = option(
        None, "model", nargs="?", metavar="MODEL",
        help="exported folder (default: en-de, which comes with the package)",
    )  # fmt: skip
    input: list[Path] = option(..., nargs="+", metavar="PATH", help="files or folders")
    output: Path = option(..., metavar="DIR", help="folder that all machines see")
    column: str = option("text", metavar="NAME", help="what to translate of jsonl and parquet")
    shard_size: int = option(10_000, type=POSITIVE, help="lines of a part")
    address: str = option(
        os.environ.get("RAY_ADDRESS") or "local",
        help="auto or HOST:PORT joins a cluster of Ray, local starts one on this machine",
    )
    workers: int | None = option(None, type=PROCESSES, help="default: one for each processor")
    threads: int = option(1, type=PROCESSES, help="threads of a worker")


def parse_args(argv: Sequence[str] | None) -> Options:
    """Parse the command line; exits with status 2 on a wrong one."""
    parser = Parser(
        "resmlp_mt.bulk", "Translate a corpus on many processors or machines.", needs=["ray"]
    )
    parser.add_options(Options)
    parser.refuse("another program", "translators", "translators-of-several-processes")
    return Options(**vars(parser.parse_args(argv)))


def corpus_files(inputs: Sequence[Path], output: Path, column: str) -> "list[CorpusFile]":
    """The named files, and all files in the named folders.

    A file keeps its name if it is a link. What a folder has hidden, or from an operating
    system, is left out.

    Raises:
        UserError: if there are none, one is a model, two have the same name, one has an unknown
            format or a name that the output needs, or the output is inside the input.
    """
    from resmlp_mt.sharding.formats import format_of
    from resmlp_mt.sharding.parts import CorpusFile

    found: list[CorpusFile] = []
    for given in inputs:
        path = Path(os.path.abspath(given))  # a file's identity, so without ".."
        if path.is_dir():
            if (path / "config.json").is_file() and any(path.glob("dict.*.txt")):
                raise UserError(f"--input {given} is a model: MODEL comes before --input.")
            if output.resolve().is_relative_to(path.resolve()):
                raise UserError(f"--output {output} is inside --input {given}: choose another.")
            names = [str(p.relative_to(path)) for p in visible(path)]
            if not names:
                raise UserError(f"--input {given} is empty: name a folder with files.")
        elif path.is_file():
            path, names = path.parent, [path.name]
        else:
            raise UserError(f"--input {given} is neither a file nor a folder.")
        found += [CorpusFile(path / name, name, format_of(path / name, column)) for name in names]
    check_names([file.name for file in found])
    return found


def visible(folder: Path) -> Iterator[Path]:
    """All files below a folder in the order of their names, but not those of :func:`is_hidden`.

    Raises:
        UserError: if there is a link to a folder, whose files would come twice or without end.
    """
    for path in sorted(folder.iterdir()):
        if is_hidden(path.name):
            continue
        if path.is_dir():
            if path.is_symlink():
                raise UserError(f"--input has a link to a folder, {path}: name the folder itself.")
            yield from visible(path)
        elif path.is_file():
            yield path


def check_names(names: Sequence[str]) -> None:
    """Refuse files whose translations would be at the same place, or where the manifest is.

    Raises:
        UserError: naming the file.
    """
    from resmlp_mt.sharding import manifest

    counts = Counter(names)
    for name in names:
        if counts[name] > 1:
            raise UserError(
                f"--input has {counts[name]} files of the name {name}: give them other names."
            )
        if name.startswith(".") or Path(name).parts[0] == manifest.NAME:
            raise UserError(f"--input has {name}, but the output needs this name: give it another.")
        for folder in Path(name).parents:
            if str(folder) in counts:
                raise UserError(f"--input has {folder} as a file and as a folder: rename one.")


def settings_of(args: Options, digest: str, dtype: str, has_records: bool) -> dict[str, Any]:
    """What the output depends on besides the input; see :class:`Manifest`.

    Args:
        digest, dtype: of the model; the type as it was exported.
        has_records: whether there is input that has columns.
    """
    options = SearchOptions.of(args)
    found: dict[str, Any] = {
        "model": digest,
        **vars(options),
        **{name: getattr(args, name) for name in ("dtype", "max_tokens", "shortlist")},
        **{name: getattr(args, name) for name in ("shard_size", "column", "batch_size")},
    }
    has_effect = {
        "column": has_records,
        "dtype": args.dtype not in (None, dtype),
        "seed": options.sampling,
        "batch_size": options.sampling,  # a batch has draws of its own
        "beam": not options.sampling,
        "lenpen": not options.unnormalized,
    }
    return {name: value for name, value in found.items() if has_effect.get(name, True)}


@command
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    logging.basicConfig(format="%(levelname)s: %(message)s", stream=sys.stderr)
    logger.setLevel(logging.INFO)
    options = SearchOptions.of(args)
    files = corpus_files(args.input, args.output, args.column)
    has_records = any(hasattr(file.format, "column") for file in files)
    if args.column != Options.column and not has_records:
        raise UserError(
            f"--column {args.column} is for .jsonl and .parquet, and --input has text alone: "
            "leave it out."
        )

    from resmlp_mt.engine import digests, model_folder, pretrained
    from resmlp_mt.engine.translator import Translator
    from resmlp_mt.sharding import ray_data
    from resmlp_mt.sharding.manifest import Manifest, locked
    from resmlp_mt.sharding.parts import check_identity

    place = pretrained.located(args.model)
    model = pretrained.portable(place)
    load = partial(
        Translator.load,
        model,
        options,
        dtype=args.dtype,
        batch_size=args.batch_size,
        max_tokens=args.max_tokens,
        use_shortlist=args.shortlist,
        threads=args.threads,
    )
    with threads_kept():
        load()  # raises the errors of the model and the options
    digest = digests.total(place)
    stored = json.loads((place / model_folder.CONFIG).read_bytes())
    settings = settings_of(args, digest, stored["dtype"], has_records)
    folder = args.output.absolute()  # not resolved: links may differ on other machines
    with locked(folder), Manifest(folder, settings) as manifest:
        check_identity(files, args.shard_size, manifest.done)
        lines, translated, begin = Counter[str](), 0, time.monotonic()
        with (
            ray_data.connected(args.address, args.workers, args.threads) as workers,
            closing(
                ray_data.run(
                    files, args.shard_size, manifest, load, model, digest, workers, args.threads
                )
            ) as records,
        ):
            logger.info("%d files, %d workers", len(files), workers)
            for record in records:
                lines.update({name: getattr(record, name) for name in COUNTED})
                if manifest.add(record):
                    translated += record.lines
                logger.info(
                    "%s: %d lines are there, %.1f lines/s",
                    record.output,
                    lines["lines"],
                    translated / (time.monotonic() - begin),
                )
        manifest.finish({file.name for file in files})
    for name, what in COUNTED.items():
        if what and lines[name]:
            logger.warning("%d of %d lines %s", lines[name], lines["lines"], what)
    if lines["failed"]:
        raise UserError(
            f"{lines['failed']} of {lines['lines']} lines have no translation with a finite score "
            "and were left empty."
        )


if __name__ == "__main__":
    main()
