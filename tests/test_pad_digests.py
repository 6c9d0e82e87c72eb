"""Another model or corpus under the name that a run began with is noticed when the run is resumed."""

import json
import shutil
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("soundfile")

from student_models import new_extractor, new_model, save_speech, save_teacher  # noqa: E402
from superb_miniatures import config_of, corpora, models  # noqa: E402, F401
from transformers import AutoModel  # noqa: E402

from pad.digests import DIGESTS_FILE  # noqa: E402
from pad.distill.config import DistillConfig  # noqa: E402
from pad.distill.run import distill  # noqa: E402
from pad.errors import UserError  # noqa: E402
from pad.evaluate.run import evaluate  # noqa: E402


def change_weights(folder: Path) -> None:
    model = AutoModel.from_pretrained(folder)
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    model.save_pretrained(folder)


def of_files(folder: Path) -> dict:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("changed", ["teacher", "student"])
def test_distillation(changed, tmp_path):
    model = new_model("wav2vec2-bert")
    model.save_pretrained(tmp_path / "student")
    new_extractor("wav2vec2-bert", model).save_pretrained(tmp_path / "student")
    save_teacher(tmp_path / "teacher")
    options = dict(student=str(tmp_path / "student"), teacher=str(tmp_path / "teacher"), max_steps=2, batch_size=2,
                   data=save_speech(tmp_path / "data"), output=str(tmp_path / "run"), device="cpu",
                   preset="slocal-soft")  # fmt: skip
    distill(DistillConfig(**options))
    shutil.rmtree(tmp_path / "run" / "student")
    digests = tmp_path / "run" / DIGESTS_FILE
    assert set(json.loads(digests.read_text())) == {"student", "teacher"}
    distill(DistillConfig(**options, resume=True))
    shutil.rmtree(tmp_path / "run" / "student")
    change_weights(tmp_path / changed)
    before = of_files(tmp_path / "run")
    with pytest.raises(UserError, match=f"^resume: {changed}: the content has changed since the run in"):
        distill(DistillConfig(**options, resume=True))
    assert of_files(tmp_path / "run") == before
    digests.unlink()  # as a run that was stopped before it wrote them
    distill(DistillConfig(**options, resume=True))


@pytest.mark.parametrize("changed", ["student", "ic"])
def test_evaluation(changed, models, corpora, tmp_path):  # noqa: F811
    student = shutil.copytree(models["group"], tmp_path / "student")
    corpus = shutil.copytree(corpora["ic"], tmp_path / "ic")
    options = dict(ic=str(corpus), max_steps=4)
    of_role = {"group": str(student)}
    first = evaluate(config_of(of_role, tmp_path / "run", **options))
    again = evaluate(config_of(of_role, tmp_path / "run", **options, resume=True))
    assert again["results"] == first["results"]
    if changed == "student":
        change_weights(student)
    else:
        (table,) = corpus.rglob("train_data.csv")
        lines = table.read_text().splitlines()
        table.write_text("\n".join([lines[0], *reversed(lines[1:])]) + "\n")
    before = of_files(tmp_path / "run")
    with pytest.raises(UserError, match=f"^resume: {changed}: the content has changed since the run in"):
        evaluate(config_of(of_role, tmp_path / "run", **options, resume=True))
    assert of_files(tmp_path / "run") == before
