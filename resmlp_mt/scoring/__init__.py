"""Scoring of translations: reading and checking text, measures with signatures, reports."""
