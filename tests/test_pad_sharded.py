"""A step with the student sharded over processes (FSDP): the priors, the loss and the gradients of one process."""

import pytest
import torch
from torch import distributed, multiprocessing

pytest.importorskip("transformers")

from transformers import Wav2Vec2Config, Wav2Vec2Model  # noqa: E402

from pad import record_significance  # noqa: E402
from pad_kernels import pad_loss  # noqa: E402

PROCESSES = 2


def new_student() -> Wav2Vec2Model:
    torch.manual_seed(0)
    return Wav2Vec2Model(
        Wav2Vec2Config(
            hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, conv_dim=(24, 24),
            conv_stride=(10, 8), conv_kernel=(20, 16), num_feat_extract_layers=2, num_conv_pos_embeddings=16,
            num_conv_pos_embedding_groups=4, layerdrop=0.0, mask_time_prob=0.0, hidden_dropout=0.0,
            attention_dropout=0.0, activation_dropout=0.0, feat_proj_dropout=0.0,
        )
    ).train()  # fmt: skip


def step(student, rank: int):
    """Prior and loss of the batch of a process."""
    generator = torch.Generator().manual_seed(rank)
    samples = torch.randn(2, 4000, generator=generator)
    text = torch.randn(2, 5, 48, generator=generator)
    frames = int(student._get_feat_extract_output_lengths(torch.tensor(4000)))
    frame_mask = torch.arange(frames) < torch.tensor([[frames], [frames - 9]])
    text_mask = torch.arange(5) < torch.tensor([[5], [3]])
    with record_significance(student, frame_mask) as record:
        speech = student(samples).last_hidden_state
    prior = record.prior()
    return prior, pad_loss(speech, text, frame_mask, text_mask, prior)


def sharded(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=PROCESSES)
    from torch.distributed.fsdp import fully_shard

    student = new_student()
    mesh = distributed.init_device_mesh("cpu", (PROCESSES,))
    for layer in student.encoder.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(student, mesh=mesh)
    prior, loss = step(student, rank)
    loss.backward()
    gradients = {name: value.grad.full_tensor() for name, value in student.named_parameters() if value.grad is not None}
    torch.save({"prior": prior, "loss": loss.detach(), "gradients": gradients}, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_sharded_student_gives_the_priors_and_gradients_of_one_process(tmp_path):
    multiprocessing.spawn(sharded, (str(tmp_path),), nprocs=PROCESSES)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(PROCESSES)]
    student = new_student()
    for rank in range(PROCESSES):
        prior, loss = step(student, rank)
        (loss / PROCESSES).backward()
        assert torch.allclose(found[rank]["prior"], prior, rtol=1e-5, atol=1e-7)
        assert torch.allclose(found[rank]["loss"], loss, rtol=1e-5)
    gradients = {name: value.grad for name, value in student.named_parameters() if value.grad is not None}
    assert found[0]["gradients"].keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert torch.allclose(found[0]["gradients"][name], gradient, rtol=1e-4, atol=1e-6), name
