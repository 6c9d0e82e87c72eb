"""Keeps torch off AMX, where its bfloat16 products and convolutions are not to be relied on. `python tests/onednn.py`
prints the setting that does it, or nothing where the processor has no AMX.

In some virtual machines a product dies there of an illegal instruction. And the gradient of a convolution (oneDNN of
torch 2.13 and 2.14) multiplies by zero what it never wrote: NaN, where the memory held one before.
"""

import os
import platform
from pathlib import Path

VARIABLE, WITHOUT_AMX = "ONEDNN_MAX_CPU_ISA", "AVX512_CORE_FP16"


def has_amx() -> bool:
    """Whether the processor's list names AMX, and nobody has said what oneDNN may use."""
    processor = Path("/proc/cpuinfo")
    if VARIABLE in os.environ or platform.machine() not in ("x86_64", "AMD64") or not processor.exists():
        return False
    return "amx_bf16" in processor.read_text()


if __name__ == "__main__" and has_amx():
    print(f"{VARIABLE}={WITHOUT_AMX}")
