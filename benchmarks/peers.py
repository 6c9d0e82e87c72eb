"""Other packages that fuse a part of the work: MaxSim, the sum over tokens of the largest product with a frame.

On embeddings normalized beforehand, the tokens times their weights, that is the hard token level. Normalizing, weights
and their share of the gradient are left to the caller, and here left out of the time: peers are checked against the
gradient of the products alone, while pad_kernels does all of it.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from .cases import Inputs


def prepare(inputs: Inputs) -> Inputs:
    """The same inputs with frames of unit length, and tokens as long as their weight in the loss."""
    prior = inputs.text_prior * inputs.text_mask
    prior = prior / prior.sum(1, keepdim=True)
    text = F.normalize(inputs.text.float(), dim=-1) * prior[..., None]
    return inputs._replace(speech=F.normalize(inputs.speech, dim=-1), text=text.to(inputs.text.dtype))


def _loss(inputs: Inputs, score: Callable[..., Tensor]) -> Tensor:
    return (1 - score(inputs.text, inputs.speech, inputs.text_mask, inputs.speech_mask)).mean()


def _plain(query: Tensor, document: Tensor, query_mask: Tensor, document_mask: Tensor) -> Tensor:
    products = (query @ document.mT).masked_fill(~document_mask[:, None], float("-inf"))
    return products.amax(2).where(query_mask, 0).sum(1)


def definition(inputs: Inputs, level: str, temperature: float) -> Tensor:
    """What a peer is checked against, called on float64."""
    return _loss(inputs, _plain)


def _late_interaction_kernels() -> Callable[..., Tensor]:
    from late_interaction_kernels import maxsim_pairs

    return maxsim_pairs


def _flash_maxsim() -> Callable[..., Tensor]:
    from flash_maxsim import flash_maxsim_batched_train

    def score(query, document, query_mask, document_mask):
        lengths = {"doc_lengths": document_mask.sum(1), "query_lengths": query_mask.sum(1)}
        return flash_maxsim_batched_train(query, document[:, None], shared_docs=False, **lengths)[:, 0]

    return score


PEERS = {"late-interaction-kernels": _late_interaction_kernels, "flash-maxsim": _flash_maxsim}


def make_loss(name: str) -> Callable[..., Tensor]:
    """The loss of a peer; raises ImportError where it is not installed."""
    score = PEERS[name]()
    return lambda inputs, level, temperature: _loss(inputs, score)
