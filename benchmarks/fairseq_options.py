"""Tries every option of fairseq with our model and with the stock Transformer.

    python -m benchmarks.fairseq_options

Both models are trained for a few updates on random sentences. Then each command runs with and
without each option. The table says how it ends, and whether the option changes the command's output
or the parameters that it saves. Writes fairseq_options.json beside this file and
docs/fairseq_options.md.
"""

import argparse
import json
import logging
import random
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from fairseq.data import Dictionary
from fairseq.data.indexed_dataset import MMapIndexedDatasetBuilder

from benchmarks.fairseq_commands import Done, run
from resmlp_mt import command_line
from resmlp_mt.files import replacing

HERE = Path(__file__).resolve().parent
ROWS = HERE / "fairseq_options.json"
PAGE = HERE.parent / "docs" / "fairseq_options.md"
WORDS, SENTENCES = 12, {"train": 200, "valid": 16, "test": 12}
MODELS = {"Transformer": "transformer_tiny", "ResMLP": "resmlp_mt_tiny"}


HEAD = """# fairseq's options, beside the stock Transformer

`benchmarks/fairseq_options.py` writes this page. It runs each fairseq command with each option, on
the stock Transformer and on ResMLP, with the plugin loaded. If the two cells of a row are the same,
the option does the same for both models. A cell is one of:

* *honoured*: the command prints or saves something else than without the option;
* *no difference*: it prints and saves the same, on this corpus of short sentences;
* *refused*: it stops, and says this sentence;
* *fails*: it ends in a traceback of fairseq.

Some cells differ although ResMLP has the option:

* `--max-source-positions` and `--max-target-positions` are the size of ResMLP's mixing matrices.
  Another value makes another model.
* `--checkpoint-activations` and `--offload-activations` change only memory and time here. With
  them, the Transformer also draws other dropout.
* `--required-seq-len-multiple` adds pads, which change nothing in ResMLP. With them, the
  Transformer draws other dropout.
* `--encoder-layers-to-keep` and `--decoder-layers-to-keep` may be given one without the other.

Every criterion, optimizer, learning rate schedule and score has a row. Left out are options that
belong to a single optimizer, schedule or criterion of another task; those of files and languages,
which every command has; and joining processes by `--distributed-init-method`.
"""


class Case(NamedTuple):
    """One row: options as typed, and options that both compared commands have."""

    options: str
    with_options: str = ""


