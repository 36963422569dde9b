"""The ResMLP encoder-decoder for fairseq."""
