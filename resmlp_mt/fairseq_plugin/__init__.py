"""The translation models as fairseq sees them."""
