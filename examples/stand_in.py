"""Stands in for your models and data: tiny encoders with random weights, noise for speech, random token ids.

For real ones:

    student = Wav2Vec2Model.from_pretrained("facebook/wav2vec2-base")
    teacher = BertModel.from_pretrained("bert-base-uncased").eval().requires_grad_(False)
    text = BertTokenizer.from_pretrained("bert-base-uncased")(transcripts, return_special_tokens_mask=True, ...)
"""

import torch
from transformers import BertConfig, BertModel, Wav2Vec2Config, Wav2Vec2Model

SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
CONVOLUTIONS = {"conv_dim": (32, 32, 32), "conv_stride": (10, 8, 4), "conv_kernel": (20, 16, 8),
                "num_feat_extract_layers": 3}  # fmt: skip


def models() -> tuple[Wav2Vec2Model, BertModel]:
    """A student and a frozen teacher of one width."""
    torch.manual_seed(0)
    student = Wav2Vec2Model(Wav2Vec2Config(**SMALL, **CONVOLUTIONS, layerdrop=0.0, apply_spec_augment=False,
                                           num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4))  # fmt: skip
    teacher = BertModel(BertConfig(**SMALL, vocab_size=100)).eval().requires_grad_(False)
    return student, teacher


def batch() -> dict[str, torch.Tensor]:
    """Three utterances, padded: samples and their number, token ids with [CLS] and [SEP], which of them are text."""
    generator = torch.Generator().manual_seed(1)
    lengths, tokens = torch.tensor([16000, 9000, 12000]), torch.tensor([9, 5, 7])
    samples = torch.randn(3, 16000, generator=generator) * (torch.arange(16000) < lengths[:, None])
    ids = torch.randint(5, 100, (3, 9), generator=generator)
    attention_mask = torch.arange(9) < tokens[:, None]
    text_mask = attention_mask & (torch.arange(9) > 0) & (torch.arange(9) < tokens[:, None] - 1)
    return {"input_values": samples, "lengths": lengths, "labels": torch.tensor([0, 1, 2]), "text_ids": ids,
            "text_attention_mask": attention_mask.long(), "text_mask": text_mask}  # fmt: skip
