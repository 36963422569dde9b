"""``--task translation_multi_simple_epoch`` names what it lacks, and keeps words of languages."""

from argparse import Namespace
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq import options, scoring
from fairseq.data.indexed_dataset import MMapIndexedDatasetBuilder
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.hub_utils import GeneratorHubInterface
from fairseq.scoring.bleu import BleuConfig, Scorer
from fairseq.sequence_generator import SequenceGenerator
from fairseq.tasks import FairseqTask
from fairseq.tasks.translation_multi_simple_epoch import TranslationMultiSimpleEpochTask
from omegaconf import OmegaConf

from resmlp_mt.errors import UserError
from resmlp_mt.fairseq_plugin import bleu, dictionaries, many_languages
from resmlp_mt.fairseq_plugin.checkpoints import DICTIONARIES, read
from resmlp_mt.models import resmlp_mt  # noqa: F401  applies the remedies
from test_languages import binarised

PAIRS = "--langs en,de,fr --lang-pairs en-de,en-fr"
BOTH = f"{PAIRS} -s en -t de"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Training text from English to German and to French, with the same words."""
    for pair in ("en-de", "en-fr"):
        binarised(tmp_path / "bin", pair, *pair.split("-"))
    return tmp_path / "bin"


def arguments(data: object, *words: str) -> Any:
    """What fairseq-train makes of its words."""
    given = [word for part in words for word in (part.split() if "{" not in part else [part])]
    model = [
        "--arch",
        "resmlp_mt_tiny",
        "--max-source-positions",
        "8",
        "--max-target-positions",
        "8",
    ]
    return options.parse_args_and_arch(
        options.get_training_parser(),
        [str(data), "--task", "translation_multi_simple_epoch", *model, *given],
    )


def task(data: object, *words: str) -> Any:
    return TranslationMultiSimpleEpochTask.setup_task(arguments(data, *words))


def write(folder: Path, pair: str, language: str, count: int) -> None:
    """Some sentences of one side of the training text."""
    builder = MMapIndexedDatasetBuilder(str(folder / f"train.{pair}.{language}.bin"))
    for _ in range(count):
        builder.add_item(torch.tensor([4, 2]))
    builder.finalize(str(folder / f"train.{pair}.{language}.idx"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--langs en,de --lang-pairs en-de -s en -t fr"],
         r"^--target-lang names fr, which is not among the languages of --langs \(en, de\):"),
        (["--lang-pairs en-de -s fr -t en"], "^--source-lang names fr, .* of --lang-pairs"),
        (["--langs en,de --lang-pairs en-fr"], "^--lang-pairs names fr, which is not among the"),
        (["--langs en,de --lang-pairs en-de --extra-lang-pairs", '{"mined": "en-fr"}'],
         "^--extra-lang-pairs names fr, which"),
        ([PAIRS, "-t de"], "translates from one language to another: add --source-lang"),
        ([PAIRS, "-s en"], "translates from one language to another: add --target-lang"),
        ([PAIRS, "--sampling-temperature 0"], "^--sampling-temperature must be above 0, but is 0"),
        (["--lang-pairs en"], "^--lang-pairs en is not a pair of languages, such as en-de"),
    ],
)  # fmt: skip
def test_languages_that_the_task_does_not_have_are_named(
    data: Path, given: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        task(data, *given)


def test_languages_of_one_side_have_one_dictionary(data: Path) -> None:
    assert task(data, PAIRS).langs == ["en", "de", "fr"]
    (data / "dict.fr.txt").write_text("other 1\n")
    with pytest.raises(UserError, match=r"bin has other words in dict\.fr\.txt than in dict\.de"):
        task(data, PAIRS)


def test_numbers_of_languages_are_not_for_a_resmlp(data: Path) -> None:
    for given, is_refused in (([], False), (["--enable-lang-ids"], True)):
        args = arguments(data, PAIRS, *given)
        model = convert_namespace_to_omegaconf(args).model
        built = TranslationMultiSimpleEpochTask.setup_task(args)
        if is_refused:
            with pytest.raises(UserError, match=r"^--enable-lang-ids gives the model numbers"):
                built.build_model(model)
        else:
            built.build_model(model)


def test_to_translate_languages_are_given(data: Path) -> None:
    """Without them, the task is set up for a training."""
    in_training, chosen = task(data, PAIRS), task(data, BOTH)
    message = "translates from one language to another: add --source-lang and --target-lang"
    with pytest.raises(UserError, match=message):
        in_training.build_generator([], Namespace())
    with pytest.raises(UserError, match=message):
        dictionaries._load_model_ensemble_and_task(print, ["missing.pt"], {}, in_training)
    with pytest.raises(UserError, match=r"^--constraints are not for --task translation_multi_s"):
        chosen.build_generator([], Namespace(constraints="ordered"))


@pytest.mark.parametrize(
    "option", ["--sampling-weights", "--langtoks", "--extra-data", "--extra-lang-pairs"]
)
def test_dictionaries_on_the_command_line_are_no_code(
    data: Path, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = vars(arguments(data, option, '{"main": ("src", "tgt")}'))
    assert found[option[2:].replace("-", "_")] == {"main": ("src", "tgt")}
    for wrong in ("{a:1}", "{'a'", "{1}", "{}.copy()"):
        with pytest.raises(SystemExit):
            arguments(data, option, wrong)
        assert (
            f"argument {option}: {wrong} is not a dictionary: write it" in capsys.readouterr().err
        )


def test_every_set_has_a_weight(data: Path) -> None:
    with pytest.raises(UserError, match=r"^--sampling-weights has no weight of main:en-fr: give"):
        task(data, PAIRS, "--sampling-weights", '{"main:en-de": 1}').load_dataset("train")
    weights = '{"main:en-de": 1, "main:en-fr": 2}'
    task(data, PAIRS, "--sampling-weights", weights).load_dataset("train")


def test_text_that_is_missing_is_named(data: Path, tmp_path: Path) -> None:
    """In any of several folders, which are read one after the other."""
    found = task(data, PAIRS)
    found.load_dataset("train")
    with pytest.raises(UserError, match=r"bin has no valid\.en-de: it has train\.en-de, train\.en"):
        found.load_dataset("valid")
    with pytest.raises(UserError, match=r"bin has no test\.en-de: it has train\.en-de"):
        task(data, BOTH).load_dataset("test")
    with pytest.raises(UserError, match=r"^--dataset-impl raw: --task translation_multi_simple_e"):
        task(data, PAIRS, "--dataset-impl raw").load_dataset("train")
    for number, pair in ((2, "en-de"), (3, "en-fr")):
        binarised(tmp_path / f"bin{number}", pair, *pair.split("-"))
    joined = [str(data), *(str(tmp_path / f"bin{number}") for number in (2, 3))]
    with pytest.raises(UserError, match=r"bin2 has no train\.en-fr: it has train\.en-de\.$"):
        task(":".join(joined), PAIRS).load_dataset("train")


def test_sides_have_as_many_sentences(data: Path) -> None:
    write(data, "en-fr", "fr", 3)
    with pytest.raises(UserError, match=r"train\.en-fr has 1 sentences, but 3 in fr: binarise"):
        task(data, PAIRS).load_dataset("train")
    for ending in ("idx", "bin"):
        (data / f"train.en-fr.fr.{ending}").unlink()
    with pytest.raises(UserError, match="train has en sentences and no fr ones: binarise both"):
        task(data, PAIRS).load_dataset("train")
    task(data, f"{PAIRS} -s en -t fr").load_dataset("train")  # fairseq-generate


def test_folders_have_the_same_dictionaries(data: Path, tmp_path: Path) -> None:
    for pair in ("en-de", "en-fr"):
        other = binarised(tmp_path / "other", pair, *pair.split("-"))
    mined = ["--extra-data", f'{{"mined": "{other}"}}']
    for given in ([f"{data}:{other}", PAIRS], [data, PAIRS, *mined]):
        task(*given)
    (other / "dict.fr.txt").write_text("other 1\n")
    for given in ([f"{data}:{other}", PAIRS], [data, PAIRS, *mined]):
        with pytest.raises(UserError, match=r"other/dict\.fr\.txt has other words than .*bin/dict"):
            task(*given)


def test_unknown_words_are_told(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = task(data, BOTH)
    for word, is_told in (("word", False), ("<unk>", True)):
        tokens = torch.tensor([found.source_dictionary.index(word)] * 9 + [2])
        found.build_dataset_for_inference([tokens], [len(tokens)])
        assert ("most words of the input are not in the en dictionary" in caplog.text) is is_told


# --- lines, and words of languages before and after them ---

WITH_WORDS = "--encoder-langtok tgt --decoder-langtok"


class Echo(SequenceGenerator):  # type: ignore[misc]
    """Translates every sentence by itself."""

    def __init__(self, models: Any, words: Any, **given: Any) -> None:
        torch.nn.Module.__init__(self)
        self.symbols_to_strip_from_output = {words.eos()} | given.get(
            "symbols_to_strip_from_output", set()
        )

    def generate(self, _: Any, sample: Any, **__: Any) -> Any:
        return [[{"tokens": row}] for row in sample["net_input"]["src_tokens"]]


def translated(found: Any, *lines: list[int]) -> list[list[int]]:
    """What a task makes of lines that fairseq-interactive reads: at most 3 tokens fit the model."""
    tokens = [torch.tensor(line) for line in lines]
    dataset = found.build_dataset_for_inference(tokens, list(map(len, tokens)))
    batches = found.get_batch_iterator(dataset, max_sentences=1, max_positions=(3, 3))
    generator = Echo.__new__(Echo)
    hypotheses = {
        int(batch["id"]): found.inference_step(generator, [], batch)[0][0]["tokens"].tolist()
        for batch in batches.next_epoch_itr(shuffle=False)
    }
    return [hypotheses[number] for number in range(len(lines))]


@pytest.mark.parametrize("given", ["", WITH_WORDS, f"{WITH_WORDS} --lang-tok-replacing-bos-eos"])
def test_lines_that_are_empty_or_too_long_are_left_empty(
    data: Path, given: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Their words of languages count, and are no text."""
    found = task(data, BOTH, given)
    german = found.source_dictionary.index("__de__")
    one = {"": [4, 4, 2], WITH_WORDS: [german, 4, 2]}.get(given, [4, 4, german])
    fits = one[1:-1] if given == WITH_WORDS else [4, 4]
    assert translated(found, [*fits, 2], [2], [*fits, 4, 2], [*fits, 2]) == [one, [2], [2], one]
    assert caplog.messages[0].endswith(
        "has 4 tokens, but at most 3 are allowed: its translation is left empty; shorten it, or "
        "train with a larger --max-source-positions"
    )


