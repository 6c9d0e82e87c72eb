"""Fixtures: every available backend in turn, and fresh memory that is never zero by luck."""

import os
import signal

# Small models: a second thread costs more than it brings, most of all on a busy machine. For child processes too.
# Set beforehand, it is the number of threads of every test.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import onednn
import pytest
import torch

import pad_kernels

# A child process would ignore them too, where the tests were started by nohup or in the background.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)

if onednn.has_amx():
    os.environ[onednn.VARIABLE] = onednn.WITHOUT_AMX


def pytest_collection_modifyitems(items):
    """What takes longest begins first: at the end the other workers would wait for it."""
    items.sort(key=lambda item: item.name != "test_kernels_under_the_interpreter")


@pytest.fixture(params=pad_kernels.available_backends())
def backend(request) -> str:
    """Each backend that runs on this machine."""
    return request.param


@pytest.fixture(autouse=True)
def number_of_threads():
    """One unless OMP_NUM_THREADS says otherwise. Tests that want more threads say so."""
    before = torch.get_num_threads()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"].split(",")[0]))
    yield
    torch.set_num_threads(before)


class _Dirty:
    """torch, but for fresh memory, which comes filled with NaN (integers: with their largest value)."""

    def __getattr__(self, name):
        return getattr(torch, name)

    @staticmethod
    def _filled(tensor):
        floating = tensor.is_floating_point()
        return tensor.fill_(torch.nan if floating else True if tensor.dtype == torch.bool
                            else torch.iinfo(tensor.dtype).max)  # fmt: skip

    def empty(self, *args, **kwargs):
        return self._filled(torch.empty(*args, **kwargs))

    def empty_strided(self, *args, **kwargs):
        return self._filled(torch.empty_strided(*args, **kwargs))

    def empty_like(self, *args, **kwargs):
        return self._filled(torch.empty_like(*args, **kwargs))

    def frombuffer(self, *args, **kwargs):
        return self._filled(torch.frombuffer(*args, **kwargs))


@pytest.fixture(autouse=True)
def dirty_memory(monkeypatch):
    """What a kernel forgets to write is NaN, not an old zero."""
    if "native" in pad_kernels.available_backends():
        from pad_kernels.backends import library, native, native_loss

        for module in (library, native, native_loss):
            monkeypatch.setattr(module, "torch", _Dirty())


@pytest.fixture
def native() -> str:
    """The compiled library; the test is left out where it was not built."""
    if "native" not in pad_kernels.available_backends():
        pytest.skip("the native backend is not available: see python -m pad_kernels.info")
    return "native"
