"""Runs `pad` commands in processes of their own that begin as copies of one in which everything is imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

# Reads a request a line; answers with the process's id, and with its exit status once it has ended.
SERVER = """
import json, os, resource, signal, sys
import torch, soundfile, transformers
import pad.align.run, pad.distill.run, pad.evaluate.run
from transformers import AutoModel, BertModel, Wav2Vec2Model, Wav2Vec2FeatureExtractor
from pad.cli import main

FILE_OPERATIONS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod")

def run(request):
    for number, name in enumerate(("stdout", "stderr"), 1):
        os.dup2(os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
    left, folder = request["operation"], request["folder"]
    def watch(event, arguments):
        nonlocal left
        if event in FILE_OPERATIONS and folder and folder in str(arguments[0]):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
    os.chdir(request["cwd"])
    for name, limit in request["limits"].items():
        used = 0
        if name == "RLIMIT_AS":  # beyond what the imports have taken already
            used = int(open("/proc/self/statm").read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(getattr(resource, name), (used + limit, used + limit))
    sys.addaudithook(watch)
    code = 99
    try:
        code = main(request["arguments"])
    except SystemExit as exit:  # of the parser
        code = exit.code if isinstance(exit.code, int) else 1
    except BaseException:
        import traceback
        traceback.print_exc()
    if folder:
        print("operations:", -left)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

print("ready", flush=True)
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        run(json.loads(line))
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Ended(NamedTuple):
    """A command that has ended: its exit code, or minus the signal that ended it."""

    code: int
    output: str
    errors: str
    seconds: float


class Forks:
    """The process that is copied, as a context."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __enter__(self) -> Forks:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self.server = subprocess.Popen(
            [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        assert self.server.stdout and self.server.stdout.readline() == "ready\n"
        return self

    def __exit__(self, *_) -> None:
        assert self.server.stdin
        self.server.stdin.close()
        self.server.wait()

    def run(self, *arguments: str, operation: int = 0, folder: Path | None = None, after: float | None = None,
            cwd: Path | None = None, **limits: int) -> Ended:  # fmt: skip
        """A command. It is killed at the n-th operation on a file below `folder`, or after so many seconds.

        limits: RLIMIT_FSIZE in bytes, or RLIMIT_AS in bytes beyond what is in use.
        """
        stdout, stderr = self.folder / "stdout", self.folder / "stderr"
        request = {
            "arguments": list(arguments), "operation": operation, "folder": str(folder or ""), "limits": limits,
            "stdout": str(stdout), "stderr": str(stderr), "cwd": str(cwd or self.folder),
        }  # fmt: skip
        assert self.server.stdin and self.server.stdout
        start = time.monotonic()
        print(json.dumps(request), file=self.server.stdin, flush=True)
        pid = int(self.server.stdout.readline())
        if after is not None:
            time.sleep(after)
            with suppress(ProcessLookupError):  # it has ended before
                os.kill(pid, 9)
        code = int(self.server.stdout.readline())
        return Ended(code, *(x.read_text(errors="replace") for x in (stdout, stderr)), time.monotonic() - start)
