"""ResMLP for machine translation (a fairseq plugin) and for images."""

__version__ = "0.1.0"
