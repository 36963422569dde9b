"""The steps of a preparation, in order; steps that are already finished are skipped."""

import dataclasses
import itertools
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from resmlp_mt.errors import UserError
from resmlp_mt.preparation import binarize, clean, corpus, manifest, sources, subwords
from resmlp_mt.preparation.corpus import Part
from resmlp_mt.preparation.formats import TextFiles
from resmlp_mt.preparation.options import CleaningOptions, Options
from resmlp_mt.preparation.sources import Inputs
from resmlp_mt.preparation.steps import Record, Steps, code, write_json

TEXT, LANGUAGES = "../text.py", "../language_codes.py"

OWN_FOLDERS = ("raw", "text", "subword", "downloads", "unpacked", ".steps")
"""Folders that are written to; `subword` is from earlier versions."""


class Preparation:
    """One run: a corpus, the options and the folder.

    Raises:
        UserError: saying what is wrong; also from `run`.
    """

    def __init__(self, args: Options) -> None:
        self.args = args
        self.out: Path = args.output
        self.downloads: Path = args.from_dir or self.out / "downloads"
        self.manifest_path = self.out / "manifest.json"
        self.steps = Steps(self.out, self.manifest_path)
        if args.from_dir:
            self._check_is_elsewhere(args.from_dir, "--from-dir ")
        if args.corpus == "local":
            self.corpus = corpus.local(args.from_dir or Path(), args.src or "", args.tgt or "")
        else:
            self.corpus = corpus.load(corpus.declaration(args.corpus))
        if args.corpus != "local" and args.from_dir and not self.corpus.files:
            raise UserError(f"{args.corpus} has its own text: leave out --from-dir {args.from_dir}")
        for part in () if self.corpus.files else self.corpus.parts:
            for side in (part.source, part.target):
                self._check_is_elsewhere(Path(side))
        manifest.check_is_of(self.manifest_path, self.corpus)
        every = self.corpus.valid_every
        if every and args.max_pairs and args.max_pairs < every:
            raise UserError(
                f"--max-pairs {args.max_pairs} leaves no validation set, which has every {every}th "
                f"pair of {args.corpus}: give at least {every}"
            )
        self.languages = (self.corpus.source, self.corpus.target)
        cleaning = {f.name: getattr(args, f.name) for f in dataclasses.fields(CleaningOptions)}
        self.options = clean.Options(*self.languages, **cleaning)

    def _check_is_elsewhere(self, path: Path, option: str = "") -> None:
        """Refuse input in a folder of the output, or behind a link there: it would be replaced.

        Raises:
            UserError: naming the folder.
        """
        copies = map(binarize.folder_name, range(max(1, self.args.samples)))
        for folder in (self.out / name for name in (*OWN_FOLDERS, *copies)):
            links = [link.resolve() for link in folder.glob("*") if link.is_symlink()]
            real = path.resolve()
            if real in links or real.is_relative_to(folder.resolve()):
                raise UserError(f"{option}{path} is in {folder}: give another --output")

    def run(self) -> str:
        """Everything from the download to the manifest; returns a summary of it for the user."""
        tqdm.monitor_interval = 0  # its thread would take Ctrl-C while a process is started
        self.steps.clear_partial()
        inputs = sources.gather(self.corpus, self.out, self.args.from_dir, self.steps)
        if self.args.corpus == "local" or self.args.corpus.endswith(".yaml"):
            manifest.check_text(self.manifest_path, inputs.training)
        sources.refuse_headers(inputs)
        sources.warn_of_unusual_text(inputs.train)
        cleaned = self._clean(inputs)
        manifest.record_cleaned(self.manifest_path, self.corpus, inputs.manifest)
        model = self._train_subwords(cleaned)
        binarized = self._binarize(cleaned, model)
        content = manifest.build(self.corpus, self.args, inputs.manifest, cleaned, model, binarized)
        self._sweep(content["outputs"])
        write_json(self.manifest_path, content)
        return manifest.summary(content)

    def plan(self) -> str:
        """A description of what `run` would do, for the user."""
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
        for split, parts in self._splits().items():
            for part in parts:
                count = "" if part.lines is None else f", {part.lines:,} lines"
                lines.append(f"{split}: {part.source} | {part.target} ({part.format}{count})")
        if self.corpus.valid_every:
            lines.append(f"valid: every {self.corpus.valid_every}th training pair")
        copies = f" {self.args.samples} samples" if self.args.samples else ""
        limit = f", at most {self.args.max_pairs:,} pairs" if self.args.max_pairs else ""
        options = dataclasses.asdict(self.options)
        lines += [
            f"clean: {options}{limit} -> {self.out}/text, {self.out}/raw",
            f"{self.args.subword_type} of {self.args.vocab_size} pieces -> {self.out}/spm.model",
            f"dictionary -> {self.out}/dict.txt",
            f"binarise{copies} with {self.args.jobs} processes -> {self.out}/bin",
            f"manifest -> {self.manifest_path}",
        ]
        return "\n".join(lines)

    def _splits(self) -> dict[str, Sequence[Part]]:
        return {"train": self.corpus.train, "valid": self.corpus.valid, **self.corpus.tests}

    def _clean(self, inputs: Inputs) -> Record:
        names = fairseq_names(inputs.tests)
        args = self.args

        def paths(folder: str, split: str) -> tuple[Path, Path]:
            source, target = (self.out / folder / f"{split}.{lang}" for lang in self.languages)
            return source, target

        held_out = {"valid": inputs.valid}
        held_out |= {split: inputs.tests[name] for split, name in names.items()}
        outputs = [
            path
            for split in held_out
            for folder in ("raw", "text")
            for path in paths(folder, split)
        ]

        def action() -> dict[str, Any]:
            facts: dict[str, Any] = {}
            sentences: set[str] = set()
            cleaner = clean.Cleaner(self.options)
            for split, parts in held_out.items():
                items = clean.chunks(parts)
                if split == "valid" and self.corpus.valid_every:
                    items = clean.valid_chunks(
                        inputs.train, args.max_pairs, self.corpus.valid_every
                    )
                files = paths("raw", split), paths("text", split)
                count, seen = clean.clean_held_out(items, *files, cleaner)
                if count == 0:
                    raise UserError(f"the {split} set of {self.corpus.name} has no pair")
                facts[split] = {"name": names.get(split, split), "pairs": count}
                facts[split] |= clean.left_out(parts)
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
            return facts

        def described(parts: Sequence[TextFiles]) -> list[Any]:
            return [
                [inputs.digests[part.source], inputs.digests[part.target], part.format, part.lines]
                for part in parts
            ]

        made_from = {
            "train": described(inputs.train),
            "valid": described(inputs.valid),
            "tests": [
                [split, name, described(inputs.tests[name])] for split, name in names.items()
            ],
            "options": dataclasses.asdict(self.options),
            "valid_every": self.corpus.valid_every,
            "max_pairs": args.max_pairs,
            "code": code("clean.py", "formats.py", "dedup.py", TEXT, LANGUAGES),
            "versions": manifest.versions("python", "unicode", "sacremoses"),
        }
        return self.steps.run("clean", made_from, [*outputs, *paths("text", "train")], action)

    def _train_subwords(self, cleaned: Record) -> Record:
        args = self.args
        source, target = (self.out / f"text/train.{lang}" for lang in self.languages)
        model = self.out / "spm.model"
        options: dict[str, Any] = {
            "vocab_size": args.vocab_size,
            "subword_type": args.subword_type,
            "character_coverage": args.character_coverage or self.corpus.character_coverage,
            "input_sentence_size": args.input_sentence_size,
        }

        def action() -> dict[str, Any]:
            pairs = cleaned["facts"]["train"]["pairs"]
            texts, folder = (source, target), self.steps.folder
            subwords.train(texts, pairs, model, jobs=args.jobs, folder=folder, **options)
            return {}

        made_from = {
            "text": [cleaned["outputs"][f"text/{path.name}"] for path in (source, target)],
            "options": options,
            "code": code("subwords.py", "normalization.py", "text_blocks.py", TEXT),
            "versions": manifest.versions("sentencepiece", "unicode"),
        }
        return self.steps.run("spm", made_from, [model], action)

    def _binarize(self, cleaned: Record, model: Record) -> Record:
        args = self.args
        sampling = binarize.Sampling(args.samples, args.sentencepiece_alpha)
        splits = list(cleaned["facts"])

        def action() -> dict[str, Any]:
            return binarize.binarize(
                self.out,
                self.languages,
                splits,
                subword_type=args.subword_type,
                sampling=sampling,
                jobs=args.jobs,
            )

        made_from = {
            "text": {k: v for k, v in cleaned["outputs"].items() if k.startswith("text/")},
            "model": model["outputs"],
            "sampling": dataclasses.asdict(sampling),
            "code": code("binarize.py", "subwords.py", "text_blocks.py"),
            "versions": manifest.versions("sentencepiece", "numpy"),
        }
        outputs = binarize.outputs(self.out, self.languages, splits, sampling.copies)
        return self.steps.run("binarize", made_from, outputs, action)

    def _sweep(self, outputs: Mapping[str, Any]) -> None:
        """Removes results of earlier options, but only files that a record lists.

        Also removes files that fairseq would take for a part of this training set. They can be left
        from a run that was killed before its record, or from an earlier version.
        """
        parts = (self.out / "bin").glob(f"train*.{'-'.join(self.languages)}.*")
        ours = self.steps.outputs() | {path.relative_to(self.out).as_posix() for path in parts}
        for name in ours - set(outputs):
            if re.match(r"(raw|text|subword|bin\d*)/", name):
                (self.out / name).unlink(missing_ok=True)


def fairseq_names(tests: Collection[str]) -> dict[str, str]:
    """The test sets by fairseq's names: test, test1, test2, ...

    A set that has such a name keeps it; the others get the first that are free, in their order.
    """
    numbered = (f"test{number or ''}" for number in itertools.count())
    free = (name for name in numbered if name not in tests)
    return {name if re.fullmatch(r"test\d*", name) else next(free): name for name in tests}
