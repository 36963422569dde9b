"""ResMLP for machine translation (a fairseq plugin) and for images.

from resmlp_mt import Translator

translator = Translator.load()  # the model en-de, which comes with the package
print(translator.translate(["A dog runs."])[0][0].text)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resmlp_mt.engine.options import SearchOptions as SearchOptions
    from resmlp_mt.engine.translator import Translator as Translator

__version__ = "0.2.0.dev0"
__all__ = ["SearchOptions", "Translator"]
_MODULES = {"SearchOptions": "options", "Translator": "translator"}


def __getattr__(name: str) -> Any:
    """Import what needs torch on its first use, not before."""
    if name in _MODULES:
        return getattr(import_module(f"resmlp_mt.engine.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
