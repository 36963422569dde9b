"""Options of fairseq's generation and training that did nothing or ended in a traceback."""

import inspect
from argparse import Namespace
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from fairseq import checkpoint_utils, options, scoring, tasks
from fairseq.criterions.label_smoothed_cross_entropy_with_rdrop import (
    RdropLabelSmoothedCrossEntropyCriterion,
)
from fairseq.data import (
    LanguagePairDataset,
    TruncatedDictionary,
    bucket_pad_length_dataset,
    data_utils,
)
from fairseq.dataclass.configs import CheckpointConfig
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.models import FairseqLanguageModel
from fairseq.ngram_repeat_block import NGramRepeatBlock
from fairseq.scoring.bleu import SacrebleuScorer
from fairseq.search import DiverseBeamSearch
from fairseq.sequence_generator import SequenceGenerator
from fairseq.sequence_scorer import SequenceScorer
from fairseq.tasks import FairseqTask
from fairseq.tasks.translation import TranslationConfig, TranslationTask
from fairseq.tasks.translation_multi_simple_epoch import TranslationMultiSimpleEpochTask
from fairseq.token_generation_constraints import pack_constraints
from fairseq.trainer import Trainer
from torch import Tensor

from conftest import Corpus
from models import build, dictionary, padded, sentences
from resmlp_mt.errors import UserError
from resmlp_mt.fairseq_plugin import fairseq_fixes, generation_fixes, saving

# --- generation ---


def repeats(row: list[int], size: int) -> bool:
    grams = [tuple(row[start : start + size]) for start in range(len(row) - size + 1)]
    return len(set(grams)) < len(grams)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_no_ngram_comes_twice(size: int) -> None:
    rng = np.random.default_rng(size)
    vocabulary, step = 7, 12
    generated = torch.from_numpy(rng.integers(4, vocabulary, (20, step)))
    tokens = torch.full((20, 30), 1)  # as the generator holds them: pads at the end
    tokens[:, 0], tokens[:, 1 : step + 1] = 2, generated
    block = NGramRepeatBlock(size, use_extension=False)
    scores = block(tokens, torch.zeros(20, vocabulary), 5, 4, step)
    for row, found in zip(generated.tolist(), scores.tolist(), strict=True):
        new = row[len(row) - size + 1 :]
        for word in range(vocabulary):
            seen = repeats([*row, word], size) and (*new, word) in {
                tuple(row[start : start + size]) for start in range(len(row) - size + 1)
            }
            assert found[word] == (-torch.inf if seen else 0.0)
    stock = inspect.unwrap(NGramRepeatBlock._no_repeat_ngram)
    assert stock(block, tokens, torch.zeros(20, vocabulary), 5, 4, step).isfinite().all()


CONSTRAINTS: list[list[list[int]]] = [[[5]], [[6, 7]], [], [[8], [9]]]


def translation_task() -> TranslationTask:
    words = dictionary(20)
    cfg = TranslationConfig(source_lang="a", target_lang="b")
    return TranslationTask(cfg, words, words)


def generated(
    models: Any, prefix: Tensor | None = None, from_scratch: bool = False, **options: Any
) -> Any:
    """Hypotheses of as many sentences as there are prefixes, of four without any."""
    models, task = models if isinstance(models, list) else [models], translation_task()
    given = {"beam": 3, "max_len_a": 0, "max_len_b": 8} | options
    given.setdefault("nbest", given["beam"])
    generator = task.build_generator(models, Namespace(**given))
    if from_scratch:
        generator.model.has_incremental = False
    source = padded(sentences([4, 7, 2, 9]), left=True)[: None if prefix is None else len(prefix)]
    net_input = {"src_tokens": source, "src_lengths": source.ne(1).sum(1)}
    sample = {"id": torch.arange(len(source)), "net_input": net_input}
    constraints = None
    if options.get("constraints"):
        constraints = pack_constraints([[torch.tensor(w) for w in row] for row in CONSTRAINTS])
    torch.manual_seed(0)
    with torch.no_grad():
        return task.inference_step(generator, models, sample, prefix, constraints)


