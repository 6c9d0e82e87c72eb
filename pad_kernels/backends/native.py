"""The compiled library, on CPU and CUDA tensors: unpacks tensors into pointers, sizes and strides."""

import functools
import math
from pathlib import Path

import torch

from pad_kernels.inputs import accumulator

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
REDUCTIONS = {"none": 0, "sum": 1, "mean": 2}
ANCHORS = {"topk": 0, "peaks": 1, "stride": 2}
CUDA_WIDTH = 2048
LARGE_BYTES = 1 << 23


def serves(op, device, dtype, width=None):
    """None where the op runs here on this device, dtype and width, else the reason why not."""
    if not LOADED:
        return REASON
    if dtype not in ELEMENTS:
        return f"the native backend takes float32, float64, bfloat16 and float16, not {dtype}"
    if device.type == "cpu":
        return None
    if device.type != "cuda":
        return f"the native backend runs on cpu and cuda, not on {device.type}"
    if op == "significance":
        return "the native backend has no significance on cuda"
    if op.startswith("alignment"):
        if dtype == torch.float64:
            return "the native backend on cuda takes float32, bfloat16 and float16 here, not torch.float64"
        if width is not None and width > CUDA_WIDTH:
            return f"the native backend on cuda takes widths up to {CUDA_WIDTH}, not {width}"
    return _reason_against_gpu(device.index)


@functools.cache
def _reason_against_gpu(index):
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


def instruction_set():
    """Name of the instruction set in use."""
    return _native.instruction_set() if LOADED else None


def cuda_targets():
    """What the CUDA kernels were compiled for; None without them."""
    return LOADED and _native.cuda_targets() or None


def _run(function, device, *arguments):
    """Call into the library with the place to run at: threads of the CPU, or a stream and its memory."""
    if device.type == "cpu":
        return function(*arguments, (torch.get_num_threads(), 0, None))
    workspace = []

    def allocate(size):
        workspace.append(torch.empty(size, dtype=torch.uint8, device=device))
        return workspace[0].data_ptr()

    with torch.cuda.device(device):
        return function(*arguments, (0, torch.cuda.current_stream(device).cuda_stream, allocate))


def _gradient(needed, shape, dtype, device):
    """Memory for a gradient, empty unless needed; a large one on a CPU is where an earlier one was."""
    size = math.prod(shape) * dtype.itemsize
    if needed and device.type == "cpu" and size >= LARGE_BYTES:
        return torch.frombuffer(_native.Memory(size), dtype=dtype).view(shape)
    return torch.empty(shape if needed else 0, dtype=dtype, device=device)


def release_kept_memory():
    """Give the memory of freed gradients back to the system."""
    if LOADED:
        _native.release_kept_memory()


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
    )


def _alignment_tensors(speech, text, frame_prior, token_mask, start, end):
    # Named by the caller for as long as the kernel runs, so that the pointers stay valid.
    return (
        _rows(speech),
        _rows(text),
        frame_prior.to(accumulator(speech.dtype)).contiguous(),
        token_mask.contiguous(),
        None if start is None else start.to(torch.int32).contiguous(),
        None if end is None else end.to(torch.int32).contiguous(),
    )


def alignment_forward(speech, text, frame_prior, token_mask, start, end, temperature):
    """csrc/alignment.h: similarity, best unit and log-normaliser of each token."""
    tensors = _alignment_tensors(speech, text, frame_prior, token_mask, start, end)
    similarity = torch.empty(text.shape[:2], dtype=accumulator(speech.dtype), device=speech.device)
    log_normalizer = torch.empty_like(similarity)
    unit = torch.empty_like(similarity, dtype=torch.int64)
    _run(
        _native.alignment_forward, speech.device, *_alignment_arguments(*tensors, temperature),
        similarity.data_ptr(), unit.data_ptr(), log_normalizer.data_ptr(),
    )  # fmt: skip
    return similarity, unit, log_normalizer


def alignment_backward(
    grad_similarity, speech, text, frame_prior, token_mask, start, end, temperature,
    similarity, unit, log_normalizer, need_speech, need_text,
):  # fmt: skip
    """csrc/alignment.h: gradients of speech and text, each empty unless needed."""
    tensors = _alignment_tensors(speech, text, frame_prior, token_mask, start, end)
    rows = [grad_similarity.to(accumulator(speech.dtype)).contiguous(), similarity.contiguous(), unit.contiguous()]
    rows.append(log_normalizer.contiguous())
    grad_speech = _gradient(need_speech, speech.shape, speech.dtype, speech.device)
    grad_text = _gradient(need_text, text.shape, text.dtype, text.device)
    _run(
        _native.alignment_backward, speech.device, *_alignment_arguments(*tensors, temperature),
        *(row.data_ptr() for row in rows),
        grad_speech.data_ptr() if need_speech else 0,
        grad_text.data_ptr() if need_text else 0,
    )  # fmt: skip
    return grad_speech, grad_text


