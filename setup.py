"""Builds the compiled library with CMake. Everything else is declared in pyproject.toml.

A machine without a C++ compiler still gets a working package: the reason why the native backend is
missing is kept in `pad_kernels/_build.txt`, where `python -m pad_kernels.info` finds it. The git revision is kept in
`pad/_revision.txt`, where `pad.versions` finds it; an editable install asks the checkout instead.

PAD_KERNELS_NATIVE=0 leaves the library out: the wheel then is one of plain Python, for every system.
"""

import runpy
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

SOURCE = Path(__file__).parent.resolve()
PACKAGE = SOURCE / "pad_kernels"
settings = runpy.run_path(str(SOURCE / "cmake" / "settings.py"))
NATIVE = settings["asked"]("PAD_KERNELS_NATIVE") is not False
REQUIRED = settings["asked"]("PAD_KERNELS_REQUIRE_NATIVE") is True
CUDA = settings["asked"]("PAD_KERNELS_CUDA")
ARCHITECTURES = settings["architectures"]()
if REQUIRED and not NATIVE:
    raise SystemExit("error: PAD_KERNELS_REQUIRE_NATIVE=1 and PAD_KERNELS_NATIVE=0 contradict each other")


def remove_library(package):
    """Remove the library of an earlier build for this Python, and its note."""
    for name in (f"_native{sysconfig.get_config_var('EXT_SUFFIX')}", "_build.txt"):
        (package / name).unlink(missing_ok=True)


def note_revision(package):
    """Note in this copy of the package `pad` which revision it is."""
    revision = runpy.run_path(str(SOURCE / "pad" / "versions.py"))["git_revision"](SOURCE / "pad")
    noted = package / "_revision.txt"
    noted.unlink(missing_ok=True)  # the copy may be a hard link
    noted.write_text(revision + "\n", encoding="utf-8")


class SourceWithRevision(sdist):
    """Notes in the source package which revision it is: it is no checkout."""

    def make_release_tree(self, base_dir, files):
        super().make_release_tree(base_dir, files)
        note_revision(Path(base_dir) / "pad")


class BuildWithNotes(build_py):
    """Notes beside the Python sources which revision they are, and that there is no library where there is none."""

    def run(self):
        built = Path(self.build_lib)
        for package in ("pad", "pad_kernels"):  # of another revision, perhaps with modules that are gone
            shutil.rmtree(built / package, ignore_errors=True)
        super().run()
        if not self.editable_mode:
            note_revision(built / "pad")
        if not NATIVE:
            package = PACKAGE if self.editable_mode else built / "pad_kernels"
            remove_library(package)
            note = "pad_kernels: native backend not built: it was left out of this package, as asked"
            (package / "_build.txt").write_text(note + "\n", encoding="utf-8")


class CMakeBuild(build_ext):
    """Runs CMake once for the one extension and says in a line what was built."""

    def build_extension(self, extension):
        library = Path(self.get_ext_fullpath(extension.name)).resolve()
        library.parent.mkdir(parents=True, exist_ok=True)
        remove_library(library.parent)
        built, output = self.attempt(library.parent, CUDA)
        if built is None and CUDA is None and settings["is_of_cuda"](output):
            built, failure = self.attempt(library.parent, False)
            if built is None:
                output = failure
            else:
                reason = settings["first_error"](output)
                built = built.replace("left out, as asked", f"left out: {reason}; PAD_KERNELS_CUDA=1 for all of it")
        if built is None:
            if REQUIRED or CUDA:
                raise RuntimeError(f"the native backend could not be built:\n{output}")
            built = f"pad_kernels: native backend not built: {settings['first_error'](output)}"
            if self.verbose:
                print(output, file=sys.stderr)
        (library.parent / "_build.txt").write_text(built + "\n", encoding="utf-8")
        print(built, file=sys.stderr)

    def attempt(self, output_folder, cuda):
        """(what was built, in a line, or None; what CMake and the compiler said)"""
        try:
            text = self.run_cmake(output_folder, cuda)
        except (OSError, subprocess.CalledProcessError) as failure:
            return None, getattr(failure, "output", None) or str(failure)
        lines = (line.split("-- ", 1)[-1] for line in text.splitlines())
        return next((line for line in lines if "pad_kernels: built" in line), "pad_kernels: built the library"), text

    def run_cmake(self, output_folder, cuda):
        folder = Path(self.build_temp).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        digest = runpy.run_path(str(PACKAGE / "installation.py"))["digest_of_sources"](SOURCE)
        configure = [
            "cmake", "--fresh", "-S", str(SOURCE), "-B", str(folder), "-G", "Ninja",
            "-DCMAKE_BUILD_TYPE=Release", f"-DPAD_KERNELS_SOURCES={digest}",
            f"-DPython_EXECUTABLE={sys.executable}", f"-DPAD_KERNELS_OUTPUT={output_folder}",
        ]  # fmt: skip
        if cuda is not None:
            configure.append(f"-DPAD_KERNELS_CUDA={int(cuda)}")
        if ARCHITECTURES is not None:
            configure.append(f"-DPAD_KERNELS_CUDA_ARCHS={ARCHITECTURES}")
        text = ""
        for command in (configure, ["cmake", "--build", str(folder)]):
            text += subprocess.run(
                command, check=True, text=True, env=settings["environment"](), encoding="utf-8", errors="replace",
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            ).stdout  # fmt: skip
        return text

    def get_outputs(self):
        """The library may be absent, so only what exists is listed."""
        outputs = [Path(path) for path in super().get_outputs()]
        outputs += [path.parent / "_build.txt" for path in outputs]
        return [str(path) for path in outputs if path.exists()]

    def copy_extensions_to_source(self):
        """An editable install has the library and the note beside the Python sources."""
        remove_library(PACKAGE)
        for path in self.get_outputs():
            self.copy_file(path, str(PACKAGE / Path(path).name), level=self.verbose)


setup(
    ext_modules=[Extension("pad_kernels._native", sources=[])] if NATIVE else [],
    cmdclass={"build_ext": CMakeBuild, "build_py": BuildWithNotes, "sdist": SourceWithRevision},
)
