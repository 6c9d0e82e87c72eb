"""Runs calls in the interpreter, in a process of its own, and hands back what was traced:
`python -m benchmarks.gpu_static.counting JOB RESULT`, two files of pickled data."""

import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.gpu_static.cases import Call

ROOT = Path(__file__).resolve().parents[2]


def count(calls: list[tuple[Call, int]]) -> dict[tuple[Call, int], list]:
    """Of each call with so many utterances the kernels as `tracing.Traced`, in order; only in the interpreter."""
    import torch

    from benchmarks.cases import DTYPES, ragged_mask
    from benchmarks.gpu_static import recording, tracing
    from benchmarks.gpu_static.cases import make_arguments

    torch.set_num_threads(1)
    results = {}
    for call, batch in calls:
        found: list = []
        with recording.as_on_a_gpu(), tracing.kernels_traced(found):
            if call.level == "significance":
                _, _, length, width = call.shape
                generator = torch.Generator().manual_seed(0)
                query, key = torch.randn(2, batch, 1, length, width, generator=generator).to(DTYPES[call.dtype])
                recording.perform_significance(query.clone(), key.clone(), ragged_mask(batch, length))
            else:
                recording.perform(call, make_arguments(call, batch, "cpu"))
        results[call, batch] = found
    return results


def count_apart(calls: list[tuple[Call, int]], scratch: Path, jobs: int = 2) -> dict[tuple[Call, int], list]:
    """`count` in so many processes with the interpreter."""
    scratch.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

    def run(place: int) -> dict:
        part = calls[place::jobs]
        if not part:
            return {}
        job, result = (scratch / f"{os.getpid()}-{place}.{name}" for name in ("job", "result"))
        job.write_bytes(pickle.dumps(part))
        command = [sys.executable, "-m", "benchmarks.gpu_static.counting", str(job), str(result)]
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"the interpreted run failed:\n{done.stderr[-3000:]}")
        found = pickle.loads(result.read_bytes())
        job.unlink()
        result.unlink()
        return found

    with ThreadPoolExecutor(jobs) as pool:
        results: dict = {}
        for found in pool.map(run, range(jobs)):
            results |= found
    return results


if __name__ == "__main__":
    Path(sys.argv[2]).write_bytes(pickle.dumps(count(pickle.loads(Path(sys.argv[1]).read_bytes()))))
