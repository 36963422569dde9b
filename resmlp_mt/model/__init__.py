"""The encoder-decoder, in torch alone."""
