"""Lets fairseq find the languages of binarised text, however their codes are spelt.

fairseq looks for ``dict.zh-CN.txt`` although the folder has ``dict.zh_CN.txt``. It also takes
``dict.zh-CN.txt`` for a file of the pair zh and CN.
"""

import contextlib
import itertools
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from fairseq import utils
from fairseq.data import Dictionary, LanguagePairDataset, data_utils, indexed_dataset
from fairseq.tasks import translation
from fairseq.tasks.translation import TranslationTask
from fairseq.tasks.translation_multi_simple_epoch import TranslationMultiSimpleEpochTask

from resmlp_mt import language_codes
from resmlp_mt.command_line import flag
from resmlp_mt.errors import UserError
from resmlp_mt.fairseq_plugin.wrapping import Original, remedy

logger = logging.getLogger(__name__)

TRANSLATING = (TranslationTask, TranslationMultiSimpleEpochTask)
"""Tasks with a source and a target language."""

OPTIONS = ("source_lang", "target_lang")


class MissingDictionaryError(UserError):
    """A folder does not have the dictionary of a language."""


def options_of_task(task: Any) -> Any:
    """The options of a task; that of many languages has arguments in place of a configuration."""
    return getattr(task, "cfg", None) or getattr(task, "args", None)


@remedy(TranslationTask, "setup_task")
def _setup_task(original: Original, cls: Any, cfg: Any, **kwargs: Any) -> Any:
    folder = Path(utils.split_paths(cfg.data)[0])
    known = _languages(folder)
    if not known:
        below = [str(path) for path in sorted(folder.glob("*/")) if _languages(path)]
        raise MissingDictionaryError(
            f"{folder} has no dictionaries (such as dict.en.txt): give the folder of the binarised "
            f"text{', such as ' + below[0] if below else ''}."
        )
    for option in OPTIONS:
        code = getattr(cfg, option)
        if code is not None:
            setattr(cfg, option, _known(code, known, folder))
    for given, other in (OPTIONS, OPTIONS[::-1]):
        code = getattr(cfg, given)
        if code is not None and getattr(cfg, other) is None:
            setattr(cfg, other, _partner(code, other, folder))
    task = original(cls, cfg, **kwargs)
    check_folders([cfg.data], (cfg.source_lang, cfg.target_lang))
    return task


def _known(code: str, known: list[str], folder: Path) -> str:
    found = language_codes.find(code, known)
    if found is None:
        raise MissingDictionaryError(
            f"{folder} has no dict.{code}.txt: choose from its languages ({', '.join(known)}) "
            "with --source-lang and --target-lang."
        )
    if found != code:
        logger.info("%s has the language %s under the code %s", folder, code, found)
    return found


def _partner(code: str, option: str, folder: Path) -> str:
    """The language of which a folder has text with one that is given; fairseq ignores the latter.

    Raises:
        UserError: if there is none, or several.
    """
    found = sorted({other for pair in _pairs(folder) if code in pair for other in pair} - {code})
    if len(found) != 1:
        there = f"of {code} with {' and '.join(found)}" if found else f"that names a pair of {code}"
        raise UserError(
            f"{folder} has {'' if found else 'no '}text {there}: give {flag(option)}, too."
        )
    return found[0]


def check_folders(joined: Iterable[str], languages: Iterable[str]) -> None:
    """Compare the dictionaries of several folders with text: fairseq reads those of the first.

    Args:
        joined: ``data`` of the command, folders joined by ``:``, and more of them.
        languages: codes whose dictionaries count, in folders that have them.

    Raises:
        UserError: naming the first folder with other words.
    """
    first, *others = (Path(path) for paths in joined for path in utils.split_paths(paths))
    for language in dict.fromkeys(languages):
        name = f"dict.{language}.txt"
        files = [folder / name for folder in others if (folder / name).is_file()]
        if not (files and (first / name).is_file()):
            continue
        words = Dictionary.load(str(first / name)).symbols
        for file in files:
            if Dictionary.load(str(file)).symbols != words:
                raise UserError(
                    f"{file} has other words than {first / name}, with which its text would be "
                    f"read: binarise the text of {file.parent} with --srcdict and --tgtdict of "
                    f"{first}."
                )


@remedy(data_utils, "infer_language_pair")
def _infer_language_pair(_: Original, path: str) -> tuple[str, str]:
    folder = Path(path)
    pairs = _pairs(folder)
    if len(pairs) > 1:
        several = ", ".join(map("-".join, pairs))
        raise UserError(
            f"{folder} has text of several pairs of languages ({several}): choose with "
            "--source-lang and --target-lang."
        )
    if not pairs:
        raise UserError(
            f"{folder} has no text whose name tells the languages: give --source-lang and "
            f"--target-lang from its languages ({', '.join(_languages(folder))})."
        )
    return pairs[0]


def _pairs(folder: Path) -> list[tuple[str, str]]:
    """The pairs of languages of which a folder has text."""
    parts = {part for name in _texts(folder) for part in name.split(".")}
    pairs = itertools.permutations(_languages(folder), 2)
    return [pair for pair in pairs if "-".join(pair) in parts]


