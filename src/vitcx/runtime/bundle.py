"""The bundle: the folder that export makes and the runtime eats.

A bundle is ``model.onnx`` (with its external data, if any) and ``manifest.json``. The graph has one
input, ``images`` (B,channels,H,W), and two outputs, ``probabilities`` (B,C) float32 after the
head's softmax or sigmoid (or scores that are no probabilities: the manifest's ``head`` says so) and
``embedding`` (B,D,h,w) float32: channels first, prefix tokens dropped, window partitions undone. So
the runtime knows nothing of model families.

``teams.onnx``, where the model allows it, scores teams: patches kept by their tokens, the others
left out. It takes ``tokens`` (P,T,W) float32 of P pictures, which ``model.onnx`` gives as a third
output, the picture of each row ``pictures`` (B,) int64, and the ``patches`` (B,n) int64 that the
row keeps, counted row by row in the manifest's `token_grid`; it gives ``probabilities`` (B,C). Both
graphs have their weights in ``weights.data``.

In a reduced precision there is ``encoder.onnx`` too, the same model in float32. It runs once for a
picture and gives the masks; ``model.onnx`` scores them. Clusters are cut at a threshold, so an
embedding that is off by a little can give other masks, and with them another map.

``check.npz`` holds one picture and what the model made of it at export: see
`vitcx.runtime.check_record`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vitcx.runtime.bundle_files import check_files, read_text
from vitcx.runtime.digests import replacing
from vitcx.runtime.errors import BundleError
from vitcx.runtime.manifest import ENCODER_NAME, MANIFEST_NAME, MODEL_NAME, TEAMS_NAME, Manifest


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk whose files have been checked against their digests.

    `graph_name` is the file of its graph.
    """

    path: Path
    manifest: Manifest
    graph_name: str = MODEL_NAME

    @property
    def model_path(self) -> Path:
        return self.path / self.graph_name

    @property
    def has_teams(self) -> bool:
        """Whether it has a graph that scores teams of patches by their tokens."""
        return self.manifest.token_grid is not None

    @property
    def teams_path(self) -> Path:
        """The graph that scores teams, where `has_teams`."""
        return self.path / TEAMS_NAME

    @property
    def encoder(self) -> Bundle:
        """What gives a picture's probabilities and embedding: the float32 graph if the bundle has
        one beside its own, else the bundle itself.
        """
        exact = self.manifest.encoder
        if exact is self.manifest or self.graph_name == ENCODER_NAME:
            return self
        return Bundle(self.path, exact, ENCODER_NAME)


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write ``manifest.json`` into the folder `path`, whole or not at all."""
    with replacing(path / MANIFEST_NAME) as temporary:
        temporary.write_text(manifest.to_json(), encoding="utf-8")


def read_bundle(path: str | Path) -> Bundle:
    """Read and check a bundle folder.

    Raises
    ------
    BundleError
        If the folder, its manifest or a file is missing, does not fit the schema, or does not have
        the digest that the manifest gives; or if a graph keeps weights in a file without a digest.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise BundleError(
            f"no bundle at '{folder}': give the folder that 'vitcx export' wrote, or 'demo'"
        )
    try:
        text = read_text(folder / MANIFEST_NAME)
    except FileNotFoundError:
        raise BundleError(
            f"'{folder}' has no {MANIFEST_NAME}: it is not a bundle; make one with 'vitcx export'"
        ) from None
    manifest = Manifest.from_json(text)
    check_files(folder, manifest.files)
    return Bundle(folder, manifest)