MATCHED = [
    "beam=1", "unnormalized=True", "lenpen=2", "unkpen=5", "min_len=5", "temperature=2",
    "max_len_a=0.5,max_len_b=1", "match_source_len=True", "no_repeat_ngram_size=2",
    "diverse_beam_groups=3,diverse_beam_strength=0.5", "diversity_rate=0.5", "sampling=True",
    "sampling=True,sampling_topk=3", "sampling=True,sampling_topp=0.6", "print_alignment='hard'",
    "print_alignment='soft'", "constraints='ordered'", "constraints='unordered'",
    "prefix=[[5,6],[7,2],[8,9],[4,4]]", "prefix=[[5],[7],[8],[4]],sampling=True",
    "prefix=[[5,6],[7,9],[8,9],[4,4]],diverse_beam_groups=3",
]  # fmt: skip


@pytest.mark.parametrize("options", MATCHED)
@pytest.mark.parametrize("kind", ["paper", "both"])
def test_options_of_the_search_find_what_decoding_from_scratch_finds(
    kind: str, options: str
) -> None:
    """The model's cache of earlier steps follows hypotheses wherever the options move them."""
    given = eval(f"dict({options})")
    prefix = given.pop("prefix", None)
    prefix = None if prefix is None else torch.tensor(prefix)
    models = [build(), build(preset="resmlp_mt_plus_6l", seed=2)]
    models = models[: 1 if kind == "paper" else 2]
    found = generated(models, prefix, **given)
    expected = generated(models, prefix, from_scratch=True, **given)
    for ours, theirs in zip(found, expected, strict=True):
        assert len(ours) == len(theirs) > 0
        for one, other in zip(ours, theirs, strict=True):
            assert one["tokens"].tolist() == other["tokens"].tolist()
            for name in ("score", "positional_scores", "attention"):
                torch.testing.assert_close(one[name], other[name], rtol=0, atol=1e-5)
            assert str(one["alignment"]) == str(other["alignment"])
    if "constraints" in given:
        for phrases, hypotheses in zip(CONSTRAINTS, found, strict=True):
            text = " ".join(map(str, hypotheses[0]["tokens"].tolist()))
            assert all(" ".join(map(str, phrase)) in text for phrase in phrases)


def test_diverse_groups_work_whatever_the_sentences_are_called() -> None:
    model, words = build(), dictionary(20)
    source = padded(sentences([4, 6, 3]))
    found = {}
    for numbers in ([0, 1, 2], [9, 0, 4]):
        search = DiverseBeamSearch(words, 2, 0.5)
        generator = SequenceGenerator(
            [model], words, beam_size=4, search_strategy=search, max_len_b=6
        )
        sample = {"id": torch.tensor(numbers), "net_input": {"src_tokens": source}}
        sample["net_input"]["src_lengths"] = source.ne(1).sum(1)
        found[tuple(numbers)] = [
            [hypothesis["tokens"].tolist() for hypothesis in hypotheses]
            for hypotheses in generator.generate([model], sample)
        ]
    first, second = found.values()
    assert first == second
    search = DiverseBeamSearch(words, 2, 0.5)
    stock = inspect.unwrap(DiverseBeamSearch.step)
    scores = torch.zeros(3, 4, 20)
    stock(search, 0, scores, scores[:, :, :0], None, torch.tensor([9, 0, 4]))
    with pytest.raises(IndexError):
        stock(search, 1, scores, scores[:, :, :1], None, torch.tensor([9, 0, 4]))


def test_diverse_groups_work_beside_a_line_without_a_translation() -> None:
    """A line that is too long has the length 0: the others get what they get without it."""
    model, task = build(), translation_task()
    limits = {"beam": 4, "max_len_a": 0, "max_len_b": 6, "diverse_beam_groups": 2}
    generator = task.build_generator([model], Namespace(**limits))
    rows = sentences([4, 6, 3])
    found = []
    for kept in ([0, 1, 2], [0, 2]):
        source = padded([rows[row] for row in kept])
        lengths = source.ne(1).sum(1)
        if len(kept) == 3:
            source[1], lengths[1] = 1, 0
        sample = {
            "id": torch.tensor(kept),
            "nsentences": len(kept),
            "target": torch.tensor(kept)[:, None],
            "net_input": {"src_tokens": source, "src_lengths": lengths},
        }
        with torch.no_grad():
            found.append(task.inference_step(generator, [model], sample))
    assert [hypothesis["tokens"].tolist() for hypothesis in found[0].pop(1)] == [[2]]
    for ours, theirs in zip(*found, strict=True):
        assert [h["tokens"].tolist() for h in ours] == [h["tokens"].tolist() for h in theirs]