TRAIN = [
    Case("--dropout 0.3"),
    Case("--attention-dropout 0.3"),
    Case("--activation-dropout 0.3"),
    Case("--activation-fn tanh"),
    Case("--encoder-layerdrop 0.5"),
    Case("--decoder-layerdrop 0.5"),
    Case("--encoder-layers 1"),
    Case("--decoder-layers 1"),
    Case("--share-all-embeddings"),
    Case("--share-decoder-input-output-embed"),
    Case("--checkpoint-activations"),
    Case("--offload-activations"),
    Case("--encoder-layers-to-keep 0 --restore-file {base} --reset-optimizer --reset-dataloader"),
    Case(
        "--alignment-layer 0 --alignment-heads 1",
        "--load-alignments --criterion label_smoothed_cross_entropy_with_alignment",
    ),
    Case("--full-context-alignment"),
    Case("--encoder-normalize-before"),
    Case("--decoder-normalize-before"),
    Case("--encoder-learned-pos"),
    Case("--decoder-learned-pos"),
    Case("--no-token-positional-embeddings"),
    Case("--layernorm-embedding"),
    Case("--no-scale-embedding"),
    Case("--encoder-attention-heads 1"),
    Case("--decoder-attention-heads 1"),
    Case("--no-cross-attention"),
    Case("--cross-self-attention"),
    Case("--merge-src-tgt-embed"),
    Case("--decoder-output-dim 32"),
    Case("--adaptive-softmax-cutoff 10 --criterion adaptive_loss"),
    Case("--adaptive-softmax-dropout 0.5"),
    Case("--adaptive-softmax-factor 2"),
    Case("--tie-adaptive-weights"),
    Case("--tie-adaptive-proj"),
    Case("--quant-noise-pq 0.5"),
    Case("--quant-noise-pq-block-size 4"),
    Case("--quant-noise-scalar 0.5"),
    Case("--relu-dropout 0.3"),
    Case("--base-layers 1"),
    Case("--min-params-to-wrap 1000"),
    Case("--encoder-xformers-att-config x"),
    Case("--decoder-xformers-att-config x"),
    Case("--no-decoder-final-norm"),
    Case("--adaptive-input"),
    Case("--base-layers 1 --base-sublayers 2 --base-shuffle 0"),
    Case("--decoder-layers-to-keep 0 --restore-file {base} --reset-optimizer --reset-dataloader"),
    Case("--dataset-impl cached"),
    Case("--char-inputs"),
    Case("--export"),
    Case("--left-pad-source --left-pad-target"),
    Case("--truncate-source", "--max-source-positions 5"),
    Case("--upsample-primary 2"),
    Case("--num-batch-buckets 3", "--max-tokens 60"),
    Case("--required-seq-len-multiple 8"),
    Case("--required-batch-size-multiple 4"),
    Case("--load-alignments"),
    Case("--eval-bleu"),
    Case("--eval-bleu --eval-tokenized-bleu --eval-bleu-print-samples"),
    Case("--max-source-positions 60"),
    Case("--max-target-positions 60"),
    Case("--skip-invalid-size-inputs-valid-test", "--max-source-positions 5"),
    Case("--criterion cross_entropy"),
    Case("--label-smoothing 0.3"),
    Case("--report-accuracy"),
    Case("--ignore-prefix-size 1"),
    Case("--criterion label_smoothed_cross_entropy_with_rdrop --rdrop-alpha 5"),
    Case("--eval-bleu", "--criterion label_smoothed_cross_entropy_with_rdrop --rdrop-alpha 5"),
    Case("--criterion label_smoothed_cross_entropy_with_alignment"),
    Case("--criterion label_smoothed_cross_entropy_with_alignment --load-alignments"),
    Case("--criterion adaptive_loss"),
    Case("--criterion adaptive_loss --ddp-backend legacy_ddp"),
    Case("--criterion composite_loss --underlying-criterion cross_entropy"),
    Case("--criterion composite_loss --underlying-criterion ctc"),
    Case("--criterion nat_loss"),
    Case("--sentence-avg"),
    Case("--update-freq 2"),
    Case("--clip-norm 0.1"),
    Case("--max-tokens 60"),
    Case("--curriculum 1"),
    Case("--grouped-shuffling"),
    Case("--skip-remainder-batch"),
    Case("--update-epoch-batch-itr True"),
    Case("--update-ordered-indices-seed"),
    Case("--valid-subset valid,test"),
    Case("--combine-valid-subsets"),
    Case("--ignore-unused-valid-subsets"),
    Case("--validate-interval 2"),
    Case("--validate-interval-updates 3"),
    Case("--validate-after-updates 1000"),
    Case("--fixed-validation-seed 7"),
    Case("--disable-validation"),
    Case("--disable-validation --patience 1"),
    Case("--max-tokens-valid 30"),
    Case("--batch-size-valid 1"),
    Case("--max-valid-steps 0", "--batch-size-valid 4"),
    Case("--stop-time-hours 0.000001"),
    Case("--stop-min-lr 0.01"),
    Case("--debug-param-names"),
    Case("--seed 2"),
    Case("--amp"),
    Case("--fp16"),
    Case("--bf16"),
    Case("--memory-efficient-fp16"),
    Case("--memory-efficient-bf16"),
    Case("--tpu"),
    Case("--store-ema --ema-decay 0.5"),
    Case("--store-ema --ema-fp32 --ema-start-update 2 --ema-update-freq 2"),
    Case("--use-bmuf"),
    Case("--use-bmuf --global-sync-iter 1 --warmup-iterations 1"),
    Case("--optimizer adagrad"),
    Case("--optimizer adafactor --lr 0.001"),
    Case("--optimizer composite"),
    Case("--use-old-adam"),
    Case("--fp16-adam-stats"),
    Case("--keep-best-checkpoints 2", "--max-epoch 4 --max-update 100"),
    Case("--keep-last-epochs 1"),
    Case("--no-epoch-checkpoints"),
    Case("--patience 1", "--max-epoch 4 --max-update 100"),
    Case("--save-interval 2", "--max-epoch 3"),
    Case("--save-interval-updates 3"),
    Case("--keep-interval-updates 1", "--save-interval-updates 3"),
    Case(
        "--keep-interval-updates-pattern 6", "--save-interval-updates 3 --keep-interval-updates 1"
    ),
    Case("--no-save"),
    Case("--no-last-checkpoints"),
    Case("--no-save-optimizer-state"),
    Case("--best-checkpoint-metric ppl"),
    Case("--best-checkpoint-metric bleu", "--eval-bleu"),
    Case("--maximize-best-checkpoint-metric"),
    Case("--checkpoint-suffix x"),
    Case("--checkpoint-shard-count 2"),
    Case("--gen-subset valid"),
    Case("--load-checkpoint-on-all-dp-ranks"),
    Case("--write-checkpoints-asynchronously"),
    Case("--model-parallel-size 2"),
    Case("--finetune-from-model {base}"),
    Case("--restore-file {base}"),
    Case("--continue-once {base}"),
    Case("--reset-lr-scheduler", "--restore-file {base} --max-epoch 8"),
    Case("--reset-meters", "--restore-file {base} --max-epoch 8 --lr 0.1"),
    Case("--optimizer-overrides {{'weight_decay':0.5}}", "--restore-file {base} --max-epoch 8"),
    Case("--ddp-backend legacy_ddp"),
    Case("--find-unused-parameters"),
    Case("--empty-cache-freq 1"),
    Case("--quantization-config-path {config}"),
    Case("--profile"),
    Case("--suppress-crashes"),
    Case("--encoder-embed-path {vectors}"),
    Case("--decoder-embed-path {vectors}"),
    Case("--task translation_multi_simple_epoch --langs a,b --lang-pairs a-b"),
    Case("--task translation_lev --criterion nat_loss"),
    Case("--task semisupervised_translation --lang-pairs a-b"),
    Case("--task translation_moe --method hMoElp --mean-pool-gating-network --num-experts 2"),
    Case("--task translation_moe --method sMoElp --mean-pool-gating-network --num-experts 2"),
    Case("--task translation_from_pretrained_bart --langs a,b"),
    Case("--task multilingual_translation --lang-pairs a-b"),
    Case("--task cross_lingual_lm"),
    Case("--no-progress-bar"),
    Case("--log-interval 1"),
    Case("--log-format json"),
    Case("--log-file {results}/log"),
    Case("--aim-repo {results} --aim-run-hash x"),
    Case("--tensorboard-logdir {results}/tensorboard"),
    Case("--wandb-project x"),
    Case("--azureml-logging"),
    Case("--fp16-no-flatten-grads"),
    Case("--fp16-init-scale 2 --fp16-scale-window 2 --fp16-scale-tolerance 0.5"),
    Case("--min-loss-scale 1"),
    Case("--threshold-loss-scale 1"),
    Case("--on-cpu-convert-precision"),
    Case("--amp-batch-retries 1 --amp-init-scale 2 --amp-scale-window 2"),
    Case("--amp-batch-retries 1 --amp-init-scale 2 --amp-scale-window 2", "--amp"),
    Case("--all-gather-list-size 100"),
    Case("--reset-logging"),
    Case("--use-plasma-view"),
    Case("--plasma-path {results}/plasma"),
    Case("--distributed-num-procs 1 --nprocs-per-node 1"),
    Case("--distributed-rank 0 --device-id 0"),
    Case("--distributed-backend gloo"),
    Case("--distributed-port 29512"),
    Case("--distributed-no-spawn"),
    Case("--heartbeat-timeout 60"),
    Case("--ddp-backend c10d"),
    Case("--ddp-backend pytorch_ddp"),
    Case("--ddp-backend no_c10d"),
    Case("--ddp-backend fully_sharded"),
    Case("--ddp-backend slowmo"),
    Case("--slowmo-momentum 0.5 --slowmo-base-algorithm sgp --localsgd-frequency 2"),
    Case("--ddp-comm-hook fp16"),
    Case("--bucket-cap-mb 1"),
    Case("--fix-batches-to-gpus"),
    Case("--gradient-as-bucket-view"),
    Case("--fast-stat-sync"),
    Case("--broadcast-buffers"),
    Case("--zero-sharding os"),
    Case("--no-reshard-after-forward"),
    Case("--fp32-reduce-scatter"),
    Case("--cpu-offload"),
    Case("--use-sharded-state"),
    Case("--not-fsdp-flatten-parameters"),
    Case(
        "--pipeline-model-parallel --pipeline-balance [1] --pipeline-devices [0] "
        "--pipeline-chunks 1 --pipeline-checkpoint always"
    ),
    Case(
        "--pipeline-model-parallel --pipeline-encoder-balance [1] --pipeline-encoder-devices [0] "
        "--pipeline-decoder-balance [1] --pipeline-decoder-devices [0]"
    ),
    Case("--lr-scheduler cosine"),
    Case("--lr-scheduler inverse_sqrt --warmup-updates 4"),
    Case("--lr-scheduler manual"),
    Case("--lr-scheduler manual --epoch2lr {{'1':0.1}}"),
    Case("--lr-scheduler pass_through"),
    Case("--lr-scheduler polynomial_decay --total-num-update 20"),
    Case("--lr-scheduler reduce_lr_on_plateau"),
    Case("--lr-scheduler step"),
    Case("--lr-scheduler tri_stage --phase-ratio [0.1,0.4,0.5] --max-update 20"),
    Case("--lr-scheduler triangular --max-lr 0.01"),
    Case("--optimizer adadelta"),
    Case("--optimizer adamax"),
    Case("--optimizer cpu_adam"),
    Case("--optimizer lamb"),
    Case("--optimizer nag"),
    Case("--optimizer sgd"),
    Case("--criterion chunked_label_smoothed_cross_entropy"),
    Case("--criterion rdrop_label_smoothed_cross_entropy --rdrop-alpha 5"),
    Case("--criterion ctc"),
    Case("--criterion fastspeech2"),
    Case("--criterion hubert"),
    Case("--criterion label_smoothed_cross_entropy_with_ctc"),
    Case("--criterion latency_augmented_label_smoothed_cross_entropy"),
    Case("--criterion legacy_masked_lm_loss"),
    Case("--criterion masked_lm"),
    Case("--criterion model"),
    Case("--criterion sentence_prediction"),
    Case("--criterion sentence_prediction_adapters"),
    Case("--criterion sentence_ranking"),
    Case("--criterion speech_dlm_criterion"),
    Case("--criterion speech_to_spectrogram"),
    Case("--criterion speech_to_spectrogram_2pass"),
    Case("--criterion speech_to_unit"),
    Case("--criterion speech_to_unit_2pass"),
    Case("--criterion speech_unit_lm_criterion"),
    Case("--criterion tacotron2"),
    Case("--criterion vocab_parallel_cross_entropy"),
    Case("--criterion wav2vec"),
]

