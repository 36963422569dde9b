"""Deep encoders with shallow decoders: greedy translation in int8, with and without a shortlist.

In PyTorch and through ONNX Runtime. Peers are CTranslate2's Transformer of 6 + 2 layers, with the
same shortlist, and a reported figure.
"""

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from fairseq.data import Dictionary
from numpy.typing import NDArray

from benchmarks.speed.floors import Rates
from benchmarks.speed.generation_rows import (
    Task,
    as_graphs,
    ctranslate2s,
    draw_task,
    engine,
    floor_seconds,
    save_for_ctranslate2,
)
from benchmarks.speed.lengths import WORDS_PER_TOKEN, Lengths
from benchmarks.speed.report import Row, Rows, Unmeasured
from benchmarks.speed.timing import Spread, interleaved, spread
from benchmarks.speed.translation_models import Sizes, build, dictionary
from resmlp_mt.engine.folding import fold
from resmlp_mt.engine.model_folder import TranslationModel
from resmlp_mt.engine.shortlist import Shortlist
from resmlp_mt.engine.shortlist_building import FREQUENT
from resmlp_mt.engine.vocabulary import SPECIAL, Vocabulary
from resmlp_mt.engine.weights import prepared
from resmlp_mt.extras import installation
from resmlp_mt.packed_linear import selector

PRESETS = {"6-2": (6, 2), "12-1": (12, 1)}
"""Layers of encoder and decoder."""
PEER = (6, 2)
PER_WORD = 6
"""Random target words of a source word. With these, a sentence and a batch of 64 have about as many
words as on real text, where translations overlap (benchmarks/shortlist.md)."""
REPORTED = 656.0
REPORTED_NAME = "Firefox's 6-2 SSRU model, int8, one x86 thread, as reported for another machine"


def presets(
    lengths: Lengths,
    sizes: Sizes,
    rates: Rates,
    *,
    batch_sizes: dict[int, int],
    threads: int,
    rounds: int = 5,
    seed: int = 1,
    layers: dict[str, tuple[int, int]] = PRESETS,
) -> Rows:
    """Sentences and words per second of the presets with distances, and of the peers.

    Args:
        layers: of encoder and decoder, by preset.
        batch_sizes: number of sentences that are translated in each round, by batch size.
    """
    try:
        import ctranslate2
    except ImportError:
        return [Unmeasured("presets", f"needs CTranslate2: {installation('ctranslate2')}")]
    words = dictionary(sizes.vocabulary)
    vocabulary = Vocabulary(words.symbols)
    shortlist = random_shortlist(sizes.vocabulary, seed)
    rows: Rows = []
    with tempfile.TemporaryDirectory() as folder:
        encoder, decoder = PEER
        peer_sizes = replace(sizes, layers=encoder, decoder_layers=decoder)
        save_for_ctranslate2(peer_sizes, words, Path(folder), seed)
        (Path(folder) / "vmap.txt").write_text(vocabulary_map(shortlist, words))
        peer = ctranslate2.Translator(
            folder, compute_type="int8", intra_threads=threads, inter_threads=1
        )
        name = f"CTranslate2 {ctranslate2.__version__} Transformer 6-2, int8"
        for preset, (encoder, decoder) in layers.items():
            trained = build("plus", replace(sizes, layers=encoder, decoder_layers=decoder), seed)
            folded = fold(trained)
            loaded = TranslationModel(folded, "en", "de", vocabulary, vocabulary, None, shortlist)
            graphs = as_graphs(loaded, Path(folder) / preset, threads)
            loaded.model = prepared(folded, "int8")
            last: Row | None = None
            for batch_size, sentences in batch_sizes.items():
                task = draw_task(lengths, words, sizes, sentences, seed)
                batch = [vocabulary.encode(line.split()) for line in task.lines[:batch_size]]
                for use, shown in ((False, "all words"), (True, "shortlist")):
                    runs = {
                        "CPU": engine(loaded, task, batch_size, 1, use),
                        "ONNX Runtime": engine(graphs, task, batch_size, 1, use),
                        "peer": ctranslate2s(peer, task, batch_size, 1, use),
                    }
                    speeds = interleaved(runs, rounds)
                    folded = fold(trained)
                    if use:
                        select = selector(folded.decoder.output_projection)
                        chosen = select(torch.from_numpy(shortlist.words(batch)[0]))
                        folded.set_submodule("decoder.output_projection", chosen)
                    seconds = floor_seconds(folded, task, len(batch), rates, "int8", beam=1)
                    for way in ("CPU", "ONNX Runtime"):
                        row = Row(
                            measured=f"plus {preset}, greedy, batch {batch_size}, {way} int8, "
                            f"{shown}",
                            unit="sentences/s",
                            ours=speeds[way],
                            peer_name=name,
                            peer=speeds["peer"],
                            floor=len(batch) / seconds,
                            note=f"{task.target_length} tokens",
                        )
                        rows += [row, in_words(row, task)]
                        if way == "CPU":
                            last = in_words(row, task)
            assert last is not None
            reported = spread([REPORTED] * rounds)
            rows.append(replace(last, peer_name=REPORTED_NAME, peer=reported))
    return rows


def in_words(row: Row, task: Task) -> Row:
    """The same measurement in source words per second."""
    tokens = sum(len(line.split()) for line in task.lines)
    words = WORDS_PER_TOKEN * tokens / len(task.lines)

    def scaled(speed: Spread) -> Spread:
        return spread([words * sample for sample in speed.samples])

    assert row.floor is not None
    return replace(
        row, unit="words/s", ours=scaled(row.ours), peer=scaled(row.peer), floor=words * row.floor
    )


def random_shortlist(vocabulary: int, seed: int) -> Shortlist:
    """Frequent words, the first of the vocabulary, and some random words of each source word."""
    generator = np.random.default_rng(seed)
    frequent = len(SPECIAL) + min(FREQUENT, vocabulary // 8)
    by_source = generator.integers(frequent, vocabulary, (vocabulary, PER_WORD))
    return Shortlist(np.arange(frequent), by_source)


def vocabulary_map(shortlist: Shortlist, words: Dictionary) -> str:
    """A shortlist as CTranslate2 reads it: source word, tab, target words."""

    def symbols(chosen: NDArray[np.int64]) -> str:
        return " ".join(words[int(token)] for token in chosen if token >= words.nspecial)

    lines = [f"\t{symbols(shortlist.always)}"]
    lines += [
        f"{words[token]}\t{symbols(chosen)}"
        for token, chosen in enumerate(shortlist.by_source)
        if token >= words.nspecial
    ]
    return "\n".join(lines) + "\n"
