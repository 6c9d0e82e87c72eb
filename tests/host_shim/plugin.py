"""pytest plugin: the compiled library's CUDA kernels serve the tests of `native`, on CPU tensors.

`pytest -p host_shim.plugin` with PAD_KERNELS_HOST_SHIM set to the library that `host_shim.build` made.
"""

import contextlib
import importlib.util
import os
import sys

import torch


def _install(path):
    spec = importlib.util.spec_from_file_location("pad_kernels._native", path)
    library = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(library)
    assert library.cuda_targets() == "host"
    sys.modules["pad_kernels._native"] = library

    from pad_kernels.backends import native

    def execution_context(device):
        memory = []

        def allocate(size):  # exactly as large as asked for, and full of NaN
            memory.append(torch.full((size,), 255, dtype=torch.uint8))
            return memory[0].data_ptr()

        return contextlib.nullcontext((0, 0, allocate))

    backend = native.NativeBackend
    unsupported_reason = backend.unsupported_reason
    native.execution_context = execution_context
    native._gpu_unsupported_reason = lambda index: None
    backend.has_whole_losses = lambda self, device: False
    backend.unsupported_reason = lambda self, op, device, *rest: unsupported_reason(
        self, op, torch.device("cuda"), *rest
    )


_install(os.environ["PAD_KERNELS_HOST_SHIM"])