GENERATE = [
    Case("--beam 1"),
    Case("--nbest 2"),
    Case("--nbest 5"),
    Case("--lenpen 3"),
    Case("--unnormalized"),
    Case("--unkpen -1000"),
    Case("--temperature 3"),
    Case("--min-len 9"),
    Case("--max-len-a 0.5 --max-len-b 0"),
    Case("--max-len-b 3"),
    Case("--match-source-len"),
    Case("--no-early-stop"),
    Case("--no-repeat-ngram-size 1"),
    Case("--prefix-size 2"),
    Case("--sampling"),
    Case("--sampling --nbest 4"),
    Case("--sampling-topk 3"),
    Case("--sampling --nbest 4 --sampling-topk 3"),
    Case("--sampling --nbest 4 --sampling-topp 0.5"),
    Case("--seed 2", "--sampling --nbest 4"),
    Case("--no-seed-provided"),
    Case("--diverse-beam-groups 2"),
    Case("--diverse-beam-groups 2 --diverse-beam-strength 5"),
    Case("--diverse-beam-groups 3"),
    Case("--diversity-rate 0.5"),
    Case("--diversity-rate 0.5", "--match-source-len"),
    Case("--constraints"),
    Case("--constraints unordered"),
    Case("--print-alignment"),
    Case("--print-alignment soft"),
    Case("--print-alignment soft --score-reference"),
    Case("--replace-unk"),
    Case("--print-step"),
    Case("--score-reference"),
    Case("--score-reference --retain-dropout"),
    Case("--seed 2", "--score-reference --retain-dropout"),
    Case("--retain-dropout"),
    Case("--retain-dropout-modules TransformerDecoderLayer", "--retain-dropout"),
    Case("--retain-dropout-modules TransformerEncoder", "--retain-dropout"),
    Case("--retain-dropout-modules MultiheadAttention", "--retain-dropout"),
    Case("--retain-dropout-modules NoSuchModule", "--retain-dropout"),
    Case("--no-beamable-mm"),
    Case("--lm-path {lm}"),
    Case("--lm-path {lm} --lm-weight 0.9"),
    Case("--lm-path {base} --lm-weight 0.9"),
    Case("--path {base}:{second}"),
    Case("--path {base}:{other}"),
    Case("--path {base}:{other} --print-alignment"),
    Case("--path {base}:{other} --score-reference"),
    Case("--model-overrides {{'encoder_layers_to_keep':'0'}}"),
    Case("--model-overrides {{'decoder_layers_to_keep':'1'}}"),
    Case("--quiet"),
    Case("--gen-subset valid"),
    Case("--post-process sentencepiece"),
    Case("--scoring sacrebleu"),
    Case("--scoring chrf"),
    Case("--scoring bleu"),
    Case("--scoring wer"),
    Case("--scoring meteor"),
    Case("--scoring bert_score"),
    Case("--sacrebleu"),
    Case("--results-path {results}"),
    Case("--max-tokens 30"),
    Case("--batch-size 1"),
    Case("--required-batch-size-multiple 4"),
    Case("--required-seq-len-multiple 8"),
    Case("--num-batch-buckets 3", "--max-tokens 60"),
    Case("--num-shards 2 --shard-id 0"),
    Case("--distributed-world-size 2 --distributed-rank 0"),
    Case("--left-pad-source"),
    Case("--left-pad-target"),
    Case("--truncate-source", "--max-source-positions 5"),
    Case("--skip-invalid-size-inputs-valid-test", "--max-source-positions 5"),
    Case("--max-target-positions 4"),
    Case("--fp16"),
    Case("--bf16"),
    Case("--amp"),
    Case("--tpu"),
    Case("--memory-efficient-fp16"),
    Case("--memory-efficient-bf16"),
    Case("--fp16-init-scale 2"),
    Case("--valid-subset valid"),
    Case("--batch-size-valid 1"),
    Case("--max-tokens-valid 30"),
    Case("--restore-file {second}"),
    Case("--log-file {results}/log"),
    Case("--tensorboard-logdir {results}/tensorboard"),
    Case("--criterion label_smoothed_cross_entropy"),
    Case("--eval-bleu"),
    Case("--prefix-size 2", "--sampling --nbest 4"),
    Case("--prefix-size 2", "--diverse-beam-groups 2"),
    Case("--prefix-size 2 --no-repeat-ngram-size 2"),
    Case("--lm-path {lm} --lm-weight 0.9", "--path {base}:{other}"),
    Case("--sampling --nbest 4", "--path {base}:{other}"),
    Case("--diverse-beam-groups 2", "--path {base}:{other}"),
    Case("--score-reference --retain-dropout", "--path {base}:{other}"),
    Case("--iter-decode-max-iter 2"),
    Case("--iter-decode-eos-penalty 1"),
    Case("--iter-decode-force-max-iter"),
    Case("--iter-decode-with-beam 2"),
    Case("--iter-decode-with-external-reranker"),
    Case("--retain-iter-history"),
    Case("--decoding-format vote"),
    Case("--eos-token w3"),
    Case("--checkpoint-suffix x"),
    Case("--checkpoint-shard-count 2"),
    Case("--load-alignments"),
    Case("--data-buffer-size 0"),
    Case("--num-workers 1"),
    Case("--dataset-impl lazy"),
    Case("--dataset-impl cached"),
    Case("--model-parallel-size 2"),
    Case("--pipeline-model-parallel"),
    Case("--beam-mt 2 --max-len-a-mt 1 --max-len-b-mt 3 --lenpen-mt 2"),
]

