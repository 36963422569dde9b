"""Reads the options of the training: from the command line, ``--config`` and ``--resume``.

A YAML file sets the defaults of options by name (``weight_decay`` or ``weight-decay``); flags win
over it. Its values are checked by the same parser. ``base: OTHER.yaml`` starts from another file in
the same folder.
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from resmlp_mt.command_line import did_you_mean, flag
from resmlp_mt.errors import UserError, reason
from resmlp_mt.other_programs import answers
from resmlp_mt.vision.options import KeyValues, Parser, Unneeded, answer
from resmlp_mt.vision.presets import is_ours
from resmlp_mt.vision.training_options import LR, TrainingOptions

# The digits are not photographs: a mirrored digit is another sign, and colour means nothing.
DIGITS = {
    "hflip": 0.0,
    "color_jitter": 0.0,
    "epochs": 60,
    "batch_size": 64,
    "lr": 3 * LR,
}

# Options that do not change what a run computes, and may differ after --resume.
MAY_CHANGE = {
    "class_map", "data", "device", "num_classes", "on_error", "output", "pin_mem", "progress",
    "recovery_interval", "tensorboard", "torchcompile", "torchcompile_mode",
    "validation_batch_size", "workers",
    "teacher", "teacher_weights",  # wherever it is now: last.pth has its digest
}  # fmt: skip
#: arguments of timm's optimizers that have an option of their own
OPTIMIZER_FLAGS = {
    "opt": "--opt", "lr": "--lr", "weight_decay": "--weight-decay", "momentum": "--momentum",
    "eps": "--opt-eps", "betas": "--opt-betas", "layer_decay": "--layer-decay",
}  # fmt: skip
#: beginnings of the names of options that timm does not have
OWN = ("reset_head", "teacher", "distillation")
#: options that --no-aug leaves without effect
AUGMENTATION = (
    "scale ratio train_crop_mode hflip vflip color_jitter color_jitter_prob grayscale_prob "
    "gaussian_blur_prob aa train_interpolation reprob remode recount"
)
RECIPES = Path(__file__).parents[1] / "configs/vision"


def create_parser() -> Parser:
    """All options of ``python -m resmlp_mt.vision.train``."""
    parser = Parser(
        "train",
        TrainingOptions,
        "Train an image model; without options, on scikit-learn's handwritten digits.",
        needs=["sklearn", "yaml"],  # the extra of the first one brings both
    )
    parser.add_argument("folder", nargs="?", metavar="DIR", help="the same as --data DIR")
    for names, words in answers("timm-unneeded").items():
        parser.add_argument(
            *names.split(), action=Unneeded, nargs=len(words.split()), const=words,
            dest=argparse.SUPPRESS, help=argparse.SUPPRESS,
        )  # fmt: skip
    return parser


def parse_args(argv: Sequence[str] | None = None) -> TrainingOptions:
    """The options: flags over ``--config`` over those of the run that ``--resume`` continues.

    Raises:
        UserError: for an option, a value or a file that is wrong.
    """
    parser = create_parser()
    flags = _given(parser, argv)
    resume, config = flags.get("resume"), flags.get("config")
    if resume and resume.is_dir():
        resume = flags["resume"] = resume / "last.pth"
    earlier: dict[str, Any] = {}
    if resume:
        from resmlp_mt.vision.checkpoints import load  # with PyTorch

        earlier = load(resume).get("config") or {}
        if not earlier:
            raise UserError(
                f"--resume {resume} lacks the options of its training: give the last.pth of a "
                "training."
            )
    values = _read_yaml(config) if config else {}
    in_file = _given(parser, _to_flags(values, parser, config)) if config else {}
    # the patches of one of our models are not for a flag's model of timm
    unfit = {"patch_size"} if _has_ours(in_file) and not _has_ours(flags) else set()
    found = _over({name: value for name, value in in_file.items() if name not in unfit}, flags)
    if resume:  # the folder may have been moved
        words = _to_flags(earlier, parser, resume)
        found = _given(parser, words) | {"output": resume.parent} | found
    usual: dict[str, Any] = {"lr": LR}
    if found.get("data", ["digits"]) == ["digits"]:
        usual |= {name: value for name, value in DIGITS.items() if name not in values}
        # models of timm and other sizes of images have patches of their own
        if _has_ours(found) and not found.get("img_size") and "patch_size" not in values:
            usual["patch_size"] = 2
    if found.get("lr_base") is not None:
        del usual["lr"]
    options = TrainingOptions(**usual | found)
    for name, expected in (
        ("img_size", "a side, or height and width"),
        ("lr_noise", "one share of the epochs, or two"),
    ):
        if len(given := getattr(options, name) or ()) > 2:
            raise UserError(f"{flag(name)} takes {expected}, but not {len(given)} values.")
    if options.img_size:  # for --resume, a side and the pair are the same
        options = replace(options, img_size=[options.img_size[0], options.img_size[-1]])
    if resume:
        _check_same_run(options, earlier)
    else:
        _check_used(options, in_file)
    return options


def _has_ours(values: dict[str, Any]) -> bool:
    """Whether options name one of our models, or none."""
    return is_ours(values.get("model", TrainingOptions.model))


def _given(parser: Parser, words: Sequence[str] | None) -> dict[str, Any]:
    """The options that a command line gives, without the defaults of the others."""
    absent = object()
    names = [action.dest for action in parser._actions]
    found = parser.parse_args(words, argparse.Namespace(**dict.fromkeys(names, absent)))
    given = {name: value for name, value in vars(found).items() if value is not absent}
    folder = given.pop("folder", None)
    if folder is not None:
        if "data" in given:
            raise UserError(f"--data is given, and {folder} too: leave out one of them.")
        given["data"] = [folder]
    return given


def _check_same_run(options: TrainingOptions, earlier: dict[str, Any]) -> None:
    """Refuse options that a resumed training would ignore, such as another learning rate."""
    for name, value in _plain(options.to_config()).items():
        # options that an earlier version did not have keep their old meaning
        before = _plain(earlier.get(name, getattr(TrainingOptions(), name)))
        if name not in MAY_CHANGE and value != before:
            raise UserError(
                f"--resume {options.resume} continues with {flag(name)} {before}, not {value}; to "
                "change that, start a new training from its weights with --weights."
            )


def _check_used(options: TrainingOptions, in_file: dict[str, Any]) -> None:
    """Refuse flags that do nothing without another option, or that would overrule another one.

    The values of --config, ``in_file``, may be without effect, and an older version's defaults.
    """
    for key in (key for key in options.opt_kwargs if key in OPTIMIZER_FLAGS):
        raise UserError(
            f"--opt-kwargs {key}=... has an option of its own: use {OPTIMIZER_FLAGS[key]}."
        )
    cutmix = options.cutmix or options.cutmix_minmax
    mixes, kind, sched = options.mixup or cutmix, options.distillation_type, options.sched
    cycles = ("cosine", "tanh", "poly")
    # options, what they need, and whether that is given
    needs: tuple[tuple[str, str, Any], ...] = (
        ("reset_head", "--weights or --pretrained", options.weights or options.pretrained),
        ("lr_base_size lr_base_scale", "--lr-base", options.lr_base is not None),
        ("clip_mode", "--clip-grad", options.clip_grad),
        ("model_ema_decay model_ema_warmup", "--model-ema", options.model_ema),
        ("lr_noise_pct lr_noise_std", "--lr-noise", options.lr_noise),
        ("color_jitter_prob", "--color-jitter", options.color_jitter),
        ("remode recount", "--reprob", options.reprob),
        ("mixup_off_epoch mixup_prob mixup_mode", "--mixup or --cutmix", mixes),
        ("mixup_switch_prob", "--mixup and --cutmix", options.mixup and cutmix),
        ("bce_sum bce_target_thresh bce_pos_weight", "--bce-loss", options.bce_loss),
        ("teacher_weights", "--teacher", options.teacher),
        ("distillation_alpha", "--distillation-type", kind != "none"),
        ("distillation_tau", "--distillation-type soft", kind == "soft"),
        ("amp_dtype", "--amp", options.amp),
    )
    by_sched: tuple[tuple[str, bool], ...] = (
        ("warmup_epochs warmup_lr lr_noise layer_decay sched_on_updates", sched != "none"),
        ("min_lr", sched in (*cycles, "wsd", "rsqrt", "plateau")),
        ("cooldown_epochs", sched in (*cycles, "wsd", "rsqrt")),
        ("warmup_prefix", sched not in ("none", "plateau")),
        ("decay_epochs", sched in ("step", "wsd", "rsqrt")),
        ("lr_decay_fn", sched in ("wsd", "rsqrt")),
        ("lr_stable_timescale", sched == "rsqrt"),
        ("decay_rate", sched in ("step", "multistep", "plateau", "poly")),
        ("decay_milestones", sched == "multistep"),
        ("patience_epochs", sched == "plateau"),
        ("lr_cycle_mul lr_cycle_decay lr_cycle_limit", sched in cycles),
        ("lr_k_decay", sched in ("cosine", "poly")),
    )
    # options, what does not use them, and whether it does
    without: tuple[tuple[str, str, Any], ...] = (
        *((names, f"--sched {sched}", is_used) for names, is_used in by_sched),
        ("warmup_lr warmup_prefix", "--warmup-epochs 0", options.warmup_epochs),
        ("lr_cycle_mul lr_cycle_decay", "--lr-cycle-limit 1", options.lr_cycle_limit > 1),
        (AUGMENTATION, "--no-aug", options.aug),
        # timm has both only with its policies of three operations
        ("color_jitter color_jitter_prob", f"--aa {options.aa}", "3a" in (options.aa or "3a")),
        ("momentum", f"--opt {options.opt}", _takes_momentum(options)),
    )
    usual = TrainingOptions()
    for rules, sentence in (
        (needs, "{} needs {}: give it, or leave out both."),
        (without, "{1} does not use {0}: leave it out."),
    ):
        for names, partner, is_used in rules:
            for name in names.split() if not is_used else ():
                value = getattr(options, name)
                may_stay = value == in_file.get(name) and not name.startswith(OWN)
                if value not in (getattr(usual, name), 0) and not may_stay:
                    raise UserError(sentence.format(flag(name), partner))


def _takes_momentum(options: TrainingOptions) -> bool:
    """Whether ``--momentum`` is as usual, or the optimizer has one or is unknown."""
    if options.momentum == TrainingOptions().momentum:
        return True  # without loading timm
    from resmlp_mt.vision.libraries import timm

    name = options.opt.lower().rpartition("_")[2]
    known = name in timm.optim.list_optimizers()
    return not known or bool(timm.optim.get_optimizer_info(name).has_momentum)


def _plain(value: Any) -> Any:
    """A value with lists instead of tuples, as in YAML."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value


