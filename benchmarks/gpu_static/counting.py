"""Runs calls in the interpreter, in processes of their own: `python -m benchmarks.gpu_static.counting JOBS`.

JOBS is a file of pickled data. Each result goes to a file as soon as it is there.
"""

import hashlib
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.gpu_static import compiling, tracing
from benchmarks.gpu_static.cases import Call

ROOT = Path(__file__).resolve().parents[2]


def count(call: Call, batch: int) -> list[tracing.Traced]:
    """The kernels of a call with so many utterances, in order; only in the interpreter."""
    import torch

    from benchmarks.cases import DTYPES, ragged_mask
    from benchmarks.gpu_static import recording
    from benchmarks.gpu_static.cases import make_arguments

    found: list[tracing.Traced] = []
    with recording.as_on_a_gpu(), tracing.kernels_traced(found):
        if call.level == "significance":
            _, _, length, width = call.shape
            generator = torch.Generator().manual_seed(0)
            query, key = (torch.randn(batch, 1, length, width, generator=generator) for _ in range(2))
            dtype = DTYPES[call.dtype]
            recording.perform_significance(query.to(dtype), key.to(dtype), ragged_mask(batch, length))
        else:
            recording.perform(call, make_arguments(call, batch, "cpu"))
    return found


def count_apart(calls: list[tuple[Call, int]], scratch: Path, jobs: int = 2) -> dict:
    """`count` of each call, in so many processes with the interpreter; results are kept in the folder `scratch`."""
    scratch.mkdir(parents=True, exist_ok=True)
    code = compiling.sources(__file__, tracing.__file__)
    files = {one: scratch / (hashlib.sha256(f"{code} {one}".encode()).hexdigest()[:32] + ".pickle") for one in calls}
    missing = [(one, file) for one, file in files.items() if not file.exists()]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

    def run(place: int) -> None:
        part = missing[place::jobs]
        if not part:
            return
        job = scratch / f"{os.getpid()}-{place}.jobs"
        job.write_bytes(pickle.dumps(part))
        command = [sys.executable, "-m", "benchmarks.gpu_static.counting", str(job)]
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
        job.unlink()
        if done.returncode:
            raise RuntimeError(f"the interpreted run failed:\n{done.stderr[-3000:]}")

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(run, range(jobs)))
    return {one: pickle.loads(file.read_bytes()) for one, file in files.items()}


def main(jobs: Path) -> None:
    """Count each call of a file of jobs."""
    import torch

    torch.set_num_threads(1)
    for (call, batch), file in pickle.loads(jobs.read_bytes()):
        partial = file.with_suffix(f".{os.getpid()}")
        partial.write_bytes(pickle.dumps(count(call, batch)))
        partial.rename(file)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
