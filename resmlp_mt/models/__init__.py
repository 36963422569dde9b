"""Registration with fairseq; ``--user-dir resmlp_mt`` or ``import resmlp_mt.models`` does it."""

from resmlp_mt.models import resmlp_mt as resmlp_mt
