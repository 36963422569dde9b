"""Registration with fairseq: ``--user-dir "$(python -m resmlp_mt)"``, or this module's import."""

import sys
from pathlib import Path

from resmlp_mt.errors import UserError
from resmlp_mt.fairseq_plugin.hydra_jobs import FOLDER
from resmlp_mt.fairseq_plugin.hydra_jobs import HydraCallback as HydraCallback
from resmlp_mt.models import resmlp_mt as resmlp_mt

if not __name__.startswith("resmlp_mt."):  # the folder of --user-dir has another name
    if not FOLDER.samefile(Path(__file__).parents[1]):
        raise UserError(
            f"--user-dir {Path(__file__).parents[1]} is a copy of the plugin under another name: "
            f"call the folder resmlp_mt, or give {FOLDER}."
        )
    sys.modules[f"{__name__}.resmlp_mt"] = resmlp_mt  # a link: fairseq would register all again
