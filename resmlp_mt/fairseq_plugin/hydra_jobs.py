"""What ``fairseq-hydra-train`` needs: the folder of the plugin, and a callback around each job."""

import logging
import os
from itertools import takewhile
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from resmlp_mt.fairseq_plugin import console
from resmlp_mt.fairseq_plugin.training_fixes import close_log_files

# ``common.user_dir: ${resmlp_mt:}`` is the folder of this plugin. A path could name another copy of
# it, and fairseq refuses two modules with one name. A path with its links resolved would be another
# name, too: Python has imported the plugin under the name of the link.
FOLDER = Path(__file__).parent.parent
OmegaConf.register_new_resolver("resmlp_mt", lambda: str(FOLDER), replace=True)


logger = logging.getLogger(__name__)


def recipe(hydra: Any) -> tuple[str, dict[str, Any]]:
    """The file of ``--config-name``, and what it has itself; nothing if it is no file.

    Args:
        hydra: hydra's own part of the configuration.
    """
    return _read(hydra, str(OmegaConf.select(hydra, "job.config_name")))


def _read(hydra: Any, name: str) -> tuple[str, dict[str, Any]]:
    """The same for a file that ``defaults`` names."""
    for source in OmegaConf.select(hydra, "runtime.config_sources") or ():
        path = Path(source.path, f"{name.removesuffix('.yaml').lstrip('/')}.yaml")
        if source["schema"] == "file" and path.is_file():
            own: Any = OmegaConf.to_container(OmegaConf.load(path))
            return str(path), own or {}
    return "", {}


def given(hydra: Any) -> set[str]:
    """Names of the options that the command line, the recipe and the user's files in it have."""
    found = {word.partition("=")[0].rpartition(".")[2] for word in hydra.overrides.task}
    names = [str(OmegaConf.select(hydra, "job.config_name"))]
    for name in names:  # which grows
        path, own = _read(hydra, name)
        if name != names[0] and Path(path).resolve().is_relative_to(FOLDER.resolve()):
            continue
        for key, value in own.items():  # a file of one section has options only
            found.update(value if isinstance(value, dict) else [key])
        for entry in own.get("defaults") or ():
            for group, chosen in entry.items() if isinstance(entry, dict) else [("", entry)]:
                place = Path("/", name).parent / group.split(" ")[-1].partition("@")[0]
                for each in chosen if isinstance(chosen, list) else [chosen]:
                    file = str(place / str(each).partition("@")[0])
                    names += [file] if file not in names else []
    return found


def check_recipe(config: DictConfig, path: str, own: dict[str, Any], words: list[str]) -> None:
    """Refuse a recipe that loses other files to fairseq's defaults, and warn of what it loses.

    Args:
        config: the whole configuration.
        path: the recipe, and what it has itself.
        own: see ``path``.
        words: the options of the command line, which may change the recipe's.

    Raises:
        SystemExit: if fairseq's defaults replaced a file.
    """
    before = takewhile(lambda entry: entry != "_self_", own.get("defaults") or ())
    lost = [
        each
        for each in before
        if isinstance(each, str) or any(each[key] and "hydra/" not in key for key in each)
    ]
    if lost:
        raise SystemExit(
            f"{path}: fairseq's default values come with _self_ and replace {lost[0]}: begin "
            f"defaults with _self_, and write what changes {lost[0]} into a file that follows it."
        )
    changed = [word.partition("=")[0].lstrip("+~") for word in words]
    groups: Any = OmegaConf.to_container(config)
    for section, values in own.items():
        there = groups.get(section)
        is_section = section != "hydra" and isinstance(values, dict) and isinstance(there, dict)
        for name, value in values.items() if is_section else ():
            key, found = f"{section}.{name}", there.get(name)
            if any(f"{key}.".startswith(f"{word}.") for word in changed):
                continue
            # of the option's type, as True for 'yes'
            typed: Any = OmegaConf.to_container(OmegaConf.merge(config[section], {name: value}))
            if typed[name] != found and str(typed[name]) != str(found):
                logger.warning(
                    "%s: %s: %s has no effect, because a file after _self_ in defaults gives %s: "
                    "write it into a file that follows.",
                    path, key, value, found,
                )  # fmt: skip


class HydraCallback(Callback):
    """For the configurations in configs/mt, which name it under ``hydra.callbacks``.

    They name it as a part of :mod:`resmlp_mt.models`, whose import loads the plugin when a hydra
    job begins, earlier than fairseq does.

    Mistakes end the job by ``SystemExit``: of an ``Exception`` in a callback, as ``UserError`` and
    ``CommandError`` are, hydra only warns.
    """

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        """Name a value that the recipe leaves to the command line (``???``) and nobody has given.

        fairseq would take None for it. Name another copy of the plugin too, which it cannot import.
        """
        given = OmegaConf.select(config, "common.user_dir") or ""
        if Path(given).name == FOLDER.name and os.path.abspath(given) != str(FOLDER):
            raise SystemExit(
                f"common.user_dir={given} is another copy of the plugin than {FOLDER}, whose "
                "callback the configuration names: give common.user_dir='${resmlp_mt:}'."
            )
        groups: Any = OmegaConf.to_container(config)
        if "hydra" in config:
            check_recipe(config, *recipe(config.hydra), config.hydra.overrides.task)
        for group in groups.keys() - {"hydra"}:
            options = groups[group] if isinstance(groups[group], dict) else {}
            for name, value in options.items():
                if value == "???":
                    raise SystemExit(f"{group}.{name}=... is missing.")

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Show a mistake as one sentence, like other commands, without hydra's traceback.

        With ``--multirun``, the other jobs go on, and hydra ends with the first error.
        """
        # those of --log-file, which would get the lines of a sweep's next job, too
        close_log_files("fairseq_cli.train", "fairseq.logging.progress_bar")
        error = job_return._return_value
        sentence = console.mistake(error) if isinstance(error, Exception) else None
        if sentence is not None and OmegaConf.select(config, "hydra.mode") != RunMode.MULTIRUN:
            raise SystemExit(sentence)
