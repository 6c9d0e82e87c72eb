"""`pad distill`: a frozen text encoder teaches a speech encoder."""
