"""Remedies for ``--task translation_multi_simple_epoch``, whose models have many languages.

The task adds a word for each language to the dictionaries. With ``--encoder-langtok``,
``--decoder-langtok`` or ``--langtoks``, sentences begin with these words. Without them, a model
that was trained with them translates into any language, and nothing else shows that they lack.
"""

import argparse
import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from fairseq import utils
from fairseq.data import Dictionary, LanguagePairDataset, TransformEosLangPairDataset
from fairseq.data.multilingual import multilingual_data_manager
from fairseq.data.multilingual.multilingual_data_manager import MultilingualDatasetManager
from fairseq.data.multilingual.multilingual_utils import get_lang_tok
from fairseq.hub_utils import GeneratorHubInterface
from fairseq.tasks import FairseqTask
from fairseq.tasks.translation_multi_simple_epoch import TranslationMultiSimpleEpochTask
from torch import Tensor

from resmlp_mt.command_line import flag
from resmlp_mt.errors import UserError
from resmlp_mt.fairseq_plugin.decoder import ResMLPDecoder
from resmlp_mt.fairseq_plugin.languages import (
    OPTIONS,
    check_folders,
    compared_sides,
    has_text,
    missing_text,
    without_targets,
)
from resmlp_mt.fairseq_plugin.wrapping import Original, remedy

TASK = "--task translation_multi_simple_epoch"


# --- options that end in tracebacks ---


@remedy(TranslationMultiSimpleEpochTask, "setup_task")
def _setup_task(original: Original, cls: Any, args: Any, **kwargs: Any) -> Any:
    pairs = _texts(getattr(args, "lang_pairs", None))
    given = {name: getattr(args, name, None) for name in OPTIONS}
    _check_codes(pairs, [code for code in given.values() if code is not None])
    for name, code in given.items():
        if code is None and any(given.values()):
            raise UserError(f"{TASK} translates from one language to another: add {flag(name)}.")
    if args.sampling_temperature <= 0:
        raise UserError(
            f"--sampling-temperature must be above 0, but is {args.sampling_temperature}."
        )
    task = original(cls, args, **kwargs)
    more = (getattr(args, "extra_data", None) or {}).values()
    check_folders([args.data, *more], task.langs)
    return task


def _texts(value: object) -> list[str]:
    """A list of texts, such as pairs, which a command line has as one."""
    if isinstance(value, str):
        return value.split(",")
    return [str(each) for each in value] if isinstance(value, list | tuple) else []


def _check_codes(pairs: list[str], codes: list[str]) -> None:
    """Refuse codes with a hyphen, which the task takes for two codes, and pairs without one."""
    for text in (*(pair for pair in pairs if pair.count("-") > 1), *codes):
        if "-" in text:
            raise UserError(
                f"{TASK} takes {text} for more codes than it has: write codes such as zh_CN, and "
                "name the files alike (dict.zh_CN.txt)."
            )
    for pair in pairs:
        if "-" not in pair:
            raise UserError(f"--lang-pairs {pair} is not a pair of languages, such as en-de.")


@remedy(MultilingualDatasetManager, "load_langs")
def _load_languages(original: Original, cls: Any, args: Any, **kwargs: Any) -> Any:
    """Name a language that is not one of the model."""
    found = original(cls, args, **kwargs)
    given = {flag(name): [getattr(args, name)] for name in OPTIONS}
    if args.source_lang is None:
        extra = ",".join((args.extra_lang_pairs or {}).values()).split(",")
        names = {"--lang-pairs": args.lang_pairs, "--extra-lang-pairs": extra}
        given = {
            option: [code for pair in pairs for code in pair.split("-")]
            for option, pairs in names.items()
        }
    place = next((n for n in ("lang_dict", "langs") if getattr(args, n)), "lang_pairs")
    for option, codes in given.items():
        for code in filter(None, codes):
            if code not in found:
                raise UserError(
                    f"{option} names {code}, which is not among the languages of {flag(place)} "
                    f"({', '.join(found)}): choose from them."
                )
    return found


@remedy(TranslationMultiSimpleEpochTask, "check_dicts", before=True)
def _check_dictionaries(
    task: Any, dictionaries: Mapping[str, Any], sources: list[str], targets: list[str]
) -> None:
    """Name two dictionaries of one side that differ; the model has one for each side."""
    if task.args.source_dict is not None or task.args.target_dict is not None:
        return
    for side, (first, *others) in (("source", sources), ("target", targets)):
        for other in others:
            if dictionaries[other] != dictionaries[first]:
                raise UserError(
                    f"{task.args.data} has other words in dict.{other}.txt than in "
                    f"dict.{first}.txt, but {TASK} has one dictionary for all {side} languages: "
                    "binarise all text with one (--srcdict, --tgtdict)."
                )


