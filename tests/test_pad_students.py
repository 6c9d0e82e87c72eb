"""Families of speech encoders as students: their states are transformers', no utterance depends on its batch."""

import copy
import json
from contextlib import contextmanager

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("soundfile")

from hypothesis import given, settings, strategies  # noqa: E402
from student_models import CONFIGS, LAYERS, WIDTH, new_extractor, new_model, new_student, waves  # noqa: E402
from transformers import (  # noqa: E402
    ASTConfig,
    AutoModel,
    Data2VecAudioConfig,
    HubertConfig,
    UniSpeechSatConfig,
    Wav2Vec2BertConfig,
    Wav2Vec2Config,
)

from pad import record_significance  # noqa: E402
from pad.errors import UserError  # noqa: E402
from pad.evaluate.encoder import Encoder  # noqa: E402
from pad.students import load_student, waveforms  # noqa: E402
from pad.students.loading import FAMILIES  # noqa: E402
from pad_kernels import significance_from_attentions  # noqa: E402

KINDS = sorted(CONFIGS)
SAMPLES = (16000, 7777, 31999, 1500)


def assert_near(found, expected, error: float = 1e-5) -> None:
    assert found.shape == expected.shape and (found - expected).norm() <= error * expected.norm()


@contextmanager
def recorded(student, mask):
    """The record, where the recorder takes the family's position biases."""
    with record_significance(student.encoder, mask) as record:
        yield record


def of_transformers(kind: str, wave, **options):
    """The outputs of transformers' own encoder for one utterance, on as many whole frames as it has."""
    model = new_model(kind)
    extractor = new_extractor(kind, model)
    frames = int(FAMILIES[kind].student_of(model, extractor, {}).front_end.layout.frames(torch.tensor(len(wave))))
    if kind == "whisper":
        model.config.max_source_positions = frames
        encoder = type(model.model.encoder)(model.config).eval()
        state = model.model.encoder.state_dict()
        state["embed_positions.weight"] = state["embed_positions.weight"][:frames]
        encoder.load_state_dict(state)
        inputs = extractor(wave, sampling_rate=16000, padding="longest", return_tensors="pt")
        inputs = {"input_features": inputs["input_features"][..., : 2 * frames]}
    else:
        encoder = model if kind == "wav2vec2-bert" else getattr(model, "model", model).encoder
        inputs = extractor(wave, sampling_rate=16000, return_tensors="pt")
    encoder.set_attn_implementation("eager")
    with torch.no_grad():
        return encoder(**inputs, output_hidden_states=True, **options), frames


@pytest.mark.parametrize("kind", KINDS)
def test_states_are_those_of_transformers_for_each_utterance_alone(kind):
    student = new_student(kind)
    batch = waves(*SAMPLES)
    inputs, mask = student.front_end(batch)
    with torch.no_grad():
        found = student.encoder(**inputs, output_hidden_states=True)
    assert found.last_hidden_state.shape == (*mask.shape, WIDTH)
    assert len(found.hidden_states) == LAYERS + 1 == student.layers + 1
    assert torch.equal(found.hidden_states[-1], found.last_hidden_state)
    for row, wave in enumerate(batch):
        expected, frames = of_transformers(kind, wave)
        assert int(mask[row].sum()) == frames and mask[row, :frames].all()
        for state, other in zip(found.hidden_states, expected.hidden_states, strict=True):
            assert_near(state[row, :frames], other[0, :frames])


@pytest.mark.parametrize("kind", KINDS)
def test_states_do_not_depend_on_the_batch(kind):
    student = new_student(kind)
    batch = waves(*SAMPLES)
    with torch.no_grad():
        inputs, mask = student.front_end(batch)
        together = student.encoder(**inputs).last_hidden_state
        for row, wave in enumerate(batch):
            alone, real = student.front_end([wave])
            assert real.all()
            state = student.encoder(**alone).last_hidden_state[0]
            assert_near(together[row][mask[row]], state)


