"""Which units are equal, by comparing bits: a matrix product may round the scores of equal units differently."""

import torch
from torch import Tensor

from pad_kernels.checks import values_can_be_read
from pad_kernels.inputs import AlignmentInputs


def _multipliers(count: int, device: torch.device) -> Tensor:
    """Odd 64-bit numbers without a pattern: the finalizer of splitmix64."""
    mixed = torch.arange(1, count + 1, device=device) * -0x61C8864680B583EB
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        mixed = (mixed ^ (mixed >> shift)) * factor
    return (mixed ^ (mixed >> 31)) | 1


def first_equal(rows: Tensor) -> Tensor:
    """For each of the rows [B, L, K] int64 the lowest index of one that equals it, [B, L]."""
    place = torch.arange(rows.shape[1], device=rows.device)
    # Integers wrap: the sum is the same in any order. High bits are mixed into low ones, or a product would lose much
    # of numbers that differ in sign or exponent alone. Rows of one fingerprint are compared below.
    mixed = rows ^ ((rows >> 40) & 0xFFFFFF)
    fingerprint = (mixed * _multipliers(rows.shape[2], rows.device)).sum(2)
    fingerprint, order = fingerprint.sort(dim=1, stable=True)
    starts = torch.nn.functional.pad(fingerprint[:, 1:] != fingerprint[:, :-1], (1, 0), value=True)
    leader = order.gather(1, torch.where(starts, place, 0).cummax(1).values)
    first = torch.empty_like(order).scatter_(1, order, leader)
    if values_can_be_read(first) and (first == place).all():
        return first
    batch = torch.arange(rows.shape[0], device=rows.device)[:, None]
    return torch.where((rows == rows[batch, first]).all(2), first, place)


def _bits(values: Tensor, weights: Tensor) -> Tensor:
    """The bits of the values [B, L, D] and the weight [B, L] of each row as 64-bit integers [B, L, K]; -0 as 0."""
    columns = [weights[..., None]] * (2 - values.shape[2] % 2)  # an even number of columns in all
    return torch.cat((values, *columns), 2).detach().add_(0.0).view(torch.int64)


def _contents(speech: Tensor, frame_weights: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """The frames of each span [B, U, M] by the lowest index of an equal one, -1 past its end."""
    frames = speech.shape[1]
    frame = first_equal(_bits(speech, frame_weights))
    place = start.clamp(0, frames)[..., None] + torch.arange(frames, device=speech.device)
    inside = place < end.clamp(0, frames)[..., None]
    frame = frame[:, None, :].expand_as(place).gather(2, torch.where(inside, place, 0))
    return torch.where(inside, frame, -1)


def first_equal_unit(inputs: AlignmentInputs, units: Tensor, unit_prior: Tensor) -> Tensor:
    """For each unit the lowest index of one with the same frames and weights, or the same value and prior, [B, U]."""
    if inputs.start is not None and inputs.end is not None:
        first = first_equal(_contents(inputs.speech, inputs.frame_weights, inputs.start, inputs.end))
        units = units[torch.arange(len(units), device=units.device)[:, None], first]
        unit_prior = unit_prior.gather(1, first)
    return first_equal(_bits(units, unit_prior))
