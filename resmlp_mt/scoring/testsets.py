"""sacreBLEU's test sets, by name."""

from sacrebleu.dataset import DATASETS

from resmlp_mt import language_codes
from resmlp_mt.errors import UserError
from resmlp_mt.scoring.downloads import download
from resmlp_mt.scoring.languages import language_pair
from resmlp_mt.scoring.lines import Sentences, read_lines


def load_test_set(test_set: str, languages: str) -> tuple[Sentences, list[Sentences]]:
    """Return source and references; sacreBLEU downloads them on first use.

    Raises:
        UserError: if the test set or the pair is unknown, or the download fails.
    """
    dataset = DATASETS.get(test_set)
    if dataset is None:
        raise UserError(f"sacreBLEU knows no test set {test_set!r}: see `sacrebleu --list`")
    pair = languages
    if pair not in dataset.langpairs:
        pair = "-".join(map(language_codes.base, language_pair(languages)))
    if pair not in dataset.langpairs:
        raise UserError(
            f"test set {test_set} has no language pair {languages!r}, but "
            f"{', '.join(dataset.langpairs)}"
        )
    with download(f"test set {test_set}", test_set, "give --ref FILE"):
        source = dataset.get_source_file(pair)
        references = dataset.get_reference_files(pair)
    return (
        Sentences(read_lines(source), source),
        [Sentences(read_lines(reference), reference) for reference in references],
    )
