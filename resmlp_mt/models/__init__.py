"""Registration with fairseq; ``--user-dir resmlp_mt`` or ``import resmlp_mt.models`` does it."""

from hydra.experimental.callback import Callback

from resmlp_mt.models import resmlp_mt as resmlp_mt


class HydraCallback(Callback):
    """Has the plugin imported when a hydra job begins, earlier than fairseq does.

    The configurations in configs/mt name it; its import is all that it does.
    """
