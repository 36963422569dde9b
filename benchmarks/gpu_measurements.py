"""The measurements of :mod:`benchmarks.gpu`, each a function of the settings."""

import contextlib
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from fairseq.criterions.label_smoothed_cross_entropy import LabelSmoothedCrossEntropyCriterion
from fairseq.sequence_generator import SequenceGenerator
from torch import Tensor, nn

from benchmarks.speed import lengths as length_distribution
from benchmarks.speed.generation_rows import BEAM, Task, draw_task, save_for_ctranslate2
from benchmarks.speed.timing import Run, interleaved
from benchmarks.speed.training_rows import batches
from benchmarks.speed.translation_models import (
    BASE,
    QUICK,
    Sizes,
    build,
    build_for_generation,
    dictionary,
    to_device,
)
from resmlp_mt.engine.folding import fold
from resmlp_mt.engine.model_folder import TranslationModel
from resmlp_mt.engine.options import SearchOptions
from resmlp_mt.engine.translator import Translator
from resmlp_mt.engine.vocabulary import Vocabulary
from resmlp_mt.engine.weights import prepared
from resmlp_mt.fairseq_plugin.criterion import ChunkedLabelSmoothedCrossEntropy

SEED = 1
TYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
MODELS = {"faithful": "resmlp", "plus": "plus", "fairseq transformer": "transformer"}
TIMM = {"S12": "resmlp_12_224", "S24": "resmlp_24_224"}
Figures = dict[str, float]
"""Medians by model."""


@dataclass(frozen=True)
class Settings:
    """Where and how large; ``work`` is an empty folder."""

    device: str
    quick: bool
    rounds: int
    work: Path

    @property
    def sizes(self) -> Sizes:
        """Of the translation models."""
        return QUICK if self.quick else BASE

    def medians(self, runs: dict[str, Run]) -> Figures:
        """Amounts per second, the runs in turn."""
        speeds = interleaved(runs, self.rounds, device=self.device)
        return {name: speed.median for name, speed in speeds.items()}


def training(
    settings: Settings, dtype: str, tokens: int, is_memory: bool, is_chunked: bool = False
) -> Figures:
    """Target tokens per second of updates with so many tokens, or MiB at their peak.

    All models have fairseq's criterion, or the chunked one.

    Raises:
        RuntimeError: if peak memory is asked for on a CPU, or a gradient is not finite.
    """
    if is_memory and settings.device == "cpu":
        raise RuntimeError("PyTorch counts allocated memory on GPUs")
    data = batches(
        length_distribution.default_lengths(), settings.sizes, 256 if settings.quick else tokens,
        count=2, device=settings.device, seed=SEED,
    )  # fmt: skip
    steps: dict[str, Callable[[], float]] = {}
    peaks: Figures = {}
    for shown, name in MODELS.items():
        if is_memory:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        step = update(build(name, settings.sizes, SEED), settings, dtype, is_chunked)
        if is_memory:
            for _ in range(2):
                step(data[0])
            peaks[shown] = (torch.cuda.max_memory_allocated() - before) / 2**20
            del step
        else:
            steps[shown] = lambda step=step: sum(map(step, data))  # type: ignore[misc]
    if is_memory:
        return peaks
    return settings.medians({shown: lambda _, run=run: run() for shown, run in steps.items()})  # type: ignore[misc]


def update(
    model: nn.Module, settings: Settings, dtype: str, is_chunked: bool
) -> Callable[[dict[str, Any]], float]:
    """One update with Adam, in the autocast type; returns the target tokens."""
    model = model.to(settings.device).train()
    task = SimpleNamespace(target_dictionary=dictionary(settings.sizes.vocabulary))
    kinds = LabelSmoothedCrossEntropyCriterion, ChunkedLabelSmoothedCrossEntropy
    criterion = kinds[is_chunked](task, False, 0.1)
    optimizer = torch.optim.Adam(
        model.parameters(), lr=1e-4, betas=(0.9, 0.98), fused=settings.device == "cuda"
    )
    scaler = torch.amp.GradScaler(settings.device, enabled=dtype == "fp16")
    kind = TYPES[dtype]

    def step(batch: dict[str, Any]) -> float:
        optimizer.zero_grad()
        casting = (
            contextlib.nullcontext() if kind is None else torch.autocast(settings.device, kind)
        )
        with casting:
            loss, sample_size, _ = criterion(model, batch)
        scaler.scale(loss / sample_size).backward()
        scaler.step(optimizer)
        scaler.update()
        return float(batch["ntokens"])

    return step


