"""sacreBLEU's test sets, by name."""

from sacrebleu.dataset import DATASETS

from resmlp_mt import language_codes
from resmlp_mt.errors import UserError
from resmlp_mt.scoring.downloads import download
from resmlp_mt.scoring.languages import language_pair
from resmlp_mt.scoring.lines import Sentences, read_lines


def load_test_set(test_set: str, languages: str) -> tuple[Sentences, list[Sentences]]:
    """Return source and references; sacreBLEU downloads them on first use.

    The languages of the set match the pair, however it spells them, and whatever regions
    it names: English for ``en_GB``, but not Simplified Chinese for ``zh_TW`` or ``yue``.

    Raises:
        UserError: if the test set or the pair is unknown, or the download fails.
    """
    dataset = DATASETS.get(test_set)
    if dataset is None:
        raise UserError(f"sacreBLEU knows no test set {test_set!r}: see `sacrebleu --list`")
    source, target = language_pair(languages)
    known = [pair.split("-") for pair in dataset.langpairs]
    first = _find(source, {pair[0] for pair in known})
    second = _find(target, {pair[1] for pair in known if pair[0] == first})
    pair = f"{first}-{second}"
    if None in (first, second):
        raise UserError(
            f"test set {test_set} has no language pair {languages!r}, but "
            f"{', '.join(dataset.langpairs)}"
        )
    with download(f"test set {test_set}", test_set, "give --ref FILE"):
        source_file = dataset.get_source_file(pair)
        references = dataset.get_reference_files(pair)
    return (
        Sentences(read_lines(source_file), source_file),
        [Sentences(read_lines(reference), reference) for reference in references],
    )


def _find(code: str, known: set[str]) -> str | None:
    """The code of the same language, else the only one of the same language and script."""
    related = language_codes.relatives(code, known)
    return language_codes.find(code, known) or (related[0] if len(related) == 1 else None)
