"""Recording with what users do to a model: checkpointing, wrappers, changed layers, autocast, compiling."""

import copy
import threading
from functools import partial

import pytest
import torch

pytest.importorskip("transformers")

from test_pad_families import CASES, inputs_of, make  # noqa: E402
from torch import nn  # noqa: E402
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (  # noqa: E402
    CheckpointImpl,
    apply_activation_checkpointing,
    checkpoint_wrapper,
)
from torch.utils.checkpoint import checkpoint  # noqa: E402
from transformers import AttentionInterface, AutoConfig, AutoModel, PreTrainedModel  # noqa: E402
from transformers.integrations.sdpa_attention import sdpa_attention_forward  # noqa: E402
from transformers.models.bert.modeling_bert import BertLayer, BertSelfAttention  # noqa: E402

from pad import record_significance  # noqa: E402
from pad.priors import families, replacing  # noqa: E402
from pad.priors.attention import IMPLEMENTATION  # noqa: E402
from pad.priors.record import records  # noqa: E402
from pad_kernels import significance_from_attentions  # noqa: E402

ENCODER_DECODER = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_source_positions": 24, "vocab_size": 50, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1, "dropout": 0.0,
}  # fmt: skip


def build(name: str = "bert", **options):
    case = CASES[name]
    return make(case.model_type, case.options | options), *inputs_of(case.input)


def of_layers(model, inputs, mask) -> list:
    """The prior of each layer by the eager maps of a copy."""
    eager = copy.deepcopy(model)
    for module in eager.modules():
        if isinstance(module, PreTrainedModel):
            module.config._attn_implementation = "eager"
    with torch.no_grad():
        maps = eager(**inputs, output_attentions=True).attentions
    return [significance_from_attentions([layer], mask) for layer in maps]


def close(one, other) -> bool:
    return torch.allclose(one, other, rtol=1e-4, atol=1e-6)


def checkpointed(model, how: str) -> None:
    """The model, whose layers the user has checkpointed."""
    if how == "whole encoder":
        run = model.encoder.forward
        model.encoder.forward = lambda hidden, **named: checkpoint(partial(run, **named), hidden, use_reentrant=False)
    elif how != "none":
        apply_activation_checkpointing(
            model, checkpoint_wrapper_fn=partial(checkpoint_wrapper, checkpoint_impl=CheckpointImpl[how]),
            check_fn=lambda module: isinstance(module, BertLayer),
        )  # fmt: skip


@pytest.mark.parametrize("inside", [True, False], ids=["in the context", "after it"])
@pytest.mark.parametrize("how", ["REENTRANT", "NO_REENTRANT", "whole encoder"])
def test_own_checkpointing_draws_the_same_dropout_again(how, inside):
    """Backward may come after the context; the model keeps the recording attention, until no backward needs it."""
    whole, inputs, mask = build()
    name = whole.config._attn_implementation
    for module in whole.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    gradients = []
    for way in ("none", how):
        model = copy.deepcopy(whole).train()
        for layer in model.encoder.layer:
            layer.attention.self.dropout.p = 0.3
        checkpointed(model, way)
        torch.manual_seed(7)
        with record_significance(model, mask) as record:
            loss = model(**inputs).last_hidden_state[mask].square().mean()
            if inside:
                loss.backward()
        if not inside:
            loss.backward()
        assert record.layer_priors().shape[0] == 3
        assert model.config._attn_implementation == (name if way == "none" else IMPLEMENTATION)
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert (gradients[0] - gradients[1]).norm() <= 1e-6 * gradients[0].norm()
    with torch.no_grad(), record_significance(model, mask):
        model.eval()(**inputs)
    assert model.config._attn_implementation == IMPLEMENTATION  # nothing that was to run backward is lost


def test_after_checkpointing_the_model_gets_its_attention_back():
    model, inputs, mask = build()
    model.set_attn_implementation("eager")
    model.train().gradient_checkpointing_enable({"use_reentrant": False})
    with record_significance(model, mask):
        model(**inputs).last_hidden_state.sum().backward()
    assert model.config._attn_implementation == IMPLEMENTATION
    with pytest.raises(ValueError, match="^output_attentions: .* expected a pass in evaluation mode under"):
        model(**inputs, output_attentions=True)
    for kept in (model, copy.deepcopy(model)):
        with torch.no_grad():
            maps = kept.eval()(**inputs, output_attentions=True).attentions
        assert len(maps) == 3 and all(layer.shape == (3, 4, 13, 13) for layer in maps)
        assert kept.config._attn_implementation == IMPLEMENTATION
        kept.gradient_checkpointing_disable()
        with record_significance(kept, mask) as record:
            kept(**inputs)
        assert close(record.prior(), significance_from_attentions(maps, mask))
        assert kept.config._attn_implementation == "eager" and not replacing._in_use
        assert not replacing._give_back([kept])


