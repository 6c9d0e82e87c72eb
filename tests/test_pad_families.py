"""Priors of every family in docs/families.md, by tiny random models, against their eager attention maps."""

import copy
import re
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

pytest.importorskip("transformers")

import transformers  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding  # noqa: E402

from pad import record_significance  # noqa: E402
from pad.priors import attention, families  # noqa: E402
from pad_kernels import significance_from_attentions  # noqa: E402

TABLE = Path(__file__).parents[1] / "docs" / "families.md"
SIZES = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
TEXT = {**SIZES, "vocab_size": 60, "max_position_embeddings": 64, "pad_token_id": 1, "bos_token_id": 2,
        "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3, "mask_token_id": 4, "embedding_size": 48,
        "input_embedding_size": 48}  # fmt: skip
T5 = {"vocab_size": 60, "d_model": 48, "d_kv": 12, "d_ff": 64, "num_layers": 3, "num_heads": 4}
SPEECH = {**SIZES, "conv_dim": (24, 24, 24), "conv_stride": (10, 8, 4), "conv_kernel": (20, 16, 8),
          "layerdrop": 0.0, "num_feat_extract_layers": 3, "num_conv_pos_embeddings": 16,
          "num_conv_pos_embedding_groups": 4, "feat_extract_norm": "layer", "conv_depthwise_kernel_size": 3,
          "feature_projection_input_dim": 16}  # fmt: skip
DECODER = {"d_model": 48, "encoder_layers": 3, "decoder_layers": 1, "encoder_attention_heads": 4, "vocab_size": 60,
           "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "pad_token_id": 1,
           "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 2, "layerdrop": 0.0}  # fmt: skip
RELATIVE = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}


class Case(NamedTuple):
    """A model type, what its config has besides the sizes above, its input, and how its prior is recorded."""

    model_type: str
    options: dict
    input: str
    recorded: str = "fused"


CASES = {name: Case(*case) for name, *case in [
    *[(name, name, TEXT, "text") for name in ("bert", "roberta", "xlm-roberta", "camembert", "electra", "data2vec-text",
                                              "ernie", "nomic_bert", "roberta-prelayernorm")],
    ("mobilebert", "mobilebert", {**TEXT, "normalization_type": "layer_norm"}, "text"),
    ("distilbert", "distilbert", {**TEXT, "dim": 48, "n_layers": 3, "n_heads": 4, "hidden_dim": 64}, "text"),
    ("albert", "albert", {**TEXT, "num_hidden_groups": 3}, "text"),
    ("eurobert", "eurobert", {**TEXT, "num_key_value_heads": 2}, "text"),
    ("modernbert", "modernbert", {**TEXT, "local_attention": 8, "global_attn_every_n_layers": 2}, "text", "mixed"),
    ("mpnet", "mpnet", TEXT, "text", "maps"),
    ("deberta", "deberta", {**TEXT, **RELATIVE}, "text", "maps"),
    ("deberta-v2", "deberta-v2", {**TEXT, **RELATIVE}, "text", "maps"),
    ("deberta-v3", "deberta-v2", {**TEXT, **RELATIVE, "position_buckets": 8, "share_att_key": True,
                                  "norm_rel_ebd": "layer_norm", "position_biased_input": False}, "text", "maps"),
    ("megatron-bert", "megatron-bert", TEXT, "text", "maps"),
    ("rembert", "rembert", TEXT, "text", "maps"),
    ("roformer", "roformer", TEXT, "text", "maps"),
    *[(name, name, T5, "text", "maps") for name in ("t5", "mt5", "umt5")],
    *[(name, name, SPEECH, "waveform") for name in ("wav2vec2", "hubert", "unispeech", "unispeech-sat",
                                                    "data2vec-audio")],
    ("wavlm", "wavlm", SPEECH, "waveform", "maps"),
    ("conformer, rotary", "wav2vec2-conformer", {**SPEECH, "position_embeddings_type": "rotary"}, "waveform"),
    ("conformer, relative", "wav2vec2-conformer", {**SPEECH, "position_embeddings_type": "relative"}, "waveform",
     "maps"),
    ("w2v-BERT, rotary", "wav2vec2-bert", {**SPEECH, "position_embeddings_type": "rotary"}, "features"),
    ("w2v-BERT, relative", "wav2vec2-bert", {**SPEECH, "position_embeddings_type": "relative_key"}, "features", "maps"),
    ("whisper", "whisper", {**DECODER, "num_mel_bins": 16, "max_source_positions": 24}, "mel"),
    ("speech_to_text", "speech_to_text", {**DECODER, "input_feat_per_channel": 16, "conv_channels": 32},
     "long features"),
    ("audio-spectrogram-transformer", "audio-spectrogram-transformer",
     {**SIZES, "max_length": 64, "num_mel_bins": 16, "patch_size": 8, "frequency_stride": 8, "time_stride": 8},
     "image"),
    ("moonshine", "moonshine", {**SIZES, "vocab_size": 60, "encoder_num_hidden_layers": 3, "pad_token_id": 1,
                                "encoder_num_attention_heads": 4, "decoder_num_hidden_layers": 1,
                                "decoder_num_attention_heads": 4, "decoder_start_token_id": 1, "bos_token_id": 1,
                                "eos_token_id": 2}, "samples"),
    ("parakeet_encoder", "parakeet_encoder",
     {**SIZES, "subsampling_conv_channels": 16, "num_mel_bins": 16, "conv_kernel_size": 3,
      "max_position_embeddings": 64}, "subsampled", "maps"),
]}  # fmt: skip
REFUSED = {"longformer": {"attention_window": 4}, "big_bird": {}, "fnet": {}, "nystromformer": {}, "squeezebert": {}}
POSITIONS = {"text": 13, "waveform": 36, "features": 36, "mel": 24, "long features": 24, "image": 18, "samples": 24,
             "subsampled": 18}  # fmt: skip


