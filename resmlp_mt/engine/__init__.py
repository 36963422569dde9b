"""Translates without fairseq."""
