"""A pytest plugin for runs with a time limit: `pytest -p outcomes` with OUTCOMES=FILE and OUTCOMES_OF=NAME.

What is known of each test goes into the file at once, under the name, and a failure is printed when it happens.
Several runs may write to one file at the same time.
"""

import fcntl
import json
import os
from pathlib import Path

import torch

import pad_kernels


class Outcomes:
    def __init__(self, path: Path, name: str):
        self.path, self.name = path, name
        self.found = {"passed": 0, "failed": 0, "skipped": 0, "failures": [], "reasons": {}}
        self.found["package"] = pad_kernels.__file__  # which of several copies was tested
        self.write()

    def write(self) -> None:
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)  # until it is closed
            others = json.loads(self.path.read_text()) if self.path.exists() else {}
            partial = self.path.with_name(self.path.name + ".partial")
            partial.write_text(json.dumps(others | {self.name: self.found}, indent=1) + "\n")
            os.replace(partial, self.path)
        finally:
            os.close(folder)

    def fail(self, what: str, why: str) -> None:
        self.found["failed"] += 1
        self.found["failures"].append(what)
        print(f"\nFAILED {what}\n{why[-3000:]}", flush=True)
        self.write()

    def pytest_runtest_logreport(self, report) -> None:
        if report.failed:
            self.fail(report.nodeid, report.longreprtext)
        elif report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext
            self.found["skipped"] += 1
            self.found["reasons"][reason] = self.found["reasons"].get(reason, 0) + 1
            self.write()
        elif report.when == "call":
            self.found["passed"] += 1
            self.write()

    def pytest_collectreport(self, report) -> None:
        if report.failed:
            self.fail(report.nodeid, report.longreprtext)
        elif report.skipped:
            self.found["reasons"][f"{report.nodeid}: {report.longrepr[2]}"] = 1
            self.write()


class LostGPU:
    """Ends a pytest-xdist worker whose GPU answers no more; a new one runs what is left."""

    def __init__(self):
        self.failed = False

    def pytest_runtest_logreport(self, report) -> None:
        self.failed |= report.failed

    def pytest_runtest_logfinish(self) -> None:
        if self.failed and torch.cuda.is_initialized():
            try:
                torch.cuda.synchronize()
            except RuntimeError:
                os._exit(70)
        self.failed = False


def pytest_configure(config) -> None:
    if hasattr(config, "workerinput"):
        config.pluginmanager.register(LostGPU())
    elif "OUTCOMES" in os.environ:
        config.pluginmanager.register(Outcomes(Path(os.environ["OUTCOMES"]), os.environ.get("OUTCOMES_OF", "tests")))
