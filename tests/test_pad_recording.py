"""Recording where it would be easy to record something else: threads, copies, decoders, adapters, masks, maps."""

import copy
import threading

import pytest
import torch

pytest.importorskip("transformers")

from test_pad_significance import SPEECH, from_maps, speech_batch, speech_model  # noqa: E402
from torch import nn  # noqa: E402
from transformers import (  # noqa: E402
    BertConfig,
    BertLMHeadModel,
    BertModel,
    HubertForCTC,
    SpeechEncoderDecoderModel,
    Wav2Vec2ForCTC,
)

from pad import record_significance  # noqa: E402
from pad.priors import families, replacing  # noqa: E402
from pad.priors.attention import IMPLEMENTATION  # noqa: E402
from pad.priors.record import records  # noqa: E402
from pad.step.objective import PRESETS  # noqa: E402

TINY = {"vocab_size": 20, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def close(one, other) -> bool:
    return torch.allclose(one, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", ["wav2vec2", "wavlm"])
def test_threads_on_one_model_have_their_own_records(kind):
    """Four threads, which enter, run and leave in turns; a fifth runs the model and records nothing."""
    model = speech_model(kind)
    values, _, frames = speech_batch()
    inputs = [values, values.flip(1), values.roll(500, 1), values * values.sign()]
    before = model.config._attn_implementation
    with torch.no_grad():
        expected = [from_maps(model, frames, one)[0] for one in inputs]
    found, errors, meet = {}, [], threading.Barrier(5)

    def work(number):
        try:
            torch.set_num_threads(1)
            with torch.no_grad():
                meet.wait()
                if number == 4:
                    for _ in range(3):
                        model(values)
                    return
                for _ in range(3):
                    with record_significance(model, frames) as record:
                        model(inputs[number])
                    found[number] = record.prior()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not errors and all(close(found[number], expected[number]) for number in range(4))
    assert model.config._attn_implementation == before and not records and not replacing._in_use


def test_a_model_that_another_thread_runs_is_not_recorded():
    model = speech_model(layerdrop=0.5).train()
    values, _, frames = speech_batch()
    with torch.no_grad(), record_significance(model, frames) as record:
        thread = threading.Thread(target=model, args=(values,))
        thread.start()
        thread.join()
    with pytest.raises(ValueError, match="run the model in the context and in the same thread"):
        record.prior()


class _Replicas(nn.Module):
    """What nn.DataParallel does, without GPUs: copies of a model that share its hooks, each in its thread."""

    def __init__(self, model):
        super().__init__()
        self.module = model

    def forward(self, values):
        def replica_of(module):
            replica = module._replicate_for_data_parallel()
            for name, child in module._modules.items():
                replica._modules[name] = None if child is None else replica_of(child)
                setattr(replica, name, replica._modules[name])
            for name, parameter in module._parameters.items():
                setattr(replica, name, parameter)
            return replica

        errors = []

        def run(replica, part):
            try:
                replica(part)
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=run, args=(replica_of(self.module), part)) for part in values.split(1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
        if errors:
            raise errors[0]


@pytest.mark.parametrize("given", ["wrapper", "model"])
@pytest.mark.parametrize("layerdrop", [0.0, 0.1])
def test_copies_of_data_parallel_are_refused(given, layerdrop):
    model = speech_model(layerdrop=layerdrop).train()
    parallel = _Replicas(model)
    values, _, frames = speech_batch()
    with pytest.raises(ValueError, match="torchrun --nproc-per-node N, or accelerate launch"):
        with record_significance(parallel if given == "wrapper" else model, frames):
            parallel(values)
    parallel(values)  # afterwards it runs as before


def test_data_parallel_on_several_devices_is_refused_at_once():
    model = nn.DataParallel(speech_model())
    with record_significance(model):
        pass  # without a GPU it runs the model itself
    model.device_ids = [0, 1]
    with pytest.raises(ValueError, match=r"nn\.DataParallel .*torchrun"):
        with record_significance(model):
            pass


def test_layers_that_ran_unrecorded_are_no_dropped_layers():
    """In training, with layerdrop: a uniform prior would hide that nothing was recorded."""
    model = speech_model(layerdrop=0.1).train()
    values, _, frames = speech_batch()
    torch.manual_seed(0)
    with record_significance(model, frames) as record:
        model.config._attn_implementation = "sdpa"
        model(values)
    with pytest.raises(ValueError, match="attention layers of Wav2Vec2Model ran, but none was recorded"):
        record.prior()
    model = BertModel(BertConfig(**TINY)).train()  # no layerdrop: nothing can have been dropped
    model.encoder.forward = lambda hidden, *_, **__: copy.copy(hidden)
    with record_significance(model, torch.ones(1, 3)[:, :3].bool()) as record:
        try:
            model(torch.ones(1, 3, dtype=torch.long))
        except AttributeError:
            pass
    with pytest.raises(ValueError, match="no attention layer was recorded"):
        record.prior()


def test_the_encoder_of_an_encoder_decoder():
    encoder = speech_model()
    values, _, frames = speech_batch()
    with torch.no_grad():
        expected = from_maps(encoder, frames, values)[0]
    decoder = BertLMHeadModel(BertConfig(**TINY, is_decoder=True, add_cross_attention=True))
    model = SpeechEncoderDecoderModel(encoder=encoder, decoder=decoder).eval()
    assert model.get_encoder().config is not encoder.encoder.layers[0].attention.config  # transformers copies one
    words = torch.ones(3, 4, dtype=torch.long)
    before = decoder.config._attn_implementation
    with torch.no_grad():
        with record_significance(model.get_encoder(), frames) as record:
            model(input_values=values, decoder_input_ids=words)
        assert close(record.prior(), expected)
        with pytest.raises(ValueError, match=r"record the encoder alone: record_significance\(model.get_encoder\(\)\)"):
            with record_significance(model, frames):
                model(input_values=values, decoder_input_ids=words)
    assert decoder.config._attn_implementation == before != IMPLEMENTATION


@pytest.mark.parametrize("kind, head", [("wav2vec2", Wav2Vec2ForCTC), ("hubert", HubertForCTC)])
def test_an_encoder_under_a_head(kind, head):
    torch.manual_seed(0)
    config = speech_model(kind).config
    config.vocab_size = 8
    model = head(config).eval()
    values, _, frames = speech_batch()
    base = getattr(model, model.base_model_prefix)
    with torch.no_grad():
        with record_significance(model, frames) as record:
            model(values)
        assert close(record.prior(), from_maps(base, frames, values)[0])


def test_an_adapter_that_makes_fewer_frames_is_refused():
    model = speech_model(add_adapter=True, output_hidden_size=48)
    values, _, frames = speech_batch()
    for options in ({}, {"return_dict": False}):
        with torch.no_grad(), pytest.raises(ValueError, match=r"attend to 36 positions.*output has 5 .*add_adapter"):
            with record_significance(model, frames):
                model(values, **options)
    assert model.config._attn_implementation != IMPLEMENTATION and not records


@pytest.mark.parametrize("how", ["argument", "config"])
def test_maps_that_are_asked_for_inside_the_context_are_refused(how):
    model = speech_model()
    if how == "config":
        model.set_attn_implementation("eager")
        model.config.output_attentions = True
    options = {"output_attentions": True} if how == "argument" else {}
    values, _, frames = speech_batch()
    with torch.no_grad(), pytest.raises(ValueError, match="output_attentions: there are no attention maps while"):
        with record_significance(model, frames):
            model(values, **options)
    model(values)


def test_families_recorded_map_by_map_give_their_maps_too():
    model = speech_model("wavlm")
    values, _, frames = speech_batch()
    with torch.no_grad():
        expected, _ = from_maps(model, frames, values)
        with record_significance(model, frames) as record:
            maps = model(values, output_attentions=True).attentions
    assert len(maps) == 3 and close(record.prior(), expected)


@pytest.mark.parametrize("kind", SPEECH)
def test_masks_that_say_something_else_are_refused(kind):
    model = speech_model(kind)
    values, _, frames = speech_batch()
    additive = torch.zeros(3, 36).masked_fill(~frames, -torch.inf)
    for mask, message in (
        (~frames, "True at the padding"),
        ((~frames).long(), "True at the padding"),
        (additive, "got torch.float32, expected bool or 0/1 integers"),
        (frames[:, None, None], r"got shape \(3, 1, 1, 36\), expected \[B, T\]"),
        (frames[0], r"got shape \(36,\), expected \[B, T\]"),
    ):
        with pytest.raises(ValueError, match=f"mask: .*{message}"):
            with record_significance(model, mask):
                pass
        with torch.no_grad(), record_significance(model) as record:
            model(values)
        with pytest.raises(ValueError, match=f"mask: .*{message}"):
            record.prior(mask)


@pytest.mark.parametrize("mask", [
    [[0, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]],  # padding on the left, and a text without words
    [[1, 1, 0, 0], [1, 1, 1, 1]],
    [[0, 0, 0, 0]],
    [[0, 1, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]],  # without special tokens
])  # fmt: skip
def test_masks_of_positions_that_count_are_taken(mask):
    model = BertModel(BertConfig(**TINY)).eval()
    mask = torch.tensor(mask)
    with torch.no_grad(), record_significance(model, mask) as record:
        model(torch.ones(mask.shape, dtype=torch.long))
    assert close(record.prior().sum(1), mask.any(1).float()) and (record.prior()[mask == 0] == 0).all()


def test_a_prepared_mask_of_pairs_is_followed():
    """[B, 1, T, T], bool or added to the scores: the layer is reduced map by map."""
    model = BertModel(BertConfig(**TINY)).eval()
    ids, counts = torch.randint(0, 20, (2, 6)), torch.ones(2, 6, dtype=torch.bool)
    band = ((torch.arange(6)[:, None] - torch.arange(6)).abs() <= 1).expand(2, 1, 6, 6)
    added = torch.zeros(band.shape).masked_fill(~band, torch.finfo(torch.float32).min)
    with torch.no_grad():
        expected, _ = from_maps(model, counts, ids, attention_mask=added)
        for mask in (band, added):
            with record_significance(model, counts) as record:
                model(ids, attention_mask=mask)
            assert close(record.prior(), expected)


def test_a_hook_that_is_called_as_another_thread_adds_it_does_nothing():
    """torch lists a hook first, and afterwards notes that it takes named arguments."""
    model = speech_model("wav2vec2")
    assert families._map_asked_for(model, ()) is None
    assert families._maps_refused(object())(model, ()) is None


@pytest.mark.parametrize("kind", ["wav2vec2", "wavlm"])
@pytest.mark.parametrize("early", [True, False])
def test_the_prior_of_each_layer(kind, early):
    """In the order of the layers; their mean is the prior, and `layers` chooses among them or weighs them."""
    model = speech_model(kind)
    values, _, frames = speech_batch()

    def recorded(**options):
        with torch.no_grad(), record_significance(model, frames if early else None, **options) as record:
            model(values)
        return record

    given = () if early else (frames,)
    record = recorded()
    found = record.layer_priors(*given)
    assert found.shape == (model.config.num_hidden_layers, *frames.shape) and not found[:, ~frames].any()
    assert torch.equal(found.mean(dim=0), record.prior(*given)) and not close(found[0], found[1])
    for layer, alone in enumerate(found):
        assert torch.equal(recorded(layers=(layer,)).prior(*given), alone)
    weighed = recorded(layers={2: 3.0, 0: 1.0}).prior(*given)
    torch.testing.assert_close(weighed, 0.25 * found[0] + 0.75 * found[2])
    with torch.no_grad(), PRESETS["early-slocal-soft"].recording(model, frames) as of_preset:
        model(values)
    torch.testing.assert_close(of_preset.prior(), 0.4 * found[0] + 0.4 * found[1] + 0.2 * found[2])
    with torch.no_grad(), record_significance(model, None if early else frames, layers={0: 1.0, 2: 3.0}) as again:
        for _ in range(2):  # a second pass replaces the first, weights and all
            model(values)
            torch.testing.assert_close(again.prior(frames), weighed)
    if early:
        with pytest.raises(ValueError, match="mask: differs from the mask given to record_significance"):
            record.layer_priors(~frames)
    with record_significance(model, frames) as record, pytest.raises(ValueError, match="no attention layer"):
        record.layer_priors()


@pytest.mark.parametrize("adapter, early", [(False, True), (False, False), (True, True)])
def test_a_mask_of_other_positions_is_refused(adapter, early):
    model = speech_model(**({"add_adapter": True, "output_hidden_size": 48} if adapter else {}))
    values, _, frames = speech_batch()
    mask = torch.ones(len(frames), 5, dtype=torch.bool)  # of the adapter's output
    expected = r"^mask: got shape \(3, 5\), expected \[B, 36\]" + (".*model without adapter$" if adapter else ".*to$")
    with torch.no_grad(), pytest.raises(ValueError, match=expected):
        with record_significance(model, mask if early else None) as record:
            model(values)
        record.prior(mask)


def test_a_layer_that_attends_in_parts_is_refused():
    """As some encoders of audio do, chunk by chunk."""
    model = speech_model()
    attention = model.encoder.layers[0].attention
    whole = attention.forward

    def in_parts(states, **options):
        found = [whole(part, **options | {"attention_mask": None}) for part in states.split(18, dim=1)]
        return torch.cat([output for output, *_ in found], dim=1), *found[0][1:]

    attention.forward = in_parts
    values, _, _ = speech_batch()
    with torch.no_grad(), record_significance(model) as record:
        model(values)
    with pytest.raises(ValueError, match="attends in several parts"):
        record.prior()


@pytest.mark.parametrize("model", ["bert-base-uncased", None])
def test_what_is_no_model_is_refused(model):
    with pytest.raises(ValueError, match="^model: expected a transformers model, got (str|NoneType)$"):
        with record_significance(model):
            pass