VALIDATE = [
    Case("--valid-subset test"),
    Case("--batch-size 1"),
    Case("--max-tokens 30"),
    Case("--num-shards 2 --shard-id 0"),
    Case("--required-seq-len-multiple 8"),
    Case("--num-batch-buckets 3", "--max-tokens 60"),
    Case("--fp16"),
    Case("--bf16"),
    Case("--amp"),
    Case("--gen-subset test"),
    Case("--batch-size-valid 1"),
    Case("--criterion label_smoothed_cross_entropy --report-accuracy"),
    Case("--eval-bleu"),
    Case("--path {base}:{second}"),
    Case("--model-overrides {{'encoder_layers_to_keep':'0'}}"),
]

INTERACTIVE = [
    Case("--bpe bytes"),
    Case("--bpe characters"),
    Case("--constraints"),
    Case("--constraints unordered"),
    Case("--constraints", "--sampling --nbest 4"),
    Case("--print-alignment"),
    Case("--buffer-size 3"),
    Case("--nbest 2"),
    Case("--retain-dropout"),
    Case("--sampling"),
    Case("--prefix-size 1"),
    Case("--lm-path {lm}"),
    Case("--sacrebleu"),
    Case("--results-path {results}"),
    Case("--print-alignment soft"),
    Case("--no-repeat-ngram-size 1"),
    Case("--score-reference"),
    Case("--force-annotations"),
    Case("--bf16"),
    Case("--amp"),
    Case("--eos-token w3"),
    Case("--constraints", "--path {base}:{other}"),
    Case("--print-alignment", "--path {base}:{other}"),
]


