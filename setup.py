"""Builds the compiled library with CMake. Everything else is declared in pyproject.toml.

A machine without a C++ compiler still gets a working package: the reason why the native backend is
missing is kept in `pad_kernels/_build.txt`, where `python -m pad_kernels.info` finds it. The git revision is kept in
`pad/_revision.txt`, where `pad.versions` finds it; an editable install asks the checkout instead.

PAD_KERNELS_NATIVE=0 leaves the library out: the wheel then is one of plain Python, for every system.
"""

import os
import runpy
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

SOURCE = Path(__file__).parent.resolve()
NATIVE = os.environ.get("PAD_KERNELS_NATIVE", "1") != "0"


def first_error(output):
    """What went wrong, in a line, from the output of CMake or the compiler."""
    if "No CMAKE_CXX_COMPILER could be found" in output:
        return "no C++ compiler was found when the package was installed"
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    for line, following in zip(lines, [*lines[1:], ""]):
        if line.startswith("CMake Error"):
            return f"{line} {following}"
        if "error:" in line:
            return line
    return lines[-1] if lines else "the build stopped without a message"


class BuildWithNotes(build_py):
    """Notes beside the Python sources which revision they are, and that there is no library where there is none."""

    def run(self):
        super().run()
        if not self.editable_mode:
            revision = runpy.run_path(str(SOURCE / "pad" / "versions.py"))["git_revision"](SOURCE / "pad")
            (Path(self.build_lib) / "pad" / "_revision.txt").write_text(revision + "\n", encoding="utf-8")
            if not NATIVE:
                note = "pad_kernels: native backend not built: it was left out of this package, as asked"
                (Path(self.build_lib) / "pad_kernels" / "_build.txt").write_text(note + "\n", encoding="utf-8")


class CMakeBuild(build_ext):
    """Runs CMake once for the one extension and says in a line what was built."""

    def build_extension(self, extension):
        library = Path(self.get_ext_fullpath(extension.name)).resolve()
        note = library.parent / "_build.txt"
        library.parent.mkdir(parents=True, exist_ok=True)
        try:
            built = self.run_cmake(library.parent)
        except (OSError, subprocess.CalledProcessError) as failure:
            output = getattr(failure, "output", None) or str(failure)
            if os.environ.get("PAD_KERNELS_REQUIRE_NATIVE") == "1":
                raise RuntimeError(f"the native backend could not be built:\n{output}") from failure
            built = f"pad_kernels: native backend not built: {first_error(output)}"
            if self.verbose:
                print(output, file=sys.stderr)
        note.write_text(built + "\n", encoding="utf-8")
        print(built, file=sys.stderr)

    def run_cmake(self, output_folder):
        folder = Path(self.build_temp).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        configure = [
            "cmake", "--fresh", "-S", str(SOURCE), "-B", str(folder), "-G", "Ninja",
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DPython_EXECUTABLE={sys.executable}", f"-DPAD_KERNELS_OUTPUT={output_folder}",
        ]  # fmt: skip
        for name in ("PAD_KERNELS_CUDA", "PAD_KERNELS_CUDA_ARCHS"):
            if name in os.environ:
                configure.append(f"-D{name}={os.environ[name]}")
        text = ""
        for command in (configure, ["cmake", "--build", str(folder)]):
            text += subprocess.run(
                command, check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            ).stdout
        return next(
            (line.split("-- ", 1)[-1] for line in text.splitlines() if "pad_kernels: built" in line),
            "pad_kernels: built the native backend",
        )

    def get_outputs(self):
        """The library may be absent, so only what exists is listed."""
        outputs = [Path(path) for path in super().get_outputs()]
        outputs += [path.parent / "_build.txt" for path in outputs]
        return [str(path) for path in outputs if path.exists()]

    def copy_extensions_to_source(self):
        """An editable install has the library and the note beside the Python sources."""
        package = SOURCE / "pad_kernels"
        for path in self.get_outputs():
            self.copy_file(path, str(package / Path(path).name), level=self.verbose)


setup(
    ext_modules=[Extension("pad_kernels._native", sources=[])] if NATIVE else [],
    cmdclass={"build_ext": CMakeBuild, "build_py": BuildWithNotes},
)
