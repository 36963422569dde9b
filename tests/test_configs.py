"""The recipes: what a YAML of configs/mt builds, and that docs/recipes.md says the same."""

import json
import logging
import re
import shlex
import shutil
import sys
import uuid
from argparse import Namespace
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from fairseq import checkpoint_utils, options, utils
from fairseq.dataclass.initialize import add_defaults, hydra_init
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.models import ARCH_MODEL_REGISTRY
from fairseq.optim import build_optimizer
from fairseq.optim.lr_scheduler import build_lr_scheduler
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import JobReturn
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

import resmlp_mt.models
from benchmarks import gpu_hours, multi30k, stability
from conftest import ROOT, Corpus, fairseq
from data_scripts import demo
from models import dictionary
from resmlp_mt.errors import UserError
from test_models import expected_parameters

CONFIGS = ROOT / "resmlp_mt/configs/mt"
WMT = (512, 2048, 8, 256, 32_000)
MULTI30K = (3, 128, 512, 4, 128, 4_000)
# name: layers, dim, hidden, heads, longest sentence, vocabulary
RECIPES = {
    "wmt14_en_de_6l": (6, *WMT),
    "wmt14_en_de_12l": (12, *WMT),
    "wmt14_en_fr_6l": (6, *WMT),
    "wmt14_en_fr_12l": (12, *WMT),
    "multi30k_en_de": MULTI30K,
    "multi30k_en_fr": MULTI30K,
    "demo": (2, 128, 256, 4, 64, 1_000),
}
WMT_RECIPES = [name for name in RECIPES if name.startswith("wmt14")]


def from_yaml(name: str, *overrides: str) -> DictConfig:
    """What fairseq-hydra-train resolves."""
    GlobalHydra.instance().clear()
    hydra_init(name)
    with initialize_config_dir(str(CONFIGS), version_base="1.1"):  # fairseq relies on this version
        cfg = compose(name, overrides=["task.data=DATA/bin", *overrides])
    add_defaults(cfg)
    return cfg


def documented(name: str) -> list[str]:
    """The arguments of the command line that docs/recipes.md gives for a recipe."""
    text = (ROOT / "docs/recipes.md").read_text()
    (block,) = re.findall(rf"^## {name}\n+```sh\n(.+?)^```$", text, re.DOTALL | re.MULTILINE)
    block = block.replace("\\\n", " ").replace("$(python -m resmlp_mt)", str(ROOT / "resmlp_mt"))
    program, *arguments = shlex.split(block)
    assert program == "fairseq-train"
    return arguments


def from_command_line(arguments: list[str]) -> DictConfig:
    """What fairseq-train resolves; scripts of the checkout name the plugin's folder in it."""
    plugin = str(ROOT / "resmlp_mt")
    arguments = [plugin if argument == "resmlp_mt" else argument for argument in arguments]
    args = options.parse_args_and_arch(options.get_training_parser(), arguments)
    return convert_namespace_to_omegaconf(args)


def built_optimizer(cfg: DictConfig) -> Any:
    return build_optimizer(cfg.optimizer, [torch.nn.Parameter(torch.zeros(1))])


def flat(cfg: DictConfig) -> dict[str, Any]:
    """All resolved options, by dotted name.

    The options of a legacy optimizer (adagrad) are the whole command line there; only those that
    it reads are kept.
    """
    optimizer = built_optimizer(cfg)
    name = cfg.optimizer._name
    groups = OmegaConf.to_container(
        OmegaConf.masked_copy(cfg, [key for key in cfg if key != "optimizer"]),
        resolve=True,
        enum_to_str=True,
    )
    rows = {"optimizer._name": name, "optimizer": optimizer.optimizer_config}
    for group, content in groups.items():
        if isinstance(content, dict):
            rows |= {f"{group}.{key}": value for key, value in content.items()}
        else:
            rows[group] = content
    return rows


