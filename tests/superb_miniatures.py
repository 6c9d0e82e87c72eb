"""Miniatures of SUPERB's three corpora, where a tone stands for what is said, and tiny encoders to evaluate on them."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import nn
from transformers import Wav2Vec2Config, Wav2Vec2Model, WavLMConfig, WavLMModel

from pad.evaluate.config import EvaluateConfig

TONES = {0: 300.0, 1: 700.0, 2: 1500.0, 3: 3100.0}
SENTENCES = (
    ("PLAY ADELE", "O artist", (0, 1)),
    ("PLAY JAZZ", "O genre", (0, 2)),
    ("BOOK IT", "O O", (3, 0)),
)


def write_tones(path: Path, *pitches: int, seconds: float = 0.3, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(int(seconds * 16000)) / 16000
    wave = np.concatenate([0.3 * np.sin(2 * np.pi * TONES[pitch] * time) for pitch in pitches])
    noise = 0.01 * np.random.default_rng(seed).standard_normal(len(wave))
    soundfile.write(path, wave + noise, 16000)


def replace_in(path: Path, before: str, after: str) -> None:
    """Change a file that has the text `before`."""
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))


def write_commands(folder: Path) -> Path:
    actions, objects = ("activate", "bring"), ("lights", "shoes")
    for split, copies in (("train", 2), ("valid", 1), ("test", 1)):
        rows = [",path,speakerId,transcription,action,object,location"]
        for number in range(4 * copies):
            pitch, path = number % 4, f"wavs/speakers/{split}/{number}.wav"
            write_tones(folder / path, pitch, seconds=0.3 + 0.05 * number, seed=number)
            label = f"{actions[pitch // 2]},{objects[pitch % 2]},none"
            rows.append(f'{number},{path},{split},"Do it, now",{label}')
        (folder / "data").mkdir(exist_ok=True)
        (folder / "data" / f"{split}_data.csv").write_text("\n".join(rows) + "\n")
    return folder


def write_iemocap(folder: Path) -> Path:
    emotions = (("neu", 0), ("hap", 1), ("exc", 1), ("sad", 2), ("ang", 3), ("fru", 0), ("xxx", 1))
    for session in range(1, 6):
        dialog = f"Ses0{session}F_impro01"
        lines = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]", ""]
        for number, (emotion, pitch) in enumerate(emotions):
            turn = f"{dialog}_F{number:03d}"
            lines += [f"[{number}.29 - {number}.95]\t{turn}\t{emotion}\t[2.5000, 2.5000, 2.5000]"]
            lines += ["C-E2:\tNeutral;\t()", ""]
            audio = folder / f"Session{session}" / "sentences" / "wav" / dialog / f"{turn}.wav"
            write_tones(audio, pitch, seconds=0.3 + 0.05 * number, seed=10 * session + number)
        evaluations = folder / f"Session{session}" / "dialog" / "EmoEvaluation"
        evaluations.mkdir(parents=True)
        (evaluations / f"{dialog}.txt").write_text("\n".join(lines) + "\n")
        (evaluations / f"._{dialog}.txt").write_bytes(b"\xff\x00")
    return folder


def write_snips(folder: Path) -> Path:
    lines = []
    for split, speaker in (("train", "Ivy"), ("valid", "Amy"), ("test", "Emma"), ("train", "Brian")):
        for number, (words, labels, pitches) in enumerate(SENTENCES):
            name = f"{speaker}-snips-{split}-{number}"
            lines.append(f"{name} BOS {words} EOS\tO {labels} PlayMusic")
            if speaker != "Brian":
                write_tones(folder / split / f"{name}.wav", *pitches, seconds=0.25 + 0.05 * number)
    (folder / "all.iob.snips.txt").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def corpora(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("corpora")
    return {
        "ic": str(write_commands(folder / "fluent")),
        "er": str(write_iemocap(folder / "iemocap")),
        "sf": str(write_snips(folder / "snips")),
    }


def tiny(config_class, **options):
    return config_class(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        conv_dim=(32, 32, 32), conv_stride=(10, 8, 4), conv_kernel=(20, 16, 8), num_feat_extract_layers=3,
        num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, str]:
    """Checkpoints with random weights that would drop layers and mask frames, were they trained."""
    folder = tmp_path_factory.mktemp("models")
    restless = {"layerdrop": 1.0, "mask_time_prob": 0.9, "mask_time_length": 2}
    layered = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
    torch.manual_seed(0)
    kinds = {
        "group": Wav2Vec2Model(tiny(Wav2Vec2Config, **restless)),
        "layer": Wav2Vec2Model(tiny(Wav2Vec2Config, **restless, **layered)),
        "wavlm": WavLMModel(tiny(WavLMConfig, **restless)),
    }
    for name, model in kinds.items():
        for module in model.modules():
            if isinstance(module, (nn.Conv1d, nn.Linear)):
                nn.init.normal_(module.weight, std=2 * module.weight[0].numel() ** -0.5)
        model.save_pretrained(folder / name)
    return {name: str(folder / name) for name in kinds}


def waves(*seconds: float) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [(0.2 + random.standard_normal(int(16000 * length))).astype(np.float32) for length in seconds]


def config_of(models, output, **options) -> EvaluateConfig:
    defaults = {
        "max_steps": 20, "eval_every": 5, "save_every": 4, "batch_size": 3, "slot_width": 16,
        "device": "cpu", "lr_sweep": (1e-2,), "spec_augment": False,
    }  # fmt: skip
    return EvaluateConfig(student=models["group"], output=str(output), **{**defaults, **options})
