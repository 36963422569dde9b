"""Registration with fairseq; ``--user-dir resmlp_mt`` or ``import resmlp_mt.models`` does it."""

from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from resmlp_mt.errors import UserError
from resmlp_mt.models import criterions as criterions
from resmlp_mt.models import resmlp_mt as resmlp_mt

# ``common.user_dir: ${resmlp_mt:}`` is the folder of this plugin. A path could name another copy of
# it, and fairseq refuses two modules with one name.
OmegaConf.register_new_resolver(
    "resmlp_mt", lambda: str(Path(__file__).resolve().parent.parent), replace=True
)


class HydraCallback(Callback):
    """For the configurations in configs/mt, which name it under ``hydra.callbacks``.

    Importing it loads the plugin when a hydra job begins, earlier than fairseq does.
    """

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Show a wrong option as one sentence, like other commands, without hydra's traceback."""
        if isinstance(job_return._return_value, UserError):
            raise SystemExit(str(job_return._return_value))
