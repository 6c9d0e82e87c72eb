"""Keeps torch off AMX where it is named but cannot be used, as in some virtual machines: torch's bfloat16 products die
there of an illegal instruction. `python tests/onednn.py` prints the setting that helps, or nothing.
"""

import os
import platform
import subprocess
import sys
from pathlib import Path

VARIABLE, WITHOUT_AMX = "ONEDNN_MAX_CPU_ISA", "AVX512_CORE_FP16"
PRODUCT = "import torch; x = torch.ones(2, 64, 64, dtype=torch.bfloat16); x @ x"


def amx_is_broken() -> bool:
    """Whether the processor's list has AMX and a bfloat16 product kills its process."""
    processor = Path("/proc/cpuinfo")
    if VARIABLE in os.environ or platform.machine() not in ("x86_64", "AMD64"):
        return False
    if not processor.exists() or "amx_bf16" not in processor.read_text():
        return False
    return subprocess.run([sys.executable, "-c", PRODUCT], stderr=subprocess.DEVNULL).returncode < 0


if __name__ == "__main__" and amx_is_broken():
    print(f"{VARIABLE}={WITHOUT_AMX}")
