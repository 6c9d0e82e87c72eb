"""The compiled library, on CPU and CUDA tensors: unpacks tensors into pointers, sizes and strides, each by its name."""

import contextlib
import functools
import importlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pad_kernels.backends.base import Backend
from pad_kernels.inputs import (
    ANCHORS,
    REDUCTIONS,
    AlignmentInputs,
    Gradients,
    Needed,
    Pooled,
    PoolingInputs,
    Positions,
    Saved,
    SpanInputs,
    opmath_dtype,
)
from pad_kernels.installation import missing_library
from pad_kernels.ops.weights import check_bounds

REASON: str | None = None  # why the library is missing
COULD_BE_HERE = False  # whether that is a mistake of the installation
try:
    _native: Any = importlib.import_module("pad_kernels._native")
except ImportError as failure:
    _native = None
    REASON, COULD_BE_HERE = missing_library(Path(__file__).parent.parent, failure)

# In the order of the enumeration in csrc/tensor.h.
ELEMENTS = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
REDUCTION_CODES = {name: code for code, name in enumerate(REDUCTIONS)}
ANCHOR_CODES = {name: code for code, name in enumerate(ANCHORS)}

# Threads of the CPU, or none and a CUDA stream, and what allocates memory for the time of the call.
_Context = tuple[int, int, Any]


@functools.cache
def _gpu_unsupported_reason(index: int | None) -> str | None:
    if torch.version.hip is not None:
        return "the native backend's GPU kernels are CUDA's, and this torch is built for ROCm"
    if not _native.cuda_targets():
        return "pad_kernels was built without CUDA kernels"
    if not torch.cuda.is_available():
        return "torch finds no GPU"
    failure = _native.cuda_failure()
    if failure:
        return f"the CUDA runtime of pad_kernels cannot be used: {failure}"
    capability = torch.cuda.get_device_capability(index)
    if capability < (8, 0):
        return f"the CUDA kernels need compute capability 8.0, not {capability[0]}.{capability[1]}"
    return None


def instruction_set() -> str | None:
    """Name of the instruction set in use."""
    return _native.instruction_set() if _native else None


def cuda_targets() -> str | None:
    """What the CUDA kernels were compiled for; None without them."""
    return _native.cuda_targets() or None if _native else None


def release_kept_memory() -> None:
    """Give the memory of freed gradients back to the system."""
    if _native:
        _native.release_kept_memory()


def execution_context(device: torch.device) -> contextlib.AbstractContextManager[_Context]:
    """Where a call into the library runs."""
    return _on_cpu(torch.get_num_threads()) if device.type == "cpu" else _on_stream(device)


@functools.cache
def _on_cpu(threads: int) -> contextlib.AbstractContextManager[_Context]:
    return contextlib.nullcontext((threads, 0, None))


@contextlib.contextmanager
def _on_stream(device: torch.device) -> Iterator[_Context]:
    workspace: list[Tensor] = []

    def allocate(size: int) -> int:
        workspace.append(torch.empty(size, dtype=torch.uint8, device=device))
        return workspace[0].data_ptr()

    with torch.cuda.device(device):
        yield 0, torch.cuda.current_stream(device).cuda_stream, allocate