def test_every_file_is_a_recipe_of_this_test() -> None:
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == set(RECIPES)
    headings = re.findall(r"^## (\w+)$", (ROOT / "docs/recipes.md").read_text(), re.MULTILINE)
    assert headings == list(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_the_model_that_is_built(name: str) -> None:
    layers, dim, hidden, heads, positions, vocabulary = RECIPES[name]
    words = dictionary(vocabulary)
    task = SimpleNamespace(source_dictionary=words, target_dictionary=words)
    cfg = from_yaml(name).model
    with torch.device("meta"):  # shapes are enough
        model = ARCH_MODEL_REGISTRY[cfg._name].build_model(cfg, task)
    assert len(model.encoder.layers) == len(model.decoder.layers) == layers
    assert model.decoder.layers[0].encoder_attn.heads == heads
    assert model.max_positions() == (positions, positions)
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert counted == expected_parameters(layers, dim, hidden, positions, len(words))


SIDES = ("source", "target")
DIMS = ("embed_dim", "ffn_embed_dim")

# The only options that may differ: fairseq-train fills in a scorer, which only generation uses.
MAY_DIFFER = {"scoring", "scoring._name", "scoring.pad", "scoring.eos", "scoring.unk"}


def differences(one: DictConfig, other: DictConfig) -> dict[str, tuple[Any, Any]]:
    """The options that two configs resolve differently, by dotted name."""
    left, right = flat(one), flat(other)
    return {
        key: (left.get(key), right.get(key))
        for key in (left.keys() | right.keys()) - MAY_DIFFER
        if left.get(key) != right.get(key)
    }


@pytest.mark.parametrize("name", RECIPES)
def test_yaml_and_documented_command_line_resolve_to_the_same(name: str) -> None:
    assert differences(from_yaml(name), from_command_line(documented(name))) == {}


def test_the_comparison_reaches_every_group() -> None:
    """One changed option of each group is seen, that of a legacy optimizer too."""
    changed = from_yaml(
        "wmt14_en_de_6l",
        "++task.left_pad_source=false",
        "++model.encoder_layers=5",
        "optimization.lr=[0.1]",
        "optimizer.weight_decay=0.1",
        "lr_scheduler.warmup_updates=1",
        "criterion.label_smoothing=0",
        "++dataset.num_workers=3",
        "common.log_interval=7",
        "checkpoint.keep_interval_updates=1",
        "++distributed_training.ddp_backend=no_c10d",
    )
    assert differences(from_yaml("wmt14_en_de_6l"), changed).keys() == {
        "task.left_pad_source",
        "model.encoder_layers",
        "optimization.lr",
        "optimizer",
        "lr_scheduler.lr",
        "lr_scheduler.warmup_updates",
        "criterion.label_smoothing",
        "dataset.num_workers",
        "common.log_interval",
        "checkpoint.keep_interval_updates",
        "distributed_training.ddp_backend",
    }


@pytest.mark.parametrize("name", WMT_RECIPES)
def test_wmt_recipes_hold_the_numbers_of_the_paper(name: str) -> None:
    """Section 3.5 of arXiv:2105.03404v2; tokens per update: Ott et al. 2018, about 400k."""
    cfg = from_yaml(name)
    assert cfg.model.dropout == (0.15 if "en_de" in name else 0.1)
    assert cfg.model.layer_scale_init == 0.2
    assert (cfg.model.encoder_embed_dim, cfg.model.decoder_ffn_embed_dim) == (512, 2048)
    assert cfg.criterion.label_smoothing == 0.1
    assert (cfg.optimizer._name, cfg.optimizer.lr) == ("adagrad", [0.2])
    places = cfg.dataset.max_tokens * 8 * cfg.optimization.update_freq[0]
    assert places == 3584 * 1 * 128 == 458_752


def test_wmt_recipes_differ_only_where_they_say() -> None:
    layers = {
        "model._name",
        "model.encoder_layers",
        "model.decoder_layers",
        "optimization.clip_norm",
    }
    pair = {"task.target_lang", "model.dropout", "optimization.max_update"}
    base = from_yaml("wmt14_en_de_6l")
    for name, keys in {
        "wmt14_en_de_12l": layers,
        "wmt14_en_fr_6l": pair,
        "wmt14_en_fr_12l": layers | pair,
    }.items():
        found = differences(base, from_yaml(name)).keys()
        assert found == keys | {"checkpoint.save_dir"}


def names(cfg: Any, *before: str) -> set[str]:
    """The dotted names of all values of a file."""
    if not isinstance(cfg, dict):
        return {".".join(before)}
    return {name for key, value in cfg.items() for name in names(value, *before, key)}


def test_a_recipe_gives_nothing_that_its_shared_file_gives() -> None:
    """The value of the shared file would win, in silence."""
    for recipe in CONFIGS.glob("*.yaml"):
        own = yaml.safe_load(recipe.read_text())
        for shared in own.pop("defaults", ["_self_"])[1:]:
            there = yaml.safe_load((CONFIGS / f"{shared}.yaml").read_text())
            assert not names(own) & names(there), recipe.name


def test_learning_rate_warms_up_linearly_and_stays() -> None:
    cfg = from_yaml("wmt14_en_de_6l")
    schedule = build_lr_scheduler(cfg.lr_scheduler, built_optimizer(cfg))
    for update in (0, 1, 15_999, 31_998, 31_999, 32_000, 64_000):
        expected = 0.2 * min(1, (update + 1) / 32_000)
        assert schedule.step_update(update) == pytest.approx(expected, rel=1e-12)
    schedule.step_begin_epoch(7)
    assert schedule.step_update(40_000) == 0.2


def test_multi30k_is_the_training_of_the_benchmark() -> None:
    benchmark = from_command_line(
        ["DATA/bin", *multi30k.SHARED, *multi30k.MODELS["resmlp"], "--seed", "1"]
    )
    for language in ("de", "fr"):
        found = differences(from_yaml(f"multi30k_en_{language}"), benchmark)
        assert found == {
            "task.source_lang": ("en", None),
            "task.target_lang": (language, None),
            "checkpoint.save_dir": (f"checkpoints/multi30k_en_{language}", "checkpoints"),
            "optimization.stop_time_hours": (0.5, 0.0),
            # of the same loss; the benchmark's is the peer's
            "criterion._name": (
                "chunked_label_smoothed_cross_entropy",
                "label_smoothed_cross_entropy",
            ),
            "criterion.rdrop_alpha": (0.0, None),
        }


def test_demo_is_the_training_of_make_demo() -> None:
    found = differences(from_yaml("demo"), from_command_line(["DATA/bin", *demo.TRAINING]))
    assert found == {"checkpoint.save_dir": ("checkpoints/demo", "checkpoints")}


def test_the_plugin_is_named_so_that_every_folder_finds_it() -> None:
    """``--user-dir resmlp_mt`` works in a checkout alone."""
    places = (
        "*.md",
        "docs/*.md",
        "benchmarks/*.md",
        "resmlp_mt/*/*/*.md",
        "resmlp_mt/configs/**/*",
    )
    files = [file for place in places for file in ROOT.glob(place) if file.is_file()]
    assert len(files) > 50
    wrong = [file for file in files if "--user-dir resmlp_mt" in file.read_text(encoding="utf-8")]
    assert wrong == []


def test_stability_is_measured_with_the_recipe() -> None:
    """Only size, place and logging differ; not the depth, LayerScale, optimizer or clipping."""
    recipe, rate, unclipped = (
        from_command_line(["DATA/bin", *stability.arguments(run, 2000, seed=1)])
        for run in stability.RUNS
    )
    lr = {"optimization.lr", "lr_scheduler.lr", "optimizer"}
    assert differences(recipe, rate).keys() == lr
    assert differences(rate, unclipped) == {"optimization.clip_norm": (1.0, 0.0)}
    assert rate.optimization.lr == [0.2]
    # Adagrad's step where the warm-up ends is that of the recipe.
    steps = recipe.optimization.lr[0] / stability.WARMUP**0.5
    assert steps == pytest.approx(0.2 / 32_000**0.5, rel=2e-3)
    assert differences(from_yaml("wmt14_en_de_12l"), recipe).keys() == lr | {
        *(f"model.{side}_{dim}" for side in ("encoder", "decoder") for dim in DIMS),
        "model.decoder_attention_heads",
        "task.source_lang",
        "task.target_lang",
        "criterion._name",  # of the same loss
        "criterion.rdrop_alpha",
        "lr_scheduler.warmup_updates",
        "optimization.max_update",
        "optimization.update_freq",
        "dataset.max_tokens",
        "dataset.max_tokens_valid",
        "dataset.num_workers",
        "common.cpu",
        "common.log_interval",
        "checkpoint.save_dir",
        "checkpoint.save_interval_updates",
        "checkpoint.keep_interval_updates",
    }


def test_the_operations_that_are_counted() -> None:
    """A matrix product of m x k and k x n is 2mkn; backward has two of each of forward."""
    layers, dim, hidden, _, _, vocabulary = RECIPES["demo"]
    length = 10
    mixing, forward = 2 * length * dim, 4 * dim * hidden
    attention = 8 * dim * dim + 4 * length * dim  # four projections, then scores and their sum
    expected = 3 * (layers * (2 * (mixing + forward) + attention) + 2 * dim * vocabulary)
    model = gpu_hours.build(gpu_hours.resolved("demo"), vocabulary)
    assert gpu_hours.flops_per_token(model, length) == expected


def test_the_documented_hours_are_the_estimated_ones() -> None:
    estimates = json.loads((ROOT / "benchmarks/gpu_hours.json").read_text())["recipes"]
    rows = re.findall(
        r"^\| `(wmt14\w+)` \|.+\| (\d+) \| (\d+) \|$",
        (ROOT / "docs/recipes.md").read_text(),
        re.MULTILINE,
    )
    assert rows == [
        (name, *(f"{estimates[name]['hours']['float32'][gpus]:.0f}" for gpus in ("1", "8")))
        for name in WMT_RECIPES
    ]


def hydra_train(
    corpus: Corpus,
    folder: Path,
    *overrides: str,
    expect: int = 0,
    cwd: Path = ROOT,
    clone: Path = ROOT,
) -> str:
    """Train demo.yaml on the test corpus, as documented, and return what was printed."""
    return fairseq(
        "hydra-train", "--config-dir", CONFIGS, "--config-name", "demo",
        f"task.data={corpus.data}", f"checkpoint.save_dir={folder}", f"hydra.run.dir={folder}",
        *overrides, expect=expect, environment={"PYTHONPATH": str(clone)}, folder=cwd,
    ).stdout  # fmt: skip


def rows(log: str, kind: str) -> list[dict[str, Any]]:
    """The JSON lines of one kind in hydra's log."""
    return [json.loads(row) for row in re.findall(rf"\]\[{kind}\]\[INFO\] - (.+)", log)]


def depths(checkpoint: Path, corpus: Corpus) -> tuple[int, int]:
    """Layers of the encoder and the decoder that fairseq builds from a checkpoint."""
    (model,), _ = checkpoint_utils.load_model_ensemble(
        [str(checkpoint)], arg_overrides={"data": str(corpus.data)}
    )
    return len(model.encoder.layers), len(model.decoder.layers)


def test_hydra_trains_the_demo(corpus: Corpus, tmp_path: Path) -> None:
    """From any folder, also one that holds another copy of the plugin, which is behind a link."""
    (tmp_path / "link").symlink_to(ROOT)
    (tmp_path / "clone").mkdir()
    (tmp_path / "clone/resmlp_mt").symlink_to(ROOT / "resmlp_mt")
    folders = {"cwd": tmp_path / "clone", "clone": tmp_path / "link"}
    log = hydra_train(corpus, tmp_path, "optimization.max_update=5", **folders)
    assert rows(log, "train")[-1]["train_num_updates"] == "5"
    assert depths(tmp_path / "checkpoint_last.pt", corpus) == (2, 2)


@pytest.mark.slow
def test_a_sweep_in_one_folder_tells_what_had_no_effect(corpus: Corpus, tmp_path: Path) -> None:
    """The jobs run one after the other, in one process."""
    log = hydra_train(
        corpus, tmp_path, "optimization.max_update=2", "model.dropout=0.1,0.3",
        f"hydra.sweep.dir={tmp_path}", "--multirun",
    )  # fmt: skip
    assert log.count("Saved checkpoint") == 1
    assert "ended with --max-update 2, and nothing is trained with another --dropout:" in log


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task.data=???", "task.data=... is missing."),
        (
            "dataset.max_tokens=null",
            "Must specify batch size either with --max-tokens or --batch-size "
            "(in Hydra: dataset.max_tokens, dataset.batch_size).",
        ),
        ("task.data=nowhere", "nowhere"),
    ],
)
def test_hydra_shows_mistakes_in_one_sentence(
    corpus: Corpus, tmp_path: Path, override: str, message: str
) -> None:
    log = hydra_train(corpus, tmp_path, override, expect=1)
    assert "Traceback" not in log
    assert message in log.splitlines()[-1]