class Twice(nn.Module):
    """Runs its encoder on two inputs in one pass."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, one, other):
        return self.encoder(**one), self.encoder(**other)


@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize("name", ["bert", "mpnet", "whisper"])
def test_a_later_pass_of_the_encoder_in_a_wrapper_replaces(name, early):
    model, inputs, mask = build(name)
    other = {name: value.flip(-1) if value.is_floating_point() else value for name, value in inputs.items()}
    if "input_ids" in inputs:
        other["input_ids"] = inputs["input_ids"].roll(1, 0) * mask + inputs["input_ids"] * ~mask
    expected = sum(of_layers(model, other, mask)) / 3
    wrapper, given = Twice(model).eval(), () if early else (mask,)
    for run in (lambda: wrapper(inputs, other), lambda: [wrapper.encoder(**each) for each in (inputs, other)]):
        with torch.no_grad(), record_significance(wrapper, mask if early else None, layers=(0, 1, 2)) as record:
            run()
        assert record.layer_priors(*given).shape[0] == 3 and close(record.prior(*given), expected)


def test_all_layers_dropped_of_an_encoder_that_a_wrapper_does_not_run_itself():
    model, inputs, mask = build("wav2vec2", layerdrop=1.0)
    wrapper = Twice(model).train()
    with torch.no_grad(), record_significance(wrapper, mask) as record:
        wrapper.encoder(**inputs)
    assert close(record.prior(), mask / mask.sum(1, keepdim=True))


def test_layerdrop_that_a_module_has_copied():
    """Parakeet's encoder does."""
    model, inputs, mask = build("parakeet_encoder", layerdrop=1.0)
    model.config.layerdrop = 0.0
    with torch.no_grad(), record_significance(model.train(), mask) as record:
        model(**inputs)
    assert close(record.prior(), mask / mask.sum(1, keepdim=True))


def own_attention(*arguments, **options):
    return sdpa_attention_forward(*arguments, **options)


def test_an_attention_function_of_the_user_is_refused():
    AttentionInterface.register("own_attention", own_attention)
    model, inputs, mask = build()
    model.set_attn_implementation("own_attention")
    with pytest.raises(ValueError, match="^model: it attends by 'own_attention', .*; expected 'eager', 'sdpa'"):
        with record_significance(model, mask):
            pass
    assert model.config._attn_implementation == "own_attention" and not records and not replacing._in_use
    for name in ("flash_attention_2", "kernels-community/flash-attn2", "paged|sdpa", "flex_attention", None):
        replacing._check_known(name)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", ["nomic_bert", "eurobert", "moonshine", "bert"])
def test_autocast(name, train):
    """Rotary positions give float32 queries and keys beside a bfloat16 value."""
    model, inputs, mask = build(name)
    model.train(train)
    with torch.autocast("cpu", torch.bfloat16), record_significance(model, mask) as record:
        states = model(**inputs).last_hidden_state
    states.float().sum().backward()
    assert record.prior().dtype == torch.float32
    assert (record.prior() - sum(of_layers(model.eval(), inputs, mask)) / 3).norm() < (1.0 if train else 0.1)


class Changed(BertSelfAttention):
    """An attention of the user's that is still recorded."""


class Unrecorded(BertSelfAttention):
    def forward(self, hidden_states, *arguments, **options):
        return self.value(hidden_states), None


class Foreign(nn.Module):
    def forward(self, hidden_states, *arguments, **options):
        return hidden_states, None


class Saved(nn.Module):
    """What PEFT's modules_to_save makes of a module."""

    def __init__(self, module):
        super().__init__()
        self.original_module, self.modules_to_save = module, nn.ModuleDict({"default": copy.deepcopy(module)})

    def forward(self, *arguments, **options):
        return self.modules_to_save["default"](*arguments, **options)


@pytest.mark.parametrize("change", ["subclass", "PEFT"])
def test_changed_layers_keep_their_numbers(change):
    model, inputs, mask = build()
    expected = of_layers(model, inputs, mask)
    attention = model.encoder.layer[1].attention
    if change == "PEFT":
        attention.self = Saved(attention.self)
    else:
        attention.self.__class__ = Changed
    for number in range(3):
        with torch.no_grad(), record_significance(model, mask, layers=(number,)) as record:
            model(**inputs)
        assert close(record.prior(), expected[number])
    with pytest.raises(ValueError, match=r"layers: expected numbers from 0 to 2, got \[3\]"):
        with torch.no_grad(), record_significance(model, mask, layers=(3,)):
            model(**inputs)