def _gradient(needed: bool, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory for a gradient, empty unless needed; a large one on a CPU is where an earlier one was."""
    if not needed:
        return torch.empty(0, dtype=dtype, device=device)
    size = math.prod(shape) * dtype.itemsize
    if device.type == "cpu" and size >= _native.LARGE_RESULT_BYTES:
        return torch.frombuffer(_native.Memory(size), dtype=dtype).view(shape)
    return torch.empty(shape, dtype=dtype, device=device)


def _rows(tensor: Tensor) -> Tensor:
    """The tensor with its last dimension contiguous: any other strides serve as they are."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def _packed(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor contiguous and in `dtype`, as it mostly is already: to look is quicker than to ask for it."""
    return tensor if tensor.dtype == dtype and tensor.is_contiguous() else tensor.to(dtype).contiguous()


def _strided(tensor: Tensor) -> tuple[int, ...]:
    """Address, and the strides of all dimensions but the last."""
    return tensor.data_ptr(), *tensor.stride()[:-1]


def _as_read(inputs: AlignmentInputs) -> AlignmentInputs:
    """The inputs as the library reads them. The caller holds them for as long as it runs: their memory is in use."""
    speech, text, frame_prior, token_mask, start, end, temperature = inputs
    return AlignmentInputs(
        _rows(speech),
        _rows(text),
        _packed(frame_prior, opmath_dtype(speech.dtype)),
        _packed(token_mask, torch.bool),
        None if start is None else _packed(start, torch.int32),
        None if end is None else _packed(end, torch.int32),
        temperature,
    )


def _alignment_arguments(inputs: AlignmentInputs) -> dict[str, Any]:
    speech, text, frame_prior, token_mask, start, end, temperature = inputs
    batch, frames, width = speech.shape
    return {
        "batch": batch,
        "frames": frames,
        "tokens": text.shape[1],
        "units": frames if start is None else start.shape[1],
        "width": width,
        "element": ELEMENTS[speech.dtype],
        "speech": _strided(speech),
        "text": _strided(text),
        "frame_prior": frame_prior.data_ptr(),
        "token_mask": token_mask.data_ptr(),
        "start": 0 if start is None else start.data_ptr(),
        "end": 0 if end is None else end.data_ptr(),
        "temperature": temperature,
    }


def _pooling_arguments(inputs: PoolingInputs) -> dict[str, Any]:
    batch, frames, width = inputs.speech.shape
    return {
        "batch": batch,
        "frames": frames,
        "tokens": inputs.text.shape[1],
        "width": width,
        "element": ELEMENTS[inputs.speech.dtype],
        "frame_weights": inputs.frame_weights.data_ptr(),
        "token_weights": inputs.token_weights.data_ptr(),
    }


class NativeHelpers(Backend):
    """The steps around the ops on a CPU, in the compiled library where there is one: for any backend to inherit."""

    def position_weights(self, positions: Positions, *, normalized: bool = False, masked: float = 0.0) -> Tensor:
        """csrc/weights.h: the weights of positions."""
        name, values, mask, prior = positions
        if values.device.type != "cpu" or not _native:
            return super().position_weights(positions, normalized=normalized, masked=masked)
        mask, prior = (None if x is None else x.contiguous() for x in (mask, prior))
        shape, dtype = values.shape[:2], opmath_dtype(values.dtype)
        weights = torch.empty(shape, dtype=dtype)
        bounds = _native.position_weights(
            batch=shape[0],
            length=shape[1],
            mask=0 if mask is None else mask.data_ptr(),
            prior=0 if prior is None else prior.data_ptr(),
            element=0 if prior is None else ELEMENTS[prior.dtype],
            normalized=normalized,
            masked=masked,
            weights=weights.data_ptr(),
            is_double=dtype == torch.float64,
        )
        check_bounds(name, bounds, shape, dtype)
        return weights

    def spans_fit(self, start: Tensor, end: Tensor, frames: int) -> bool:
        """csrc/loss.h: whether all spans lie within the frames."""
        if start.device.type != "cpu" or not _native or not start.dtype == end.dtype == torch.int32:
            return super().spans_fit(start, end, frames)
        start, end = start.contiguous(), end.contiguous()
        fit: bool = _native.spans_fit(start=start.data_ptr(), end=end.data_ptr(), count=start.numel(), frames=frames)
        return fit

    def token_loss(self, saved: Saved, token_prior: Tensor, reduction: str) -> tuple[Tensor, Tensor | float]:
        """csrc/loss.h: the loss of a batch from its tokens' similarities, and `grad_scale`."""
        similarity, unit, _ = saved
        if similarity.device.type != "cpu" or not _native:
            return super().token_loss(saved, token_prior, reduction)
        batch, tokens = similarity.shape
        loss = torch.empty((batch,) if reduction == "none" else (), dtype=similarity.dtype)
        grad_scale: float = _native.token_loss(
            batch=batch,
            is_double=similarity.dtype == torch.float64,
            reduction=REDUCTION_CODES[reduction],
            loss=loss.data_ptr(),
            tokens=tokens,
            similarity=similarity.data_ptr(),
            unit=unit.data_ptr(),
            weights=token_prior.data_ptr(),
        )
        return loss, grad_scale

    def pooled_loss(self, pooled: Pooled, reduction: str) -> tuple[Tensor, Tensor | float]:
        """csrc/loss.h: the loss of a batch from its utterances' distances, and `grad_scale`."""
        distance, _, totals = pooled
        if distance.device.type != "cpu" or not _native:
            return super().pooled_loss(pooled, reduction)
        loss = torch.empty(distance.shape if reduction == "none" else (), dtype=distance.dtype)
        grad_scale: float = _native.pooled_loss(
            batch=distance.shape[0],
            is_double=distance.dtype == torch.float64,
            reduction=REDUCTION_CODES[reduction],
            loss=loss.data_ptr(),
            distance=distance.data_ptr(),
            totals=totals.data_ptr(),
        )
        return loss, grad_scale


class NativeBackend(NativeHelpers):
    """The compiled library."""

    name = "native"
    default_devices = ("cpu", "cuda")

    def ops_on(self, device_type: str) -> tuple[str, ...]:
        """All on a CPU; on CUDA there is no significance."""
        ops = super().ops_on(device_type)
        return ops if device_type == "cpu" else tuple(op for op in ops if op != "significance")

    def unsupported_reason(
        self, op: str, device: torch.device, dtype: torch.dtype, width: int | None = None
    ) -> str | None:
        """Why the library cannot do this here, or None."""
        if not _native:
            return REASON
        if dtype not in ELEMENTS:
            return f"the native backend takes float32, float64, bfloat16 and float16, not {dtype}"
        if device.type == "cpu":
            return super().unsupported_reason(op, device, dtype, width)
        if device.type != "cuda":
            return f"the native backend runs on cpu and cuda, not on {device.type}"
        if op not in self.ops_on(device.type):
            return f"the native backend has no {op} on {device.type}"
        if op.startswith("alignment"):
            if dtype == torch.float64:
                return "the native backend on cuda takes float32, bfloat16 and float16 here, not torch.float64"
            if width is not None and width > _native.CUDA_MAX_WIDTH:
                return f"the native backend on cuda takes widths up to {_native.CUDA_MAX_WIDTH}, not {width}"
        return _gpu_unsupported_reason(device.index)

    def alignment_forward(self, inputs: AlignmentInputs) -> Saved:
        """csrc/alignment.h: similarity, best unit and log-normaliser of each token."""
        inputs = _as_read(inputs)
        text, device = inputs.text, inputs.text.device
        similarity = torch.empty(text.shape[:2], dtype=opmath_dtype(text.dtype), device=device)
        log_normalizer = torch.empty_like(similarity)
        unit = torch.empty_like(similarity, dtype=torch.int64)
        with execution_context(device) as context:
            _native.alignment_forward(
                **_alignment_arguments(inputs),
                similarity=similarity.data_ptr(),
                unit=unit.data_ptr(),
                log_normalizer=log_normalizer.data_ptr(),
                context=context,
            )
        return Saved(similarity, unit, log_normalizer)

    def alignment_backward(
        self, grad_similarity: Tensor, inputs: AlignmentInputs, saved: Saved, needed: Needed
    ) -> Gradients:
        """csrc/alignment.h: gradients of speech and text, each empty unless needed."""
        inputs = _as_read(inputs)
        speech, text = inputs.speech, inputs.text
        grad_similarity = _packed(grad_similarity, opmath_dtype(speech.dtype))
        similarity, unit, log_normalizer = (_packed(tensor, tensor.dtype) for tensor in saved)
        grad_speech = _gradient(needed.speech, speech.shape, speech.dtype, speech.device)
        grad_text = _gradient(needed.text, text.shape, text.dtype, text.device)
        with execution_context(speech.device) as context:
            _native.alignment_backward(
                **_alignment_arguments(inputs),
                grad_similarity=grad_similarity.data_ptr(),
                similarity=similarity.data_ptr(),
                unit=unit.data_ptr(),
                log_normalizer=log_normalizer.data_ptr(),
                grad_speech=grad_speech.data_ptr() if needed.speech else 0,
                grad_text=grad_text.data_ptr() if needed.text else 0,
                context=context,
            )
        return grad_speech, grad_text

    def significance(self, query: Tensor, key: Tensor, mask: Tensor | None, scale: float, lse: Tensor | None) -> Tensor:
        """csrc/significance.h: normalised column sums of the attention, per position."""
        batch, heads, length, width = query.shape
        query, key = _rows(query), _rows(key)
        mask = None if mask is None else mask.contiguous()
        lse = None if lse is None else lse.to(opmath_dtype(query.dtype)).contiguous()
        out = torch.empty(batch, length, dtype=opmath_dtype(query.dtype), device=query.device)
        with execution_context(query.device) as context:
            _native.significance(
                batch=batch,
                heads=heads,
                length=length,
                width=width,
                element=ELEMENTS[query.dtype],
                query=_strided(query),
                key=_strided(key),
                mask=0 if mask is None else mask.data_ptr(),
                lse=0 if lse is None else lse.data_ptr(),
                scale=scale,
                out=out.data_ptr(),
                context=context,
            )
        return out

    def select_spans(self, inputs: SpanInputs) -> tuple[Tensor, Tensor]:
        """csrc/spans.h: start and end of each utterance's spans."""
        batch, frames = inputs.frame_prior.shape
        frame_prior = _packed(inputs.frame_prior, opmath_dtype(inputs.frame_prior.dtype))
        frame_mask = inputs.frame_mask.contiguous()
        num_tokens, num_anchors = inputs.num_tokens.contiguous(), inputs.num_anchors.contiguous()
        xi = None if inputs.xi is None else inputs.xi.contiguous()
        shape = (batch, inputs.max_anchors * len(inputs.scales))
        start = torch.empty(shape, dtype=torch.int32, device=frame_prior.device)
        end = torch.empty_like(start)
        with execution_context(frame_prior.device) as context:
            _native.select_spans(
                batch=batch,
                frames=frames,
                max_anchors=inputs.max_anchors,
                frame_prior=frame_prior.data_ptr(),
                is_double=frame_prior.dtype == torch.float64,
                frame_mask=frame_mask.data_ptr(),
                num_tokens=num_tokens.data_ptr(),
                num_anchors=num_anchors.data_ptr(),
                scales=inputs.scales,
                xi=0 if xi is None else xi.data_ptr(),
                anchors=ANCHOR_CODES[inputs.anchors],
                start=start.data_ptr(),
                end=end.data_ptr(),
                context=context,
            )
        return start, end

    def pooled_distance_forward(self, inputs: PoolingInputs) -> Pooled:
        """csrc/pooling.h: distance of the pooled rows, their difference, and the sums of the weights."""
        speech, text, frame_weights, token_weights = inputs
        batch, _, width = speech.shape
        dtype, device = opmath_dtype(speech.dtype), speech.device
        inputs = PoolingInputs(_rows(speech), _rows(text), _packed(frame_weights, dtype), _packed(token_weights, dtype))
        distance = torch.empty(batch, dtype=dtype, device=device)
        difference = torch.empty(batch, width, dtype=dtype, device=device)
        totals = torch.empty(batch, 2, dtype=dtype, device=device)
        with execution_context(device) as context:
            _native.pooled_distance_forward(
                **_pooling_arguments(inputs),
                speech=_strided(inputs.speech),
                text=_strided(inputs.text),
                distance=distance.data_ptr(),
                difference=difference.data_ptr(),
                totals=totals.data_ptr(),
                context=context,
            )
        return Pooled(distance, difference, totals)

    def pooled_distance_backward(self, grad: Tensor, inputs: PoolingInputs, saved: Pooled, needed: Needed) -> Gradients:
        """csrc/pooling.h: gradients of speech and text, each empty unless needed."""
        speech, text, frame_weights, token_weights = inputs
        dtype, device = opmath_dtype(speech.dtype), speech.device
        inputs = PoolingInputs(speech, text, _packed(frame_weights, dtype), _packed(token_weights, dtype))
        grad, difference, totals = (_packed(x, dtype) for x in (grad, saved.difference, saved.totals))
        grad_speech = _gradient(needed.speech, speech.shape, speech.dtype, device)
        grad_text = _gradient(needed.text, text.shape, text.dtype, device)
        with execution_context(device) as context:
            _native.pooled_distance_backward(
                **_pooling_arguments(inputs),
                grad=grad.data_ptr(),
                difference=difference.data_ptr(),
                totals=totals.data_ptr(),
                grad_speech=grad_speech.data_ptr() if needed.speech else 0,
                grad_text=grad_text.data_ptr() if needed.text else 0,
                context=context,
            )
        return grad_speech, grad_text


BACKEND: NativeBackend = NativeBackend()
