"""From the text of a corpus to binarised data for fairseq; pipeline.py has the steps in order."""
