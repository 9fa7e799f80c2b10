"""A small differentiable-looking classifier in NumPy behind the `Session` contract.

It makes whole explanations cheap enough to compare with the pixel-resolution oracle, on any
geometry. The engines have tests of their own.
"""

import time

import numpy as np

from vitcx.kernels.host.blend import blend
from vitcx.kernels.host.noise import NoiseCache
from vitcx.runtime.bundle import Bundle
from vitcx.runtime.engines.session import Scores, Session
from vitcx.runtime.explainer import Explainer
from vitcx.runtime.manifest import Manifest


class NumpySession(Session):
    """Patches are flattened, mixed by fixed random weights, and pooled over the grid."""

    engine = "numpy"
    device = "CPU"

    def __init__(self, grid, size, channels=10, classes=4, batch_size=5, seed=0):
        super().__init__()
        random = np.random.default_rng(seed)
        patch = 3 * (size[0] // grid[0]) * (size[1] // grid[1])
        self.grid, self.size = grid, size
        self.mix = random.normal(size=(patch, channels)) / np.sqrt(patch)
        self.head = 3 * random.normal(size=(channels, classes))
        self.batch_size = batch_size
        self.batches = []  # the rows of each batch scored, for tests of packing
        self.noise = NoiseCache()
        self.closed = False

    def forward(self, images):
        """(N,3,H,W) of any float type to probabilities (N,C) and embedding (N,D,h,w), float64."""
        (h, w), (height, width) = self.grid, self.size
        patches = np.asarray(images, float).reshape(-1, 3, h, height // h, w, width // w)
        patches = patches.transpose(0, 2, 4, 1, 3, 5).reshape(len(images), h * w, -1)
        tokens = np.tanh(patches @ self.mix)
        logits = (tokens**2).mean(axis=1) @ self.head
        exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = exponents / exponents.sum(axis=1, keepdims=True)
        embedding = tokens.transpose(0, 2, 1).reshape(len(images), -1, h, w)
        return probabilities, embedding

    def _encode(self, images):
        probabilities, embedding = self.forward(images)
        return probabilities.astype(np.float32), embedding.astype(np.float32)

    def _score(self, batch):
        assert 0 < batch.rows <= self.batch_size
        rows = np.full((self.batch_size, 3, *self.size), np.nan, np.float32)
        start = time.perf_counter()
        blend(batch.images, batch.masks, batch.perturbations, rows, self.noise)
        blended = time.perf_counter()
        self.batches.append(batch.rows)
        probabilities = self._predict(rows[: batch.rows])
        return Scores(probabilities, blended - start, time.perf_counter() - blended)

    def _predict(self, images):
        return self.forward(images)[0].astype(np.float32)

    def _close(self):
        self.closed = True


def numpy_explainer(grid=(4, 4), size=(16, 16), **options):
    """An `Explainer` on a `NumpySession`."""
    session = NumpySession(grid, size, **options)
    classes = session.head.shape[1]
    manifest = Manifest(
        model_name="numpy",
        source="tests",
        layer="norm1",
        layer_path="none",
        input_size=size,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        crop_fraction=1.0,
        crop_mode="center",
        interpolation="bilinear",
        grid=grid,
        channels=session.mix.shape[1],
        class_names=tuple(f"class {i}" for i in range(classes)),
        distance_threshold=0.1,
        opset=20,
        precision="fp32",
        files={"model.onnx": "0" * 64},
    )
    return Explainer(Bundle(None, manifest), session)  # type: ignore[arg-type]


def picture(size, seed=0):
    """A normalised (3,H,W) float32 array."""
    random = np.random.default_rng(seed)
    return random.normal(size=(3, *size)).astype(np.float32)