def test_layers_that_are_not_recorded_are_no_others():
    model, inputs, mask = build()
    layers = model.encoder.layer
    layers[1].attention.self.__class__ = Unrecorded
    for chosen in (None, (0,), (0, 1)):
        with torch.no_grad(), record_significance(model, mask, layers=chosen) as record:
            model(**inputs)
        with pytest.raises(ValueError, match="^model: 3 attention layers of BertModel ran, but 2 were recorded"):
            record.prior()
    layers[1].attention.self = Foreign()
    expected = of_layers(model, inputs, mask)
    with torch.no_grad(), record_significance(model, mask, layers=(2,)) as record:
        model(**inputs)
    assert close(record.prior(), expected[-1])
    with pytest.raises(ValueError, match=r"layers: expected numbers from 0 to 2 \(of these \[0, 2\]\), got \[1\]"):
        with torch.no_grad(), record_significance(model, mask, layers=(1,)) as record:
            model(**inputs)


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_layers_that_share_a_module_have_numbers(groups):
    model, inputs, mask = build("albert", num_hidden_groups=groups)
    expected = of_layers(model, inputs, mask)
    for number in range(3):
        with torch.no_grad(), record_significance(model, mask, layers=(number,)) as record:
            for _ in range(2):
                model(**inputs)
        assert close(record.prior(), expected[number])
    with pytest.raises(ValueError, match=r"layers: expected numbers from 0 to 2, got \[3\]"):
        with torch.no_grad(), record_significance(model, mask, layers=(3,)):
            model(**inputs)


def test_layers_that_the_user_shares():
    model, inputs, mask = build()
    model.encoder.layer[2] = model.encoder.layer[0]
    expected = of_layers(model, inputs, mask)
    for number in range(3):
        with torch.no_grad(), record_significance(model, mask, layers=(number,)) as record:
            model(**inputs)
        assert close(record.prior(), expected[number])
    model.encoder.layer[2] = model.encoder.layer[1]
    model.encoder.layer[1].register_forward_hook(lambda layer, arguments, output: layer.attention.self(output)[0])
    with pytest.raises(ValueError, match="^layers: BertSelfAttention runs as several layers"):
        with torch.no_grad(), record_significance(model, mask, layers=(0,)):
            model(**inputs)


def test_contexts_that_end_in_another_order():
    model, inputs, mask = build()
    expected = sum(of_layers(model, inputs, mask)) / 3
    first, second = record_significance(model, mask), record_significance(model, mask)
    with torch.no_grad():
        first.__enter__()
        record = second.__enter__()
        first.__exit__(None, None, None)
        model(**inputs)
        second.__exit__(None, None, None)
    assert close(record.prior(), expected)
    assert not records and not replacing._in_use and model.config._attn_implementation == "sdpa"


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_model():
    model, inputs, mask = build()
    expected = sum(of_layers(model, inputs, mask)) / 3
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad(), record_significance(compiled, mask) as record:
        compiled(**inputs)
    assert close(record.prior(), expected)


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_model_of_many_layers(caplog):
    """No program for each layer: torch.compile would give up after eight."""
    model, inputs, mask = build(num_hidden_layers=12)
    expected = sum(of_layers(model, inputs, mask)) / 12
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad(), record_significance(compiled, mask) as record:
        compiled(**inputs)
    assert close(record.prior(), expected)
    assert not any("limit" in message for message in caplog.messages)


@pytest.mark.parametrize("name", [name for name, case in CASES.items()
                                  if case.input == "text" and case.recorded == "maps"])  # fmt: skip
def test_maps_after_attention_dropout_are_those_that_the_table_names(name):
    rates = dict.fromkeys(("attention_dropout", "attention_probs_dropout_prob", "dropout_rate"), 0.5)
    model, inputs, mask = build(name, **rates)
    for path, module in model.named_modules():
        of_attention = "Attention" in type(model.get_submodule(path.rpartition(".")[0])).__name__
        if isinstance(module, nn.Dropout) and not of_attention:
            module.p = 0.0
    priors = []
    for train in (False, True):
        with torch.no_grad(), record_significance(model.train(train), mask, layers=(0,)) as record:
            model(**inputs)
        priors.append(record.prior())
    assert close(*priors) == families._attends_through_interface(model)


