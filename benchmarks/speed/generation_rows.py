"""Translation: beam search in fairseq's generator, and the engine beside CTranslate2."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fairseq.data import Dictionary
from fairseq.sequence_generator import SequenceGenerator

from benchmarks.speed.floors import Rates, operations
from benchmarks.speed.lengths import Lengths, draw
from benchmarks.speed.profiles import explained
from benchmarks.speed.report import Row, Rows, Unmeasured
from benchmarks.speed.timing import interleaved
from benchmarks.speed.translation_models import (
    Sizes,
    build,
    build_for_generation,
    dictionary,
    sentence_pairs,
    to_device,
)
from resmlp_mt.engine import model_folder
from resmlp_mt.engine.folding import fold
from resmlp_mt.engine.model_folder import TranslationModel
from resmlp_mt.engine.onnx_export import export_int8, export_onnx
from resmlp_mt.engine.options import SearchOptions
from resmlp_mt.engine.translator import Translator
from resmlp_mt.engine.vocabulary import Vocabulary
from resmlp_mt.engine.weights import prepared
from resmlp_mt.extras import installation
from resmlp_mt.machine import computes_in_bfloat16
from resmlp_mt.model.encoder_decoder import EncoderDecoder

GENERATION_GOAL = 1.6
TRANSLATE_GOALS = {"fp32": 1.3, "bf16": 1.3, "int8": 1.25}
BEAM = 4
MODELS = "resmlp", "transformer"


@dataclass(frozen=True)
class Task:
    """Sentences to translate, all into ``target_length`` tokens and end-of-sentence.

    Models with random weights end sentences at random, so all peers get a fixed length, the mean of
    the drawn sentences.
    """

    lines: list[str]
    target_length: int
    sample: dict[str, Any]


def draw_task(lengths: Lengths, words: Dictionary, sizes: Sizes, count: int, seed: int) -> Task:
    """Random sentences with lengths from the distribution, sorted as fairseq sorts them."""
    longest = sizes.max_positions - 1
    drawn = sorted((min(s, longest), min(t, longest)) for s, t in draw(lengths, count, seed))
    pairs = sentence_pairs(drawn, words, seed)
    lines = [" ".join(words[token] for token in source[:-1]) for source in pairs.src]
    target_length = round(sum(target for _, target in drawn) / count) - 1
    sample = pairs.collater([pairs[index] for index in range(count)])
    return Task(lines, max(target_length, 1), sample)


def fairseq_generate(
    lengths: Lengths,
    sizes: Sizes,
    rates: Rates,
    *,
    device: str = "cpu",
    sentences: int = 32,
    rounds: int = 5,
    seed: int = 1,
) -> Rows:
    """Sentences per second of fairseq's ``SequenceGenerator``, one batch a round."""
    words = dictionary(sizes.vocabulary)
    task = draw_task(lengths, words, sizes, sentences, seed)

    def generating(name: str) -> Callable[[int], float]:
        model = build_for_generation(name, sizes, seed, device)
        generate = _generator(model, words, task, device)

        def run(index: int) -> float:
            with torch.inference_mode():
                found = generate()
            assert all(len(h[0]["tokens"]) == task.target_length + 1 for h in found)
            return float(sentences)

        return run

    runs = {name: generating(name) for name in MODELS}
    speeds = interleaved(runs, rounds, device=device)
    folded = fold(build("resmlp", sizes, seed))
    row = Row(
        measured=f"fairseq-generate, beam {BEAM}, {device.upper()} fp32",
        unit="sentences/s",
        ours=speeds["resmlp"],
        peer_name="fairseq transformer",
        peer=speeds["transformer"],
        goal=GENERATION_GOAL,
        floor=sentences / floor_seconds(folded, task, sentences, rates, "fp32"),
        work_ratio=work_ratio(lengths, sizes, seed, is_fairseq=True),
        note=f"batch {sentences}, {task.target_length} tokens",
    )
    return [explained(row, runs["resmlp"])]


def _generator(model: Any, words: Dictionary, task: Task, device: str) -> Callable[[], Any]:
    """A call of fairseq's generator on the sentences of a task."""
    sample = to_device(task.sample, device)
    generator = SequenceGenerator(
        [model], words, beam_size=BEAM, min_len=task.target_length, max_len_a=0,
        max_len_b=task.target_length,
    ).to(device)  # fmt: skip
    return lambda: generator.generate([model], sample)


