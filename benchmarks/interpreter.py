"""Triton's interpreter made several times faster, for tests and counts. What kernels compute stays the same.

Most of its time goes into three habits: it patches Triton's language again for every function that a kernel calls,
reduces by a kernel's own function one element after another, and builds a table of types for every value.
"""

import os

import numpy as np


def make_fast() -> None:
    """For the rest of the process, if kernels are interpreted in it (TRITON_INTERPRET=1).

    Called twice it does nothing more; early interpreters stay as they are.
    """
    if os.environ.get("TRITON_INTERPRET") != "1":
        return
    from triton.runtime import interpreter

    if getattr(interpreter._patch_lang, "is_fast", False) or not hasattr(interpreter, "_LangPatchScope"):
        return
    interpreter._patch_lang = _patched_once(interpreter, interpreter._patch_lang)
    interpreter._get_np_dtype = _remembered(interpreter._get_np_dtype)
    interpreter.ReduceOps.generic_reduce = _by_halves(interpreter.ReduceOps.generic_reduce)


def _patched_once(interpreter, patch):
    """What is patched once stays so until the kernel ends."""
    patched: set[str] = set()

    def patch_lang(function):
        languages = {x.__name__ for x in function.__globals__.values() if x in (interpreter.tl, interpreter.tl.core)}
        if languages and languages <= patched:
            return None
        patched.update(languages)
        scope = patch(function)
        restore = scope.restore

        def restored():
            patched.clear()
            restore()

        scope.restore = restored
        return scope

    patch_lang.is_fast = True
    return patch_lang


def _remembered(function):
    """A function of a type of Triton's, called once for each."""
    known: dict[str, np.dtype] = {}

    def remembered(dtype):
        if dtype.name not in known:
            known[dtype.name] = function(dtype)
        return known[dtype.name]

    return remembered


def _by_halves(reduce):
    """A reduction by a kernel's own function, as a GPU does it: halves of the whole tensor at a time."""

    def reduce_by_halves(self, values):
        first = values[0].handle.data
        if len(values) != 1 or self.axis is None or first.shape[self.axis] & (first.shape[self.axis] - 1):
            return reduce(self, values)
        data = first
        while data.shape[self.axis] > 1:
            low, high = np.split(data, 2, axis=self.axis)
            folded = self.combine_fn.fn(*(self.to_tensor(np.ascontiguousarray(x), values[0].dtype)
                                          for x in (low, high)))  # fmt: skip
            data = folded.handle.data.reshape(low.shape)
        data = data if self.keep_dims else np.squeeze(data, axis=self.axis)
        return [self.to_tensor(data if data.ndim else data.item(), values[0].dtype)]

    return reduce_by_halves
