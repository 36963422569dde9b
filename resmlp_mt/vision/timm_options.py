"""Answers for the options of timm's scripts, and of other trainers, that are not here.

The others have the same names here; see :mod:`resmlp_mt.vision.training_options` and
:mod:`resmlp_mt.vision.evaluation_options`.
"""

import re
from collections.abc import Container

BATCH_NORM = "ResMLP has no batch norm; arguments of a model of timm go to --model-kwargs"
DATA = "use --data DIR, cifar10-tar FILE, wds DIR or digits"
SAVED = "last.pth and best.pth are saved after every epoch; see also --recovery-interval"
START = "start a new training from the weights with --weights"
TEACHER = "use --teacher, --teacher-weights and --distillation-type, -alpha and -tau"
TENSORBOARD = "use --tensorboard, or read summary.csv in the output folder"
COMPILE = "use --torchcompile"
PROCESSES = (
    "start several processes with torchrun; --lr-base fits the learning rate to their number"
)

ONE_SIZE = "images have one size: use --img-size"
COLUMNS = "use --format, which has paths, labels and probabilities"
LEAVE_OUT = "leave it out"

#: options, and what to do instead; of several, the first whose options the command has
ANSWERS: dict[str, str | tuple[str, ...]] = {
    "--log-wandb --wandb-project --wandb-tags --wandb-resume-id": TENSORBOARD,
    "--dataset --dataset-download --dataset-trust-remote-code --input-key": DATA,
    "--target-key --num-samples --train-num-samples --val-num-samples --data-path --data-set": DATA,
    "--input-img-mode --in-chans": "images are read as RGB: leave it out",
    "--input-size": "use --img-size",
    "--gp --test-pool": "use --model-kwargs pooling=class_mlp for another pooling",
    "--pretrained-path": ("use --weights FILE --reset-head", "use --weights FILE"),
    "--no-resume-opt --start-epoch": START,
    "--dist-bn": "the statistics of batch norm are averaged over the processes: leave it out",
    "--bn-momentum --bn-eps --sync-bn --split-bn --no-ddp-bb": BATCH_NORM,
    "--drop-connect --drop-block": "use --drop-path",
    "--head-init-scale --head-init-bias": "the classifier starts as in the authors' code",
    "--fuser --torchscript --aot-autograd --fast-norm --reparam": COMPILE,
    "--torchcompile --torchcompile-mode": "affine maps are folded here, which is faster on a CPU",
    "--channels-last": "it does not help ResMLP: leave it out",
    "--amp --amp-dtype": "use --dtype bfloat16",
    "--apex-amp --native-amp": "use --amp",
    "--fp16 --bf16 --precision": ("use --amp", "use --dtype bfloat16"),
    "--amp-impl": "mixed precision is PyTorch's: leave it out",
    "--model-dtype": "use --amp, with --amp-dtype",
    "--device-modules --synchronize-step": "use --device",
    "--local-rank --num-gpu --gpu --gpus": PROCESSES,
    "--layer-decay-min-scale --layer-decay-no-opt-scale": "use --layer-decay alone",
    "--epoch-repeats": "use more --epochs",
    "--aug-splits --jsd-loss --resplit": "use --aug-repeats",
    "--model-ema-force-cpu": "the average is kept on the device of the model: leave it out",
    "--worker-seeding": "random numbers do not depend on workers: leave it out",
    "--log-interval --log-freq --print-freq --save-images": "use --progress",
    "--val-interval --checkpoint-hist": SAVED,
    "--experiment --output-dir --results-dir": "use --output",
    "--eval-metric": "best.pth has the best top-1 accuracy: leave it out",
    "--tta --retry --crop-border-pixels --use-train-size --tf-preprocessing": LEAVE_OUT,
    "--pin-mem --seed": "it changes nothing here: leave it out",
    "--crop-mode --eval-crop-ratio": "images are cropped at their centre; use --crop-pct",
    "--use-multi-epochs-loader": "workers are kept between epochs anyway: leave it out",
    "--naflex-loader --naflex-train-seq-lens --naflex-max-seq-len --naflex-patch-sizes": ONE_SIZE,
    "--naflex-patch-size-probs --naflex-loss-scale": ONE_SIZE,
    "--kd-model-name --kd-distill-type --kd-loss-type --kd-temperature": TEACHER,
    "--kd-student-feature-dim --kd-teacher-feature-dim --kd-token-distill-type": TEACHER,
    "--distill-loss-weight --task-loss-weight --teacher-model --teacher-path": TEACHER,
    "--results-file --results-format --metrics-avg": (
        "use --json FILE, which has precision and F1 too",
        "use --output FILE",
    ),
    "--data-dir --split": (
        "use --train-split and --val-split",
        "use --data",
        "images and folders are named without an option",
    ),
    "--label-type": "labels are the names of the classes; --class-map gives others",
    "--filename-col --index-col --label-col --output-col --output-type --include-index": COLUMNS,
    "--exclude-output --results-separate-col --fullname": COLUMNS,
    "--no-console-results": "use --output",
    "--real-labels --valid-labels": "classes are matched by their names; use --data",
    "--eval --test-only": "use python -m resmlp_mt.vision.evaluate",
    # of torchvision's and DeiT's scripts
    "--arch -a": "use --model",
    "--finetune": ("use --weights FILE --reset-head", "use --weights FILE"),
    "--wd": "use --weight-decay",
    "--learning-rate": "use --lr",
    "--lr-scheduler": "use --sched",
    "--lr-warmup-epochs": "use --warmup-epochs",
    "--clip-grad-norm": "use --clip-grad",
    "--auto-augment": "use --aa",
    "--random-erase": "use --reprob",
    "--mixup-alpha": "use --mixup",
    "--cutmix-alpha": "use --cutmix",
    "--ra-sampler --ra-reps --repeated-aug --no-repeated-aug": "use --aug-repeats",
    "--ThreeAugment": "use --aa 3a",
    "--unscale-lr": "--lr is not scaled, --lr-base is: leave it out",
    "--dist-eval": "the processes share the validation: leave it out",
    "--nb-classes": "use --num-classes",
    "--label-smoothing": "use --smoothing",
    "--train-crop-size --val-crop-size --val-resize-size": ONE_SIZE,
    "--world-size --dist-url --dist-backend": PROCESSES,
    # of timm's onnx_export.py
    "--opset --dynamo --keep-init --aten-fallback --check-forward --training": LEAVE_OUT,
    "--dynamic-size": "only the batch size is free: use --img-size",
}