def test_words_of_languages_are_printed_and_counted_if_asked_for(data: Path) -> None:
    alignment = Namespace(print_alignment="hard"), Namespace(replace_unk="@@ ")
    for given, strips in ((WITH_WORDS, True), (f"{WITH_WORDS} --keep-inference-langtok", False)):
        found = task(data, BOTH, given)
        word = found.target_dictionary.index("__de__")
        generator = found.build_generator([None], Namespace(), Echo)
        assert (word in generator.symbols_to_strip_from_output) is strips
        for options_of_generate in alignment:
            with (
                pytest.raises(UserError, match="counts the word of the language")
                if strips
                else (nullcontext())
            ):
                found.build_generator([None], options_of_generate, Echo)
    task(data, BOTH, f"{WITH_WORDS} --lang-tok-replacing-bos-eos").build_generator(
        [None], alignment[0], Echo
    )


def test_words_of_languages_are_no_part_of_a_score(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bleu, "_of_languages", [])
    found = task(data, BOTH, WITH_WORDS)
    words = found.target_dictionary
    tokens = torch.IntTensor([words.index("__de__"), 4, words.eos()])
    for is_counted in (True, False):
        scorer = scoring.build_scorer(OmegaConf.create({"_name": "bleu"}), words)
        scorer.add(tokens, tokens)
        assert scorer.stat.reflen == scorer.stat.predlen == 1 + is_counted
        found.build_generator([None], Namespace(), Echo)
    # a program's own, which may be of other words
    scorer = Scorer(BleuConfig(pad=words.pad(), eos=words.eos(), unk=words.unk()))
    scorer.add(tokens, tokens)
    assert scorer.stat.reflen == scorer.stat.predlen == 2


