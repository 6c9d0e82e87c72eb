"""A command, as the tools among the tests run it."""

import subprocess


def run(*command, **options) -> int:
    """The exit status; raises CalledProcessError for another than 0, unless check=False."""
    return subprocess.run([str(part) for part in command], check=options.pop("check", True), **options).returncode