@remedy(TranslationMultiSimpleEpochTask, "build_model")
def _build_model(original: Original, self: Any, *args: Any, **kwargs: Any) -> Any:
    model = original(self, *args, **kwargs)
    is_ours = isinstance(getattr(model, "decoder", None), ResMLPDecoder)
    if is_ours and self.args.enable_lang_ids:
        raise UserError(
            "--enable-lang-ids gives the model numbers of languages, which a ResMLP does not take: "
            "drop it, and give --encoder-langtok or --decoder-langtok."
        )
    return model


@remedy(TranslationMultiSimpleEpochTask, "build_generator")
def _build_generator(
    _: Original,
    self: Any,
    models: Any,
    args: Any,
    seq_gen_cls: Any = None,
    extra_gen_cls_kwargs: Any = None,
    prefix_allowed_tokens_fn: Any = None,
) -> Any:
    """Heed ``--keep-inference-langtok``, and take what the hub interface gives."""
    check_direction(self)
    if getattr(args, "constraints", None):
        raise UserError(f"--constraints are not for {TASK}, which cannot search with them.")
    options, begin = self.args, self.args.langtoks["main"][1]
    more = dict(extra_gen_cls_kwargs or {})
    if begin and not options.keep_inference_langtok:
        word = self.data_manager.get_decoder_langtok(options.target_lang, begin)
        more["symbols_to_strip_from_output"] = {word}
        for name in ("print_alignment", "replace_unk"):
            if getattr(args, name, None) and not options.lang_tok_replacing_bos_eos:
                raise UserError(
                    f"{flag(name)} counts the word of the language before a translation, which is "
                    "not printed: add --keep-inference-langtok."
                )
    return FairseqTask.build_generator(
        self, models, args, seq_gen_cls, more, prefix_allowed_tokens_fn
    )


@remedy(GeneratorHubInterface, "string")
def _string(original: Original, self: Any, tokens: Tensor) -> Any:
    """A translation of the hub interface, without words of languages."""
    if isinstance(self.task, TranslationMultiSimpleEpochTask):
        words = tokens.new_tensor(numbers_of_languages(self.task, self.task.target_dictionary))
        tokens = tokens[torch.isin(tokens, words, invert=True)]
    return original(self, tokens)


def check_direction(task: TranslationMultiSimpleEpochTask) -> None:
    """Refuse to translate without languages: fairseq would not say into which.

    Raises:
        UserError: if the task has been set up for a training.
    """
    if task.training:
        raise UserError(
            f"{TASK} translates from one language to another: add --source-lang and --target-lang."
        )


@remedy(MultilingualDatasetManager, "get_sampling_ratios", before=True)
def _check_weights(manager: Any, _: Any, datasets: Any, *__: Any, **___: Any) -> None:
    weights = manager.args.sampling_weights
    if weights and not manager.args.sampling_weights_from_file:  # which wins
        for name, *_ in datasets:
            if name not in weights:
                raise UserError(
                    f"--sampling-weights has no weight of {name}: give one of every set."
                )


@remedy(multilingual_data_manager, "eval_str_dict")
def _read_dictionary(_: Original, text: str | None, *__: Any, **___: Any) -> Any:
    """The value of an option that is a dictionary of Python, which fairseq would run as code.

    Raises:
        ArgumentTypeError: if it is not a dictionary; argparse adds the name of the option.
    """
    if not isinstance(text, str):
        return text
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        found = None
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(
            f"{text} is not a dictionary: write it and its texts in quotes, such as "
            """'{"main:en-de": 0.5}'"""
        )
    return found


# --- text that is missing, or whose sides differ ---


@remedy(MultilingualDatasetManager, "get_split_num_data_shards")
def _count_shards(original: Original, self: Any, split: str) -> Any:
    """The number of folders with text of each pair, and the first ones are read in turn.

    fairseq ends in a KeyError if there are none, and later if they are not the first ones.
    """
    counts = original(self, split)
    paths, pairs = self.get_data_paths_and_lang_pairs(split)
    if self.args.dataset_impl == "raw":
        raise UserError(f"--dataset-impl raw: {TASK} reads binarised text alone: drop it.")
    for category in paths:
        if category not in pairs or "mono_" in category:
            continue
        folders = [Path(path) for path in utils.split_paths(paths[category])]
        is_training_set = split == getattr(self.args, "train_subset", None)
        for codes in pairs[category]:
            source, target = (*codes.split("-"), codes)[:2]  # with one code, it is both sides
            count = counts.get(self.get_dataset_key(category, source, target), 1)
            for folder in folders[: count if is_training_set else 1]:
                if not has_text(folder, split, (source, target), self.args.dataset_impl):
                    raise missing_text(folder, split, (source, target))
    return counts


