"""Answers for the options of timm's train.py, validate.py and inference.py that are not here.

The others have the same names here; see :mod:`resmlp_mt.vision.training_options` and
:mod:`resmlp_mt.vision.evaluation_options`.
"""

BATCH_NORM = "ResMLP has no batch norm; arguments of a model of timm go to --model-kwargs"
DATA = "use --data DIR, cifar10-tar FILE, wds DIR or digits"
SAVED = "last.pth and best.pth are saved after every epoch; see also --recovery-interval"
START = "start a new training from the weights with --weights"
TEACHER = "use --teacher, --teacher-weights and --distillation-type, -alpha and -tau"
TENSORBOARD = "use --tensorboard, or read summary.csv in the output folder"
COMPILE = "use --torchcompile in training"

#: options, and what to do instead
ANSWERS = {
    "--log-wandb --wandb-project --wandb-tags --wandb-resume-id": TENSORBOARD,
    "--dataset --dataset-download --dataset-trust-remote-code --class-map --input-key": DATA,
    "--target-key --num-samples --train-num-samples --val-num-samples --data-path --data-set": DATA,
    "--input-img-mode --in-chans": "images are read as RGB: leave it out",
    "--input-size": "use --img-size HEIGHT WIDTH in training, --img-size SIDE elsewhere",
    "--gp --test-pool": "use --model-kwargs pooling=class_mlp for another pooling",
    "--pretrained-path": "use --weights FILE --reset-head",
    "--no-resume-opt --start-epoch": START,
    "--bn-momentum --bn-eps --sync-bn --dist-bn --split-bn --no-ddp-bb": BATCH_NORM,
    "--drop-connect --drop-block": "use --drop-path",
    "--head-init-scale --head-init-bias": "the classifier starts as in the authors' code",
    "--fuser --torchscript --aot-autograd --fast-norm --reparam": COMPILE,
    "--torchcompile --torchcompile-mode": "affine maps are folded here, which is faster on a CPU",
    "--channels-last": "it does not help ResMLP: leave it out",
    "--amp --amp-dtype": "use --dtype bfloat16",
    "--amp-impl": "mixed precision is PyTorch's: leave it out",
    "--model-dtype": "use --amp, with --amp-dtype",
    "--device-modules --synchronize-step": "use --device: leave it out",
    "--local-rank --local_rank --num-gpu": "start several processes with torchrun",
    "--layer-decay-min-scale --layer-decay-no-opt-scale": "use --layer-decay alone",
    "--epoch-repeats": "use more --epochs",
    "--aug-splits --jsd-loss --resplit": "use --aug-repeats",
    "--model-ema-force-cpu": "the average is kept on the device of the model: leave it out",
    "--worker-seeding": "random numbers do not depend on workers: leave it out",
    "--log-interval --log-freq --save-images": "use --progress",
    "--val-interval --checkpoint-hist": SAVED,
    "--experiment --output_dir --output-dir --results-dir": "use --output",
    "--eval-metric": "best.pth has the best top-1 accuracy: leave it out",
    "--tta --retry --crop-border-pixels --use-train-size --tf-preprocessing": "leave it out",
    "--pin-mem --seed": "it changes nothing here: leave it out",
    "--crop-mode": "images are cropped at their centre; use --crop-pct",
    "--use-multi-epochs-loader": "workers are kept between epochs anyway: leave it out",
    "--naflex-loader --naflex-train-seq-lens --naflex-max-seq-len --naflex-patch-sizes": (
        "images have one size: use --img-size"
    ),
    "--naflex-patch-size-probs --naflex-loss-scale": "images have one size: use --img-size",
    "--kd-model-name --kd-distill-type --kd-loss-type --kd-temperature": TEACHER,
    "--kd-student-feature-dim --kd-teacher-feature-dim --kd-token-distill-type": TEACHER,
    "--distill-loss-weight --task-loss-weight --teacher-model --teacher-path": TEACHER,
    "--results-file --results-format --metrics-avg": (
        "evaluate: use --json FILE, which has precision and F1 too; predict: --output FILE"
    ),
    "--real-labels --valid-labels": "classes are matched by their names; use --data",
    "--eval": "use python -m resmlp_mt.vision.evaluate",
}


def answer(flag: str) -> str | None:
    """One sentence about an option of timm; None if there is no such option."""
    for flags, instead in ANSWERS.items():
        if flag in flags.split():
            return f"{flag} is an option of timm that this command lacks: {instead}"
    return None
