"""Measures lexical shortlists: BLEU of a trained model, and time with a large vocabulary.

    python -m benchmarks.shortlist --threads 2 --checkpoint checkpoint_best.pt --data data-bin \\
        --sentencepiece-model spm.model --source valid.en --reference valid.de \\
        --large-data large/data-bin --large-name "Multi30k, Tatoeba and WMT news"

BLEU is that of the checkpoint on the raw text. Times are for random weights of the base size with
the vocabulary of --large-data. The shortlist is made from its training text, and its validation
sentences are translated, each into as many tokens as it has. Writes shortlist.json and shortlist.md
beside this file.
"""

import argparse
import json
import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import sacrebleu
import torch
from fairseq.data import data_utils

from benchmarks.speed.machine import describe
from benchmarks.speed.timing import Spread, interleaved, ratio
from benchmarks.speed.translation_models import Sizes, build
from resmlp_mt.command_line import command
from resmlp_mt.engine.folding import fold
from resmlp_mt.engine.model_folder import TranslationModel
from resmlp_mt.engine.options import SearchOptions
from resmlp_mt.engine.shortlist import Shortlist
from resmlp_mt.engine.shortlist_building import FREQUENT, PER_WORD
from resmlp_mt.engine.translator import Translator
from resmlp_mt.engine.vocabulary import Vocabulary
from resmlp_mt.engine.weights import prepared
from resmlp_mt.fairseq_plugin.conversion import build_shortlist, load_trained, read_training_text
from resmlp_mt.files import write_text
from resmlp_mt.models import resmlp_mt  # noqa: F401  registers the architectures

HERE = Path(__file__).resolve().parent
BEAM = 4
SIZES = [(200, 50), (FREQUENT, PER_WORD), (1000, 100)]  # frequent, per word
SENTENCES = {1: 12, 64: 64}  # translated in a round, by batch size
ROUNDS = 5


def qualities(args: argparse.Namespace) -> list[dict[str, Any]]:
    """BLEU with the whole vocabulary and with each size of shortlist."""
    loaded = load_trained(args.checkpoint, args.data, args.sentencepiece_model)
    text = read_training_text(args.data, loaded)
    loaded.model = prepared(loaded.model, "float32")  # type: ignore[arg-type]
    source, reference = (
        path.read_text(encoding="utf-8").splitlines() for path in (args.source, args.reference)
    )
    pieces = loaded.sentencepiece
    assert pieces is not None
    targets = [loaded.target.encode(pieces.encode(line, out_type=str)) for line in reference]
    bleu = sacrebleu.BLEU()
    rows: list[dict[str, Any]] = []
    whole: list[str] = []
    for size in [None, *SIZES]:
        words, share = float(len(loaded.target)), 1.0
        if size is not None:
            loaded.shortlist = build_shortlist(text, loaded, *size)
        translator = Translator(loaded, SearchOptions(beam=BEAM), use_shortlist=size is not None)
        found = [translations[0].text for translations in translator.translate(source)]
        if loaded.shortlist is not None:
            sentences = [translator.encode(line) for line in source]
            words = mean_words(loaded.shortlist, sentences)
            share = covered(loaded.shortlist, sentences, targets)
        whole = whole or found
        rows.append(
            {
                "size": size,
                "words": words,
                "covered": share,
                "bleu": bleu.corpus_score(found, [reference]).score,
                "same": sum(a == b for a, b in zip(found, whole, strict=True)),
                "sentences": len(source),
            }
        )
    rows[0]["signature"] = str(bleu.get_signature())
    return rows


def covered(lexicon: Shortlist, sentences: list[list[int]], references: list[list[int]]) -> float:
    """Share of the references' tokens, without end-of-sentence, that are in the shortlists."""
    found, total = 0, 0
    for tokens, reference in zip(sentences, references, strict=True):
        words = set(lexicon.words([tokens])[0].tolist())
        found += sum(token in words for token in reference[:-1])
        total += len(reference) - 1
    return found / total


def mean_words(lexicon: Shortlist, sentences: list[list[int]]) -> float:
    """Target words per sentence."""
    return sum(len(lexicon.words([tokens])[0]) for tokens in sentences) / len(sentences)