@cache
def task_of(settings: Settings) -> Task:
    """The sentences that are translated."""
    sizes = settings.sizes
    return draw_task(
        length_distribution.default_lengths(), dictionary(sizes.vocabulary), sizes,
        8 if settings.quick else 512, SEED,
    )  # fmt: skip


def translation(settings: Settings, batch: int) -> Figures:
    """Sentences per second of fairseq's generator, the engine, and CTranslate2 where it can."""
    task = task_of(settings)
    count = min(len(task.lines), {1: 4, 64: 64}.get(batch, batch))
    lines = task.lines[:count]
    runs: dict[str, Run] = {
        f"{shown}, fairseq-generate": generating(settings, task, name, batch, count)
        for shown, name in MODELS.items()
    }
    dtype = "bfloat16" if settings.device == "cuda" else "float32"
    for shown, name in (("faithful", "resmlp"), ("plus", "plus")):
        runs[f"{shown}, translate {dtype}"] = translating(settings, task, name, dtype, batch, lines)
    peer = ctranslate2_of(settings, task, batch, lines)
    if peer is not None:
        runs[peer[0]] = peer[1]
    found = settings.medians(runs)
    return {"faithful": found.pop("faithful, fairseq-generate"),
            "fairseq transformer": found.pop("fairseq transformer, fairseq-generate"),
            **found}  # fmt: skip


def generating(settings: Settings, task: Task, name: str, batch: int, count: int) -> Run:
    """fairseq's ``SequenceGenerator``, in half precision on a GPU as with ``--fp16``."""
    sizes = settings.sizes
    model = build_for_generation(name, sizes, SEED, settings.device)
    if settings.device == "cuda":
        model = model.half()
    generator = SequenceGenerator(
        [model], dictionary(sizes.vocabulary), beam_size=BEAM, min_len=task.target_length,
        max_len_a=0, max_len_b=task.target_length,
    ).to(settings.device)  # fmt: skip
    net = task.sample["net_input"]
    samples = [
        to_device(
            {"net_input": {key: net[key][i : i + batch] for key in ("src_tokens", "src_lengths")}},
            settings.device,
        )
        for i in range(0, count, batch)
    ]

    def run(_: int) -> float:
        with torch.inference_mode():
            for sample in samples:
                generator.generate([model], sample)
        return float(count)

    return run


def translating(
    settings: Settings, task: Task, name: str, dtype: str, batch: int, lines: list[str]
) -> Run:
    """The engine on the device."""
    model = prepared(fold(build(name, settings.sizes, SEED)), dtype, settings.device)
    words = Vocabulary(dictionary(settings.sizes.vocabulary).symbols)
    loaded = TranslationModel(model, "en", "de", words, words, None)
    options = SearchOptions(beam=BEAM, min_len=task.target_length, max_len_b=task.target_length)
    translator = Translator(loaded, options, batch)
    return lambda _: float(len(translator.translate(lines)))


def ctranslate2_of(
    settings: Settings, task: Task, batch: int, lines: list[str]
) -> tuple[str, Run] | None:
    """CTranslate2 in float16 on the GPU; None where it is not installed or has no CUDA."""
    try:
        import ctranslate2
    except ImportError:
        return None
    is_cuda = settings.device == "cuda"
    if is_cuda and not ctranslate2.get_cuda_device_count():
        return None
    folder = settings.work / "ctranslate2"
    if not folder.exists():
        words = dictionary(settings.sizes.vocabulary)
        folder.mkdir()
        save_for_ctranslate2(settings.sizes, words, folder, SEED)
    kind = "float16" if is_cuda else "float32"
    translator = ctranslate2.Translator(
        str(folder), device=settings.device, compute_type=kind, intra_threads=1
    )
    source = [text.split() for text in lines]

    def run(_: int) -> float:
        found = translator.translate_batch(
            source, max_batch_size=batch, beam_size=BEAM, min_decoding_length=task.target_length,
            max_decoding_length=task.target_length,
        )  # fmt: skip
        return float(len(found))

    return f"CTranslate2 Transformer {kind}", run