def significance(query, key, mask, scale, lse):
    """csrc/significance.h: normalised column sums of the attention, per position."""
    batch, heads, length, width = query.shape
    query, key = _rows(query), _rows(key)
    mask = None if mask is None else mask.contiguous()
    lse = None if lse is None else lse.to(accumulator(query.dtype)).contiguous()
    out = torch.empty(batch, length, dtype=accumulator(query.dtype), device=query.device)
    _run(
        _native.significance, query.device, (batch, heads, length, width),
        (*query.stride()[:3], *key.stride()[:3]), ELEMENTS[query.dtype],
        query.data_ptr(), key.data_ptr(), 0 if mask is None else mask.data_ptr(),
        0 if lse is None else lse.data_ptr(), scale, out.data_ptr(),
    )  # fmt: skip
    return out


def select_spans(frame_prior, frame_mask, num_tokens, num_anchors, max_anchors, scales, xi, anchors):
    """csrc/spans.h: start and end of each utterance's spans."""
    batch, frames = frame_prior.shape
    frame_prior = frame_prior.to(accumulator(frame_prior.dtype)).contiguous()
    rows = [frame_mask.to(torch.bool).contiguous()]
    rows += [count.to(torch.int64).contiguous() for count in (num_tokens, num_anchors)]
    xi = None if xi is None else xi.to(torch.float64).contiguous()
    start = torch.empty(batch, max_anchors * len(scales), dtype=torch.int32, device=frame_prior.device)
    end = torch.empty_like(start)
    _run(
        _native.select_spans, frame_prior.device,
        (batch, frames, max_anchors), frame_prior.data_ptr(), frame_prior.dtype == torch.float64,
        *(row.data_ptr() for row in rows), list(scales), 0 if xi is None else xi.data_ptr(), ANCHORS[anchors],
        start.data_ptr(), end.data_ptr(),
    )  # fmt: skip
    return start, end


def pooled_distance_forward(speech, text, frame_weights, token_weights):
    """csrc/pooling.h: distance of the pooled rows, their difference, and the sums of the weights."""
    speech, text = _rows(speech), _rows(text)
    batch, frames, width = speech.shape
    options = {"dtype": accumulator(speech.dtype), "device": speech.device}
    frame_weights, token_weights = (
        weights.to(options["dtype"]).contiguous() for weights in (frame_weights, token_weights)
    )
    distance, difference, totals = (torch.empty(shape, **options) for shape in (batch, (batch, width), (batch, 2)))
    _run(
        _native.pooled_distance_forward, speech.device, (batch, frames, text.shape[1], width),
        ELEMENTS[speech.dtype], frame_weights.data_ptr(), token_weights.data_ptr(),
        (*speech.stride()[:2], *text.stride()[:2]), speech.data_ptr(), text.data_ptr(),
        distance.data_ptr(), difference.data_ptr(), totals.data_ptr(),
    )  # fmt: skip
    return distance, difference, totals


def pooled_distance_backward(
    grad, difference, totals, frame_weights, token_weights, dtype, need_speech, need_text
):  # fmt: skip
    """csrc/pooling.h: gradients of speech and text in `dtype`, each empty unless needed."""
    (batch, frames), tokens, width = frame_weights.shape, token_weights.shape[1], difference.shape[1]
    rows = [row.to(difference.dtype).contiguous() for row in (frame_weights, token_weights, grad)]
    rows += difference.contiguous(), totals.contiguous()
    grad_speech = _gradient(need_speech, (batch, frames, width), dtype, grad.device)
    grad_text = _gradient(need_text, (batch, tokens, width), dtype, grad.device)
    _run(
        _native.pooled_distance_backward, grad.device, (batch, frames, tokens, width), ELEMENTS[dtype],
        *(row.data_ptr() for row in rows),
        grad_speech.data_ptr() if need_speech else 0,
        grad_text.data_ptr() if need_text else 0,
    )  # fmt: skip
    return grad_speech, grad_text


def position_weights(real, given, shape, dtype, normalized, masked):
    """csrc/weights.h: the weights of positions, and the lowest and the highest prior of a real one."""
    real, given = (None if x is None else x.contiguous() for x in (real, given))
    weights = torch.empty(shape, dtype=dtype)
    bounds = _native.position_weights(
        tuple(shape), 0 if real is None else real.data_ptr(), 0 if given is None else given.data_ptr(),
        0 if given is None else ELEMENTS[given.dtype], normalized, masked, weights.data_ptr(), dtype == torch.float64,
    )  # fmt: skip
    return weights, bounds


def spans_fit(start, end, frames):
    """csrc/loss.h: whether all int32 spans lie within the frames."""
    start, end = start.contiguous(), end.contiguous()
    return _native.spans_fit(start.data_ptr(), end.data_ptr(), start.numel(), frames)


def _loss(function, rows, reduction, *arguments):
    loss = torch.empty(rows.shape[:1] if reduction == "none" else (), dtype=rows.dtype)
    is_double = rows.dtype == torch.float64
    share = function(rows.shape[0], is_double, REDUCTIONS[reduction], loss.data_ptr(), *arguments)
    return loss, share


def token_loss(similarity, unit, weights, reduction):
    """csrc/loss.h: the loss of a batch from its tokens' similarities, and the share of an utterance."""
    addresses = (x.data_ptr() for x in (similarity, unit, weights))
    return _loss(_native.token_loss, similarity, reduction, similarity.shape[1], *addresses)


def pooled_loss(distance, totals, reduction):
    """csrc/loss.h: the loss of a batch from its utterances' distances, and the share of an utterance."""
    return _loss(_native.pooled_loss, distance, reduction, distance.data_ptr(), totals.data_ptr())
