"""A session with known answers: the softmax of linear scores, or of a pooled nonlinear one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.tiny_bundle import make_manifest
from vitcx.kernels.host.blend import blend
from vitcx.kernels.host.noise import NoiseCache
from vitcx.runtime.bundle import Bundle
from vitcx.runtime.engines.session import Scores, Session
from vitcx.runtime.explainer import Explainer

SIDE, GRID, CHANNELS, CLASSES = 28, 7, 12, 3


class KnownSession(Session):
    """Probabilities from fixed random weights; embeddings are block means of mixed colours."""

    engine = "known"
    device = "none"

    def __init__(self, batch_size=16, side=SIDE):
        super().__init__()
        self.batch_size = batch_size
        rng = np.random.default_rng(3)
        self.weights = rng.normal(size=(CLASSES, 3 * side * side)).astype(np.float32) / side
        self.mix = rng.normal(size=(CHANNELS, 3)).astype(np.float32)
        self.sizes = []
        self.noise = NoiseCache()

    def _predict(self, images):
        self.sizes.append(len(images))
        scores = images.reshape(len(images), -1) @ self.weights.T
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        return (scores / scores.sum(axis=1, keepdims=True)).astype(np.float32)

    def _encode(self, images):
        cell = images.shape[2] // GRID
        blocks = images.reshape(len(images), 3, GRID, cell, GRID, cell).mean(axis=(3, 5))
        return self._predict(images), np.einsum("dc,nchw->ndhw", self.mix, blocks)

    def _score(self, batch):
        rows = np.empty((self.batch_size, *batch.images[0].shape), dtype=np.float32)
        blend(batch.images, batch.masks, batch.perturbations, rows, self.noise)
        return Scores(self._predict(rows[: batch.rows]), 0.0, 0.0)

    def _close(self):
        pass


@pytest.fixture
def session():
    return KnownSession()


@pytest.fixture
def manifest():
    return make_manifest(
        model_name="known",
        source="test",
        layer_path="none",
        input_size=(SIDE, SIDE),
        grid=(GRID, GRID),
        channels=CHANNELS,
        class_names=("ant", "bee", "cat"),
        files={"model.onnx": "0" * 64},
    )


@pytest.fixture
def explainer(session, manifest):
    return Explainer(Bundle(Path("nowhere"), manifest), session)


@pytest.fixture
def picture():
    return np.random.default_rng(7).normal(size=(3, SIDE, SIDE)).astype(np.float32)