def write_corpus(folder: Path) -> Path:
    """Binarised sentences of words w0, w1, ..., the same reversed as targets, and alignments."""
    folder.mkdir()
    words = Dictionary()
    for index in range(WORDS):
        words.add_symbol(f"w{index}")
    for language in "ab":
        words.save(str(folder / f"dict.{language}.txt"))
    rng = random.Random(1)
    for split, size in SENTENCES.items():
        sides: dict[str, list[torch.Tensor]] = {"a": [], "b": [], "align": []}
        for _ in range(size):
            sentence = [rng.randrange(4, len(words)) for _ in range(rng.randint(2, 8))]
            last = len(sentence) - 1
            pairs = [number for index in range(last + 1) for number in (index, last - index)]
            sides["a"].append(torch.tensor([*sentence, words.eos()]))
            sides["b"].append(torch.tensor([*sentence[::-1], words.eos()]))
            sides["align"].append(torch.tensor(pairs))
        for side, lines in sides.items():
            name = f"{split}.align.a-b" if side == "align" else f"{split}.a-b.{side}"
            builder = MMapIndexedDatasetBuilder(str(folder / f"{name}.bin"))
            for line in lines:
                builder.add_item(line)
            builder.finalize(str(folder / f"{name}.idx"))
    return folder


def write_monolingual(data: Path, folder: Path) -> Path:
    """The targets alone, for a language model."""
    folder.mkdir()
    for place in (folder, data):  # fairseq-generate reads it beside the sentence pairs
        shutil.copyfile(data / "dict.b.txt", place / "dict.txt")
    for split in SENTENCES:
        for kind in ("bin", "idx"):
            shutil.copyfile(data / f"{split}.a-b.b.{kind}", folder / f"{split}.{kind}")
    return folder