@pytest.mark.parametrize("kind", KINDS)
def test_prior_is_that_of_eager_maps(kind):
    """Of each utterance alone, by transformers' encoder where it can give maps; padding gets nothing."""
    student = new_student(kind)
    batch = waves(*SAMPLES)
    inputs, mask = student.front_end(batch)
    with torch.no_grad(), recorded(student, mask) as record:
        student.encoder(**inputs)
    prior = record.prior()
    assert (prior[~mask] == 0).all()
    for row, wave in enumerate(batch):
        expected, frames = of_transformers(kind, wave, output_attentions=True)
        maps = [each[:, :, :frames, :frames] for each in expected.attentions]
        wanted = significance_from_attentions(maps)
        assert (wanted.max() - wanted.min()) > 1e-3 / frames
        assert_near(prior[row, :frames], wanted[0])


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(lengths=strategies.lists(strategies.integers(1500, 31999), min_size=1, max_size=3))
def test_lengths(kind, lengths):
    """The mask has as many frames as the encoder gives, of which the formula's number are real."""
    student = _kept(kind)
    inputs, mask = student.front_end(waves(*lengths))
    expected = student.front_end.layout.frames(torch.tensor(lengths))
    assert torch.equal(mask.sum(dim=1), expected) and mask.shape[1] == expected.max()
    with torch.no_grad():
        assert student.encoder(**inputs).last_hidden_state.shape[1] == mask.shape[1]
    centers = student.front_end.layout.centers(int(expected[0]))
    assert centers[0] >= 0 and centers[-1] <= lengths[0]
    assert torch.allclose(centers.diff(), torch.tensor(float(student.front_end.layout.hop), dtype=torch.float64))


_students: dict = {}


