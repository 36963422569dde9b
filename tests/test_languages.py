"""fairseq finds its binarised text whatever the spelling of a language's code, or says why not."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq.data import Dictionary
from fairseq.data.indexed_dataset import MMapIndexedDatasetBuilder
from fairseq.tasks.translation import TranslationConfig, TranslationTask
from fairseq.tasks.translation_lev import TranslationLevenshteinConfig, TranslationLevenshteinTask
from fairseq.tasks.translation_multi_simple_epoch import TranslationMultiSimpleEpochTask

from resmlp_mt.errors import UserError
from resmlp_mt.fairseq_plugin import dictionaries
from resmlp_mt.models import resmlp_mt  # noqa: F401  applies the remedies


def binarised(folder: Path, pair: str, *languages: str) -> Path:
    """A training set of one sentence."""
    folder.mkdir(exist_ok=True)
    words = Dictionary()
    word = words.add_symbol("word")
    for language in languages:
        words.save(str(folder / f"dict.{language}.txt"))
        builder = MMapIndexedDatasetBuilder(str(folder / f"train.{pair}.{language}.bin"))
        builder.add_item(torch.tensor([word, words.eos()]))
        builder.finalize(str(folder / f"train.{pair}.{language}.idx"))
    return folder


def raw(folder: Path, pair: str, *languages: str) -> Path:
    """The same as plain text, as fairseq-preprocess --dataset-impl raw writes it."""
    binarised(folder, pair, *languages)
    for language in languages:
        name = f"train.{pair}.{language}"
        (folder / f"{name}.idx").unlink()
        (folder / f"{name}.bin").rename(folder / name).write_text("word\n")
    return folder


def task(
    folder: Path, source: str | None, target: str | None, dataset_impl: str | None = "mmap"
) -> TranslationTask:
    config = TranslationConfig(
        data=str(folder),
        source_lang=source,
        target_lang=target,
        train_subset="train",
        dataset_impl=dataset_impl,
        required_seq_len_multiple=1,
    )
    return TranslationTask.setup_task(config)


@pytest.mark.parametrize("there", ["zh_CN", "zh-CN", "zh", "ZH"])
@pytest.mark.parametrize("code", ["zh_CN", "zh-CN", "zh-cn", "zho_Hans", "zh", None])
def test_text_is_found_under_every_spelling(tmp_path: Path, there: str, code: str | None) -> None:
    binarised(tmp_path / "bin", f"en-{there}", "en", there)
    found = task(tmp_path / "bin", code and "en", code)
    assert (found.cfg.source_lang, found.cfg.target_lang) == ("en", there)
    found.load_dataset("train")
    assert len(found.dataset("train")) == 1


@pytest.mark.parametrize("there", ["zh-CN", "zh"])
def test_the_languages_of_raw_text_are_found(tmp_path: Path, there: str) -> None:
    folder = raw(tmp_path / "bin", f"en-{there}", "en", there)
    found = task(folder, None, None, "raw")
    assert (found.cfg.source_lang, found.cfg.target_lang) == ("en", there)
    found.load_dataset("train")
    assert len(found.dataset("train")) == 1
    with pytest.raises(UserError, match=rf"has no valid\.en-{there}: it has train\.en-{there}\.$"):
        found.load_dataset("valid")
    with pytest.raises(UserError, match=r"has train\.en-.* in another format: give --dataset-impl"):
        task(folder, None, None).load_dataset("train")


def test_other_files_beside_the_text_are_not_text(tmp_path: Path) -> None:
    others = ("Europarl.de-en.de", "lex.de-en.txt", "model.de-en.pt")
    for make, count, dataset_impl in ((binarised, 3, "mmap"), (raw, 2, "raw")):
        folder = make(tmp_path / dataset_impl, "en-de", "en", "de")
        for name in others[-count:]:
            (folder / name).write_text("word\n")
        found = task(folder, None, None, dataset_impl)
        assert (found.cfg.source_lang, found.cfg.target_lang) == ("en", "de")
        for split in ("lex", "model"):
            with pytest.raises(UserError, match=rf"no {split}\.en-de: it has train\.en-de\.$"):
                found.load_dataset(split)


@pytest.mark.parametrize("ending", ["idx", "bin"])
def test_half_of_a_binarised_text_is_named(tmp_path: Path, ending: str) -> None:
    folder = binarised(tmp_path / "bin", "en-de", "en", "de")
    (folder / f"train.en-de.en.{ending}").unlink()
    found = task(folder, "en", "de")
    with pytest.raises(UserError, match=r"has only one of train\.en-de\.en\.idx and .*\.bin: copy"):
        found.load_dataset("train")


def test_text_in_another_format_serves_both_directions(tmp_path: Path) -> None:
    for make, wrong in ((binarised, "raw"), (raw, "mmap")):
        folder = make(tmp_path / wrong, "en-de", "en", "de")
        with pytest.raises(UserError, match=r"has train\.en-de in another format: give"):
            task(folder, "de", "en", wrong).load_dataset("train")


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"lang_pairs": "en-de,en-zh-CN"}, "en-zh-CN"),
        ({"lang_pairs": ["en-zh-CN"]}, "en-zh-CN"),
        ({"lang_pairs": "en-zh_CN", "source_lang": "zh-CN"}, "zh-CN"),
    ],
)
def test_the_task_of_many_languages_takes_no_hyphens(given: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=f"takes {named} for more .*: write codes such as zh_CN"):
        TranslationMultiSimpleEpochTask.setup_task(Namespace(**given))


def test_other_tasks_keep_their_class(tmp_path: Path) -> None:
    config = TranslationLevenshteinConfig(
        data=str(binarised(tmp_path / "bin", "en-zh_CN", "en", "zh_CN")),
        source_lang="en",
        target_lang="zh-CN",
    )
    found = TranslationLevenshteinTask.setup_task(config)
    assert type(found) is TranslationLevenshteinTask
    assert found.cfg.target_lang == "zh_CN"


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (("en", "zh-TW"), r"has no dict.zh-TW.txt: choose from its languages \(en, zh_CN\)"),
        (("en-zh", "zh"), r"has no dict.en-zh.txt: choose"),
    ],
)
def test_other_codes_are_refused_with_those_to_use(
    tmp_path: Path, codes: tuple[str, str], message: str
) -> None:
    binarised(tmp_path / "bin", "en-zh_CN", "en", "zh_CN")
    with pytest.raises(UserError, match=message):
        task(tmp_path / "bin", *codes)


def test_several_pairs_are_not_chosen_by_chance(tmp_path: Path) -> None:
    binarised(tmp_path / "bin", "en-de", "en", "de")
    binarised(tmp_path / "bin", "en-fr", "en", "fr")
    with pytest.raises(UserError, match=r"several pairs of languages \(en-de, en-fr\): choose"):
        task(tmp_path / "bin", None, None)
    assert task(tmp_path / "bin", "en", "fr").cfg.target_lang == "fr"


def test_a_folder_without_dictionaries_is_named(tmp_path: Path) -> None:
    """prepare.py's folder has the binarised text in bin/."""
    with pytest.raises(UserError, match=r"has no dictionaries \(such as dict.en.txt\): give"):
        task(tmp_path / "missing", "en", "de")
    folder = binarised(tmp_path / "bin", "en-de", "en", "de")
    with pytest.raises(UserError, match=f"such as {folder}.$"):
        task(tmp_path, None, None)


