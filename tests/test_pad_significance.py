"""Priors recorded while a model runs against those of its eager attention maps."""

import copy
import math

import pytest
import torch

pytest.importorskip("transformers")

from transformers import (  # noqa: E402
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    FNetConfig,
    FNetModel,
    HubertConfig,
    HubertModel,
    RobertaConfig,
    RobertaModel,
    Wav2Vec2Config,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMModel,
)

from pad import record_significance  # noqa: E402
from pad.priors import attention as recording  # noqa: E402
from pad.priors.record import records  # noqa: E402
from pad_kernels import significance_from_attentions  # noqa: E402

SPEECH = {"wav2vec2": (Wav2Vec2Model, Wav2Vec2Config), "hubert": (HubertModel, HubertConfig),
          "wavlm": (WavLMModel, WavLMConfig)}  # fmt: skip
TEXT = {
    "bert": (BertModel, BertConfig),
    "roberta": (RobertaModel, RobertaConfig),
    "distilbert": (DistilBertModel, DistilBertConfig),
}


def speech_model(kind="wav2vec2", **options):
    torch.manual_seed(0)
    model, config = SPEECH[kind]
    settings = dict(
        hidden_size=48, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64, conv_dim=(24, 24, 24),
        conv_stride=(10, 8, 4), conv_kernel=(20, 16, 8), num_feat_extract_layers=3, num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4, layerdrop=0.0, mask_time_prob=0.0,
    )  # fmt: skip
    return model(config(**settings | options)).eval()