def test_a_job_does_not_write_to_the_log_file_of_the_one_before(tmp_path: Path) -> None:
    ended = JobReturn()
    for name in ("fairseq_cli.train", "fairseq.logging.progress_bar"):
        logger = logging.getLogger(name)
        logger.addHandler(logging.FileHandler(tmp_path / name))
        resmlp_mt.models.HydraCallback().on_job_end(OmegaConf.create({}), ended)
        logger.warning("of the next job")
        assert (tmp_path / name).read_text() == ""


@pytest.mark.parametrize(
    ("folder", "is_ours"),
    [(ROOT / "resmlp_mt", True), ("/another/resmlp_mt", False), ("/another/plugin", True)],
)
def test_another_copy_of_the_plugin_is_named(folder: object, is_ours: bool) -> None:
    config = OmegaConf.create({"common": {"user_dir": str(folder)}})
    told = pytest.raises(SystemExit, match=rf"^common.user_dir={folder} is another copy of the")
    with nullcontext() if is_ours else told:
        resmlp_mt.models.HydraCallback().on_job_start(config)


def test_a_recipe_of_a_user_over_one_of_ours(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """fairseq's defaults come where ``_self_`` is, and every file replaces what is before it."""
    (tmp_path / "changes.yaml").write_text("model: {dropout: 0.3}\ntask: {data: x}")
    # as a recipe that no test has begun with, which gives it fairseq's defaults
    (tmp_path / "ours/of_ours.yaml").parent.mkdir()
    (tmp_path / "ours/of_ours.yaml").write_text((CONFIGS / "demo.yaml").read_text())
    search = f"hydra.searchpath=[{tmp_path}/ours]"
    for defaults, dropout, refused in (
        ("[_self_, of_ours, changes]", 0.3, False),
        ("[_self_, of_ours]", 0.1, False),
        ("[of_ours, _self_, changes]", 0.3, True),
    ):
        own = "model: {dropout: 0.2, layer_scale_init: 1}\ncommon: {fp16: 'yes', seed: '1'}"
        (tmp_path / "mine.yaml").write_text(f"defaults: {defaults}\n{own}")
        GlobalHydra.instance().clear()
        hydra_init("mine")
        with initialize_config_dir(str(tmp_path), version_base="1.1"):
            cfg = compose("mine", [search], return_hydra_config=True)
        cfg.task.data = "x"
        assert cfg.model.dropout == dropout
        told = pytest.raises(
            SystemExit, match="with _self_ and replace of_ours: begin defaults with"
        )
        with told if refused else nullcontext():
            resmlp_mt.models.HydraCallback().on_job_start(cfg)
        message = "mine.yaml: model.dropout: 0.2 has no effect, because a file after _self_ in de"
        assert [message in text for text in caplog.messages] == [True] * (not refused)
        caplog.clear()


def test_the_plugin_behind_a_link_of_another_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fairseq imports it once more; of a copy it would register every class twice."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    # each run has names of its own: Python keeps what it has imported
    link, copy = (tmp_path / f"plugin_{uuid.uuid4().hex}" for _ in range(2))
    link.symlink_to(ROOT / "resmlp_mt")
    utils.import_user_module(Namespace(user_dir=str(link)))
    assert sys.modules[f"{link.name}.models.resmlp_mt"] is resmlp_mt.models.resmlp_mt
    shutil.copytree(ROOT / "resmlp_mt/models", copy / "models")
    with pytest.raises(UserError, match=f"{copy.name} is a copy of the plugin under another name"):
        utils.import_user_module(Namespace(user_dir=str(copy)))


def test_a_mistake_in_one_of_several_jobs_leaves_the_others() -> None:
    ended = JobReturn()
    ended.return_value = FileNotFoundError("Dataset not found: valid (data)")
    for mode, ends in (("RUN", True), ("MULTIRUN", False)):
        config = OmegaConf.create({"hydra": {"mode": RunMode[mode]}})
        with pytest.raises(SystemExit, match=r"^Dataset not found") if ends else nullcontext():
            resmlp_mt.models.HydraCallback().on_job_end(config, ended)


def test_hydra_builds_the_depth_that_is_named(corpus: Corpus, tmp_path: Path) -> None:
    """A preset that hydra does not know as a dataclass is silently built with 6 layers."""
    hydra_train(
        corpus, tmp_path, "model._name=resmlp_mt_12l", "optimization.max_update=1",
        "dataset.disable_validation=true", "+model.decoder_attention_heads=2",
        *(f"+model.{side}_{dim}=16" for side in ("encoder", "decoder") for dim in DIMS),
    )  # fmt: skip
    assert depths(tmp_path / "checkpoint_last.pt", corpus) == (12, 12)


TWO_PROCESSES = ("distributed_training.distributed_world_size=2", "optimization.max_update=2",
                 "dataset.max_tokens=null", "dataset.batch_size=32",
                 "dataset.disable_validation=true", "checkpoint.no_save=true")  # fmt: skip


def test_hydra_trains_with_two_cpu_processes(corpus: Corpus, tmp_path: Path) -> None:
    log = hydra_train(
        corpus, tmp_path, *TWO_PROCESSES, "distributed_training.distributed_backend=gloo",
        "++distributed_training.ddp_backend=legacy_ddp",
    )  # fmt: skip
    (row,) = rows(log, "train")
    assert (row["train_num_updates"], row["train_bsz"]) == ("2", "64")


def test_hydra_refuses_two_cpu_processes_without_gloo(corpus: Corpus, tmp_path: Path) -> None:
    log = hydra_train(corpus, tmp_path, *TWO_PROCESSES, expect=1)
    assert "--cpu with --distributed-world-size 2 needs --distributed-backend gloo" in log
    assert rows(log, "train") == []
