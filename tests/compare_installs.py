"""Whether two installs of pad_kernels compute the same bits: `python tests/compare_installs.py FOLDER FOLDER`.

Each folder is one that holds the package, as for PYTHONPATH. A fixed set of inputs goes through the losses and their
gradients of every level, backend, dtype, choice of anchors and reduction, and through the other public functions;
Triton runs under its interpreter, on small shapes. Says what differs, and exits with 1 if anything does.
"""

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

Results = dict[str, list[torch.Tensor]]
LEVELS = ("global", "token", "span")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
ANCHORS = ("topk", "peaks", "stride")
REDUCTIONS = ("mean", "sum", "none")
# Batch, frames, tokens, width.
SHAPES = ((1, 1, 1, 8), (3, 37, 7, 40), (2, 0, 3, 8), (4, 150, 33, 64), (2, 200, 16, 256))
SMALL_SHAPES = ((2, 37, 7, 24),)


def make(shape: tuple[int, int, int, int], dtype: torch.dtype, kind: str) -> list[torch.Tensor | None]:
    """The six arguments of pad_loss; NaN where a position is masked."""
    batch, frames, tokens, width = shape
    generator = torch.Generator().manual_seed(frames)
    tensors: list[torch.Tensor] = []
    masks: list[torch.Tensor | None] = []
    priors: list[torch.Tensor | None] = []
    for length in (frames, tokens):
        shortest = 0 if kind == "some empty" or not length else 1
        lengths = torch.randint(shortest, length + 1, (batch,), generator=generator)
        mask = torch.arange(length) < lengths[:, None]
        if kind == "holes":
            mask = torch.rand(batch, length, generator=generator) < 0.7
        if kind == "plain":
            mask[:] = True
        values = torch.randn(batch, length, width, generator=generator, dtype=torch.float64).to(dtype)
        prior = torch.rand(batch, length, generator=generator) * (torch.rand(batch, length, generator=generator) < 0.8)
        tensors.append(values.masked_fill(~mask[..., None], torch.nan))
        masks.append(None if kind == "plain" else mask)
        priors.append(None if kind == "plain" else prior.masked_fill(~mask, torch.nan))
    return [*tensors, *masks, *priors]


def variants(level: str) -> list[tuple[str, float, str]]:
    """Anchors, temperature and reduction: each value of one beside the usual ones of the others."""
    if level == "global":
        return [("topk", 0.1, reduction) for reduction in REDUCTIONS]
    found = [("topk", 0.1, "sum"), ("topk", 0.1, "none"), ("topk", 1.0, "mean")]
    anchors = ANCHORS if level == "span" else ("topk",)
    return found + [(how, temperature, "mean") for how in anchors for temperature in (0.0, 0.1)]


def losses(backend: str, small: bool) -> Iterator[tuple[str, list[torch.Tensor]]]:
    """Loss and gradients of each case."""
    from pad_kernels import pad_loss, select_spans

    dtypes = DTYPES[::2] if small else DTYPES
    kinds = ("ragged", "plain") if small else ("ragged", "holes", "some empty", "plain")
    for shape, dtype, kind, level in itertools.product(SMALL_SHAPES if small else SHAPES, dtypes, kinds, LEVELS):
        if small and level == "global":
            continue  # Triton had no such op at first
        for how, temperature, reduction in variants(level):
            speech, text, *rest = make(shape, dtype, kind)
            speech, text = speech.requires_grad_(), text.requires_grad_()
            options = dict(level=level, temperature=temperature, reduction=reduction, anchors=how, backend=backend)
            name = f"{backend} {level} {how} tau={temperature} {reduction} {kind} {str(dtype)[6:]} {shape}"
            loss = pad_loss(speech, text, *rest, **options)
            yield name, [loss, *torch.autograd.grad(2 * loss.sum(), (speech, text))]
            if kind == "ragged" and reduction == "mean" and not small:
                for wanted, of in ((speech, "speech"), (text, "text")):
                    arguments = [x if x is wanted else x.detach() for x in (speech, text)]
                    loss = pad_loss(*arguments, *rest, **options)
                    yield f"{name} gradient of {of} alone", list(torch.autograd.grad(loss, wanted))
        if level == "span" and kind != "plain" and shape[1]:
            spans = select_spans(rest[2], rest[0], rest[1].sum(1), scales=(0.3, 1, 4), max_anchors=shape[2] + 1)
            loss = pad_loss(speech, text, *rest, level=level, spans=spans, backend=backend)
            yield f"{name} spans given", [loss, *torch.autograd.grad(loss, (speech, text))]


