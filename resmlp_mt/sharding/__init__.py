"""Translating corpora in parts, on many machines."""