def speech_batch(samples=12000):
    """Samples, their mask, and a mask of frames as a group-normed student has it: apart from the samples'."""
    values = torch.randn(3, samples, generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([[samples], [samples // 2], [samples * 3 // 4]])
    mask = (torch.arange(samples) < lengths).long()
    frames = torch.tensor([[36], [17], [26]])
    return values, mask, torch.arange(36) < frames


def numbers_that_run(model):
    """A list that receives the number of each layer as it runs."""
    ran = []
    for number, layer in enumerate(model.encoder.layers):
        layer.attention.register_forward_hook(lambda *_, number=number: ran.append(number))
    return ran


def from_maps(model, mask, *inputs, **options):
    """The prior by its definition, and the output of the eager model."""
    eager = copy.deepcopy(model)
    eager.config._attn_implementation = "eager"
    outputs = eager(*inputs, output_attentions=True, **options)
    return significance_from_attentions(outputs.attentions, mask), outputs.last_hidden_state


@pytest.mark.parametrize("early", [True, False], ids=["mask known", "mask later"])
@pytest.mark.parametrize("masked", [True, False], ids=["masked", "unmasked"])
@pytest.mark.parametrize("norm", ["group", "layer"])
@pytest.mark.parametrize("kind", SPEECH)
def test_speech(kind, norm, masked, early):
    model = speech_model(kind, feat_extract_norm=norm)
    values, mask, frames = speech_batch()
    options = {"attention_mask": mask} if masked else {}
    with torch.no_grad():
        expected, output = from_maps(model, frames, values, **options)
        before = model.config._attn_implementation
        with record_significance(model, frames if early else None) as record:
            found = model(values, **options).last_hidden_state
        prior = record.prior(None if early else frames)
    assert model.config._attn_implementation == before
    assert torch.allclose(prior, expected, rtol=1e-5, atol=1e-7) and (prior[~frames] == 0).all()
    assert torch.allclose(prior.sum(1), torch.ones(3), atol=1e-5)
    assert torch.allclose(found[frames], output[frames], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", TEXT)
def test_text_without_special_tokens(kind):
    torch.manual_seed(0)
    model, config = TEXT[kind]
    model = model(config(vocab_size=60, hidden_size=48, num_hidden_layers=3, num_attention_heads=4,
                         intermediate_size=64, dim=48, n_layers=3, n_heads=4, hidden_dim=64)).eval()  # fmt: skip
    ids = torch.randint(5, 60, (3, 13))
    mask = (torch.arange(13) < torch.tensor([[13], [5], [9]])).long()
    text = mask.bool() & (torch.arange(13) > 0)
    with torch.no_grad():
        expected, output = from_maps(model, text, ids, attention_mask=mask)
        with record_significance(model, text) as record:
            found = model(ids, attention_mask=mask).last_hidden_state
    assert torch.allclose(record.prior(), expected, rtol=1e-5, atol=1e-7)
    assert torch.allclose(found[text], output[text], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["wav2vec2", "wavlm"])
def test_records_do_not_mix(kind):
    """A second model of the same config, and a record within a record."""
    model = speech_model(kind)
    other = type(model)(model.config).eval()
    values, _, frames = speech_batch()
    with torch.no_grad():
        expected = [from_maps(one, frames, values)[0] for one in (model, other)]
        with record_significance(model, frames) as first:
            model(values)
            other(values)
            with record_significance(other, frames) as second, record_significance(model, frames) as inner:
                other(values)
                model(values.flip(1))
    assert torch.allclose(first.prior(), expected[0], rtol=1e-5, atol=1e-7)
    assert torch.allclose(second.prior(), expected[1], rtol=1e-5, atol=1e-7)
    assert not torch.allclose(inner.prior(), expected[0], rtol=1e-3)
    assert model.config._attn_implementation != recording.IMPLEMENTATION or kind == "wavlm"
    assert not records


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_training(dropout, checkpointing):
    """Gradients are those of the model alone; layers that backward runs again are not recorded again."""
    values, _, frames = speech_batch()
    gradients = []
    for recorded in (False, True):
        model = speech_model(attention_dropout=0.0, hidden_dropout=dropout).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(3)
        if recorded:
            with record_significance(model, frames) as record:
                output = model(values).last_hidden_state
                output.square().sum().backward()
            assert len(record._priors) == 3 and not record.prior().requires_grad
        else:
            model(values).last_hidden_state.square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert torch.allclose(*gradients, rtol=1e-3, atol=1e-4 * gradients[0].abs().max().item())


def test_attention_dropout_is_drawn_again_by_checkpointing():
    values, _, frames = speech_batch()
    gradients = []
    for checkpointing in (False, True):
        model = speech_model(attention_dropout=0.2).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(3)
        with record_significance(model, frames):
            model(values).last_hidden_state.square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert torch.allclose(*gradients, rtol=1e-3, atol=1e-4 * gradients[0].abs().max().item())


def test_backward_after_the_context_with_checkpointing():
    values, _, frames = speech_batch()
    model = speech_model(attention_dropout=0.2).train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    with record_significance(model, frames) as record:
        output = model(values).last_hidden_state
    output.sum().backward()
    assert len(record._priors) == 3


def test_dropped_layers_are_left_out():
    values, _, frames = speech_batch()
    model = speech_model(layerdrop=0.5).train()
    counts = set()
    for seed in range(6):
        torch.manual_seed(seed)
        with record_significance(model, frames) as record:
            model(values)
        counts.add(len(record._priors))
        assert torch.allclose(record.prior().sum(1), torch.ones(3), atol=1e-5)
    assert len(counts) > 1


def test_all_layers_dropped_give_a_uniform_prior():
    values, _, frames = speech_batch()
    model = speech_model(layerdrop=1.0).train()
    for given, asked in ((frames, None), (None, frames)):
        with record_significance(model, given) as record:
            with pytest.raises(ValueError, match="no attention layer was recorded"):
                record.prior(asked)
            model(values)
        assert torch.allclose(record.prior(asked), frames / frames.sum(1, keepdim=True))


def test_layers_keep_their_numbers_when_others_are_dropped():
    values, _, frames = speech_batch()
    model = speech_model(layerdrop=0.5).train()
    ran, runs = numbers_that_run(model), set()
    for seed in range(12):
        torch.manual_seed(seed)
        ran.clear()
        with torch.no_grad(), record_significance(model, frames, layers=(1,)) as record:
            model(values)
        assert len(record._priors) == (1 in ran)
        runs.add(tuple(ran))
    assert {(1,), (1, 2)} & runs and {(2,), (0, 2)} & runs


def test_weights_of_layers_that_were_dropped_do_not_count():
    values, _, frames = speech_batch()
    model = speech_model(layerdrop=0.5).train()
    ran, runs = numbers_that_run(model), set()
    weights = {0: 1.0, 2: 4.0}
    for seed in range(12):
        torch.manual_seed(seed)
        ran.clear()
        with torch.no_grad(), record_significance(model, frames, layers=weights) as record:
            model(values)
        counted = [weights[number] for number in ran if number in weights]
        if counted:
            expected = sum(w * layer for w, layer in zip(counted, record.layer_priors())) / sum(counted)
        else:
            expected = frames / frames.sum(1, keepdim=True)
        assert torch.allclose(record.prior(), expected, atol=1e-7)
        runs.add(tuple(number for number in ran if number in weights))
    assert {(0,), (2,), (0, 2)} <= runs


@pytest.mark.parametrize("weights", [
    {}, {0: 0.0}, {0: 1.0, 1: -1.0}, {0: math.inf}, {0: math.nan}, {0: 1e308, 1: 1e308}, {0: "much"}, {0: 10**400},
])  # fmt: skip
def test_weights_of_layers_are_positive(weights):
    with pytest.raises(ValueError, match="layers: got weights .*, expected at least one, all positive and finite"):
        with record_significance(speech_model(), layers=weights):
            pass


def test_layers_out_of_range():
    values, _, frames = speech_batch()
    model = speech_model()
    with pytest.raises(ValueError, match=r"layers: expected numbers from 0 to 2, got \[0, 3\]"):
        with torch.no_grad(), record_significance(model, frames, layers=(0, 3)):
            model(values)


def test_some_layers():
    values, _, frames = speech_batch()
    model = speech_model()
    with torch.no_grad(), record_significance(model, frames, layers=(0, 2)) as record:
        model(values)
        model(values)
    model.config._attn_implementation = "eager"
    with torch.no_grad():
        maps = model(values, output_attentions=True).attentions
    expected = significance_from_attentions([maps[0], maps[2]], frames)
    assert torch.allclose(record.prior(), expected, rtol=1e-5, atol=1e-7)


def test_a_second_pass_replaces_the_first():
    model = speech_model()
    values, _, frames = speech_batch()
    with torch.no_grad(), record_significance(model, frames) as record:
        model(values)
        model(values.flip(0))
    with torch.no_grad(), record_significance(model, frames) as other:
        model(values.flip(0))
    assert torch.equal(record.prior(), other.prior())


def test_student_and_teacher_at_once():
    student, teacher = speech_model(), speech_model("hubert")
    values, _, frames = speech_batch()
    with torch.no_grad():
        with record_significance(student, frames) as of_student, record_significance(teacher, frames) as of_teacher:
            student(values)
            teacher(values)
        assert torch.allclose(of_student.prior(), from_maps(student, frames, values)[0], atol=1e-6)
        assert torch.allclose(of_teacher.prior(), from_maps(teacher, frames, values)[0], atol=1e-6)


def test_autocast():
    model = speech_model()
    values, _, frames = speech_batch()
    with torch.no_grad(), record_significance(model, frames) as record:
        with torch.autocast("cpu", torch.bfloat16):
            model(values)
    expected = from_maps(model, frames, values)[0]
    assert record.prior().dtype == torch.float32
    assert (record.prior() - expected).norm() <= 2e-2 * expected.norm()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_no_array_of_frames_by_frames(masked, training):
    """By the allocator's events: the largest block in the attention is far below T x T."""
    model = speech_model(num_attention_heads=2, num_hidden_layers=1).train(training)
    model.config.apply_spec_augment = False
    values, mask, _ = speech_batch(320 * 1500 + 200)
    length = int(model._get_feat_extract_output_lengths(torch.tensor(values.shape[1])))
    options = {"attention_mask": mask} if masked else {}
    model.feature_extractor.requires_grad_(False)
    features = {}
    model.feature_projection.register_forward_pre_hook(lambda m, inputs: features.update(inputs=inputs))
    with torch.no_grad():
        model(values, **options)  # the convolutions hold large arrays of their own
    hidden = model.feature_projection(*features["inputs"])[0].detach().requires_grad_()
    frames = torch.ones(3, length, dtype=torch.bool)
    if masked:
        frames[1, length // 2 :] = False

    def largest(record):
        with torch.profiler.profile(profile_memory=True) as profile:
            with record_significance(model, frames) if record else torch.enable_grad():
                options = {"attention_mask": frames if masked else None, "output_attentions": not record}
                output = model.encoder(hidden.clone(), **options)
            output[0].sum().backward()
        events = profile.profiler.kineto_results.events()
        return max(abs(event.nbytes()) for event in events if event.name() == "[memory]")

    assert largest(record=True) < 3 * length * length  # a map of one head of one utterance takes 4 bytes each
    model.config._attn_implementation = "eager"
    assert largest(record=False) >= 4 * 2 * 3 * length * length


def test_errors():
    values, _, frames = speech_batch()
    model = speech_model()
    with pytest.raises(ValueError, match="expected a transformers model, got Linear"):
        with record_significance(torch.nn.Linear(2, 2)):
            pass
    with record_significance(model) as record:
        pass
    with pytest.raises(ValueError, match="no attention layer was recorded"):
        record.prior()
    with torch.no_grad(), record_significance(model, frames) as record:
        model(values)
    with pytest.raises(ValueError, match="differs from the mask"):
        record.prior(~frames)
    fourier = FNetModel(FNetConfig(vocab_size=20, hidden_size=16, num_hidden_layers=1, intermediate_size=16))
    with pytest.raises(ValueError, match="'fnet' neither attends through"), record_significance(fourier):
        fourier(torch.ones(1, 3, dtype=torch.long))
    decoder = BertModel(BertConfig(vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                                   intermediate_size=16, is_decoder=True))  # fmt: skip
    with pytest.raises(ValueError, match="causal"), record_significance(decoder):
        decoder(torch.ones(1, 3, dtype=torch.long))
    assert model.config._attn_implementation == "sdpa"