@pytest.mark.parametrize("name", ["id", "target", "net_input.prev_output_tokens"])
def test_a_line_without_a_translation_has_no_row_anywhere(name: str) -> None:
    """Whatever has a row for each line loses those of the lines that are not translated."""
    section, _, inner = name.partition(".")
    rows = torch.arange(3)
    lengths = torch.tensor([2, 0, 5])
    sample: dict[str, Any] = {"net_input": {"src_lengths": lengths}, "ntokens": 7}
    if inner:
        sample[section][inner] = rows
    else:
        sample[section] = rows
    given: list[Any] = []

    def infer(_: Any, __: Any, ___: Any, sample: Any, *____: Any) -> list[Any]:
        given.append(sample)
        return [["first"], ["third"]]

    answered = fairseq_fixes._inference_step(infer, translation_task(), None, None, sample)
    (seen,) = given
    assert (seen[section][inner] if inner else seen[section]).tolist() == [0, 2]
    assert seen["ntokens"] == 7
    assert [answered[0], answered[2]] == [["first"], ["third"]]
    assert answered[1][0]["tokens"].tolist() == [2]


def test_a_prefix_may_repeat_ngrams() -> None:
    prefix = torch.tensor([[5, 5, 5, 5], [6, 7, 6, 7]])
    for size in (1, 2):
        for hypotheses in generated(build(), prefix, no_repeat_ngram_size=size):
            for hypothesis in hypotheses:
                row = hypothesis["tokens"].tolist()
                assert row[:4] in prefix.tolist()
                assert not repeats([*row[4 - size + 1 :]], size)


@pytest.mark.parametrize("options", [{}, {"sampling": True}, {"match_source_len": True}], ids=str)
def test_a_reference_may_be_empty(options: dict[str, Any]) -> None:
    """With ``--prefix-size``: stock fairseq's search ends in an AssertionError."""
    prefix = torch.tensor([[5, 6], [2, 1]])
    filled, empty = generated(build(), prefix, **options)
    assert [h["tokens"].tolist()[:2] for h in filled] == [[5, 6]] * 3
    assert [h["tokens"].tolist() for h in empty] == [[2]]


def test_scoring_without_references_is_refused() -> None:
    task: Any = object.__new__(FairseqTask)
    sample = {"net_input": {"src_tokens": padded(sentences([4, 6]))}, "target": None}
    with pytest.raises(UserError, match="--score-reference needs sentences with their transl"):
        task.inference_step(SequenceScorer(dictionary(20)), [build()], sample)


def test_constraints_without_any_are_refused() -> None:
    generator = SimpleNamespace(search=SimpleNamespace(supports_constraints=True))
    task: Any = object.__new__(FairseqTask)
    with pytest.raises(UserError, match=r"--constraints needs .* fairseq-interactive"):
        task.inference_step(generator, [], {"net_input": {}})