def make(model_type: str, options: dict) -> nn.Module:
    """The encoder, with weights large enough for attention that is far from uniform."""
    try:
        config = AutoConfig.for_model(model_type, **options)
    except ValueError:
        pytest.skip(f"transformers {transformers.__version__} has no {model_type}")
    torch.manual_seed(0)
    text_encoding = config.is_encoder_decoder and "d_kv" in options
    model = (AutoModelForTextEncoding if text_encoding else AutoModel).from_config(config)
    model = model.get_encoder() if config.is_encoder_decoder and not text_encoding else model
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return model.eval()


def inputs_of(kind: str) -> tuple[dict[str, Tensor], Tensor]:
    """The inputs of a batch of three, and the mask of the positions that count."""
    generator = torch.Generator().manual_seed(1)

    def noise(*shape):
        return torch.randn(3, *shape, generator=generator)

    length = POSITIONS[kind]
    lengths = torch.tensor([[length], [length // 2], [length * 3 // 4]])
    mask = torch.arange(length) < lengths

    def real(times):
        return (torch.arange(times * length) < times * lengths).long()

    if kind == "text":
        ids = torch.randint(5, 60, (3, length), generator=generator).masked_fill(~mask, 1)
        return {"input_ids": ids, "attention_mask": mask.long()}, mask & (torch.arange(length) > 0)
    if kind == "waveform":
        samples = (torch.arange(12000) < torch.tensor([[12000], [6000], [9000]])).long()
        frames = torch.arange(length) < torch.tensor([[36], [17], [26]])
        return {"input_values": noise(12000), "attention_mask": samples}, frames
    if kind == "samples":
        return {"input_values": noise(127 + 384 * (length + 1))}, mask
    return {
        "features": lambda: {"input_features": noise(length, 16), "attention_mask": mask.long()},
        "mel": lambda: {"input_features": noise(16, 2 * length)},
        "long features": lambda: {"input_features": noise(4 * length, 16), "attention_mask": real(4)},
        "image": lambda: {"input_values": noise(64, 16)},
        "subsampled": lambda: {"input_features": noise(8 * length, 16), "attention_mask": real(8)},
    }[kind](), mask


@pytest.mark.parametrize("name", CASES)
def test_prior_is_that_of_the_eager_maps(name, monkeypatch):
    model_type, options, kind, recorded = CASES[name]
    model = make(model_type, options)
    through_interface = any(families._attends_through_interface(module) for module in model.modules())
    if model_type == "modernbert" and not through_interface:
        pytest.skip(f"modernbert of transformers {transformers.__version__} attends in a way of its own")
    inputs, mask = inputs_of(kind)
    eager = copy.deepcopy(model)
    for module in eager.modules():
        if isinstance(module, transformers.PreTrainedModel):
            module.config._attn_implementation = "eager"
    ways = []
    for way in ("significance", "significance_from_attentions"):
        for place in (attention, families):
            if hasattr(place, way):
                monkeypatch.setattr(place, way, noted(getattr(place, way), ways, way))
    with torch.no_grad():
        outputs = eager(**inputs, output_attentions=True)
        expected = significance_from_attentions(outputs.attentions, mask)
        if not torch.isfinite(expected).all():
            pytest.skip(f"the eager {name} of transformers {transformers.__version__} gives NaN for padded input")
        with record_significance(model, mask) as record:
            found = model(**inputs).last_hidden_state
        prior = record.prior()
    assert len(outputs.attentions) == len(record._priors) == 3
    uniform = mask / mask.sum(dim=1, keepdim=True)
    assert (expected - uniform).norm() > 0.05 * uniform.norm()
    assert (prior - expected).norm() <= 1e-5 * expected.norm()
    assert (found - outputs.last_hidden_state)[mask].norm() <= 1e-5 * outputs.last_hidden_state[mask].norm()
    of_maps = {"significance_from_attentions"}
    expected_ways = {"fused": {"significance"}, "maps": of_maps, "mixed": {"significance"} | of_maps}[recorded]
    assert set(ways) == (expected_ways if through_interface else of_maps)


def noted(function, ways: list[str], way: str):
    def call(*arguments, **options):
        ways.append(way)
        return function(*arguments, **options)

    return call


@pytest.mark.parametrize("model_type", REFUSED)
def test_families_without_maps_are_refused(model_type):
    model = make(model_type, {**TEXT, **REFUSED[model_type]})
    with pytest.raises(ValueError, match="neither attends through transformers' attention interface nor"):
        with record_significance(model):
            pass


@pytest.mark.parametrize("model_type", ["sew", "sew-d"])
def test_layers_that_attend_to_fewer_positions_are_refused(model_type):
    model = make(model_type, {**SPEECH, "squeeze_factor": 2, "position_buckets": 8, "max_position_embeddings": 64})
    with pytest.raises(ValueError, match=f"the layers of '{model_type}' attend to fewer positions than come out"):
        with record_significance(model):
            pass


def test_the_table_names_every_family():
    rows = [line.split("|") for line in TABLE.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    listed = {name: row[3].strip() for row in rows for name in re.findall(r"`([a-z0-9_-]+)`", row[2])}
    served = {"fused": "fused", "maps": "map by map", "mixed": "fused, map by map"}
    expected: dict[str, set[str]] = {}
    for case in CASES.values():
        expected.setdefault(case.model_type, set()).add(served[case.recorded])
    refused = {"sew", "sew-d", "gpt2", *REFUSED}
    assert set(listed) == set(expected) | refused
    for name, how in listed.items():
        assert how.startswith("refused") if name in refused else all(part in how for part in expected[name])


@pytest.mark.parametrize("counted", ["all positions", "one position more"])
@pytest.mark.parametrize("name", CASES)
def test_padding_that_the_mask_counts_has_received_nothing(name, counted):
    """As with a mask of frames that was rounded up, or no mask at all."""
    model_type, options, kind, _ = CASES[name]
    model = make(model_type, options)
    if model_type == "modernbert" and not families._attends_through_interface(model):
        pytest.skip(f"modernbert of transformers {transformers.__version__} attends in a way of its own")
    inputs, mask = inputs_of(kind)
    if counted == "all positions":
        mask = None
    else:
        mask = mask | (torch.arange(mask.shape[1]) == mask.int().cumsum(1).argmax(1, keepdim=True) + 1)
    eager = copy.deepcopy(model)
    for module in eager.modules():
        if isinstance(module, transformers.PreTrainedModel):
            module.config._attn_implementation = "eager"
    with torch.no_grad():
        maps = eager(**inputs, output_attentions=True).attentions
        if not all(torch.isfinite(one).all() for one in maps):
            pytest.skip(f"the eager {name} of transformers {transformers.__version__} gives NaN for padded input")
        with record_significance(model) as record:
            model(**inputs)
        found = record.prior(mask)
    expected = significance_from_attentions(maps, mask)
    assert (found - expected).abs().max() <= 1e-5 * expected.max()