def times(args: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Sentences per second of the engine with and without a shortlist."""
    source, target = (
        Vocabulary.read(args.large_data / f"dict.{lang}.txt") for lang in (args.src, args.tgt)
    )
    model = prepared(fold(build("resmlp", Sizes(vocabulary=len(target)), seed=1)), "float32")
    loaded = TranslationModel(model, args.src, args.tgt, source, target, None)
    text = read_training_text(args.large_data, loaded)
    loaded.shortlist = build_shortlist(text, loaded)
    valid, references = (
        data_utils.load_indexed_dataset(
            str(args.large_data / f"valid.{args.src}-{args.tgt}.{lang}"), combine=True
        )
        for lang in (args.src, args.tgt)
    )
    sentences, targets = (
        [side[index].tolist() for index in range(len(side))] for side in (valid, references)
    )
    facts = {
        "vocabulary": len(target),
        "name": args.large_name,
        "pairs": len(text[0]),
        "sentences": len(sentences),
        "covered": covered(loaded.shortlist, sentences, targets),
    }
    rows = []
    for batch, count in SENTENCES.items():
        lines = [
            " ".join(source.symbols[token] for token in tokens[:-1]) for tokens in sentences[:count]
        ]
        length = round(sum(map(len, sentences[:count])) / count)
        search = SearchOptions(beam=BEAM, min_len=length, max_len_b=length)
        runs = {
            name: translating(Translator(loaded, search, batch, use_shortlist=use), lines)
            for name, use in (("shortlist", True), ("whole", False))
        }
        speeds = interleaved(runs, ROUNDS)
        taken = sentences[:count]
        row = {
            "batch": batch,
            "sentences": count,
            "tokens": length,
            "words": mean_words(loaded.shortlist, taken)
            if batch == 1
            else len(loaded.shortlist.words(taken)[0]),
        }
        rows.append(row | {name: asdict(speed) for name, speed in speeds.items()})
    return rows, facts


def translating(translator: Translator, lines: list[str]) -> Callable[[int], float]:
    """A round of the measurement."""

    def run(index: int) -> float:
        return float(len(translator.translate(lines)))

    return run


def table(report: dict[str, Any]) -> str:
    """shortlist.md"""
    machine, facts = report["machine"], report["facts"]
    whole, *others = report["qualities"]
    lines = [
        "# Lexical shortlists",
        "",
        f"{machine['processor']}, {machine['threads']} threads, PyTorch "
        f"{machine['versions']['torch']}; `translate`'s engine, float32, beam {BEAM}. Default: "
        f"{FREQUENT} frequent words and {PER_WORD} per source word.",
        "",
        f"BLEU of {whole['sentences']} sentences of {report['text']}:",
        "",
        "| frequent, per source word | target words a sentence | references' tokens held % "
        "| BLEU | same translations |",
        "|-|-:|-:|-:|-:|",
        f"| whole vocabulary | {whole['words']:.0f} | | {whole['bleu']:.2f} | |",
    ]
    lines += [
        f"| {row['size'][0]}, {row['size'][1]} | {row['words']:.0f} | {100 * row['covered']:.1f} "
        f"| {row['bleu']:.2f} | {row['same']} of {row['sentences']} |"
        for row in others
    ]
    lines += [
        "",
        f"sacreBLEU {whole['signature']}.",
        "",
        f"Time with {facts['vocabulary']} words and random weights of the base size; words counted "
        f"in {facts['pairs']:,} pairs ({facts['name']}). Shortlists hold "
        f"{100 * facts['covered']:.1f} % of the tokens of {facts['sentences']:,} references. "
        "BLEU was not measured here.",
        "",
        "| batch | sentences | tokens | target words | sentences/s | whole vocabulary | ratio |",
        "|-|-:|-:|-:|-:|-:|-:|",
    ]
    for row in report["times"]:
        ours, peer = Spread(**row["shortlist"]), Spread(**row["whole"])
        times = ratio(ours, peer)
        lines.append(
            f"| {row['batch']} | {row['sentences']} | {row['tokens']} | {row['words']:.0f} "
            f"| {ours.median:.2f} | {peer.median:.2f} "
            f"| {times.median:.2f} ({times.low:.2f} - {times.high:.2f}) |"
        )
    lines += [
        "",
        f"{ROUNDS} rounds in turn; the ratio is the median over rounds (quartiles).",
        "",
    ]
    return "\n".join(lines)


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="binarised, of the checkpoint")
    parser.add_argument("--sentencepiece-model", type=Path, required=True)
    parser.add_argument("--source", type=Path, required=True, help="raw text")
    parser.add_argument("--reference", type=Path, required=True, help="raw text")
    parser.add_argument("--large-data", type=Path, required=True, help="binarised")
    parser.add_argument("--large-name", required=True, help="what --large-data is")
    parser.add_argument("--src", default="en")
    parser.add_argument("--tgt", default="de")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    logging.getLogger("fairseq").setLevel(logging.WARNING)
    torch.set_num_threads(args.threads)
    rows, facts = times(args)
    report = {
        "machine": describe(args.threads),
        "text": args.source.name,
        "qualities": qualities(args),
        "facts": facts,
        "times": rows,
    }
    text = table(report)
    for path, content in (
        (HERE / "shortlist.json", json.dumps(report, indent=1) + "\n"),
        (HERE / "shortlist.md", text),
    ):
        write_text(path, content)
    print(text)


if __name__ == "__main__":
    main()
