"""Runs steps once: outputs are atomic, and a record says what they were made from.

Every step has a name. Its record has a hash of everything that the result depends on (options,
digests of the inputs and of the code), and the size and digest of every output. A step is skipped
if the hash is the same and the outputs are unchanged, by size and time of change or else by digest.
Before the work starts, the record names the outputs and nothing else; the rest is written after the
last output is in place. So an interrupted step is never trusted, and what it leaves is known.
"""

import hashlib
import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from resmlp_mt.files import remove_unfinished, replacing, sha256

Record = dict[str, Any]


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Opens a file that takes the place of `path` when it is complete; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Left by a killed run: one run at a time works here, so no other process writes this file.
    remove_unfinished(path)
    with replacing(path) as partial, open(partial, "wb") as file:
        yield file


def write_json(path: Path, content: object) -> None:
    """Writes `content` in one fixed form; the keys keep their order, which matters for tests.

    The form is ASCII, because names of files need not be UTF-8.
    """
    with atomic_write(path) as file:
        file.write(json.dumps(content, indent=2).encode("ascii") + b"\n")


def code(*names: str) -> list[str]:
    """Digests of files in this folder, for a step that depends on them."""
    return [sha256(Path(__file__).parent / name) for name in names]


class Steps:
    """The records in `out/.steps`.

    Times and memory are in the records and not in the manifest, because they differ between runs.
    """

    def __init__(self, out: Path, summary: Path) -> None:
        """`summary` describes the outputs; it is removed before one that is in it is made again."""
        self.out = out
        self.summary = summary
        self.folder = out / ".steps"

    def clear_partial(self) -> None:
        """Removes temporary files of a killed run from the folder of the records."""
        for left in (*self.folder.glob(".*.????????"), *self.folder.glob("bin.*")):
            if left.is_dir():
                shutil.rmtree(left)
            else:
                left.unlink()

    def digest(self, path: Path) -> str:
        """SHA-256 of an input; computed again only if its size or a time of change differs.

        Some tools give all files the same time of modification, but no tool chooses that of the
        file's entry in the file system.
        """
        cache_path = self.folder / "digests.json"
        cache = read_json(cache_path)
        stat = path.stat()
        stamp = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
        name = str(path.resolve())
        known = cache.get(name)
        if known is not None and known["stamp"] == stamp:
            return str(known["sha256"])
        digest = sha256(path)
        cache[name] = {"stamp": stamp, "sha256": digest}
        write_json(cache_path, cache)
        return digest

    def finished(self, name: str, inputs: Mapping[str, Any]) -> Record | None:
        """The record of step `name`, if it was made from `inputs` and the outputs are unchanged."""
        record = read_json(self._path(name))
        if record.get("key") != _key(inputs):
            return None
        for output, facts in record["outputs"].items():
            path = self.out / output
            if not path.is_file() or path.stat().st_size != facts["size"]:
                return None
            unchanged = path.stat().st_mtime_ns == record.get("modified", {}).get(output)
            if not unchanged and sha256(path) != facts["sha256"]:
                return None
        return record

    def outputs(self) -> set[str]:
        """Every output that a record lists, of this run or of an earlier one."""
        return set().union(*map(self._listed, self.folder.glob("*.json")))

    def _listed(self, record: Path) -> set[str]:
        """The outputs that a record lists in this folder: no other file is ever removed."""
        names, out = read_json(record).get("outputs"), self.out.resolve()
        found: set[str] = set()
        for name in names if isinstance(names, dict) else ():
            with suppress(OSError, ValueError):  # names that no file can have, or outside
                found.add((out / name).resolve().relative_to(out).as_posix())
        return found - {"."}

    def run(
        self,
        name: str,
        inputs: Mapping[str, Any],
        outputs: Iterable[Path],
        action: Callable[[], Mapping[str, Any]],
        *,
        in_summary: bool = True,
    ) -> Record:
        """Runs `action` unless the step is finished, and returns the record.

        Args:
            name: name of the step and of its record.
            inputs: everything that the result depends on, in JSON's types.
            outputs: the files that `action` writes, below `out`.
            action: does the work; returns facts for the manifest.
            in_summary: whether the summary describes the outputs.
        """
        record = self.finished(name, inputs)
        if record is not None:
            print(f"{name}: finished before, skipped", file=sys.stderr)
            return record
        if in_summary:
            self.summary.unlink(missing_ok=True)
        for output in self._listed(self._path(name)):
            (self.out / output).unlink(missing_ok=True)
        paths = {path.relative_to(self.out).as_posix(): path for path in outputs}
        write_json(self._path(name), {"outputs": {output: {} for output in paths}})
        start, cpu = time.monotonic(), _cpu_seconds()
        facts = action()
        seconds = time.monotonic() - start
        record = {
            "key": _key(inputs),
            "outputs": {
                output: {"size": path.stat().st_size, "sha256": sha256(path)}
                for output, path in paths.items()
            },
            "modified": {output: path.stat().st_mtime_ns for output, path in paths.items()},
            "facts": dict(facts),
            "seconds": round(seconds, 3),
            "cpu_seconds": round(_cpu_seconds() - cpu, 3),
            "peak_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        }
        write_json(self._path(name), record)
        print(f"{name}: done in {seconds:.1f} s", file=sys.stderr)
        return record

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.json"


def _cpu_seconds() -> float:
    """Processor time of this process and of its finished children."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _key(inputs: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; empty if there is none, and a step is then run again."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
