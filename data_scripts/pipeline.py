"""The steps of a preparation, in their order, each skipped when it was finished before."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import archives
import binarize
import clean
import corpus
import download
import manifest
import subwords
from corpus import Part
from errors import DataError
from formats import TextFiles
from steps import Record, Steps, sha256, write_json

HERE = Path(__file__).parent

RESULT_FOLDERS = ("raw", "text", "subword", "bin")

OWN_FOLDERS = (*RESULT_FOLDERS, "downloads", "unpacked", ".steps")


@dataclass(frozen=True)
class Inputs:
    """The text of a corpus on disk; `digests` has the SHA-256 of every text file."""

    train: list[TextFiles]
    valid: list[TextFiles]
    tests: dict[str, list[TextFiles]]
    digests: dict[Path, str]
    manifest: dict[str, dict[str, Any]]


class Preparation:
    """One run: a corpus, the options and the folder.

    Raises:
        DataError: (also from `run`) what is wrong, in one sentence.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.out: Path = args.out
        self.downloads: Path = args.from_dir or self.out / "downloads"
        self.manifest_path = self.out / "manifest.json"
        self.steps = Steps(self.out, self.manifest_path)
        for folder in (self.out / name for name in OWN_FOLDERS):
            if args.from_dir and args.from_dir.resolve().is_relative_to(folder.resolve()):
                raise DataError(f"--from-dir {args.from_dir} is in {folder}: give another --out")
        if args.corpus == "local":
            self.corpus = corpus.local(args.from_dir, args.src, args.tgt)
        else:
            self.corpus = corpus.load(corpus.FOLDER / f"{args.corpus}.yaml")
        if self.corpus.generator and args.from_dir:
            raise DataError(f"{args.corpus} is generated: leave out --from-dir {args.from_dir}")
        self.languages = (self.corpus.source, self.corpus.target)
        self.options = clean.Options(
            *self.languages,
            tokenizer=args.tokenizer,
            normalize_punctuation=args.normalize_punctuation,
            max_length=args.max_length,
            max_ratio=args.max_ratio,
        )

    def run(self) -> None:
        """Everything from the download to the manifest."""
        inputs = self._inputs()
        cleaned = self._clean(inputs)
        model = self._train_subwords(cleaned)
        encoded = self._encode(cleaned, model)
        dictionary = self._write_dictionary(model, encoded)
        binarised = self._binarize(cleaned, encoded, dictionary)
        records = [cleaned, model, *encoded, dictionary, *binarised]
        content = manifest.build(
            self.corpus,
            self.args,
            inputs.manifest,
            cleaned["facts"],
            dictionary["facts"]["entries"],
            records,
        )
        self._sweep(content["outputs"])
        write_json(self.manifest_path, content)

    def plan(self) -> str:
        """What `run` would do, as text for the user."""
        lines = [f"{self.corpus.name}: {self.corpus.source} -> {self.corpus.target}"]
        lines += [f"licence: {self.corpus.licence or 'not stated'}"]
        for name, packages in self.corpus.files.items():
            for package in packages:
                there = "there" if (self.downloads / package.file_name).exists() else "not there"
                size = "size unknown" if package.size is None else f"{package.size:,} bytes"
                digest = package.sha256 or package.md5 or "recorded at first sight"
                lines.append(
                    f"file {name}: {self.downloads / package.file_name} ({there}; {size}; {digest})"
                )
                if not self.args.from_dir:
                    lines += [f"  from {url}" for url in package.urls]
        if self.corpus.generator:
            lines.append(f"generate: {dict(self.corpus.generator)} -> {self.out / 'generated'}")
        for split, parts in self._splits().items():
            for part in parts:
                count = "" if part.lines is None else f", {part.lines:,} lines"
                lines.append(f"{split}: {part.source} | {part.target} ({part.format}{count})")
        if self.corpus.valid_every:
            lines.append(f"valid: every {self.corpus.valid_every}th training pair")
        limit = f", at most {self.args.max_pairs:,} pairs" if self.args.max_pairs else ""
        options = dataclasses.asdict(self.options)
        lines += [
            f"clean: {options}{limit} -> {self.out}/text, {self.out}/raw",
            f"{self.args.subword_type} of {self.args.vocab_size} pieces -> {self.out}/spm.model",
            f"encode -> {self.out}/subword",
            f"fairseq-preprocess --joined-dictionary --workers {self.args.jobs} -> {self.out}/bin",
            f"manifest -> {self.manifest_path}",
        ]
        return "\n".join(lines)

    def _splits(self) -> dict[str, Sequence[Part]]:
        return {"train": self.corpus.train, "valid": self.corpus.valid, **self.corpus.tests}

    def _inputs(self) -> Inputs:
        """Fetches or generates the text, unpacks it and computes its digests."""
        if self.corpus.generator:
            self._generate(self.corpus.generator)
        places: dict[str, tuple[Path, str]] = {}
        found: dict[str, dict[str, Any]] = {}
        checksums = download.Checksums(self.out / "checksums.json")
        fetch = download.take if self.args.from_dir else download.fetch
        for name, packages in self.corpus.files.items():
            path, digest = fetch(packages, self.downloads, checksums)
            found[path.name] = {"size": path.stat().st_size, "sha256": digest}
            members = sorted(
                {
                    side.partition(":")[2]
                    for part in self.corpus.parts
                    for side in (part.source, part.target)
                    if side.partition(":")[0] == name
                }
            )
            if archives.is_archive(path):
                places |= self._unpack(name, path, digest, members)
            else:
                if path.name not in checksums.known():
                    archives.check(path)
                places[name] = (path, digest)
            # Only now: a file cut off on the way must not become the one to compare with.
            checksums.record(path.name, digest)
        if not self.corpus.files:
            for part in self.corpus.parts:
                for side in (part.source, part.target):
                    path = Path(side)
                    places[side] = (path, self.steps.digest(path))
                    found[path.name] = {"size": path.stat().st_size, "sha256": places[side][1]}

        def located(parts: Sequence[Part]) -> list[TextFiles]:
            return [
                TextFiles(
                    places[part.source][0],
                    places[part.target][0],
                    part.format,
                    *self.languages,
                    lines=part.lines,
                )
                for part in parts
            ]

        return Inputs(
            train=located(self.corpus.train),
            valid=located(self.corpus.valid),
            tests={name: located(parts) for name, parts in self.corpus.tests.items()},
            digests=dict(places.values()),
            manifest=found,
        )

    def _generate(self, generator: Mapping[str, Any]) -> None:
        arguments = dict(generator)
        module = arguments.pop("module")
        folder = self.out / "generated"

        def action() -> tuple[list[Path], dict[str, Any]]:
            folder.mkdir(parents=True, exist_ok=True)
            importlib.import_module(module).write_corpus(folder, **arguments)
            return sorted(folder.iterdir()), {}

        code = _code(*(str(path.relative_to(HERE)) for path in sorted(HERE.rglob("*.py"))))
        self.steps.run("generate", {"generator": dict(generator), "code": code}, action)
        local = corpus.local(folder, *self.languages)
        self.corpus = dataclasses.replace(
            self.corpus, train=local.train, valid=local.valid, tests=local.tests
        )

    def _unpack(
        self, name: str, archive: Path, digest: str, members: Sequence[str]
    ) -> dict[str, tuple[Path, str]]:
        """Places and digests of the members, by `name:member`."""
        folder = self.out / "unpacked" / name
        record = self.steps.run(
            f"unpack-{name}",
            {"archive": digest, "members": members, "code": _code("archives.py")},
            lambda: (archives.unpack(archive, members, folder), {}),
        )
        return {
            f"{name}:{member}": (folder / member, facts["sha256"])
            for member in members
            if (facts := record["outputs"][(folder / member).relative_to(self.out).as_posix()])
        }

    def _clean(self, inputs: Inputs) -> Record:
        names = {
            binarize.split_name("test", index): name for index, name in enumerate(inputs.tests)
        }
        args = self.args

        def paths(folder: str, split: str) -> tuple[Path, Path]:
            source, target = (self.out / folder / f"{split}.{lang}" for lang in self.languages)
            return source, target

        def action() -> tuple[list[Path], dict[str, Any]]:
            facts: dict[str, Any] = {}
            outputs: list[Path] = []
            sentences: set[str] = set()
            cleaner = clean.Cleaner(self.options)
            held_out = {"valid": inputs.valid}
            held_out |= {split: inputs.tests[name] for split, name in names.items()}
            for split, parts in held_out.items():
                items = clean.numbered_pairs(parts)
                if split == "valid" and self.corpus.valid_every:
                    items = clean.valid_pairs(inputs.train, args.max_pairs, self.corpus.valid_every)
                files = paths("raw", split), paths("text", split)
                count, seen = clean.clean_held_out(items, *files, cleaner)
                if count == 0:
                    raise DataError(f"the {split} set of {self.corpus.name} has no pair")
                facts[split] = {"name": names.get(split, split), "pairs": count}
                outputs += [path for pair in files for path in pair]
                sentences |= seen
            facts["train"] = clean.clean_train(
                inputs.train,
                paths("text", "train"),
                self.options,
                held_out=frozenset(sentences),
                valid_every=self.corpus.valid_every,
                max_pairs=args.max_pairs,
                jobs=args.jobs,
            )
            return [*outputs, *paths("text", "train")], facts

        def described(parts: Sequence[TextFiles]) -> list[Any]:
            return [
                [inputs.digests[part.source], inputs.digests[part.target], part.format, part.lines]
                for part in parts
            ]

        decides = {
            "train": described(inputs.train),
            "valid": described(inputs.valid),
            "tests": [[name, described(parts)] for name, parts in inputs.tests.items()],
            "options": dataclasses.asdict(self.options),
            "valid_every": self.corpus.valid_every,
            "max_pairs": args.max_pairs,
            "code": _code("clean.py", "formats.py", "dedup.py", "../resmlp_mt/text.py"),
            "versions": _versions("python", "unicode", "sacremoses"),
        }
        return self.steps.run("clean", decides, action)

    def _train_subwords(self, cleaned: Record) -> Record:
        args = self.args
        texts = (
            self.out / f"text/train.{self.languages[0]}",
            self.out / f"text/train.{self.languages[1]}",
        )
        model = self.out / "spm.model"
        options = {
            "vocab_size": args.vocab_size,
            "subword_type": args.subword_type,
            "character_coverage": args.character_coverage or self.corpus.character_coverage,
            "input_sentence_size": args.input_sentence_size,
        }

        def action() -> tuple[list[Path], dict[str, Any]]:
            subwords.train(texts, cleaned["facts"]["train"]["pairs"], model, **options)
            return [model], {}

        decides = {
            "text": [cleaned["outputs"][path.relative_to(self.out).as_posix()] for path in texts],
            "options": options,
            "code": _code("subwords.py", "normalization.py", "../resmlp_mt/text.py"),
            "versions": _versions("sentencepiece", "unicode"),
        }
        return self.steps.run("spm", decides, action)

    def _encode(self, cleaned: Record, model: Record) -> list[Record]:
        """One record for each split; the training text is cut into shards."""
        shards = []
        for split, facts in cleaned["facts"].items():
            if split != "train":
                shards.append((split, split, 0, facts["pairs"]))
        for index, start in enumerate(range(0, cleaned["facts"]["train"]["pairs"], binarize.SHARD)):
            shards.append((binarize.split_name("train", index), "train", start, binarize.SHARD))
        return [self._encode_shard(cleaned, model, *shard) for shard in shards]

    def _encode_shard(
        self, cleaned: Record, model: Record, name: str, split: str, start: int, count: int
    ) -> Record:
        def action() -> tuple[list[Path], dict[str, Any]]:
            texts = [self.out / "text" / f"{split}.{lang}" for lang in self.languages]
            outputs = [self.out / "subword" / f"{name}.{lang}" for lang in self.languages]
            pieces = subwords.encode(
                self.out / "spm.model",
                texts,
                outputs,
                start=start,
                count=count,
                # Starting processes would take longer than a few thousand lines.
                jobs=self.args.jobs if split == "train" else 1,
            )
            return outputs, {"split": name, "pieces": pieces if split == "train" else {}}

        decides = {
            "text": [cleaned["outputs"][f"text/{split}.{lang}"] for lang in self.languages],
            "model": model["outputs"],
            "start": start,
            "count": count,
            "code": _code("subwords.py"),
            "versions": _versions("sentencepiece"),
        }
        return self.steps.run(f"encode-{name}", decides, action)

    def _write_dictionary(self, model: Record, encoded: Sequence[Record]) -> Record:
        counts: Counter[str] = Counter()
        for record in encoded:
            counts.update(record["facts"]["pieces"])
        path = self.out / "dict.txt"

        def action() -> tuple[list[Path], dict[str, Any]]:
            entries = subwords.write_dictionary(self.out / "spm.model", counts, path)
            return [path], {"entries": entries}

        decides = {"model": model["outputs"], "counts": counts, "code": _code("subwords.py")}
        return self.steps.run("dictionary", decides, action)

    def _binarize(
        self, cleaned: Record, encoded: Sequence[Record], dictionary: Record
    ) -> list[Record]:
        """One record for each training shard; valid and tests go with the first."""
        texts = {record["facts"]["split"]: record["outputs"] for record in encoded}
        tests = [split for split in texts if split.startswith("test")]
        records = []
        for train in (split for split in texts if split.startswith("train")):
            others = {"valid": ["valid"], "tests": tests} if train == "train" else {}

            def action(
                train: str = train, others: dict[str, list[str]] = others
            ) -> tuple[list[Path], dict[str, Any]]:
                dict_path = self.out / "dict.txt"
                files = binarize.binarize(
                    self.out, self.languages, dict_path, train=train, jobs=self.args.jobs, **others
                )
                return files, {}

            used = [train, *(name for names in others.values() for name in names)]
            decides = {
                "text": {split: texts[split] for split in used},
                "dictionary": dictionary["outputs"],
                "code": _code("binarize.py"),
                "versions": _versions("fairseq", "numpy"),
            }
            records.append(self.steps.run(f"binarize-{train}", decides, action))
        return records

    def _sweep(self, outputs: Mapping[str, Any]) -> None:
        """Removes results of earlier options (fairseq would read a left-over `train1`, for one).

        Only what a record lists is ours to remove, and what fairseq would take for a part of this
        training set: a run cut off before its record can have left that.
        """
        parts = (self.out / "bin").glob(f"train*.{'-'.join(self.languages)}.*")
        ours = self.steps.outputs() | {path.relative_to(self.out).as_posix() for path in parts}
        for name in ours - set(outputs):
            if name.partition("/")[0] in RESULT_FOLDERS:
                (self.out / name).unlink(missing_ok=True)


def _code(*names: str) -> list[str]:
    return [sha256(HERE / name) for name in names]


def _versions(*names: str) -> dict[str, str]:
    known = manifest.versions()
    return {name: known[name] for name in names}