def test_the_task_of_many_languages_has_the_remedies_of_the_search() -> None:
    """It has an inference step of its own, which puts the language first."""
    words, lines = dictionary(20), sentences([3, 5, 4])
    task: Any = object.__new__(TranslationMultiSimpleEpochTask)
    task.args = Namespace(langtoks={"main": (None, "tgt")}, lang_tok_replacing_bos_eos=False)
    task.args.target_lang, task.target_langs, task.source_langs = "de", ["de"], ["en"]
    task.args.lang_tok_style, task.args.langtoks_specs, task.langs = "mbart", ["main"], ["de"]
    task.data_manager = SimpleNamespace(
        get_decoder_langtok=lambda *_: 9,
        get_source_dictionary=lambda _: words,
        get_target_dictionary=lambda _: words,
    )
    models = [build(max_target_positions=5)]
    lengths = torch.tensor([len(line) for line in lines])
    sample = {"net_input": {"src_tokens": padded(lines), "src_lengths": lengths}, "target": None}
    generator = SequenceGenerator(models, words, beam_size=2, match_source_len=True)
    found = [rows[0]["tokens"].tolist() for rows in task.inference_step(generator, models, sample)]
    assert found[1] == [2]
    assert [found[0][0], found[2][0]] == [9, 9]
    given = task.inference_step(generator, models, sample, torch.tensor([[7], [7], [2]]))
    assert [rows[0]["tokens"].tolist()[0] for rows in given] == [7, 2, 2]
    constrained = SimpleNamespace(search=SimpleNamespace(supports_constraints=True))
    with pytest.raises(UserError, match="--constraints needs"):
        task.inference_step(constrained, models, sample)
    with pytest.raises(UserError, match="--score-reference needs"):
        task.inference_step(SequenceScorer(words), models, sample)


@pytest.mark.parametrize("name", ["beam", "nbest"])
def test_a_search_for_nothing_is_refused(name: str) -> None:
    task: Any = object.__new__(FairseqTask)
    with pytest.raises(UserError, match=f"--{name} must be at least 1, but is 0"):
        task.build_generator([], SimpleNamespace(**{name: 0}))


def test_a_prefix_of_no_translation_is_refused() -> None:
    task = translation_task()
    source = [torch.tensor([5, 2])]
    without = LanguagePairDataset(source, [2], task.source_dictionary)
    task.datasets["test"] = without
    with pytest.raises(
        UserError, match=r"^--prefix-size 1 needs sentences with their translations"
    ):
        task.build_generator([build()], Namespace(beam=1, prefix_size=1))
    task.datasets["test"] = LanguagePairDataset(
        source, [2], task.source_dictionary, source, [2], task.target_dictionary
    )
    task.build_generator([build()], Namespace(beam=1, prefix_size=1))


def test_more_words_than_there_are_are_refused() -> None:
    words = len(translation_task().target_dictionary)
    sampling = {"sampling": True, "beam": 2, "nbest": 2}
    assert generated(build(), sampling_topk=words, **sampling)
    assert generated(build(), sampling_topk=words + 1, sampling_topp=0.5, **sampling)
    with pytest.raises(UserError, match=f"--sampling-topk must be at most {words}, the number of"):
        generated(build(), sampling_topk=words + 1, **sampling)


@pytest.mark.parametrize("change", ["order", "size", "kind", None])
def test_a_language_model_has_the_target_dictionary(change: str | None) -> None:
    """Its scores are added by their positions: other words would have them."""
    task, words = translation_task(), dictionary(20)
    if change == "order":
        words.symbols[5:7] = reversed(words.symbols[5:7])
    elif change == "size":
        words = TruncatedDictionary(words, 10)
    model: Any = object.__new__(FairseqLanguageModel)
    torch.nn.Module.__init__(model)
    model.decoder = SimpleNamespace(dictionary=words)
    kwargs = {"lm_model": build() if change == "kind" else model, "lm_weight": 0.1}
    message = "--lm-path needs a language model of the target dictionary"
    if change == "kind":
        message = "^--lm-path x has a ResMLPModel: give a model of fairseq-train --task language_mo"
    with pytest.raises(UserError, match=message) if change else nullcontext():
        task.build_generator([build()], Namespace(beam=1, lm_path="x"), extra_gen_cls_kwargs=kwargs)


@pytest.mark.parametrize("option", ["print_step", "retain_iter_history"])
def test_steps_of_another_generator_are_refused(option: str) -> None:
    task: Any = object.__new__(FairseqTask)
    flag = "--" + option.replace("_", "-")
    with pytest.raises(UserError, match=f"{flag} needs a model that refines"):
        task.build_generator([], SimpleNamespace(**{option: True}))