class Row(NamedTuple):
    """One line of the table; a cell says what happened and why."""

    options: str
    with_options: str
    transformer: tuple[str, str]
    resmlp: tuple[str, str]

    @property
    def agrees(self) -> bool:
        """Whether ResMLP does the same as the Transformer, refuses the option or does more."""
        return self.resmlp[0] in ("refused", self.transformer[0]) or (
            self.resmlp[0] == "honoured" and self.transformer[0] in ("refused", "fails")
        )


class Outcome(NamedTuple):
    """The outcome of a command: its kind, the compared text, and the reason if it stopped."""

    kind: str
    result: str
    reason: str = ""


class Bench:
    """Both models on the corpus; outcomes of commands are kept, because many are used twice."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = write_corpus(folder / "data")
        self.known: dict[tuple[str, ...], Outcome] = {}
        vectors = "\n".join(f"w{index} " + "0.1 " * 63 + f"{index / 10}" for index in range(WORDS))
        (folder / "vectors").write_text(f"{WORDS} 64\n{vectors}\n")
        (folder / "results").mkdir()
        (folder / "config").write_text("layers_to_quantize: []\n")
        self.names = {
            "vectors": folder / "vectors",
            "config": folder / "config",
            "results": folder / "results",
            "lm": folder / "lm" / "checkpoint_last.pt",
        }
        for model, arch in MODELS.items():
            for name, seed in ((model, 1), (f"{model}-again", 2)):
                done = self.train(arch, folder / name, "--seed", str(seed), "--max-epoch", "6")
                assert done.status == 0, done.log
        words = write_monolingual(self.data, folder / "words")
        done = run(
            "train", words, "--task", "language_modeling", "--arch", "transformer_lm", "--cpu",
            "--distributed-world-size", 1, "--decoder-layers", 1, "--decoder-embed-dim", 32,
            "--tokens-per-sample", 20, "--batch-size", 20, "--max-epoch", 2, "--num-workers", 0,
            "--optimizer", "adam", "--lr", 0.005, "--save-dir", folder / "lm",
        )  # fmt: skip
        assert done.status == 0, done.log

    def train(self, arch: str, save_dir: Path, *arguments: str) -> Done:
        return run(
            "train", self.data, "--arch", arch, "--cpu", "--distributed-world-size", 1,
            "--encoder-layers", 2, "--decoder-layers", 2, "--encoder-embed-dim", 64,
            "--decoder-embed-dim", 64, "--encoder-ffn-embed-dim", 64,
            "--decoder-ffn-embed-dim", 64, "--max-source-positions", 40,
            "--max-target-positions", 40, "--optimizer", "adam", "--lr", 0.005,
            "--criterion", "label_smoothed_cross_entropy", "--dropout", 0.1, "--batch-size", 20,
            "--max-epoch", 2, "--seed", 1, "--num-workers", 0, "--data-buffer-size", 0,
            "--log-format", "simple", "--save-dir", save_dir, *arguments,
        )  # fmt: skip

    def outcome(self, command: str, model: str, options: str) -> Outcome:
        """The outcome of a command with some options, for one of the models."""
        key = (command, model, options)
        if key not in self.known:
            self.known[key] = self._outcome(*key)
        return self.known[key]

    def _outcome(self, command: str, model: str, options: str) -> Outcome:
        other = next(name for name in MODELS if name != model)
        paths = {
            name: self.folder / folder / "checkpoint_last.pt"
            for name, folder in (("base", model), ("second", f"{model}-again"), ("other", other))
        }
        arguments = options.format(**paths, **self.names).split()
        save_dir = Path(tempfile.mkdtemp(dir=self.folder))
        text = "w1 w2 w3\nw4 w9\tw4\nw5 w6 w7 w8 w9\n"
        if command == "train":
            done = self.train(MODELS[model], save_dir, *arguments)
        elif command == "interactive":
            done = run(
                command, self.data, "--path", paths["base"], "--cpu", "--beam", 4,
                "--num-workers", 0, "-s", "a", "-t", "b", *arguments, text=text,
            )  # fmt: skip
        elif command == "validate":
            done = run(
                command, self.data, "--task", "translation", "--path", paths["base"], "--cpu",
                "--batch-size", 6, "--num-workers", 0, "--log-format", "json", *arguments,
            )  # fmt: skip
        else:
            done = run(
                command, self.data, "--path", paths["base"], "--cpu", "--beam", 4, "--batch-size",
                6, "--num-workers", 0, *arguments,
            )  # fmt: skip
        if done.status == 70:
            return Outcome("fails", "", done.last)
        if done.status != 0:
            return Outcome("refused", "", done.last)
        return Outcome("works", self._result(command, done, save_dir))

    def _result(self, command: str, done: Done, save_dir: Path) -> str:
        if command == "train":
            path = save_dir / "checkpoint_last.pt"
            if not path.exists():
                return "no checkpoint"
            saved = torch.load(path, weights_only=True)
            parameters = [saved["model"], saved["extra_state"].get("ema", {})]
            validations = re.findall(r"valid on .*", done.log)
            sums = (x.double().abs().sum().item() for part in parameters for x in part.values())
            numbers = [f"{value:.4g}" for value in sums]  # kernels round differently
            scores = re.findall(r" \| (\w+) (\S+)", validations[-1]) if validations else []
            scores = [(name, value) for name, value in scores if name != "wps"]  # a speed
            counts = [
                len(validations),
                done.log.count("| train_inner |"),
                *map(bool, saved.values()),
            ]
            return repr((sorted(p.name for p in save_dir.iterdir()), numbers, scores, counts))
        if command == "validate":
            # all that is printed but speeds
            lines = re.findall(r'"(?:valid|test)_(?!wps|ups|wall)\w+": "[^"]*"', done.log)
        else:
            pattern = r"^(?:[STHDPAEIC]-\d+|Generate \w+ with).*$"
            lines = re.findall(pattern, done.output, re.MULTILINE)
        return re.sub(r"-?\d+\.\d+", _rounded, "\n".join(sorted(lines)))

    def row(self, command: str, case: Case) -> Row:
        cells = []
        for model in MODELS:
            outcome = self.outcome(command, model, f"{case.with_options} {case.options}".strip())
            kind = outcome.kind
            if kind == "works":
                base = self.outcome(command, model, case.with_options)
                kind = "no difference" if outcome.result == base.result else "honoured"
            cells.append((kind, outcome.reason.replace(str(self.folder), "")))
        return Row(case.options, case.with_options, *cells)


def _rounded(number: re.Match[str]) -> str:
    """A rounded number, because batches of other shapes have other rounding errors."""
    return f"{float(number[0]):.2f}"


def page(tables: dict[str, list[Row]]) -> str:
    """The document."""
    lines = [HEAD]
    for command, rows in tables.items():
        lines += [f"## fairseq-{command}", "", "| option | beside | Transformer | ResMLP |"]
        lines += ["|-|-|-|-|", *map(_line, rows), ""]
    return "\n".join(lines)


def _line(row: Row) -> str:
    cells = [f"`{part}`" if part else "" for part in (row.options, row.with_options)]
    for kind, reason in (row.transformer, row.resmlp):
        reason = re.sub(r"^fairseq-\w+: error: ", "", reason.strip())[:160].replace("|", "\\|")
        cells.append(f"{kind}: {reason}" if reason else kind)
    return "| " + " | ".join(cell.replace("{{", "{").replace("}}", "}") for cell in cells) + " |"


def write(stored: dict[str, list[Any]], cases: dict[str, list[Case]]) -> None:
    """Write both files, in the order of the cases."""
    tables: dict[str, list[Row]] = {}
    for command, known in cases.items():
        rows = {(row[0], row[1]): Row(*row) for row in stored.get(command, [])}
        tables[command] = [rows[case] for case in known if case in rows]
    with replacing(ROWS) as partial:
        partial.write_text(json.dumps(tables, indent=1) + "\n")
    with replacing(PAGE) as partial:
        partial.write_text(page(tables))


@command_line.command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    tables = {
        "train": TRAIN,
        "generate": GENERATE,
        "validate": VALIDATE,
        "interactive": INTERACTIVE,
    }
    parser.add_argument("--commands", nargs="+", choices=tables, default=list(tables))
    parser.add_argument("--only", nargs="+", default=[""], metavar="TEXT", help="parts of options")
    parser.add_argument("--missing", action="store_true", help="options that have no row yet")
    args = parser.parse_args()
    logging.disable()
    stored = json.loads(ROWS.read_text()) if ROWS.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        for command in args.commands:
            rows = {row[0] + " " + row[1]: row for row in stored.get(command, [])}
            for case in tables[command]:
                known = f"{case.options} {case.with_options}" in rows
                if any(part in case.options for part in args.only) and not (args.missing and known):
                    row = bench.row(command, case)
                    rows[row.options + " " + row.with_options] = row
                    print("" if row.agrees else "DIFFERS ", command, *row, flush=True)
                    stored[command] = list(rows.values())
                    write(stored, tables)


if __name__ == "__main__":
    main()