@pytest.mark.parametrize("target", ["de", "zh-CN"])
def test_without_text_the_languages_are_asked_for(tmp_path: Path, target: str) -> None:
    """An exported folder has dictionaries alone, and two of them have no direction."""
    folder = binarised(tmp_path / "bin", f"en-{target}", "en", target)
    for file in folder.glob("train.*"):
        file.unlink()
    with pytest.raises(
        UserError, match=r"give --source-lang and --target-lang from its .* \(.*, .*\)\.$"
    ):
        task(folder, None, None)
    assert task(folder, "en", target).cfg.target_lang == target


def test_a_pair_has_dictionaries(tmp_path: Path) -> None:
    folder = binarised(tmp_path / "bin", "en-de", "en", "de")
    (folder / "dict.de.txt").unlink()
    with pytest.raises(UserError, match=r"give --source-lang and --target-lang from .* \(en\)\.$"):
        task(folder, None, None)


def test_a_missing_set_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    found = task(binarised(tmp_path / "bin", "en-de", "en", "de"), "en", "de")
    with pytest.raises(UserError, match=r"has no tset.en-de: it has train.en-de.$"):
        found.load_dataset("tset")


@pytest.mark.parametrize(("source", "is_told"), [("en", False), ("zh", True)])
def test_a_model_used_the_other_way_round_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, source: str, is_told: bool
) -> None:
    checkpoint = tmp_path / "checkpoint.pt"
    trained = {"source_lang": "en", "target_lang": "zh"}
    torch.save({"model": {}, "cfg": {"task": trained}}, checkpoint)
    binarised(tmp_path / "bin", "en-zh", "en", "zh")
    found = task(tmp_path / "bin", source, "zh" if source == "en" else "en")
    dictionaries._load_model_ensemble_and_task(
        lambda *_: ([], None, found), [str(checkpoint)], {}, found
    )
    assert ("from en to zh, and is used the other way round" in caplog.text) is is_told


