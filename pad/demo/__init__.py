"""`pad demo`: the whole method on synthetic speech, small enough for two cores."""