#: options of timm's train.py that change no result: with any value (None), or only with these
#: words, which are timm's default
UNNEEDED: dict[str, str | None] = {
    **dict.fromkeys("--amp-impl --checkpoint-hist --local-rank --log-interval".split()),
    "--worker-seeding": None,
    "--save-images": "",
    "--use-multi-epochs-loader": "",
    "--dist-bn": "reduce",
    "--eval-metric": "top1",
    "--kd-distill-type": "logit",
    "--kd-loss-type": "kl",
    "--kd-temperature": "4.0",
    "--kd-token-distill-type": "soft",
    "--naflex-train-seq-lens": "128 256 576 784 1024",
    "--naflex-max-seq-len": "576",
    "--naflex-loss-scale": "linear",
    "--val-interval": "1",
}


def answer(flag: str, known: Container[str], abbreviated: bool = False) -> str | None:
    """One sentence about an option of timm; None if there is no such option.

    Args:
        flag: the option.
        known: the options of the command; the sentence names no others.
        abbreviated: timm's commands take the beginning of an option, such as ``--jsd``.
    """
    by_name = {name: answers for names, answers in ANSWERS.items() for name in names.split()}
    if abbreviated and flag.startswith("--") and flag not in by_name:
        flag = next((name for name in by_name if name.startswith(flag)), flag)
    if flag not in by_name:
        return None
    answers = by_name[flag]
    several = (answers,) if isinstance(answers, str) else answers
    options = {text: re.findall(r"--[a-z][a-z-]*", text) for text in several}
    usable = (text for text in several if all(o in known for o in options[text]))
    instead = next(usable, LEAVE_OUT)
    return f"{flag} is an option of timm or another trainer that this command lacks: {instead}"
