"""Machines that these tests do not run on: code for 64-bit ARM, a build as on macOS, and Apple's GPUs (MPS).

`tests/on_aarch64.py` runs the ops themselves on an emulated ARM processor.
"""

import re
import shutil
import subprocess
import sys
import sysconfig
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from host_shim.build import own_tools_first
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import pad_kernels
from pad_kernels.backends import reference, select_backend
from pad_kernels.inputs import AlignmentInputs, Needed, PoolingInputs, SpanInputs

ROOT = Path(__file__).parent.parent
PRODUCT = """
#define PAD_INSTRUCTION_SET baseline
#include "cpu/block_gemm.h"
namespace pad::baseline {
void product(const void* gemm) {
  block_gemm(*static_cast<const BlockGemm<SCALAR>*>(gemm), [](int64_t, int64_t) {});
}
}
"""


def inner_loops(disassembly: str) -> list[list[str]]:
    """The instructions of each loop that has no other branch in it."""
    found, lines = [], re.findall(r"^\s*([0-9a-f]+):\s+(.*)$", disassembly, re.M)
    places = {int(address, 16): number for number, (address, _) in enumerate(lines)}
    for number, (address, instruction) in enumerate(lines):
        target = re.match(r"b\.\w+\s+([0-9a-f]+)", instruction)
        if target and int(target[1], 16) < int(address, 16):
            body = [text for _, text in lines[places[int(target[1], 16)] : number]]
            if not any(re.match(r"(b|cb|tb)[a-z.]*\s", text) for text in body):
                found.append(body)
    return found


@pytest.mark.parametrize("scalar, lanes", [("float", "4s"), ("double", "2d")])
def test_products_on_arm_are_vector_multiply_adds(tmp_path, scalar, lanes):
    """The innermost loop keeps all 8 x 3 sums in registers, and multiplies and adds whole vectors in one step."""
    compiler, disassembler = (shutil.which(f"aarch64-linux-gnu-{tool}") for tool in ("g++", "objdump"))
    if compiler is None or disassembler is None:
        pytest.skip("no cross compiler: g++-aarch64-linux-gnu")
    build = (ROOT / "CMakeLists.txt").read_text()
    flags = [
        *re.search(r"^set\(optimization (-O\d)\)", build, re.M).groups(),
        *re.search(r"^\s+\$\{optimization\} (.*) \$\{flags_", build, re.M)[1].split(),
        *re.findall(r"\(flags_baseline (-.*)\)", build),
    ]
    source, binary = tmp_path / "product.cpp", tmp_path / "product.o"
    source.write_text(PRODUCT.replace("SCALAR", scalar))
    command = [compiler, "-std=gnu++20", f"-I{ROOT / 'csrc'}", *flags, "-c", source, "-o", binary]
    subprocess.run(command, check=True)
    command = [disassembler, "-d", "--no-show-raw-insn", binary]
    loops = inner_loops(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert loops
    widest = max(loops, key=lambda body: sum(instruction.startswith("fmla") for instruction in body))
    products = [instruction for instruction in widest if re.match("f(mla|mul|madd|add)", instruction)]
    assert len(products) == 24
    assert all(re.match(rf"fmla\s+v\d+\.{lanes}, v\d+\.{lanes}, v\d+", instruction) for instruction in products)
    assert not [instruction for instruction in widest if re.match(r"st[rp]\s+q", instruction)]


@pytest.mark.parametrize(
    "processor, architectures, instruction_sets",
    [
        ("arm64", "", "baseline"),
        ("arm64", "x86_64", "baseline, avx2, avx512"),
        ("arm64", "arm64;x86_64", "baseline"),
    ],
)
def test_a_build_as_on_macos(tmp_path, monkeypatch, processor, architectures, instruction_sets):
    """What CMake would build there: the instruction sets of the target, and no library of Python to link to."""
    monkeypatch.setenv("PATH", own_tools_first())
    if shutil.which("cmake") is None or shutil.which("ninja") is None or shutil.which("g++") is None:
        pytest.skip("no cmake, ninja or g++")
    settings = {
        "CMAKE_SYSTEM_NAME": "Darwin", "CMAKE_SYSTEM_PROCESSOR": processor, "CMAKE_OSX_ARCHITECTURES": architectures,
        "CMAKE_CXX_COMPILER": "g++", "CMAKE_CXX_COMPILER_WORKS": "1", "PAD_KERNELS_CUDA": "0",
        "CMAKE_HAVE_LIBC_PTHREAD": "1", "Python_EXECUTABLE": sys.executable,
        # For another system CMake would ask the first pythonX.Y-config on the PATH.
        "Python_INCLUDE_DIR": sysconfig.get_path("include"),
    }  # fmt: skip
    command = [
        "cmake",
        "-S",
        ROOT,
        "-B",
        tmp_path,
        "-G",
        "Ninja",
        *(f"-D{name}={value}" for name, value in settings.items()),
    ]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
    assert f"CPU ({instruction_sets}" in found.stdout
    build = (tmp_path / "build.ninja").read_text()
    assert "-undefined,dynamic_lookup" in build
    assert not re.search(r"openmp|gomp|libpython", build, re.I)
    assert ("-mavx2" in build) == ("avx2" in instruction_sets)


class WithoutFloat64(TorchDispatchMode):
    """Refuses a float64 tensor, as MPS does, on MPS and on the device that stands in for it."""

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor) and value.device.type != "cpu" and value.dtype == torch.float64:
                raise TypeError(f"{function}: MPS has no float64")
        return result


