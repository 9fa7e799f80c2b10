"""CLIP and SigLIP as classifiers of labels in words: the text tower runs once, at export."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitcx.export.sources.huggingface import import_transformers, plain_errors, pooled
from vitcx.export.sources.huggingface_preprocessing import preprocessing_of_folder
from vitcx.export.sources.source import Source
from vitcx.runtime.errors import InputError

PREFIX = "clip:"


class ZeroShot(nn.Module):
    """Images to the logits of labels: scaled similarities to their texts.

    Parameters
    ----------
    model : of transformers, with an image tower.
    texts : (C,D) features of the labels' texts.
    """

    def __init__(self, model: Any, texts: Tensor) -> None:
        super().__init__()
        self.vision_model = model.vision_model
        # SigLIP has no projection, and a bias.
        self.projection = getattr(model, "visual_projection", None) or nn.Identity()
        scale = model.logit_scale.detach().exp().reshape(())
        bias = getattr(model, "logit_bias", None)
        normed = nn.functional.normalize(texts, dim=-1)
        self.register_buffer("texts", normed * scale)
        self.register_buffer("bias", torch.zeros(()) if bias is None else bias.detach().reshape(()))

    def forward(self, images: Tensor) -> Tensor:
        features = self.projection(pooled(self.vision_model(pixel_values=images)))
        found = nn.functional.normalize(features, dim=-1)
        logits: Tensor = found @ self.get_buffer("texts").T + self.get_buffer("bias")
        return logits


def zero_shot_source(
    model: str, labels: Sequence[str] | None, size: tuple[int, int] | None
) -> Source:
    """A classifier of `labels` made of a CLIP or SigLIP.

    Parameters
    ----------
    model : ``clip:NAME`` of the hub, or ``clip:FOLDER``. Of a folder nothing is asked of the
        network.
    labels : texts as the model is to read them ("a photo of a dog"); the classes have their names.
    size : (H, W) in pixels; None takes the preprocessor's.

    Raises
    ------
    InputError
        If there are no labels, or the model has no two towers.
    """
    if not labels:
        raise InputError("a model by its text tower needs its classes in words: give --labels FILE")
    transformers = import_transformers()
    name = model.removeprefix(PREFIX)
    local = Path(name).is_dir()
    options = {"local_files_only": local, "trust_remote_code": False}
    with plain_errors(name):
        config = transformers.AutoConfig.from_pretrained(name, **options)
        if config.model_type not in ("clip", "siglip"):
            raise InputError(f"'{name}' is a {config.model_type}, expected a clip or siglip")
        whole = transformers.AutoModel.from_pretrained(name, dtype=torch.float32, **options).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, **options)
        # SigLIP was trained on texts of one length.
        padding = "max_length" if config.model_type == "siglip" else True
        tokens = tokenizer(list(labels), padding=padding, truncation=True, return_tensors="pt")
        with torch.no_grad():
            texts = pooled(whole.get_text_features(**tokens))
    preprocessing = preprocessing_of_folder(name, config, size, local=local)
    return Source(
        ZeroShot(whole, texts).eval(),
        Path(name).name if local else name,
        f"zero-shot by the text tower of {Path(name).name if local else name}",
        preprocessing,
        3,
        tuple(labels),
        "sigmoid" if config.model_type == "siglip" else "softmax",
    )
