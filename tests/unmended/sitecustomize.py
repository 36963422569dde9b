"""Put first on PYTHONPATH, this starts Python with the remedies of resmlp_mt switched off."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent.parent))

from resmlp_mt.translation import fairseq_fixes

fairseq_fixes.apply = lambda: None
