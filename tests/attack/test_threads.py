"""Ops from several threads at once, and two models in two threads: the same as alone."""

import threading
from concurrent.futures import ThreadPoolExecutor

import cases
import pytest
import torch

from pad_kernels import align, available_backends, pad_loss, select_spans, significance

pytestmark = pytest.mark.slow

WORKERS, ROUNDS = 6, 40


def work(seed: int, backend: str) -> list[torch.Tensor]:
    """Every op once, with gradients."""
    case = cases.alignment(seed)
    leaves = [x.detach().requires_grad_() for x in case[:2]]
    options = {
        name: getattr(case, name) for name in ("level", "temperature", "spans", "num_anchors", "scales", "anchors")
    }
    loss = pad_loss(*leaves, *case[2:6], **options, backend=backend)
    found = [loss.detach(), *torch.autograd.grad(loss, leaves)]
    found += align(case.speech, case.text, None, *case[2:5], case.temperature, backend)
    attention = cases.significance(seed)
    found.append(significance(*attention[:3], scale=attention.scale, backend=backend))
    chosen = cases.select_spans(seed)
    found += select_spans(chosen.prior, chosen.mask, chosen.num_tokens, anchors=chosen.anchors, backend=backend)
    return [x.detach() for x in found]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a.nan_to_num(7), b.nan_to_num(7)) for a, b in zip(one, other, strict=True))


@pytest.fixture(scope="module", params=available_backends())
def alone(request):
    torch.set_num_threads(1)
    return request.param, [work(seed, request.param) for seed in range(ROUNDS)]


@pytest.mark.parametrize("threads", [1, 2, 4], ids=lambda threads: f"{threads} of torch")
def test_threads_of_python(alone, threads):
    backend, expected = alone
    torch.set_num_threads(threads)
    with ThreadPoolExecutor(WORKERS) as pool:
        orders = [range(ROUNDS), reversed(range(ROUNDS))] * (WORKERS // 2)
        # The native kernels' sums do not depend on the number of threads; the matrix library's may.
        runs = list(pool.map(lambda order: [(seed, work(seed, backend)) for seed in order], orders))
    for run in runs:
        for seed, found in run:
            if backend == "reference" and threads > 1:
                assert all(
                    torch.allclose(*pair, rtol=1e-3, atol=1e-5, equal_nan=True) for pair in zip(found, expected[seed])
                )
            else:
                assert same(found, expected[seed]), seed


def test_gradients_of_one_graph_in_two_threads(alone):
    backend, _ = alone
    speech, text = torch.randn(4, 50, 16, requires_grad=True), torch.randn(4, 9, 16, requires_grad=True)
    pad_loss(speech, text, backend=backend).backward()
    once = speech.grad.clone(), text.grad.clone()
    for _ in range(20):
        speech.grad = text.grad = None
        losses = [pad_loss(speech, text, backend=backend) for _ in range(4)]
        threads = [threading.Thread(target=loss.backward) for loss in losses]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for grad, expected in zip((speech.grad, text.grad), once):
            assert torch.allclose(grad, 4 * expected, rtol=1e-5, atol=1e-7)


def test_two_models_in_two_threads():
    """Each thread records the priors of its own model."""
    pytest.importorskip("transformers")
    from student_models import new_student, waves

    from pad.priors.recorder import record_significance

    students = [new_student(kind) for kind in ("whisper", "moonshine")]
    inputs = [student.front_end([wave for wave in waves(16000, 9000)]) for student in students]

    def priors(place: int) -> torch.Tensor:
        encoder, (speech, mask) = students[place].encoder, inputs[place][:2]
        with torch.no_grad(), record_significance(encoder, mask) as record:
            encoder(**speech)
        return record.prior()

    expected = [priors(place) for place in (0, 1)]
    with ThreadPoolExecutor(4) as pool:
        for place, found in zip([0, 1] * 20, pool.map(priors, [0, 1] * 20)):
            assert torch.allclose(found, expected[place], atol=1e-7)
