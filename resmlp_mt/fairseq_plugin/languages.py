"""Lets fairseq find the languages of binarised text, however their codes are spelt.

fairseq looks for ``dict.zh-CN.txt`` although the folder has ``dict.zh_CN.txt``. It also takes
``dict.zh-CN.txt`` for a file of the pair zh and CN.
"""

import itertools
import logging
from pathlib import Path
from typing import Any
from unittest import mock

from fairseq import utils
from fairseq.data import LanguagePairDataset, data_utils
from fairseq.tasks import translation
from fairseq.tasks.translation import TranslationTask
from fairseq.tasks.translation_multi_simple_epoch import TranslationMultiSimpleEpochTask

from resmlp_mt import language_codes
from resmlp_mt.errors import UserError
from resmlp_mt.fairseq_plugin.wrapping import Original, wrap

logger = logging.getLogger(__name__)


class MissingDictionaryError(UserError):
    """A folder does not have the dictionary of a language."""


def find_languages() -> None:
    """Accept every spelling of ``--source-lang`` and ``--target-lang``; name what is missing."""
    wrap(TranslationTask, "setup_task", _setup_task)
    wrap(TranslationTask, "load_dataset", _load_dataset)
    wrap(translation, "load_langpair_dataset", _load_langpair_dataset)
    wrap(data_utils, "infer_language_pair", _infer_language_pair)
    wrap(TranslationMultiSimpleEpochTask, "setup_task", _check_codes, before=True)


def _setup_task(original: Original, cls: Any, cfg: Any, **kwargs: Any) -> Any:
    folder = Path(utils.split_paths(cfg.data)[0])
    known = _languages(folder)
    if not known:
        below = [str(path) for path in sorted(folder.glob("*/")) if _languages(path)]
        raise MissingDictionaryError(
            f"{folder} has no dictionaries (such as dict.en.txt): give the folder of the binarised "
            f"text{', such as ' + below[0] if below else ''}."
        )
    for option in ("source_lang", "target_lang"):
        code = getattr(cfg, option)
        if code is not None:
            setattr(cfg, option, _known(code, known, folder))
    return original(cls, cfg, **kwargs)


def _check_codes(_: Any, args: Any, **__: Any) -> None:
    """Refuse codes with a hyphen, which the task of many languages takes for two codes."""
    pairs = getattr(args, "lang_pairs", None) or ""
    pairs = pairs.split(",") if isinstance(pairs, str) else pairs
    given = [pair for pair in pairs if pair.count("-") > 1]
    codes = (getattr(args, option, None) or "" for option in ("source_lang", "target_lang"))
    given += [code for code in codes if "-" in code]
    for text in given:
        raise UserError(
            f"--task translation_multi_simple_epoch takes {text} for more codes than it has: "
            "write codes such as zh_CN, and name the files alike (dict.zh_CN.txt)."
        )


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


def _infer_language_pair(_: Original, path: str) -> tuple[str, str]:
    folder = Path(path)
    languages = _languages(folder)
    parts = {part for name in _texts(folder) for part in name.split(".")}
    pairs = [pair for pair in itertools.permutations(languages, 2) if "-".join(pair) in parts]
    if len(pairs) > 1:
        several = ", ".join(map("-".join, pairs))
        raise UserError(
            f"{folder} has text of several pairs of languages ({several}): choose with "
            "--source-lang and --target-lang."
        )
    if not pairs:
        raise UserError(
            f"{folder} has no text whose name tells the languages: give --source-lang and "
            f"--target-lang from its languages ({', '.join(languages)})."
        )
    return pairs[0]


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


def _load_dataset(original: Original, self: Any, split: str, *args: Any, **kwargs: Any) -> Any:
    try:
        original(self, split, *args, **kwargs)
        found = self.datasets[split]
        is_training = "epoch" in kwargs  # or fairseq-validate
        if is_training and type(found) is LanguagePairDataset and found.tgt is None:
            raise UserError(
                f"{self.cfg.data}: {split} has {self.cfg.source_lang} sentences and no "
                f"{self.cfg.target_lang} ones: binarise both sides, without --only-source."
            )
    except FileNotFoundError as error:
        folders = [Path(path) for path in utils.split_paths(self.cfg.data)]
        source, target = self.cfg.source_lang, self.cfg.target_lang
        wanted = f"{split}.{source}-{target}"
        for name in (wanted, f"{split}.{target}-{source}"):  # text serves both directions
            for folder in folders:
                raw, index, data = (
                    folder / f"{name}.{source}{end}" for end in ("", ".idx", ".bin")
                )
                if raw.is_file() or (index.is_file() and data.is_file()):
                    raise UserError(
                        f"{self.cfg.data} has {name} in another format: give --dataset-impl raw "
                        "for plain text, and no --dataset-impl for binarised text."
                    ) from error
                if index.is_file() or data.is_file():
                    raise UserError(
                        f"{folder} has only one of {index.name} and {data.name}: copy both."
                    ) from error
        there = ", ".join(sorted(set().union(*map(_texts, folders)))) or "no text"
        raise UserError(f"{self.cfg.data} has no {wanted}: it has {there}.") from error


def _load_langpair_dataset(
    original: Original, *args: Any, upsample_primary: int = 1, **kwargs: Any
) -> Any:
    """Compare the sides of every part: fairseq compares the sums of train, train1, ... at most.

    ``--upsample-primary`` is -1 by default, which ends in a ValueError if there are several.

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
        return original(*args, upsample_primary=max(1, upsample_primary), **kwargs)
