"""Registration with fairseq: ``--user-dir "$(python -m resmlp_mt)"``, or this module's import."""

from resmlp_mt.fairseq_plugin.hydra_jobs import HydraCallback as HydraCallback
from resmlp_mt.models import resmlp_mt as resmlp_mt
