"""Loading of models by name, and what must hold of a student and its teacher."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from huggingface_hub import HfApi, try_to_load_from_cache
from torch import nn
from transformers import PreTrainedModel

from pad.errors import UserError, shown
from pad.loaders import TextEncoder
from pad.settings import Settings


def load_pretrained(loader, name: str, role: str, **options):
    """`loader.from_pretrained(name, **options)`; raises UserError that names the role and what is wrong."""
    where = ""
    try:
        if not Path(name).is_dir():
            where = "no such folder here; on huggingface.co: "
            _reach_hub(name)
        return loader.from_pretrained(name, **options)
    except Exception as error:  # whatever files that are not of a model make transformers raise
        reason = re.sub(r"\s+", " ", str(error)).strip()
        raise UserError(f"{role}: cannot load {name!r}: {where}{reason}") from error


def _reach_hub(name: str) -> None:
    """Raise at once what transformers raises after many attempts: the model or the hub cannot be reached."""
    if not isinstance(try_to_load_from_cache(name, "config.json"), str):
        HfApi().model_info(name, timeout=10)


def load_teacher(name: str):
    """(model, tokenizer) of a text encoder, frozen: evaluation mode, no gradients, float32."""
    model, tokenizer = load_pretrained(TextEncoder, name, "teacher")
    model = model.float()
    # Where the files are missing, transformers makes a tokenizer of little more than the special tokens.
    if len(tokenizer) - len(tokenizer.all_special_ids) < 3:
        raise UserError(f"teacher: no tokenizer in {name!r}, only a model; expected the files of both")
    if tokenizer.pad_token is None:
        raise UserError(
            f"teacher: the tokenizer of {name!r} has no padding token; expected a pad_token in its "
            "tokenizer_config.json, such as [PAD] or its end-of-text token"
        )
    embeddings = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > embeddings:
        raise UserError(
            f"teacher: the tokenizer of {name!r} has {len(tokenizer)} tokens, its model embeds {embeddings}; expected "
            "no more than that"
        )
    tokenizer.model_max_length = _longest_text(name, model, tokenizer)
    model.eval().requires_grad_(False)
    return model, tokenizer


def _longest_text(name: str, model: PreTrainedModel, tokenizer) -> int:
    """The most tokens of a text that a tokenizer and its model take; raises UserError if all of them are special."""
    stated, special = tokenizer.model_max_length, tokenizer.num_special_tokens_to_add()
    if not isinstance(stated, (int, float)) or not min(stated, positions(model)) - special >= 1:
        raise UserError(
            f"teacher: {name!r} has the model_max_length {shown(stated)} and {positions(model)} positions, and adds "
            f"{special} special tokens to each text; expected room for one more token at least"
        )
    return int(min(stated, positions(model)))


def positions(model: PreTrainedModel) -> int:
    """The number of tokens that a text encoder has positions for."""
    table = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    if isinstance(table, nn.Embedding):
        # RoBERTa counts its positions from after the padding's.
        return table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)
    stated = getattr(model.config, "max_position_embeddings", None)
    return stated if stated and stated > 0 else sys.maxsize  # XLNet states -1


def width(model: PreTrainedModel) -> int:
    """Width D of a model's output."""
    return int(model.config.hidden_size)


def check_teacher_layer(settings: Settings, layer: int, teacher: PreTrainedModel) -> None:
    """Raise UserError unless `layer`, the setting teacher_layer, is a hidden state of the teacher."""
    depth = teacher.config.num_hidden_layers
    expected = f"a hidden state of the teacher, from {-depth - 1} to {depth}"
    settings.expect("teacher_layer", -depth - 1 <= layer <= depth, expected)


def check_widths(student: PreTrainedModel, teacher: PreTrainedModel) -> None:
    """PAD adds no layer, so the two widths must agree; raises UserError that names both."""
    if width(student) != width(teacher):
        raise UserError(
            f"student and teacher have different widths: {width(student)} and {width(teacher)}; PAD adds no layer, "
            "so use two models of the same width, or --linear-map to train a map between them as well"
        )