@pytest.mark.parametrize("name", ["whisper", "bart"])
@pytest.mark.parametrize("train", [False, True])
def test_a_decoder_beside_the_recorded_encoder(name, train):
    """It may share the config of the encoder: what it computes is as it was, with what it keeps while it generates."""
    config = AutoConfig.for_model(name, **ENCODER_DECODER, **({"num_mel_bins": 16} if name == "whisper" else {}))
    torch.manual_seed(0)
    model = AutoModel.from_config(config).train(train)
    tokens = torch.randint(5, 50, (3, 9), generator=torch.Generator().manual_seed(0))
    inputs = {"input_features": torch.randn(3, 16, 48)} if name == "whisper" else {"input_ids": tokens}
    inputs |= {"decoder_input_ids": tokens, "decoder_attention_mask": torch.arange(9) < torch.tensor([[9], [4], [7]])}

    def run():
        """All tokens, and one more after them: it attends to what was kept of the others."""
        whole = model(**inputs, use_cache=True)
        decoder = {"encoder_outputs": (whole.encoder_last_hidden_state,), "past_key_values": whole.past_key_values}
        one_more = model(decoder_input_ids=tokens[:, :1], **decoder, use_cache=True)
        return whole.last_hidden_state, one_more.last_hidden_state

    expected = run()
    with record_significance(model.get_encoder()) as record:
        found = run()
    assert all(close(*pair) for pair in zip(found, expected, strict=True))
    assert close(record.prior().sum(1), torch.ones(3))
    with pytest.raises(ValueError, match="causal"), record_significance(model):
        model(**inputs)


def maps(model, inputs):
    with torch.no_grad():
        return model(**inputs, output_attentions=True).attentions


def test_maps_that_others_ask_for():
    """The same model in another thread, another model of the same config, a copy that was made meanwhile."""
    model, inputs, mask = build("bert")
    model.set_attn_implementation("eager")
    other = type(model)(model.config).eval()
    expected, of_other = maps(model, inputs), maps(other, inputs)
    found = []
    with record_significance(model, mask):
        thread = threading.Thread(target=lambda: found.append(maps(model, inputs)))
        thread.start()
        thread.join()
        assert all(close(*pair) for pair in zip(maps(other, inputs), of_other, strict=True))
        twin = copy.deepcopy(model)
    found.append(maps(twin, inputs))
    assert all(close(*pair) for each in found for pair in zip(each, expected, strict=True))


@pytest.mark.parametrize("first", ["prior", "layer_priors"])
def test_a_second_mask_is_refused(first):
    model, inputs, mask = build("bert")

    def recorded():
        with torch.no_grad(), record_significance(model) as record:
            model(**inputs)
        return record

    record = recorded()
    expected = record.prior(mask)
    assert torch.equal(record.prior(), expected) and torch.equal(record.prior(mask.long()), expected)
    for given in ((), (mask.roll(1, 0),)):
        record = recorded()
        getattr(record, first)(*given)
        for second in (mask, mask[:, :2]):
            with pytest.raises(ValueError, match="mask: differs from that of an earlier call"):
                record.prior(second)
    with torch.no_grad(), record_significance(model) as record:
        model(**inputs)
        record.layer_priors()
        model(**inputs)  # of which nothing was asked yet
        assert torch.equal(record.prior(mask), expected)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"layers": ()}, "layers: got"),
        ({"layers": 1}, "layers: got 1"),
        ({"layers": ["0"]}, "layers: got"),
        ({"layers": torch.tensor([0])}, "layers: got"),
        ({"mask": [[1, 1]]}, "mask: got list"),
        ({"mask": torch.full((3, 9), 2)}, "mask: got values from 2 to 2"),
        ({"mask": torch.full((3, 9), -1)}, "mask: got values from -1 to -1"),
    ],
)
def test_arguments_refused(options, message):
    with pytest.raises(ValueError, match=message), record_significance(build("bert")[0], **options):
        pass


def test_attention_dropout_whatever_the_default_device():
    model, inputs, mask = build("bert", attention_probs_dropout_prob=0.3)
    model.train()

    def gradient():
        model.zero_grad()
        torch.manual_seed(3)
        with record_significance(model, mask):
            model(**inputs).last_hidden_state.sum().backward()
        return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]

    expected = gradient()
    torch.set_default_device("meta")
    try:
        found = gradient()
    finally:
        torch.set_default_device(None)
    assert found and all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