def generation(corpus: Corpus, *given: object, interactive: bool = False) -> Any:
    make = options.get_interactive_generation_parser if interactive else (
        options.get_generation_parser
    )  # fmt: skip
    words = [corpus.data, "--path", "x", *given]
    return options.parse_args_and_arch(make(), [str(word) for word in words])


@pytest.mark.parametrize(
    "given",
    ["--lm-path lm.pt --lm-weight 0.5", "--results-path out", "--prefix-size 2", "--sacrebleu",
     "--scoring chrf", "--quiet", "--gen-subset valid"],
)  # fmt: skip
def test_interactive_refuses_what_it_ignores(corpus: Corpus, given: str) -> None:
    generation(corpus, *given.split())
    generation(corpus, interactive=True)
    with pytest.raises(UserError, match=f"^{given.split()[0]} has no effect in fairseq-interact"):
        generation(corpus, *given.split(), interactive=True)


def test_sacrebleu_is_measured_as_asked_for(corpus: Corpus) -> None:
    """fairseq's own warning recommends --sacrebleu, which only silences it."""
    assert generation(corpus).scoring == "bleu"
    found = convert_namespace_to_omegaconf(generation(corpus, "--sacrebleu"))
    assert found.generation.sacrebleu
    assert isinstance(scoring.build_scorer(found.scoring, dictionary(20)), SacrebleuScorer)
    both = generation(corpus, "--sacrebleu", "--scoring", "sacrebleu", "--sacrebleu-lowercase")
    assert both.scoring == "sacrebleu"
    with pytest.raises(UserError, match=r"--sacrebleu means --scoring sacrebleu, but .* is chrf:"):
        generation(corpus, "--sacrebleu", "--scoring", "chrf")


@pytest.mark.parametrize("beside", ["fairseq-interactive", "--score-reference", "--replace-unk"])
def test_soft_alignments_are_for_a_search(corpus: Corpus, beside: str) -> None:
    """Elsewhere, their rows of probabilities are taken for pairs of positions."""
    interactive = beside == "fairseq-interactive"
    given = [] if interactive else [beside]
    generation(corpus, "--print-alignment", "soft")
    generation(corpus, "--print-alignment", "hard", *given, interactive=interactive)
    with pytest.raises(UserError, match=f"with {beside} give --print-alignment hard"):
        generation(corpus, "--print-alignment", "soft", *given, interactive=interactive)


MANY = ("--task", "translation_multi_simple_epoch", "--langs", "en,de", "-s", "en", "-t", "de",
        "--lang-pairs", "en-de")  # fmt: skip


@pytest.mark.parametrize("task_options", [(), MANY], ids=["translation", "multi_simple_epoch"])
def test_shards_share_the_sentences_of_every_task(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch, task_options: tuple[str, ...]
) -> None:
    monkeypatch.setattr(generation_fixes, "_shard", (1, 0))
    seen: list[int] = []
    for shard in range(3):
        args = generation(corpus, "--num-shards", 3, "--shard-id", shard, *task_options)
        task = tasks.setup_task(convert_namespace_to_omegaconf(args).task)
        task.load_dataset("test")
        iterator = task.get_batch_iterator(task.dataset("test"), max_sentences=2)
        ids = [n for batch in iterator.next_epoch_itr(shuffle=False) for n in batch["id"].tolist()]
        assert 0 < len(ids) < 13
        seen += ids
    assert sorted(seen) == list(range(13))


