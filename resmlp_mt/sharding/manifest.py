"""The manifest: a line for every finished part, with the digests of its input and output.

The first line of ``manifest.jsonl`` has the settings of the output. A line is appended when a part
is finished; an incomplete last line after a crash is ignored.
"""

import json
import os
import platform
from collections.abc import Collection, Iterable
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from resmlp_mt import files
from resmlp_mt.engine.model_folder import from_json
from resmlp_mt.errors import UserError, reason
from resmlp_mt.files import remove_unfinished, sha256, write_text, writing

NAME, LOCK = "manifest.jsonl", ".lock"
SOMETIMES = {"column", "seed", "batch_size", "beam", "lenpen"}
"""Settings that have no effect in some runs, which then leave them out."""


@dataclass(frozen=True)
class Record:
    """A finished part.

    Attributes:
        file: the name of the input.
        part: its number in the file.
        lines: its number of lines.
        source: SHA-256 of the part of the input, unpacked.
        output: the written file, relative to the output folder.
        sha256: SHA-256 of that file.
        too_long, failed: numbers of lines that were left empty, because they are too long for the
            model or have no translation with a finite score.
        path: where the input was; empty in folders of earlier versions.
        invalid: number of lines that are not UTF-8; 0 in folders of earlier versions.
    """

    file: str
    part: int
    lines: int
    source: str
    output: str
    sha256: str
    too_long: int
    failed: int
    path: str = ""
    invalid: int = 0


Done = dict[tuple[str, int], Record]


class Manifest:
    """The manifest of an output folder, open for more records.

    Args:
        folder: the output folder, made by :func:`locked`.
        settings: everything that the output depends on besides the input; of :data:`SOMETIMES`,
            those that have an effect.

    Attributes:
        settings: these, and those that only earlier runs have used.
        done: the finished parts whose files are unchanged.

    Raises:
        UserError: if the folder has output of other settings, or cannot be read or written.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        found, earlier = _read(folder / NAME)
        self.folder, self.settings = folder, {**(found or {}), **settings}
        remove_unfinished(folder / NAME)
        if found is None and any(path.name != LOCK for path in folder.iterdir()):
            raise UserError(f"--output {folder} has other files in it: choose an empty folder.")
        if found is not None and (names := _differing(settings, found)):
            raise UserError(
                f"--output {folder} holds translations with another {' and '.join(names)}: choose "
                "another folder, or the options of the first run."
            )
        self.done: Done = {
            (record.file, record.part): record
            for record in earlier
            if digest(folder / record.output) == record.sha256
        }
        self._records: list[Record] = []
        self._write(self.done.values())
        self._file = (folder / NAME).open("a", encoding="utf-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, record: Record) -> bool:
        """Add a part, and write its line to the disk; returns whether it is new."""
        self._records.append(record)
        if self.done.get((record.file, record.part)) == record:
            return False
        with writing(self.folder / NAME):
            self._file.write(_line(record) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        return True

    def finish(self, files: Collection[str]) -> None:
        """Sort the lines and remove parts that a file no longer has.

        Args:
            files: the names of the input, all of whose parts are added. What an earlier run has
                made of other files stays.

        Raises:
            UserError: if a part is not there.
        """
        others = [record for record in self.done.values() if record.file not in files]
        kept = sorted([*self._records, *others], key=lambda record: (record.file, record.part))
        self._write(kept)
        outputs = {self.folder / record.output for record in kept}
        for file in files:  # also what a run wrote and did not record, because it was killed
            for part in set((self.folder / file).glob("part-*")) - outputs:
                part.unlink()
        for partial in self.folder.rglob(".part-*"):  # of workers that were killed
            partial.unlink(missing_ok=True)
        gone = sorted(path for path in outputs if not path.is_file())
        if gone:
            raise UserError(
                f"--output {self.folder} lacks {gone[0].relative_to(self.folder)}, which a worker "
                "has written: name a folder that all machines see, and start again."
            )

    def _write(self, records: Iterable[Record]) -> None:
        lines = [json.dumps(self.settings), *map(_line, records)]
        write_text(self.folder / NAME, "".join(f"{line}\n" for line in lines))


def check_is_of_run(folder: Path, settings: dict[str, Any]) -> None:
    """Refuse a folder that is not the output of this run, as on a machine that does not see it.

    Args:
        settings: of the run's :class:`Manifest`.

    Raises:
        UserError: naming this machine.
    """
    try:
        with (folder / NAME).open(encoding="utf-8") as file:
            found = json.loads(file.readline())
    except (OSError, ValueError, RecursionError):
        found = None
    if found != settings:
        raise UserError(
            f"--output {folder} on {platform.node()} is not the folder of this run: name one that "
            "all machines see."
        )


def locked(folder: Path) -> AbstractContextManager[None]:
    """Make the output folder, and lock it for this run; see :func:`resmlp_mt.files.locked`."""
    taken = f"--output {folder} is in use by another run: wait, or choose another folder."
    return files.locked(folder / LOCK, taken, "--output")


def digest(path: Path) -> str | None:
    """SHA-256 of a file; None if there is none."""
    try:
        return sha256(path)
    except OSError:
        return None


def _differing(settings: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """The names of settings that differ between two runs; :data:`SOMETIMES` if both have them."""
    names = [*settings, *(name for name in found if name not in settings)]
    return [
        name
        for name in names
        if settings.get(name) != found.get(name)
        and (name not in SOMETIMES or (name in settings and name in found))
    ]


def _line(record: Record) -> str:
    return json.dumps(asdict(record))  # in ASCII: names of files need not be UTF-8


def _read(path: Path) -> tuple[dict[str, Any] | None, list[Record]]:
    """The settings and the records, without incomplete and damaged records."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None, []
    except OSError as error:
        raise UserError(f"{path} cannot be read: {reason(error)}.") from error
    values: list[Any] = []
    for line in text.split("\n"):
        try:
            values.append(json.loads(line))
        except (ValueError, RecursionError):
            continue
    if not values or not isinstance(values[0], dict):
        raise UserError(f"{path} is damaged: choose another folder for --output.")
    records: list[Record] = []
    for value in values[1:]:
        with suppress(OSError, KeyError, TypeError, ValueError):  # also of names no file can have
            record = from_json(Record, value, defaults=True)
            inside = (path.parent / record.output).resolve().relative_to(path.parent.resolve())
            if inside.parts and str(inside) not in (NAME, LOCK):  # other files are never removed
                records.append(record)
    return values[0], records