def other_functions(backend: str, small: bool) -> Iterator[tuple[str, list[torch.Tensor]]]:
    """align, alignment_matrix, select_spans and significance."""
    from pad_kernels import align, alignment_matrix, select_spans, significance

    for shape, kind in itertools.product(SMALL_SHAPES if small else SHAPES, ("ragged", "holes", "some empty")):
        speech, text, speech_mask, text_mask, speech_prior, _ = make(shape, torch.float32, kind)
        arguments = (speech_mask, text_mask, speech_prior)
        for temperature in (0.0, 0.1):
            speech.requires_grad_()
            found = align(speech, text, None, *arguments, temperature, backend)
            matrix = alignment_matrix(speech, text, None, *arguments, temperature)
            grads = torch.autograd.grad(found.similarity.sum(), speech)
            yield f"{backend} align {temperature} {kind} {shape}", [*found, *grads, matrix]
        for dtype, anchors in itertools.product(DTYPES[:3], ANCHORS):
            by = "auto" if small else backend
            spans = select_spans(speech_prior.to(dtype), speech_mask, text_mask.sum(1), anchors=anchors, backend=by)
            yield f"{by} select_spans {anchors} {kind} {str(dtype)[6:]} {shape}", list(spans)
        generator = torch.Generator().manual_seed(1)
        for dtype in DTYPES[:1] if small else DTYPES:
            heads = torch.randn(2, shape[0], 2, shape[1], 16, generator=generator).to(dtype)
            found = significance(*heads, speech_mask, backend=backend)
            yield f"{backend} significance {kind} {str(dtype)[6:]} {shape}", [found]


def compute(backend: str, place: Path) -> None:
    """Writes every result of one backend, and where the package lies."""
    import pad_kernels

    torch.set_num_threads(1)
    small = backend == "triton"
    results: Results = {}
    for name, tensors in itertools.chain(losses(backend, small), other_functions(backend, small)):
        if name in results:
            raise ValueError(f"two cases named {name}")
        results[name] = [tensor.detach() for tensor in tensors]
    torch.save({"folder": str(Path(pad_kernels.__file__).parent.parent), "results": results}, place)


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """NaN, -0.0 and all."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(*(x.contiguous().flatten().view(torch.uint8) for x in (one, other)))


def run(folder: Path, backend: str, place: Path) -> Results:
    """What the install in `folder` computes, in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(folder), "TRITON_INTERPRET": "1" if backend == "triton" else "0"}
    command = [sys.executable, __file__, "--compute", backend, "--output", str(place)]
    subprocess.run(command, check=True, env=environment, cwd=place.parent)
    found = torch.load(place)
    if Path(found["folder"]) != folder:
        raise RuntimeError(f"{folder}: the package that was imported lies in {found['folder']}")
    return found["results"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path, help="two folders that hold the package")
    parser.add_argument("--backends", nargs="+", default=["reference", "native", "triton"], help="those to compare")
    parser.add_argument("--compute", metavar="BACKEND", help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.compute:
        compute(options.compute, options.output)
        return 0
    if len(options.folders) != 2:
        parser.error("two folders are needed")
    folders = [folder.resolve() for folder in options.folders]
    different = 0
    with tempfile.TemporaryDirectory() as scratch:
        for backend in options.backends:
            one, other = (run(folder, backend, Path(scratch) / "results.pt") for folder in folders)
            if one.keys() != other.keys():
                raise RuntimeError("the two installs did not compute the same cases")
            wrong = [name for name in one if not all(map(same_bits, one[name], other[name]))]
            print(f"{backend}: {len(one) - len(wrong)} of {len(one)} cases have the same bits")
            for name in wrong[:10]:
                print(f"  differs: {name}")
            different += len(wrong)
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