@pytest.mark.parametrize("count", [3, 13, 14])
def test_shards_share_the_sentences_of_fewer_batches(
    corpus: Corpus,
    monkeypatch: pytest.MonkeyPatch,
    count: int,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A share without any ends with status 0; fairseq divides by its number of sentences."""
    monkeypatch.setattr(generation_fixes, "_shard", (1, 0))
    task = tasks.setup_task(convert_namespace_to_omegaconf(generation(corpus)).task)
    task.load_dataset("test")
    seen: list[int] = []
    for shard in range(count):
        monkeypatch.setattr(generation_fixes, "_shard", (count, shard))
        with pytest.raises(SystemExit) if shard == 13 else nullcontext() as end:
            iterator = task.get_batch_iterator(task.dataset("test"), max_sentences=8)
        if end is not None:
            assert end.value.code == 0
            assert "--shard-id 13: nothing to do, the set test has fewer" in capfd.readouterr().err
            continue
        batches = list(iterator.next_epoch_itr(shuffle=False))
        assert len(batches) <= 2
        seen += [number for batch in batches for number in batch["id"].tolist()]
    assert sorted(seen) == list(range(13))


def test_a_set_without_sentences_is_refused(corpus: Corpus) -> None:
    task = tasks.setup_task(convert_namespace_to_omegaconf(generation(corpus)).task)
    task.load_dataset("test")
    limits = {"max_positions": (1, 1), "ignore_invalid_inputs": True}
    with pytest.raises(
        UserError, match=r"^The set test is empty, or all of its sentences are long"
    ):
        task.get_batch_iterator(task.dataset("test"), **limits)


def test_shards_are_of_a_binarised_corpus(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation_fixes, "_shard", (1, 0))
    args = generation(corpus, "--num-shards", 3)
    task = tasks.setup_task(convert_namespace_to_omegaconf(args).task)
    task.load_dataset("test")
    other = task.build_dataset_for_inference([torch.tensor([4, 2])], [2])
    with pytest.raises(UserError, match="--num-shards"):
        task.get_batch_iterator(other)
    with pytest.raises(UserError, match="--shard-id must be from 0 to 2, but is 3"):
        options.parse_args_and_arch(
            options.get_generation_parser(),
            [str(corpus.data), "--path", "x", "--num-shards", "3", "--shard-id", "3"],
        )
    cfg = SimpleNamespace(
        dataset=SimpleNamespace(num_shards=2),
        checkpoint=SimpleNamespace(best_checkpoint_metric="loss"),
        task=SimpleNamespace(),
        criterion=SimpleNamespace(),
        distributed_training=SimpleNamespace(),
    )
    with pytest.raises(UserError, match="--distributed-world-size"):
        Trainer(cfg, None, None, None)


def test_shards_have_results_of_their_own(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    generation_fixes._tell_results.cache_clear()
    monkeypatch.setattr(generation_fixes, "_shard", (1, 0))
    assert generation(corpus, "--results-path", "out").results_path == "out"
    paths = [
        generation(corpus, "--results-path", "out", "--num-shards", 2, "--shard-id", shard)
        for shard in (0, 1)
    ]
    assert [args.results_path for args in paths] == ["out/shard-0-of-2", "out/shard-1-of-2"]
    assert caplog.messages == [
        f"--results-path out: with --num-shards, this process writes to {args.results_path}."
        for args in paths
    ]


# --- training ---


@pytest.mark.parametrize("count", [1, 2, 5, 50])
def test_buckets_are_lengths_of_the_corpus(count: int) -> None:
    sizes = np.random.default_rng(0).integers(1, 40, 500)
    for module in (data_utils, bucket_pad_length_dataset):
        buckets = module.get_buckets(sizes, count)
        assert len(buckets) <= count
        assert buckets[-1] == sizes.max()
        assert set(buckets) <= set(sizes)
    with pytest.raises(TypeError):
        inspect.unwrap(data_utils.get_buckets)(sizes, count)


def test_sentences_are_padded_to_the_buckets() -> None:
    words, lines = dictionary(20), sentences([3, 4, 5, 8, 9, 10])
    sizes = [len(line) for line in lines]
    both = (lines, sizes, words)
    dataset = LanguagePairDataset(*both, *both, num_buckets=2)
    assert [len(dataset[index]["source"]) for index in range(6)] == [5, 5, 5, 10, 10, 10]
    batch = dataset.collater([dataset[index] for index in range(2)])
    assert batch["net_input"]["src_lengths"].tolist() == [4, 3]
    assert batch["net_input"]["src_tokens"].shape == batch["target"].shape == (2, 5)
    with pytest.raises(AttributeError, match="compat"):
        inspect.unwrap(LanguagePairDataset.__init__)(dataset, *both, *both, num_buckets=2)


def test_r_drop_leaves_the_batch_as_it_was() -> None:
    words = dictionary(20)
    task: Any = SimpleNamespace(target_dictionary=words)
    criterion = RdropLabelSmoothedCrossEntropyCriterion(task, False, 0.1, rdrop_alpha=1.0)
    source, target = padded(sentences([4, 3])), padded(sentences([5, 2]))

    def sample() -> dict[str, Any]:
        net_input = {"src_tokens": source, "src_lengths": None, "prev_output_tokens": target}
        return {"net_input": net_input, "target": target, "ntokens": 7}

    own, stock = sample(), sample()
    loss, _, _ = criterion(build(), own)
    expected, _, _ = inspect.unwrap(type(criterion).forward)(criterion, build(), stock)
    torch.testing.assert_close(loss, expected)
    assert torch.equal(own["net_input"]["src_tokens"], source)
    assert len(stock["net_input"]["src_tokens"]) == 4


class Saver:
    """A trainer that only saves."""

    checkpoint_suffix = ""
    data_parallel_rank = 0
    should_save_checkpoint_on_current_rank = True
    always_call_state_dict_during_save_checkpoint = False
    task = None

    def __init__(self) -> None:
        self.updates = 0

    def consolidate_optimizer(self) -> None:
        pass

    def get_num_updates(self) -> int:
        return self.updates

    def save_checkpoint(self, filename: str, extra_state: Any) -> str:
        Path(filename).write_text(str(extra_state["val_loss"]))
        return filename


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize(
    "losses", [[1, 2, 3, 4, 2.5], [4, 3, 2, 1], [2, 2, 2, 2], [-1, 0, -3, 5, -2], [0.5]], ids=str
)
def test_as_many_best_checkpoints_as_asked_for(
    losses: list[float],
    count: int,
    maximize: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(checkpoint_utils.save_checkpoint, "best", raising=False)
    monkeypatch.delattr(inspect.unwrap(checkpoint_utils.save_checkpoint), "best", raising=False)
    args = options.parse_args_and_arch(
        options.get_training_parser(),
        ["data", "--arch", "resmlp_mt_tiny", "--save-dir", str(tmp_path), "--no-epoch-checkpoints",
         "--best-checkpoint-metric", "score", "--keep-best-checkpoints", str(count),
         *(["--maximize-best-checkpoint-metric"] if maximize else [])],
    )  # fmt: skip
    cfg = convert_namespace_to_omegaconf(args).checkpoint
    saver = Saver()
    for epoch, loss in enumerate(losses, start=1):
        saver.updates += 10
        iterator = SimpleNamespace(epoch=epoch, end_of_epoch=lambda: True, state_dict=dict)
        checkpoint_utils.save_checkpoint(cfg, saver, iterator, loss)
        kept = [float(path.read_text()) for path in tmp_path.glob("checkpoint.best_score_*.pt")]
        assert sorted(kept) == sorted(sorted(losses[:epoch], reverse=maximize)[:count])


def test_a_best_checkpoint_that_was_saved_before_a_kill_counts_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The epoch is trained again, and its model is written to the same name."""
    monkeypatch.delattr(checkpoint_utils.save_checkpoint, "best", raising=False)
    monkeypatch.delattr(inspect.unwrap(checkpoint_utils.save_checkpoint), "best", raising=False)
    cfg = CheckpointConfig(
        save_dir=str(tmp_path), keep_best_checkpoints=3, no_epoch_checkpoints=True
    )
    saver = Saver()

    def save(filename: str, extra: Any) -> str:
        history = [{"num_updates": saver.updates}]
        torch.save({"model": {}, "optimizer_history": history}, filename)
        return filename

    monkeypatch.setattr(saver, "save_checkpoint", save)
    for epoch in (1, 2, 2, 2):
        saver.updates = 10 * epoch
        iterator = SimpleNamespace(epoch=epoch, end_of_epoch=lambda: True, state_dict=dict)
        checkpoint_utils.save_checkpoint(cfg, saver, iterator, 1.0)
    kept = sorted(map(saving.updates, tmp_path.glob("checkpoint.best_loss_*.pt")))
    assert kept == [10, 20]