def _kept(kind):
    return _students.setdefault(kind, new_student(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_the_shortest_audio(kind):
    student = new_student(kind)
    shortest = student.front_end.layout.shortest
    inputs, mask = student.front_end(waves(shortest))
    with torch.no_grad():
        assert mask.tolist() == [[True]] and student.encoder(**inputs).last_hidden_state.isfinite().all()
        silent, _ = student.front_end([0 * wave for wave in waves(shortest, 8000)])
        assert student.encoder(**silent).last_hidden_state.isfinite().all()
    with pytest.raises(UserError, match=rf"audio: got {shortest - 1} samples .* expected at least {shortest}"):
        student.front_end(waves(8000, shortest - 1))


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_checkpointing_and_recording_leave_the_gradients(kind):
    batch = waves(*SAMPLES)
    gradients = []
    for careful in (False, True):
        student = new_student(kind)
        encoder = student.encoder.train()
        inputs, mask = student.front_end(batch)
        target = torch.randn(int(mask.sum()), WIDTH, generator=torch.Generator().manual_seed(2))
        if careful:
            encoder.gradient_checkpointing_enable({"use_reentrant": False})
            with recorded(student, mask) as record:
                (encoder(**inputs).last_hidden_state[mask] * target).sum().backward()
            assert len(record._priors) == LAYERS
        else:
            (encoder(**inputs).last_hidden_state[mask] * target).sum().backward()
        gradients.append({name: value.grad for name, value in encoder.named_parameters() if value.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    whole = torch.cat([gradient.flatten() for gradient in gradients[0].values()]).norm()
    for name, gradient in gradients[0].items():
        assert (gradients[1][name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-6 * whole, name


@pytest.mark.parametrize("kind", KINDS)
def test_convolutions_can_be_frozen(kind):
    student = new_student(kind)
    student.freeze_convolutions()
    inputs, mask = student.front_end(waves(8000))
    student.encoder.train()(**inputs).last_hidden_state.sum().backward()
    frozen = {id(value) for module in student.convolutions for value in module.parameters()}
    constant = ("encoder.embed_positions.weight", "masked_spec_embed")
    for name, value in student.encoder.named_parameters():
        assert (value.grad is None) == (id(value) in frozen or name in constant), name


@pytest.mark.parametrize("kind", KINDS)
def test_saved_with_everything_else_as_it_was(kind, tmp_path):
    model = new_model(kind)
    model.save_pretrained(tmp_path / "before")
    new_extractor(kind, model).save_pretrained(tmp_path / "before")
    student = load_student(str(tmp_path / "before"))
    twin = copy.deepcopy(student)
    with torch.no_grad():
        for parameter in student.encoder.parameters():
            if parameter.requires_grad:
                parameter.add_(0.5)
    student.encoder.config.use_cache = False  # as a trainer does
    student.save(tmp_path / "after")
    before, after = (type(model).from_pretrained(tmp_path / name).state_dict() for name in ("before", "after"))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    trained = {student.prefix + name for name, value in student.encoder.named_parameters() if value.requires_grad}
    assert changed == trained and not any("embed_positions" in name for name in trained)
    for name in trained:
        torch.testing.assert_close(after[name], before[name] + 0.5)
    if student.whole is not None:
        type(model).from_pretrained(tmp_path / "before").save_pretrained(tmp_path / "plain")
        assert (tmp_path / "plain/config.json").read_text() == (tmp_path / "after/config.json").read_text()
    again = load_student(str(tmp_path / "after"))
    (inputs, _), encoder = again.front_end(waves(8000)), student.encoder.eval()
    with torch.no_grad():
        assert torch.equal(again.encoder.eval()(**inputs).last_hidden_state, encoder(**inputs).last_hidden_state)
        assert not torch.allclose(twin.encoder.eval()(**inputs).last_hidden_state, encoder(**inputs).last_hidden_state)


@pytest.mark.parametrize("kind", KINDS)
def test_states_for_superbs_heads(kind, tmp_path):
    model = new_model(kind)
    model.save_pretrained(tmp_path)
    new_extractor(kind, model).save_pretrained(tmp_path)
    encoder = Encoder(str(tmp_path), "student")
    states, lengths = encoder(waves(*SAMPLES))
    assert states.shape[1] == encoder.layers == LAYERS + 1 and states.shape[3] == encoder.width == WIDTH
    for row, wave in enumerate(waves(*SAMPLES)):
        alone, (length,) = encoder([wave])
        assert_near(states[row, :, :length], alone[0])
        assert length == lengths[row] and not states[row, :, length:].any()


@pytest.mark.parametrize("kind", [HubertConfig, Data2VecAudioConfig, UniSpeechSatConfig])
def test_other_encoders_of_samples(kind, tmp_path):
    sizes = dict(hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=4, intermediate_size=64)
    convolutions = dict(conv_dim=(32, 32), conv_stride=(10, 8), conv_kernel=(20, 16), num_feat_extract_layers=2,
                        num_conv_pos_embeddings=16 if kind is not Data2VecAudioConfig else 2,
                        num_conv_pos_embedding_groups=4, conv_pos_kernel_size=3)  # fmt: skip
    AutoModel.from_config(kind(**sizes, **convolutions)).save_pretrained(tmp_path / "student")
    student = load_student(str(tmp_path / "student"))
    inputs, mask = student.front_end(waves(8000, 4000))
    with torch.no_grad(), record_significance(student.encoder.eval(), mask) as record:
        states = student.encoder(**inputs, output_hidden_states=True)
    assert states.last_hidden_state.shape[:2] == mask.shape and len(states.hidden_states) == LAYERS + 1
    assert torch.allclose(record.prior().sum(dim=1), torch.ones(2), atol=1e-5)


@pytest.mark.parametrize("config, message", [
    (ASTConfig(hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=4), "patches of time and frequency"),
    (Wav2Vec2BertConfig(hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=4, add_adapter=True), "adapter"),
])  # fmt: skip
def test_encoders_that_are_refused(config, message, tmp_path):
    AutoModel.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=f"^student: .*{message}"):
        load_student(str(tmp_path))


def save_student(folder, kind: str, **settings) -> str:
    """A checkpoint of a family, or of wav2vec 2.0, with these settings of its feature extractor."""
    if kind in CONFIGS:
        model = new_model(kind)
        extractor = new_extractor(kind, model)
    else:
        torch.manual_seed(0)
        sizes = dict(hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64)
        config = Wav2Vec2Config(**sizes, conv_dim=(32, 32), conv_stride=(10, 8), conv_kernel=(20, 16),
                                num_feat_extract_layers=2, num_conv_pos_embeddings=16,
                                num_conv_pos_embedding_groups=4, feat_extract_norm=kind)  # fmt: skip
        model, extractor = AutoModel.from_config(config), waveforms.default_feature_extractor(config)
    model.save_pretrained(folder)
    extractor.save_pretrained(folder)
    change_json(folder / "preprocessor_config.json", **settings)
    return str(folder)


def change_json(path, **settings) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


@pytest.mark.parametrize("kind, options", [
    *((kind, {}) for kind in [*KINDS, "group", "layer"]), ("whisper", {"pad_to_max_length": True})
])  # fmt: skip
def test_padding_on_the_left_is_moved_to_the_right(kind, options, tmp_path):
    """Inputs, mask and embeddings are those of the side "right", also of what is saved."""
    batch, found = waves(*SAMPLES, 1700), []
    for side in ("right", "left"):
        student = load_student(save_student(tmp_path / side, kind, padding_side=side), **options)
        found.append((*student.front_end(batch), student))
    student.save(tmp_path / "saved")
    again = load_student(str(tmp_path / "saved"), **options)
    found.append((*again.front_end(batch), again))
    (inputs, mask, student), *others = found
    with torch.no_grad():
        states = student.encoder.eval()(**inputs).last_hidden_state
        for other, other_mask, student in others:
            assert torch.equal(mask, other_mask) and inputs.keys() == other.keys()
            assert all(torch.equal(inputs[name], other[name]) for name in inputs)
            assert torch.equal(states, student.encoder.eval()(**other).last_hidden_state)
    assert json.loads((tmp_path / "saved/preprocessor_config.json").read_text())["padding_side"] == "right"


@pytest.mark.parametrize("kind", [*KINDS, "group"])
@pytest.mark.parametrize("settings, message", [
    ({"sampling_rate": "16000"}, "sampling_rate '16000'; expected a whole number of Hz"),
    ({"sampling_rate": None}, "sampling_rate None; expected a whole number of Hz"),
    ({"sampling_rate": 16000.0}, "sampling_rate 16000.0; expected a whole number of Hz"),
    ({"sampling_rate": 0}, "sampling_rate 0; expected a whole number of Hz"),
    ({"padding_value": float("nan")}, "padding_value nan; expected a finite number"),
    ({"feature_size": 2}, r"feature_size 2, its model takes \d+; expected the files of one checkpoint"),
])  # fmt: skip
def test_feature_extractors_that_cannot_be(kind, settings, message, tmp_path):
    with pytest.raises(UserError, match=f"^student: .*its feature extractor has the {message}"):
        load_student(save_student(tmp_path, kind, **settings))


def test_feature_extractor_that_fails(tmp_path):
    with pytest.raises(
        UserError, match=r"^student: its feature extractor \(ParakeetF.*\) fails: .*hop_length.*expected"
    ):
        load_student(save_student(tmp_path / "hop", "parakeet_ctc", hop_length=0))
    with pytest.raises(UserError, match="^student: .* fails: it gives infinity or NaN"):
        load_student(save_student(tmp_path / "dither", "whisper", dither=float("nan")))


@pytest.mark.parametrize("settings", [
    {"conv_stride": [10, 0]}, {"conv_stride": [10, -8]}, {"conv_kernel": [20, 0]}, {"conv_stride": [10, "8"]},
])  # fmt: skip
def test_convolutions_that_cannot_be(settings, tmp_path):
    folder = save_student(tmp_path, "group")
    change_json(tmp_path / "config.json", **settings)
    ((name, _),) = settings.items()
    with pytest.raises(UserError, match=f"^student: .*{name}"):
        load_student(folder)


def test_weights_that_are_not_there(tmp_path):
    model = new_model("whisper")
    state = {name: value for name, value in model.state_dict().items() if "encoder.layers.1.fc1" not in name}
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(UserError, match="lacks 2 weights of Whisper.*: model.encoder.layers.1.fc1.bias, "):
        load_student(str(tmp_path))


@pytest.mark.parametrize("kind", [*KINDS, "wav2vec2"])
def test_a_student_keeps_the_other_files_of_its_checkpoint(kind, tmp_path):
    if kind == "wav2vec2":
        sizes = {name: CONFIGS["wav2vec2-bert"][name] for name in ("hidden_size", "num_hidden_layers")}
        model = AutoModel.from_config(Wav2Vec2Config(**sizes, num_attention_heads=4, conv_dim=(8,) * 7))
        extractor = waveforms.default_feature_extractor(model.config)
    else:
        model = new_model(kind)
        extractor = new_extractor(kind, model)
    model.save_pretrained(tmp_path / "before")
    extractor.save_pretrained(tmp_path / "before")
    kept = {"LICENSE": "of these weights", "vocab.json": '{"a": 0}', "merges.txt": "#version: 0.2\n"}
    for name, content in {**kept, "notes.txt": "not of the checkpoint"}.items():
        (tmp_path / "before" / name).write_text(content)
    saved = load_student(str(tmp_path / "before")).save(tmp_path / "after")
    assert {name: (saved / name).read_text() for name in kept} == kept
    assert not (saved / "notes.txt").exists()
