"""What ``fairseq-hydra-train`` needs: the folder of the plugin, and a callback around each job."""

import os
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
