"""Students of samples, and all others: their states depend on neither the batch nor noise of training."""

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("soundfile")

from student_models import CONFIGS, LAYERS, SIZES, new_extractor, new_model, waves  # noqa: E402
from transformers import AutoConfig, AutoModel  # noqa: E402

from pad.distill.run import stable_training  # noqa: E402
from pad.evaluate.encoder import Encoder  # noqa: E402
from pad.students import load_student, waveforms  # noqa: E402

WAVEFORMS = ("wav2vec2", "hubert", "wavlm", "unispeech", "unispeech-sat", "data2vec-audio", "wav2vec2-conformer")
CONVOLUTIONS = {
    "conv_dim": (32, 32), "conv_stride": (10, 8), "conv_kernel": (20, 16), "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 5, "num_conv_pos_embedding_groups": 4, "conv_pos_kernel_size": 7,
    "conv_depthwise_kernel_size": 5,
}  # fmt: skip
NOISE = ("layerdrop", "encoder_layerdrop")
DROPOUTS = ("dropout", "attention_dropout", "activation_dropout", "dropout_positions", "hidden_dropout")


def saved(kind: str, folder, **options) -> str:
    """A student's folder, whose config has what transformers sets by itself."""
    if kind in CONFIGS:
        model = new_model(kind, **options)
        new_extractor(kind, model).save_pretrained(folder)
    else:
        torch.manual_seed(0)
        model = AutoModel.from_config(AutoConfig.for_model(kind, **SIZES, **CONVOLUTIONS, **options))
        for parameter in model.parameters():
            if parameter.dim() == 2:
                torch.nn.init.normal_(parameter, std=0.3)
        waveforms.default_feature_extractor(model.config).save_pretrained(folder)
    model.save_pretrained(folder)
    return str(folder)


def with_noise(kind: str) -> dict:
    """Options that leave layerdrop and SpecAugment as transformers has them, or turn layerdrop up."""
    if kind == "parakeet_ctc":
        return {"encoder_config": CONFIGS[kind]["encoder_config"] | {"layerdrop": 0.5}}
    if kind in ("whisper", "speech_to_text"):
        return {"encoder_layerdrop": 0.5, "apply_spec_augment": True}
    if kind == "wav2vec2-bert":
        return {"layerdrop": 0.5, "apply_spec_augment": True}
    return {} if kind == "moonshine" else {"layerdrop": 0.5}


def without_dropout(encoder) -> list:
    """The encoder's modules and configs, whose dropouts are now 0."""
    configs = {id(module.config): module.config for module in encoder.modules() if hasattr(module, "config")}
    owners = [*encoder.modules(), *configs.values()]
    for owner in owners:
        if isinstance(owner, torch.nn.Dropout):
            owner.p = 0.0
        for name in DROPOUTS:
            if isinstance(getattr(owner, name, None), float):
                setattr(owner, name, 0.0)
    return owners


@pytest.mark.parametrize("kind", [*WAVEFORMS, *CONFIGS])
def test_training_adds_no_noise(kind, tmp_path):
    """Without dropout two passes are equal, and all settings come back."""
    student = load_student(saved(kind, tmp_path, **with_noise(kind)))
    encoder = student.encoder.train()
    owners = without_dropout(encoder)
    noise = [(owner, name, getattr(owner, name)) for owner in owners for name in NOISE if hasattr(owner, name)]
    config = encoder.config.to_dict()
    inputs, mask = student.front_end(waves(16000, 9000))
    with stable_training(student), torch.no_grad():
        states = [encoder(**inputs).last_hidden_state[mask] for _ in range(8)]
    assert all(torch.equal(states[0], other) for other in states)
    assert all(getattr(owner, name) == value for owner, name, value in noise)
    assert encoder.config.to_dict() == config


@pytest.mark.parametrize("norm", ["layer", "group"])
@pytest.mark.parametrize("kind", WAVEFORMS)
def test_states_for_superbs_heads_do_not_depend_on_the_batch(kind, norm, tmp_path):
    encoder = Encoder(saved(kind, tmp_path, feat_extract_norm=norm), "student")
    batch = waves(16000, 7777, 1500)
    states, lengths = encoder(batch)
    assert states.shape[1] == LAYERS + 1
    for row, wave in enumerate(batch):
        alone, (length,) = encoder([wave])
        assert length == lengths[row]
        assert (states[row, :, :length] - alone[0]).norm() <= 1e-5 * alone[0].norm()


@pytest.mark.parametrize("kind", WAVEFORMS)
def test_states_of_a_student_with_a_mask_do_not_depend_on_the_batch(kind, tmp_path):
    """In training mode: batch norms do not mix utterances either."""
    student = load_student(saved(kind, tmp_path, feat_extract_norm="layer"))
    without_dropout(student.encoder.train())
    batch = waves(16000, 7777)
    with stable_training(student), torch.no_grad():
        inputs, mask = student.front_end(batch)
        together = student.encoder(**inputs).last_hidden_state
        for row, wave in enumerate(batch):
            alone, _ = student.front_end([wave])
            state = student.encoder(**alone).last_hidden_state[0]
            assert (together[row][mask[row]] - state).norm() <= 1e-5 * state.norm()
