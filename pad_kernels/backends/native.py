"""The compiled library on CPU tensors: unpacks tensors into pointers, sizes and strides."""

from pathlib import Path

import torch

try:
    from pad_kernels import _native
except ImportError as failure:
    _native = None
    _note = Path(__file__).parent.parent / "_build.txt"
    REASON = _note.read_text(encoding="utf-8").strip() if _note.exists() else f"pad_kernels: {failure}"
    if "not built" not in REASON:
        REASON = f"pad_kernels: the compiled library could not be loaded: {failure}"
else:
    REASON = None
LOADED = _native is not None

ELEMENTS = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
OPS = {"alignment_forward", "alignment_backward"}


def serves(op, device, dtype):
    """None where the op runs here on this device and dtype, else the reason why not."""
    if not LOADED:
        return REASON
    if op not in OPS:
        return f"the native backend has no {op}"
    if device.type != "cpu":
        return f"the native backend runs on cpu, not on {device.type}"
    if dtype not in ELEMENTS:
        return f"the native backend takes float32, float64, bfloat16 and float16, not {dtype}"
    return None


def instruction_set():
    """Name of the instruction set in use."""
    return _native.instruction_set() if LOADED else None


def _accumulator(tensor):
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _rows(tensor):
    """The tensor with its last dimension contiguous: any other strides serve as they are."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def _alignment_arguments(speech, text, frame_prior, token_mask, start, end, temperature):
    batch, frames, width = speech.shape
    units = frames if start is None else start.shape[1]
    return (
        (batch, frames, text.shape[1], units, width),
        (*speech.stride()[:2], *text.stride()[:2]),
        ELEMENTS[speech.dtype],
        speech.data_ptr(),
        text.data_ptr(),
        frame_prior.data_ptr(),
        token_mask.data_ptr(),
        0 if start is None else start.data_ptr(),
        0 if end is None else end.data_ptr(),
        temperature,
        torch.get_num_threads(),
    )


def _alignment_tensors(speech, text, frame_prior, token_mask, start, end):
    # Named by the caller for as long as the kernel runs, so that the pointers stay valid.
    return (
        _rows(speech),
        _rows(text),
        frame_prior.to(_accumulator(speech)).contiguous(),
        token_mask.contiguous(),
        None if start is None else start.to(torch.int32).contiguous(),
        None if end is None else end.to(torch.int32).contiguous(),
    )


def alignment_forward(speech, text, frame_prior, token_mask, start, end, temperature):
    """csrc/alignment.h: similarity, best unit and log-normaliser of each token."""
    tensors = _alignment_tensors(speech, text, frame_prior, token_mask, start, end)
    similarity = torch.empty(text.shape[:2], dtype=_accumulator(speech))
    log_normalizer = torch.empty_like(similarity)
    unit = torch.empty(text.shape[:2], dtype=torch.int64)
    _native.alignment_forward(
        *_alignment_arguments(*tensors, temperature),
        similarity.data_ptr(), unit.data_ptr(), log_normalizer.data_ptr(),
    )  # fmt: skip
    return similarity, unit, log_normalizer


def alignment_backward(
    grad_similarity, speech, text, frame_prior, token_mask, start, end, temperature,
    similarity, unit, log_normalizer, need_speech, need_text,
):  # fmt: skip
    """csrc/alignment.h: gradients of speech and text, each empty unless needed."""
    tensors = _alignment_tensors(speech, text, frame_prior, token_mask, start, end)
    rows = [grad_similarity.to(_accumulator(speech)).contiguous(), similarity.contiguous(), unit.contiguous()]
    rows.append(log_normalizer.contiguous())
    grad_speech = torch.empty(speech.shape if need_speech else 0, dtype=speech.dtype)
    grad_text = torch.empty(text.shape if need_text else 0, dtype=text.dtype)
    _native.alignment_backward(
        *_alignment_arguments(*tensors, temperature),
        *(row.data_ptr() for row in rows),
        grad_speech.data_ptr() if need_speech else 0,
        grad_text.data_ptr() if need_text else 0,
    )  # fmt: skip
    return grad_speech, grad_text