def test_the_hub_translates(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gives an argument that the task does not take, and prints all words."""
    found = task(data, BOTH, WITH_WORDS)
    hub = GeneratorHubInterface(convert_namespace_to_omegaconf(arguments(data)), found, [])
    monkeypatch.setattr(FairseqTask, "build_generator", lambda *_: Echo.__new__(Echo))
    hub.max_positions = (8, 8)
    assert hub.translate(["word word", ""]) == ["word word", ""]


# --- the options of the training ---

LANGTOKS = """--langtoks '{"main": ("src.x", "tgt")}'"""


@pytest.mark.parametrize(
    ("before", "now", "message"),
    [
        ([], [], None),
        (["--encoder-langtok tgt"], ["--langtoks", '{"main": ("tgt", None)}'], None),
        (["--decoder-langtok"], ["--langtoks", '{"main": (None, "tgt")}'], None),
        (["--encoder-langtok tgt --decoder-langtok"], [],
         "with --encoder-langtok tgt --decoder-langtok: give the same options"),
        (["--encoder-langtok tgt"], ["--encoder-langtok src"], "with --encoder-langtok tgt: give"),
        ([], ["--decoder-langtok --lang-tok-replacing-bos-eos"],
         "without --decoder-langtok --lang-tok-replacing-bos-eos: give"),
        (["--decoder-langtok --lang-tok-replacing-bos-eos"], ["--decoder-langtok"],
         "with --lang-tok-replacing-bos-eos: give"),
        (["--langtoks", '{"main": ("src.x", "tgt")}'], ["--decoder-langtok"],
         f"with {LANGTOKS} and without --decoder-langtok: give"),
        # these change the dictionaries
        ([], ["--langs en,fr,de"], "with --langs en,de,fr: give"),
        ([], ["--lang-tok-style mbart"], "with --lang-tok-style multilingual: give"),
        (["--langtoks-specs main,mono_dae"], [], "with --langtoks-specs main,mono_dae: give"),
    ],
)  # fmt: skip
def test_a_model_is_used_with_the_options_of_its_training(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    before: list[str],
    now: list[str],
    message: str | None,
) -> None:
    trained = task(data, PAIRS, *before)
    path = tmp_path / "x.pt"
    torch.save(
        {"model": {}, "cfg": {"task": trained.args}, DICTIONARIES: dictionaries._digests(trained)},
        path,
    )
    used = task(data, BOTH, *now)
    monkeypatch.setattr(dictionaries, "_loading", [path])
    if message is None:
        dictionaries._check(used)
    else:
        with pytest.raises(UserError) as error:
            dictionaries._check(used)
        assert f"{path} was trained {message}" in str(error.value)
        going_on = task(data, PAIRS, *now)
        with pytest.raises(UserError):
            dictionaries.check_training(going_on, read(path), path, is_new=False)


def test_a_file_of_languages_is_named() -> None:
    stored = {"lang_dict": "langs.txt", "lang_pairs": "en-de"}
    with pytest.raises(
        UserError, match=r"^x\.pt was trained with --lang-dict langs\.txt and witho"
    ):
        many_languages.check_same({"langs": ["a"]}, stored, Path("x.pt"), other_words=True)
    many_languages.check_same({"langs": ["a"]}, stored, Path("x.pt"), other_words=False)


@pytest.mark.parametrize(
    ("before", "now", "is_refused"),
    [
        ("en-de", "de-en", True),
        ("en-de", ["en-de", "de-en"], False),
        (["en-de", "en-fr"], "en-fr", False),
        (None, "de-en", False),
    ],
)
def test_a_training_goes_on_with_its_pairs(before: Any, now: Any, is_refused: bool) -> None:
    given = {"lang_pairs": now}, {"lang_pairs": before}, Path("x.pt")
    if is_refused:
        with pytest.raises(UserError, match=r"^x\.pt was trained with --lang-pairs en-de: give an"):
            many_languages.check_pairs(*given)
    else:
        many_languages.check_pairs(*given)