def images(settings: Settings, size: str, mode: str, variant: str) -> Figures:
    """Images per second of ours and timm's, in bfloat16 (autocast in training)."""
    from resmlp_mt.vision import create_model
    from resmlp_mt.vision.libraries import timm

    side, batch = (32, 4) if settings.quick else (224, 256 if mode == "inference" else 64)
    torch.manual_seed(SEED)
    models: dict[str, nn.Module] = {
        "faithful": create_model(f"resmlp_{size.lower()}", img_size=side),
        f"timm {TIMM[size]}": timm.create_model(TIMM[size], img_size=side),
    }
    pixels = torch.randn(batch, 3, side, side, device=settings.device)
    if "channels-last" in variant:
        pixels = pixels.contiguous(memory_format=torch.channels_last)
    runs = {}
    for name, model in models.items():
        model = model.to(settings.device)
        if "channels-last" in variant:
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        runs[name] = (
            predicting(model, pixels, "compiled" in variant)
            if mode == "inference"
            else learning(model, pixels, "compiled" in variant)
        )
    return settings.medians(runs)


def predicting(model: nn.Module, pixels: Tensor, is_compiled: bool) -> Run:
    """Inference with weights and pixels in bfloat16."""
    model, pixels = model.eval().bfloat16(), pixels.bfloat16()
    forward = torch.compile(model) if is_compiled else model

    def run(_: int) -> float:
        with torch.no_grad():
            forward(pixels)
        return float(len(pixels))

    return run


def learning(model: nn.Module, pixels: Tensor, is_compiled: bool) -> Run:
    """Updates with AdamW under autocast."""
    model = model.train()
    forward = torch.compile(model) if is_compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    classes = torch.randint(1000, (len(pixels),), device=pixels.device)

    def run(_: int) -> float:
        optimizer.zero_grad()
        with torch.autocast(pixels.device.type, torch.bfloat16):
            loss = nn.functional.cross_entropy(forward(pixels), classes)
        loss.backward()
        optimizer.step()
        return float(len(pixels))

    return run


def torchrun(settings: Settings) -> Figures:
    """Seconds of a training that torchrun starts, with nccl on a GPU and gloo on a CPU.

    Raises:
        RuntimeError: with the last line of its output, if it fails.
    """
    folder = settings.work / "torchrun"
    folder.mkdir()
    draw = random.Random(SEED)
    text = "".join(" ".join(draw.choices("abcdefgh", k=9)) + "\n" for _ in range(200))
    for language in ("en", "de"):
        (folder / f"train.{language}").write_text(text)
    place = ["--destdir", str(folder / "bin"), "--joined-dictionary"]
    prefixes = [f"--{split}pref={folder / 'train'}" for split in ("train", "valid")]
    checked(
        [sys.executable, "-m", "fairseq_cli.preprocess", "-s", "en", "-t", "de", *prefixes, *place]
    )
    command = (
        f"{folder / 'bin'} --user-dir resmlp_mt --arch resmlp_mt_tiny --max-source-positions 64 "
        "--max-target-positions 64 --optimizer adam --lr 1e-4 --max-tokens 500 --max-update 5 "
        f"--criterion label_smoothed_cross_entropy --save-dir {folder / 'save'} --num-workers 0"
    ).split()
    if settings.device == "cpu":
        command.append("--cpu")

    def run(_: int) -> float:
        begin = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        checked([*begin, "--nproc-per-node", "1", "-m", "fairseq_cli.train", *command])
        return 1.0

    once = interleaved({"ours": run}, 1)["ours"]
    return {"ours": 1 / once.median}


def checked(command: list[str]) -> None:
    """Run a command from the checkout.

    Raises:
        RuntimeError: with the last line of its output, if it fails.
    """
    done = subprocess.run(
        command, cwd=Path(__file__).resolve().parent.parent, capture_output=True, encoding="utf-8"
    )
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no output"])[-1])