def _read_yaml(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The values of a recipe over those of its ``base``."""
    import yaml

    from resmlp_mt.yaml_files import SafeLoader

    name = path.name.removesuffix(".yaml")
    ours = path.parent in (Path(), Path("configs/vision"))
    recipe = RECIPES / f"{name}.yaml"
    found = recipe if ours and not path.is_file() and recipe.exists() else path
    try:
        values = yaml.load(found.read_text(encoding="utf-8"), SafeLoader)
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        similar = ""
        if ours and isinstance(error, FileNotFoundError):
            similar = did_you_mean(name, (path.stem for path in RECIPES.glob("*.yaml")))
        raise UserError(f"--config {path} cannot be read: {reason(error)}{similar}.") from error
    if not isinstance(values, dict) or not all(_flat(value) for value in values.values()):
        raise UserError(f"--config {path}: expected lines of the form OPTION: VALUE.")
    spelt = Counter(str(key).replace("-", "_") for key in values)
    if twice := [key for key, count in spelt.items() if count > 1]:
        raise UserError(f"--config {path}: {twice[0]} occurs more than once: keep one.")
    values = {str(key).replace("-", "_"): value for key, value in values.items()}
    base = values.pop("base", None)
    if base is None:
        return values
    if not isinstance(base, str) or Path(base).name != base or base in ("", "..") or "\0" in base:
        raise UserError(
            f"--config {path}: base must be the name of a file beside it, but is {base!r}."
        )
    if found.with_name(base) in (*above, found):
        raise UserError(f"--config {path}: base must name another file, but is {base!r}.")
    return _over(_read_yaml(found.with_name(base), (*above, found)), values)


def _over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Values over others; an ``lr_base`` without an ``lr`` also replaces a lower ``lr``."""
    if above.get("lr_base") is not None and above.get("lr") is None:
        below = {name: value for name, value in below.items() if name != "lr"}
    return below | above


def _flat(value: Any, depth: int = 2) -> bool:
    """Whether a value is plain or a shallow collection: YAML aliases can make huge ones."""
    parts = value.values() if isinstance(value, dict) else value
    return not isinstance(value, dict | list) or (
        depth > 0 and len(value) <= 100 and all(_flat(part, depth - 1) for part in parts)
    )


def _to_flags(values: dict[str, Any], parser: Parser, path: Path) -> list[str]:
    """The options of a file as arguments of a command line."""
    words: list[str] = []
    actions = parser._option_string_actions
    alone = {"--help", "--version", "--config", "--resume"}  # on the command line
    for key, value in values.items():
        word = flag(str(key))
        if word not in actions or word in alone:
            instead = answer(word, actions)
            off = not value and (instead is not None or word in alone)
            if off:
                continue
            what = instead or f"there is no option {key}"
            raise UserError(f"{path}: {what}; train --help lists the options.")
        if value == "":
            continue  # timm's way to leave an option out
        if isinstance(value, bool):
            opposite = f"--no-{word[2:]}" if not word.startswith("--no-") else f"--{word[5:]}"
            if opposite not in actions and actions[word].nargs not in (0, "?"):
                raise UserError(
                    f"{path}: {key} takes a value, not {str(value).lower()} (YAML reads on and "
                    "off as such)."
                )
            words += [each for each in [word if value else opposite] if each in actions]
        elif isinstance(value, list | tuple):
            if actions[word].nargs not in ("+", "*", len(value)):  # others would become a folder
                raise UserError(f"{path}: {key} cannot be a list of {len(value)} values.")
            words += [word, *map(str, value)]
        elif isinstance(value, dict):
            if not isinstance(actions[word], KeyValues):
                raise UserError(f"{path}: {key} cannot be a mapping.")
            words += [word, *(f"{k}={v}" for k, v in value.items())]
        elif value is not None:
            words.append(f"{word}={value}")
    return words
