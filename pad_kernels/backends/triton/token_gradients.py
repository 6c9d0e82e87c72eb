"""The gradient of each token's similarity, as it is given or as the loss has it."""

from typing import NamedTuple

import triton
import triton.language as tl

from pad_kernels.backends.triton.memory import Buffer


class TokenGradient(NamedTuple):
    """The gradient of each similarity: given [B, N], or upstream * -grad_scale * its weight as the loss has it."""

    given: Buffer | None
    upstream: Buffer | None = None
    upstream_stride: int = 0
    grad_scale: Buffer | None = None
    token_weights: Buffer | None = None


@triton.jit
def token_gradients(given, upstream, upstream_stride, grad_scale, token_weights, utterance, token, tokens, valid):
    """The gradients of some tokens' similarities, 0 where not valid."""
    if given is not None:
        return tl.load(given + utterance * tokens + token, mask=valid, other=0.0).to(tl.float32)
    else:
        factor = -tl.load(upstream + utterance * upstream_stride).to(tl.float32) * tl.load(grad_scale)
        return factor * tl.load(token_weights + utterance * tokens + token, mask=valid, other=0.0)