def work_ratio(
    lengths: Lengths, sizes: Sizes, seed: int, is_fairseq: bool, sentences: int = 8
) -> float:
    """The Transformer's operations divided by those of ours, counted in fairseq's generator.

    Engines compute the same products, except that fairseq's Transformer projects keys and values of
    the source for every hypothesis, and CTranslate2 once.
    """
    words = dictionary(sizes.vocabulary)
    task = draw_task(lengths, words, sizes, sentences, seed)
    ours, peers = (
        # as built: products with packed weights would not be counted
        operations(_generator(build(name, sizes, seed).eval(), words, task, "cpu"))
        for name in MODELS
    )
    if not is_fairseq:
        positions = task.sample["net_input"]["src_tokens"].numel()
        layers = sizes.decoder_layers or sizes.layers
        peers -= (BEAM - 1) * layers * 2 * (2 * sizes.embed_dim**2 * positions)
    return peers / ours


def translate(
    lengths: Lengths,
    sizes: Sizes,
    rates: Rates,
    *,
    batch_sizes: dict[int, int],
    threads: int,
    rounds: int = 5,
    seed: int = 1,
) -> Rows:
    """Sentences per second of ``resmlp_mt.translate`` and CTranslate2's Transformer.

    Batches are translated with all threads in one product, and by a worker on each thread, both in
    the same way.

    Args:
        batch_sizes: number of sentences that are translated in each round, by batch size.
    """
    try:
        import ctranslate2
    except ImportError:
        reason = f"needs CTranslate2: {installation('ctranslate2')}"
        return [Unmeasured("python -m resmlp_mt.translate", reason)]
    words = dictionary(sizes.vocabulary)
    folded = fold(build("resmlp", sizes, seed))
    # sentences of one length: fairseq's Transformer would compute on pads
    mean = tuple(round(sum(side) / len(lengths)) for side in zip(*lengths, strict=True))
    work = work_ratio([(mean[0], mean[1])], sizes, seed, is_fairseq=False)
    rows: Rows = []
    with tempfile.TemporaryDirectory() as folder:
        save_for_ctranslate2(sizes, words, Path(folder), seed)
        for dtype, shown, compute_type in (
            ("float32", "fp32", "float32"),
            ("bfloat16", "bf16", "bfloat16"),
            ("int8", "int8", "int8"),
        ):
            supported = compute_type in ctranslate2.get_supported_compute_types("cpu")
            if not supported or (dtype == "bfloat16" and not computes_in_bfloat16()):
                rows.append(Unmeasured(f"translate, CPU {shown}", "not supported here"))
                continue
            vocabulary = Vocabulary(words.symbols)
            model = fold(build("resmlp", sizes, seed))
            loaded = TranslationModel(model, "en", "de", vocabulary, vocabulary, None)
            ours = {"": loaded}
            if dtype != "bfloat16":
                graphs = as_graphs(loaded, Path(folder) / f"onnx-{dtype}", threads, dtype)
                ours[", ONNX Runtime"] = graphs
            loaded.model = prepared(model, dtype)
            peers = {
                workers: ctranslate2.Translator(
                    folder, compute_type=compute_type, inter_threads=workers,
                    intra_threads=threads // workers,
                )
                for workers in {1, threads}
            }  # fmt: skip
            # CTranslate2 set the threads of all libraries that use the same OpenMP
            torch.set_num_threads(threads)
            for batch_size, sentences in batch_sizes.items():
                for workers in [1, threads] if batch_size > 1 < threads else [1]:
                    task = draw_task(lengths, words, sizes, sentences * workers, seed)
                    runs = {
                        way: engine(model, task, batch_size, workers=workers)
                        for way, model in ours.items()
                        if workers == 1 or not way
                    }
                    ways = list(runs)
                    runs["ctranslate2"] = ctranslate2s(peers[workers], task, batch_size)
                    speeds = interleaved(runs, rounds)
                    floor = floor_seconds(folded, task, batch_size, rates, shown)
                    shared = f", {workers} workers of one thread" if workers > 1 else ""
                    for way in ways:
                        row = Row(
                            measured=f"translate{way}, beam {BEAM}, batch {batch_size}{shared}, "
                            f"CPU {shown}",
                            unit="sentences/s",
                            ours=speeds[way],
                            peer_name=f"CTranslate2 {ctranslate2.__version__} Transformer, {shown}",
                            peer=speeds["ctranslate2"],
                            goal=TRANSLATE_GOALS[shown],
                            floor=min(batch_size, sentences) / floor,
                            work_ratio=work,
                            note=f"{task.target_length} tokens",
                        )
                        is_explained = not way and workers == 1  # workers are other threads
                        rows.append(explained(row, runs[way]) if is_explained else row)
    return rows


