"""`pad evaluate`: what a frozen speech encoder knows. Intents, emotions and slots as in SUPERB; words and a probe.

Yang et al., "SUPERB: Speech processing Universal PERformance Benchmark", Interspeech 2021. Settings and file
layouts are those that s3prl publishes for the benchmark.
"""
