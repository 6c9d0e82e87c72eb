"""The compiled library, on CPU and CUDA tensors: unpacks tensors into pointers, sizes and strides, each by its name."""

import functools
from typing import Any

import torch
from torch import Tensor

from pad_kernels.backends.base import capability_reason
from pad_kernels.backends.library import (
    ANCHOR_CODES,
    ELEMENTS,
    NATIVE,
    REASON,
    cuda_note,
    execution_context,
    gradient,
    packed,
    rows,
    strided,
)
from pad_kernels.backends.native_loss import WholeLosses
from pad_kernels.inputs import (
    AlignmentInputs,
    Gradients,
    Needed,
    Pooled,
    PoolingInputs,
    Saved,
    SpanInputs,
    gradient_temperature,
    opmath_dtype,
)


@functools.cache
def _gpu_unsupported_reason(index: int | None) -> str | None:
    if torch.version.hip is not None:
        return "the native backend's GPU kernels are CUDA's, and this torch is built for ROCm"
    if not NATIVE.cuda_targets():
        return f"pad_kernels was built without CUDA kernels: {cuda_note()}"
    if not torch.cuda.is_available():
        return "torch finds no GPU"
    failure = NATIVE.cuda_failure()
    if failure:
        return f"the CUDA runtime of pad_kernels cannot be used: {failure}"
    return capability_reason("the CUDA kernels need", index)


def _as_read(inputs: AlignmentInputs) -> AlignmentInputs:
    """The inputs as the library reads them. The caller holds them for as long as it runs: their memory is in use."""
    speech, text, frame_weights, token_mask, start, end, temperature = inputs
    return AlignmentInputs(
        rows(speech),
        rows(text),
        packed(frame_weights, opmath_dtype(speech.dtype)),
        packed(token_mask, torch.bool),
        None if start is None else packed(start, torch.int32),
        None if end is None else packed(end, torch.int32),
        temperature,
    )


def _alignment_arguments(inputs: AlignmentInputs) -> dict[str, Any]:
    speech, text, frame_weights, token_mask, start, end, temperature = inputs
    batch, frames, width = speech.shape
    return {
        "batch": batch,
        "frames": frames,
        "tokens": text.shape[1],
        "units": inputs.units,
        "width": width,
        "element": ELEMENTS[speech.dtype],
        "speech": strided(speech),
        "text": strided(text),
        "frame_weights": frame_weights.data_ptr(),
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


class NativeBackend(WholeLosses):
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
        if not NATIVE:
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
            if width is not None and width > NATIVE.CUDA_MAX_WIDTH:
                return f"the native backend on cuda takes widths up to {NATIVE.CUDA_MAX_WIDTH}, not {width}"
        return _gpu_unsupported_reason(device.index)

    def alignment_forward(self, inputs: AlignmentInputs) -> Saved:
        """csrc/alignment.h: similarity, best unit and log-normalizer of each token."""
        inputs = _as_read(inputs)
        text, device = inputs.text, inputs.text.device
        similarity = torch.empty(text.shape[:2], dtype=opmath_dtype(text.dtype), device=device)
        log_normalizer = torch.empty_like(similarity)
        unit = torch.empty_like(similarity, dtype=torch.int64)
        with execution_context(device) as context:
            NATIVE.alignment_forward(
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
        temperature = gradient_temperature(inputs.temperature, inputs.speech.dtype)
        inputs = _as_read(inputs._replace(temperature=temperature))
        speech, text = inputs.speech, inputs.text
        grad_similarity = packed(grad_similarity, opmath_dtype(speech.dtype))
        similarity, unit, log_normalizer = (packed(tensor, tensor.dtype) for tensor in saved)
        grad_speech = gradient(needed.speech, speech)
        grad_text = gradient(needed.text, text)
        with execution_context(speech.device) as context:
            NATIVE.alignment_backward(
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
        """csrc/significance.h: normalized column sums of the attention, per position."""
        batch, heads, length, width = query.shape
        query, key = rows(query), rows(key)
        mask = None if mask is None else mask.contiguous()
        lse = None if lse is None else lse.to(opmath_dtype(query.dtype)).contiguous()
        out = torch.empty(batch, length, dtype=opmath_dtype(query.dtype), device=query.device)
        with execution_context(query.device) as context:
            NATIVE.significance(
                batch=batch,
                heads=heads,
                length=length,
                width=width,
                element=ELEMENTS[query.dtype],
                query=strided(query),
                key=strided(key),
                mask=0 if mask is None else mask.data_ptr(),
                lse=0 if lse is None else lse.data_ptr(),
                scale=scale,
                out=out.data_ptr(),
                context=context,
            )
        return out

    def select_spans(self, inputs: SpanInputs) -> tuple[Tensor, Tensor]:
        """csrc/spans.h: start and end of each utterance's spans."""
        batch, frames = inputs.frame_weights.shape
        frame_weights = packed(inputs.frame_weights, opmath_dtype(inputs.frame_weights.dtype))
        frame_mask = inputs.frame_mask.contiguous()
        num_tokens, num_anchors = inputs.num_tokens.contiguous(), inputs.num_anchors.contiguous()
        xi = None if inputs.xi is None else inputs.xi.contiguous()
        shape = (batch, inputs.max_anchors * len(inputs.scales))
        start = torch.empty(shape, dtype=torch.int32, device=frame_weights.device)
        end = torch.empty_like(start)
        with execution_context(frame_weights.device) as context:
            NATIVE.select_spans(
                batch=batch,
                frames=frames,
                max_anchors=inputs.max_anchors,
                frame_weights=frame_weights.data_ptr(),
                is_double=frame_weights.dtype == torch.float64,
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
        inputs = PoolingInputs(rows(speech), rows(text), packed(frame_weights, dtype), packed(token_weights, dtype))
        distance = torch.empty(batch, dtype=dtype, device=device)
        difference = torch.empty(batch, width, dtype=dtype, device=device)
        totals = torch.empty(batch, 2, dtype=dtype, device=device)
        with execution_context(device) as context:
            NATIVE.pooled_distance_forward(
                **_pooling_arguments(inputs),
                speech=strided(inputs.speech),
                text=strided(inputs.text),
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
        inputs = PoolingInputs(speech, text, packed(frame_weights, dtype), packed(token_weights, dtype))
        grad, difference, totals = (packed(x, dtype) for x in (grad, saved.difference, saved.totals))
        grad_speech = gradient(needed.speech, speech)
        grad_text = gradient(needed.text, text)
        with execution_context(device) as context:
            NATIVE.pooled_distance_backward(
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
