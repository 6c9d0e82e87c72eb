"""`pad align`: how one utterance's speech and text align, as a picture."""