def engine(
    loaded: TranslationModel,
    task: Task,
    batch_size: int,
    beam: int = BEAM,
    use_shortlist: bool = False,
    workers: int = 1,
) -> Callable[[int], float]:
    """A round of the engine. Greedy search computes no scores; workers have a thread each."""
    options = SearchOptions(beam=beam, min_len=task.target_length, max_len_b=task.target_length)
    translator = Translator(
        loaded, options, batch_size, use_shortlist=use_shortlist, workers=workers
    )

    def run(index: int) -> float:
        found = translator.translate(task.lines, return_scores=beam > 1)
        assert all(len(t[0].pieces.split()) == task.target_length for t in found)
        return float(len(found))

    return run


def as_graphs(
    float32: TranslationModel, folder: Path, threads: int, dtype: str = "int8"
) -> TranslationModel:
    """The same model for ONNX Runtime."""
    model_folder.save(float32, folder, dtype, export_int8 if dtype == "int8" else export_onnx)
    return model_folder.load(folder, threads=threads)


def ctranslate2s(
    translator: Any, task: Task, batch_size: int, beam: int = BEAM, use_vmap: bool = False
) -> Callable[[int], float]:
    """A round of CTranslate2; ``use_vmap`` is its shortlist."""
    source = [line.split() for line in task.lines]

    def run(index: int) -> float:
        found = translator.translate_batch(
            source,
            max_batch_size=batch_size,
            beam_size=beam,
            use_vmap=use_vmap,
            min_decoding_length=task.target_length,
            max_decoding_length=task.target_length,
        )
        assert all(len(t.hypotheses[0]) == task.target_length for t in found)
        return float(len(found))

    return run


def save_for_ctranslate2(sizes: Sizes, words: Dictionary, folder: Path, seed: int) -> None:
    """The weights of fairseq's Transformer, through CTranslate2's own converter."""
    from ctranslate2.converters import fairseq as converter
    from ctranslate2.specs import TransformerSpec

    model = build("transformer", sizes, seed).requires_grad_(False)
    # fairseq computes sinusoids when it needs them
    for side in (model.encoder, model.decoder):
        positions = side.embed_positions
        if getattr(positions, "weights", None) is None:
            positions.weights = positions.get_embedding(
                sizes.max_positions + words.pad() + 1, sizes.embed_dim, words.pad()
            )
    layers = sizes.layers, sizes.decoder_layers or sizes.layers
    spec = TransformerSpec.from_config(layers, sizes.heads, pre_norm=False)
    converter.set_transformer_encoder(spec.encoder, model.encoder)
    converter.set_transformer_decoder(spec.decoder, model.decoder)
    symbols = ["<blank>" if token == "<pad>" else token for token in words.symbols]
    spec.register_source_vocabulary(symbols)
    spec.register_target_vocabulary(symbols)
    spec.config.decoder_start_token = spec.config.eos_token
    spec.config.add_source_eos = True
    spec.validate()
    spec.optimize()
    spec.save(str(folder))


@torch.no_grad()  # in inference mode, some operations would not be counted
def floor_seconds(
    folded: EncoderDecoder, task: Task, batch: int, rates: Rates, dtype: str, beam: int = BEAM
) -> float:
    """Seconds for one batch: the encoder once, and the weights of the decoder once per token."""
    config, steps = folded.config, task.target_length + 1
    source = torch.full((batch, round(task.sample["ntokens"] / len(task.lines))), 4)
    memory = folded.encode(source)
    half = steps // 2
    heads = config.decoder_mixing.heads
    width = config.decoder_embed_dim // heads
    history = torch.zeros(config.decoder_layers, batch, heads, half, beam, width)
    ancestors = torch.zeros(batch, beam, half, dtype=torch.long)
    tokens = torch.full((batch, beam), 4)
    step = operations(lambda: folded.step(tokens, history, ancestors, memory))
    size = {"fp32": 4, "bf16": 2, "int8": 1}[dtype]
    weights = sum(
        module.weight.numel()
        for module in [*folded.decoder.layers.modules(), folded.decoder.output_projection]
        if isinstance(module, torch.nn.Linear)
    )
    encoding = rates.seconds(operations(lambda: folded.encode(source)), dtype=dtype)
    return encoding + steps * rates.seconds(step, weights * size, dtype)