@remedy(MultilingualDatasetManager, "load_lang_dataset")
def _load_sides(
    original: Original,
    self: Any,
    data_path: str,
    split: str,
    src: str,
    src_dict: Any,
    tgt: str,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Compare the sides of every part, as for two languages."""
    folder, pair, dataset_impl = Path(data_path), (src, tgt), self.args.dataset_impl
    has_sides = [has_text(folder, split, codes, dataset_impl) for codes in (pair, pair[::-1])]
    if self.args.source_lang is None and has_sides == [True, False]:  # a training
        raise without_targets(data_path, split, pair)
    with compared_sides():
        return original(self, data_path, split, src, src_dict, tgt, *args, **kwargs)


# --- lines are counted without their words of languages, and may then be too long for the model ---


@remedy(TranslationMultiSimpleEpochTask, "build_dataset_for_inference")
def _build_dataset_for_inference(original: Original, self: Any, *args: Any, **kwargs: Any) -> Any:
    """Lines as a list of tensors, as ``--task translation`` has them."""
    found, end = original(self, *args, **kwargs), None
    if isinstance(found, TransformEosLangPairDataset):  # of --lang-tok-replacing-bos-eos
        found, end = found.dataset, found.new_src_eos
    lines = [found.src[number] for number in range(len(found.src))]
    if end is not None:
        lines = [torch.cat([line[:-1], line.new_tensor([end])]) for line in lines]
    return LanguagePairDataset(lines, list(map(len, lines)), self.source_dictionary)


# --- models that are used with other options than they were trained with ---


def check_same(
    options: Mapping[str, Any], stored: Mapping[str, Any], path: Path, *, other_words: bool
) -> None:
    """Refuse other words before sentences than those of the training.

    Args:
        options: of the task.
        stored: those of the checkpoint ``path``, of the same task.
        other_words: whether its dictionaries differ from the task's. The options that make them
            count then alone: a dictionary may have the words of more languages than are named.

    Raises:
        UserError: naming the options.
    """
    before, now = (
        [*_before_sentences(each), *(_in_dictionaries(each) if other_words else [])]
        for each in (stored, options)
    )
    names = {word.partition(" ")[0] for word in before}
    lacking = [word for word in before if word not in now]
    surplus = [word for word in now if word.partition(" ")[0] not in names]
    told = [f"with {' '.join(lacking)}"] if lacking else []
    told += [f"without {' '.join(surplus)}"] if surplus else []
    if told:
        raise UserError(f"{path} was trained {' and '.join(told)}: give the same options.")


def check_pairs(options: Mapping[str, Any], stored: Mapping[str, Any], path: Path) -> None:
    """Refuse to go on with a training of other pairs of languages; some may be new.

    Raises:
        UserError: if the training and its checkpoint have no pair in common.
    """
    before, now = (_texts(each.get("lang_pairs")) for each in (stored, options))
    if before and not {*before} & {*now}:
        raise UserError(
            f"{path} was trained with --lang-pairs {','.join(before)}: give another --save-dir, or "
            f"--finetune-from-model {path} to begin with its weights."
        )


def _before_sentences(options: Mapping[str, Any]) -> list[str]:
    """The options that put words before sentences, as a command line has them."""
    source = options.get("encoder_langtok") or None
    target = "tgt" if options.get("decoder_langtok") else None
    of_sets = options.get("langtoks")  # to which fairseq adds the two above
    main = of_sets.get("main") if isinstance(of_sets, Mapping) else None
    if isinstance(main, list | tuple) and len(main) == 2:
        source, target = main
    words = [f"--encoder-langtok {source}"] if source else []
    words += ["--decoder-langtok"] if target else []
    if source not in (None, "src", "tgt") or target not in (None, "tgt"):
        text = str((source, target)).replace("'", '"')
        words = [f"""--langtoks '{{"main": {text}}}'"""]
    if options.get("lang_tok_replacing_bos_eos"):
        words.append("--lang-tok-replacing-bos-eos")
    return words


def _in_dictionaries(options: Mapping[str, Any]) -> list[str]:
    """The options that put words into the dictionaries, as a command line has them."""
    pairs = _texts(options.get("lang_pairs"))
    langs = _texts(options.get("langs")) or sorted(
        {code for pair in pairs for code in pair.split("-")}
    )
    words = [f"--langs {','.join(langs)}"]
    if options.get("lang_dict"):
        words = [f"--lang-dict {options['lang_dict']}"]
    for name, default in (("lang_tok_style", "multilingual"), ("langtoks_specs", "main")):
        words.append(f"{flag(name)} {','.join(_texts(options.get(name)) or [default])}")
    return words


def numbers_of_languages(task: TranslationMultiSimpleEpochTask, words: Dictionary) -> list[int]:
    """The numbers of these words in one of its dictionaries."""
    return [words.index(word) for word in words_of_languages(task) if word in words]


def words_of_languages(task: TranslationMultiSimpleEpochTask) -> frozenset[str]:
    """The words that the task adds to the dictionaries."""
    style, specs = task.args.lang_tok_style, task.args.langtoks_specs
    return frozenset(get_lang_tok(code, style, spec) for code in task.langs for spec in specs)
