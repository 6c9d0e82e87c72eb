"""What a frozen speech encoder knows, judged as SUPERB does: intent, emotion and slot filling.

Yang et al., "SUPERB: Speech processing Universal PERformance Benchmark", Interspeech 2021. Settings and file
layouts are those that s3prl publishes for the benchmark.
"""
