"""Records what the model makes of one picture, for the engines to be held against."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitcx.runtime.bundle import Bundle
from vitcx.runtime.check_record import (
    CheckRecord,
    drawn_picture,
    embedding_difference,
    scores_difference,
    write_record,
)
from vitcx.runtime.engines.registry import open_session
from vitcx.runtime.engines.session_check import TOLERANCES, score_whole_team

# An engine may be as far from the model as ONNX Runtime is on this CPU, and this many times that.
_MARGIN = 3.0


def record_check(folder: Path, module: nn.Module, preprocessing: Any) -> CheckRecord:
    """Write the record of a drawn picture to a bundle's folder.

    Parameters
    ----------
    folder : of the bundle.
    module : images (B,channels,H,W) float32 to (probabilities (B,C), embedding (B,D,h,w)), and what
        else.
    preprocessing : `input_size`, `mean` and `std` of the model.
    """
    images = drawn_picture(preprocessing.input_size, preprocessing.mean, preprocessing.std)
    with torch.no_grad():
        probabilities, embedding = module(torch.from_numpy(images))[:2]
    record = CheckRecord(images, probabilities.numpy(), embedding.numpy())
    write_record(folder, record)
    return record


def measure_tolerances(bundle: Bundle, record: CheckRecord) -> dict[str, float]:
    """`Manifest.check_tolerances` of a bundle whose graphs run on this CPU.

    Empty where the usual ones leave enough room.
    """
    manifest = bundle.manifest
    with open_session(bundle, "onnxruntime", check=False) as session:
        _, embedding = session.encode(record.images)
        answers = [session.predict(record.images)]
        if session.scores_teams:
            answers.append(score_whole_team(session, manifest, record.images))
    found = {manifest.encoder.precision: embedding_difference(embedding, record.embedding)}
    for scores in answers:
        difference = scores_difference(scores, record.probabilities, manifest)
        found[manifest.precision] = max(found.get(manifest.precision, 0.0), difference)
    return {
        precision: _MARGIN * difference
        for precision, difference in found.items()
        if _MARGIN * difference > TOLERANCES[precision]
    }