def parts(folder: Path, **counts: tuple[int, int]) -> TranslationTask:
    """Parts of a training set with so many English and German sentences each."""
    binarised(folder, "en-de", "en", "de")
    for name, sizes in counts.items():
        for language, size in zip(("en", "de"), sizes, strict=True):
            prefix = folder / f"{name}.en-de.{language}"
            for ending in ("bin", "idx"):
                Path(f"{prefix}.{ending}").unlink(missing_ok=True)
            if size:
                builder = MMapIndexedDatasetBuilder(f"{prefix}.bin")
                for _ in range(size):
                    builder.add_item(torch.tensor([4, 2]))
                builder.finalize(f"{prefix}.idx")
    return task(folder, "en", "de")


def test_both_sides_of_every_part_have_as_many_sentences(tmp_path: Path) -> None:
    """Where only the sums are the same, all later pairs would be shifted."""
    same = parts(tmp_path / "same", train=(2, 2), train1=(3, 3))
    same.load_dataset("train", combine=True)
    assert len(same.dataset("train")) == 5
    for name, counts, part in (
        ("more", {"train": (2, 3)}, r"train\.en-de has 2 sentences, but 3 in de"),
        ("sums", {"train": (2, 3), "train1": (3, 2)}, r"train\.en-de has 2 sentences, but 3 in de"),
        ("later", {"train1": (3, 2)}, r"train1\.en-de has 3 sentences, but 2 in de"),
        (
            "some",
            {"train1": (3, 0)},
            r"only some of train\.en-de, train1\.en-de in .* have de sent",
        ),
        ("first", {"train": (3, 0), "train1": (3, 3)}, r"only some of .* have de sentences"),
    ):
        found = parts(tmp_path / name, **counts)
        with pytest.raises(UserError, match=part):
            found.load_dataset("train", combine=True)


def test_a_training_has_both_sides(tmp_path: Path) -> None:
    found = parts(tmp_path / "bin", train=(3, 0))
    with pytest.raises(UserError, match=r"bin: train has en sentences and no de ones: binarise"):
        found.load_dataset("train", combine=True, epoch=1)
    found.load_dataset("train")  # fairseq-generate
    assert found.dataset("train").tgt is None


@pytest.mark.parametrize("given", [("de", None), (None, "en"), ("DE", None)])
def test_one_language_is_enough_where_the_folder_has_one_pair(
    tmp_path: Path, given: tuple[str | None, str | None]
) -> None:
    """fairseq would throw it away and translate in the direction of the text."""
    folder = binarised(tmp_path / "bin", "en-de", "en", "de")
    found = task(folder, *given)
    assert (found.cfg.source_lang, found.cfg.target_lang) == ("de", "en")
    assert task(folder, "en", None).cfg.target_lang == "de"


def test_the_other_language_is_asked_for_where_it_is_not_clear(tmp_path: Path) -> None:
    folder = binarised(tmp_path / "bin", "en-de", "en", "de")
    binarised(folder, "de-fr", "de", "fr")
    assert task(folder, None, "fr").cfg.source_lang == "de"
    with pytest.raises(UserError, match="text of de with en and fr: give --target-lang, too"):
        task(folder, "de", None)
    (folder / "dict.xx.txt").write_text("word 1\n")
    with pytest.raises(UserError, match="no text that names a pair of xx: give --source-lang, too"):
        task(folder, None, "xx")


def test_folders_with_other_dictionaries_are_refused(tmp_path: Path) -> None:
    """fairseq reads the text of all with the dictionaries of the first."""
    first, other = (binarised(tmp_path / name, "en-de", "en", "de") for name in ("a", "b"))
    joined = Path(f"{first}:{other}")
    (other / "dict.de.txt").write_text("word 7\n")  # counts do not matter
    (other / "dict.fr.txt").write_text("another 1\n")  # nor do other languages
    task(joined, "en", "de")
    (other / "dict.de.txt").unlink()
    task(joined, "en", "de")
    (other / "dict.de.txt").write_text("another 1\n")
    with pytest.raises(UserError, match=r"b/dict\.de\.txt has other words than .*a/dict\.de\.txt"):
        task(joined, "en", "de")


def test_every_folder_has_the_training_set(tmp_path: Path) -> None:
    """It was said to be in another format when an epoch had ended."""
    first, other = (binarised(tmp_path / name, "en-de", "en", "de") for name in ("a", "b"))
    found = task(Path(f"{first}:{other}"), "en", "de")
    for epoch in (1, 2, 3):
        found.load_dataset("train", epoch=epoch, combine=True)
    for file in other.glob("train.*"):
        file.unlink()
    with pytest.raises(UserError, match=r"b has no train\.en-de: it has no text"):
        found.load_dataset("train", epoch=1, combine=True)
    found.load_dataset("train")  # fairseq-generate reads the first alone
    with pytest.raises(UserError, match=r"a has no valid\.en-de: it has train\.en-de"):
        found.load_dataset("valid", epoch=2)
    raw(tmp_path / "b", "en-de", "en", "de")
    with pytest.raises(UserError, match=r"b has train\.en-de in another format: give --dataset"):
        found.load_dataset("train", epoch=1)