def _languages(folder: Path) -> list[str]:
    """The codes of the dictionaries in a folder, sorted."""
    names = (path.name for path in folder.glob("dict.?*.txt"))
    return sorted(name.removeprefix("dict.").removesuffix(".txt") for name in names)


def _texts(folder: Path) -> set[str]:
    """The names of texts in a folder, such as train.en-de: the binarised ones, else raw ones.

    Raw text has no ending of its own, and other files may lie beside it.
    """
    if binarised := {path.stem.rpartition(".")[0] for path in folder.glob("*.*-*.*.idx")}:
        return binarised
    pairs = {"-".join(pair): pair for pair in itertools.permutations(_languages(folder), 2)}
    names = (path.name.rsplit(".", 2) for path in folder.glob("*.*-*.*"))
    return {f"{split}.{pair}" for split, pair, code in names if code in pairs.get(pair, ())}


@remedy(TranslationTask, "load_dataset")
def _load_dataset(original: Original, self: Any, split: str, *args: Any, **kwargs: Any) -> Any:
    """Name text that is missing; of several folders, each is read for an epoch."""
    folders = [Path(path) for path in utils.split_paths(self.cfg.data)]
    pair = self.cfg.source_lang, self.cfg.target_lang
    is_training = "epoch" in kwargs  # or fairseq-validate
    epoch: int = kwargs.get("epoch", args[0] if args else 1)
    of_all = split == self.cfg.train_subset
    for folder in folders if of_all and is_training else ():
        if not has_text(folder, split, pair, self.cfg.dataset_impl):
            raise missing_text(folder, split, pair)
    try:
        original(self, split, *args, **kwargs)
    except FileNotFoundError as error:
        read = folders[(epoch - 1) % len(folders) if of_all else 0]
        raise missing_text(read, split, pair) from error
    found = self.datasets[split]
    if is_training and type(found) is LanguagePairDataset and found.tgt is None:
        raise without_targets(self.cfg.data, split, pair)


def has_text(folder: Path, split: str, pair: tuple[str, str], dataset_impl: Any) -> bool:
    """Whether a folder has the source side of a set, which serves both directions."""
    names = (f"{split}.{'-'.join(codes)}.{pair[0]}" for codes in (pair, pair[::-1]))
    return any(indexed_dataset.dataset_exists(str(folder / name), dataset_impl) for name in names)


def missing_text(folder: Path, split: str, pair: tuple[str, str]) -> UserError:
    """The error for a set that a folder does not have, or not in the format that is read."""
    for codes in (pair, pair[::-1]):
        name = f"{split}.{'-'.join(codes)}"
        raw, index, data = (folder / f"{name}.{pair[0]}{end}" for end in ("", ".idx", ".bin"))
        if raw.is_file() or (index.is_file() and data.is_file()):
            return UserError(
                f"{folder} has {name} in another format: give --dataset-impl raw for plain text, "
                "and no --dataset-impl for binarised text."
            )
        if index.is_file() or data.is_file():
            return UserError(f"{folder} has only one of {index.name} and {data.name}: copy both.")
    there = ", ".join(sorted(_texts(folder))) or "no text"
    return UserError(f"{folder} has no {split}.{'-'.join(pair)}: it has {there}.")


def without_targets(data: str, split: str, pair: tuple[str, str]) -> UserError:
    """The error for a set of a training that has its source side alone."""
    return UserError(
        f"{data}: {split} has {pair[0]} sentences and no {pair[1]} ones: binarise both sides, "
        "without --only-source."
    )


@remedy(translation, "load_langpair_dataset")
def _load_langpair_dataset(
    original: Original, *args: Any, upsample_primary: int = 1, **kwargs: Any
) -> Any:
    """``--upsample-primary`` is -1 by default, which ends in a ValueError if there are several."""
    with compared_sides():
        return original(*args, upsample_primary=max(1, upsample_primary), **kwargs)


@contextlib.contextmanager
def compared_sides() -> Iterator[None]:
    """Compare the sides of every part that is loaded.

    fairseq compares the sums of train, train1, ... at most.

    Raises:
        UserError: if a part has more sentences on one side, or only some parts have both sides.
    """
    load = data_utils.load_indexed_dataset
    counts: dict[str, list[int | None]] = {}  # of the source and the target of a part

    def counted(path: str, *rest: Any, **options: Any) -> Any:
        found = load(path, *rest, **options)
        part, _, language = path.rpartition(".")
        sides = counts.setdefault(part, [])
        sides.append(None if found is None else len(found))
        if len(sides) == 2 and None not in sides and sides[0] != sides[1]:
            raise UserError(
                f"{part} has {sides[0]:,} sentences, but {sides[1]:,} in {language}: binarise the "
                "two sides together, from files with as many lines."
            )
        if len({side[1] is None for side in counts.values() if len(side) == 2}) == 2:
            raise UserError(
                f"only some of {', '.join(Path(name).name for name in counts)} in "
                f"{Path(part).parent} have {language} sentences: binarise both sides of all."
            )
        return found

    with mock.patch.object(data_utils, "load_indexed_dataset", counted):
        yield