def test_mps_takes_the_reference():
    assert pad_kernels.available_backends("mps") == ["reference"]
    for op in pad_kernels.backends.OPS:
        assert select_backend(op, "", torch.device("mps"), torch.float32).name == "reference"
        for name, reason in (("native", "runs on cpu and cuda, not on mps"), ("triton", "")):
            with pytest.raises(ValueError, match=f"backend '{name}' cannot run {op} on mps with .*{reason}"):
                select_backend(op, name, torch.device("mps"), torch.float32)


@pytest.mark.parametrize("anchors", ["topk", "peaks", "stride"])
def test_spans_need_no_float64_on_mps(anchors):
    """With tensors that say they are on MPS, and hold nothing."""
    with FakeTensorMode(), WithoutFloat64():
        frame_weights, mask = torch.rand(2, 40, device="mps"), torch.ones(2, 40, dtype=torch.bool, device="mps")
        counts = torch.full((2,), 6, device="mps")
        for xi in (None, torch.rand(2, device="mps")):
            inputs = SpanInputs(frame_weights, mask, counts, counts, 6, (0.5, 1.0, 2.0), xi, anchors)
            start, end = reference.BACKEND.select_spans(inputs)
            assert start.device.type == end.device.type == "mps" and start.shape == end.shape == (2, 18)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_reference_needs_no_float64(dtype, monkeypatch):
    """The other ops, on the device whose tensors hold nothing: a torch without MPS cannot index tensors there."""
    run = reference.BACKEND
    monkeypatch.setattr(reference, "full_precision", lambda device: nullcontext())  # no autocast on that device
    with WithoutFloat64(), torch.device("meta"), torch.no_grad():
        speech, text = torch.randn(2, 40, 16, dtype=dtype), torch.randn(2, 6, 16, dtype=dtype)
        frame_weights, token_weights, start = torch.rand(2, 40), torch.rand(2, 6), torch.zeros(2, 18, dtype=torch.int32)
        for temperature in (0.0, 0.1):
            for bounds in ((None, None), (start, start)):
                inputs = AlignmentInputs(speech, text, frame_weights, token_weights > 0, *bounds, temperature)
                saved = run.alignment_forward(inputs)
                gradients = run.alignment_backward(token_weights, inputs, saved, Needed(True, True))
                assert [gradient.shape for gradient in gradients[:2]] == [speech.shape, text.shape]
        pooling = PoolingInputs(speech, text, frame_weights, token_weights)
        saved = run.pooled_distance_forward(pooling)
        run.pooled_distance_backward(torch.ones(2), pooling, saved, Needed(True, True))
        heads = torch.randn(2, 2, 40, 16, dtype=dtype)
        assert run.significance(heads, heads, frame_weights > 0, 0.25, None).shape == (2, 40)
