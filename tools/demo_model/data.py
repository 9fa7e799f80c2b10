"""Training batches for the embedded model, with the targets that make its evidence causal.

A batch is cut from a pool of scenes that is renewed as training goes. Besides turns and swapped
colour channels, scenes are dimmed by smooth random masks and noised, as ViT-CX will do later, and
the target follows what is left to see: an object that is hidden leaves its probability to the
other object, and if nothing is left the target is uniform. A model that has learned this answers
ViT-CX's question, "what if only this part were visible?", by what is visible.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from vitcx.runtime.demo.scenes import CLASS_NAMES, SIZE, make_scene

CLASSES = len(CLASS_NAMES)

#: Below this share of an object's pixels the target says it is gone, above the other it is there.
_HIDDEN, _VISIBLE = 0.15, 0.6

Drawn = tuple[NDArray[np.uint8], NDArray[np.uint8]]


@dataclass(frozen=True)
class Batch:
    """One training step's worth of pictures and targets; h×w is the patch grid.

    Attributes
    ----------
    images : (B, 3, 8h, 8w) float32
        Normalised with mean 0.5 and standard deviation 0.5.
    target : (B, C) float32
        Class probabilities to be matched, rows sum to 1.
    patches : (B, h·w, C + 1) float32
        Per patch, the share of each class and, last, of what is no object.
    corner : (B, 2) int64
        Row and column of the first patch in the full grid; not 0 in a cut-out.
    """

    images: torch.Tensor
    target: torch.Tensor
    patches: torch.Tensor
    corner: torch.Tensor


def _draw(seed: int) -> Drawn:
    """A training scene: its picture, and class number + 1 at each pixel of an object."""
    share = (seed * 0.6180339887) % 1.0
    scene = make_scene(seed, objects=0 if share < 0.08 else 1 if share < 0.45 else 2)
    labels = np.zeros((SIZE, SIZE), np.uint8)
    for item in scene.objects:
        labels[item.mask] = item.class_index + 1
    return scene.image, labels


class ScenePool:
    """The latest `size` scenes of a run of seeds, drawn by worker processes on demand."""

    def __init__(self, size: int, workers: int, first_seed: int = 0) -> None:
        self.next_seed = first_seed
        self._scenes: deque[Drawn] = deque(maxlen=size)
        self._executor = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))

    def __len__(self) -> int:
        return len(self._scenes)

    def renew(self, count: int) -> None:
        """Add `count` scenes; the oldest leave when the pool is full."""
        seeds = range(self.next_seed, self.next_seed + count)
        self._scenes.extend(self._executor.map(_draw, seeds, chunksize=100))
        self.next_seed += count

    def sample(self, count: int, rng: np.random.Generator) -> list[Drawn]:
        """Scenes chosen at random, no two the same."""
        return [self._scenes[i] for i in rng.choice(len(self._scenes), count, replace=False)]

    def close(self) -> None:
        self._executor.shutdown()


def make_batch(
    drawn: list[Drawn], rng: np.random.Generator, *, grid: int, patch: int, occluded: float
) -> Batch:
    """Cut, turn, mask and label a list of scenes.

    Parameters
    ----------
    drawn : list of (picture, labels)
        From `ScenePool.sample`.
    rng : numpy.random.Generator
        Where every choice comes from.
    grid : int
        Patches to a side; fewer than the scene has gives cut-outs about an object.
    patch : int
        Pixels to a side of a patch.
    occluded : float
        Share of the pictures that are masked or noised.
    """
    side = grid * patch
    images = np.empty((len(drawn), side, side, 3), np.uint8)
    labels = np.empty((len(drawn), side, side), np.uint8)
    corner = np.zeros((len(drawn), 2), np.int64)
    whole = np.zeros((len(drawn), 2), np.float32)
    kinds = np.zeros((len(drawn), 2), np.int64)
    for i, (picture, marks) in enumerate(drawn):
        counts = np.bincount(marks.ravel(), minlength=CLASSES + 1)[1:]
        present = np.flatnonzero(counts)
        kinds[i, : len(present)] = present
        whole[i, : len(present)] = counts[present]
        turn, flip = int(rng.integers(4)), bool(rng.integers(2))
        picture, marks = (np.rot90(a[::-1] if flip else a, turn) for a in (picture, marks))
        row, column = _window(marks, present, rng, side, patch)
        corner[i] = row // patch, column // patch
        cut = np.s_[row : row + side, column : column + side]
        images[i] = picture[cut][..., rng.permutation(3)]
        labels[i] = marks[cut]

    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    seen = torch.from_numpy(labels)[:, None]
    kind, size = torch.from_numpy(kinds), torch.from_numpy(whole)
    # (B, 2, H, W): the pixels of each of a scene's objects, none where it has fewer than two.
    pixels = ((seen == kind[:, :, None, None] + 1) & (size > 0)[:, :, None, None]).float()
    x, mask = _occlude(x, rng, occluded)
    visible = (pixels * mask).sum((2, 3)) / size.clamp(min=1)
    share = F.avg_pool2d(pixels, patch).flatten(2).transpose(1, 2)
    lit = _presence(F.avg_pool2d(mask, patch)).flatten(2).transpose(1, 2)
    return Batch(
        x, _class_target(visible, kind), _patch_target(share * lit, kind), torch.from_numpy(corner)
    )


def _window(
    marks: NDArray[np.uint8],
    present: NDArray[np.int64],
    rng: np.random.Generator,
    side: int,
    patch: int,
) -> tuple[int, int]:
    """First row and column of a cut-out, on the patch grid, that holds one of the objects."""
    room = (SIZE - side) // patch
    if room == 0:
        return 0, 0
    corner = rng.integers(0, room + 1, 2)
    if len(present) and rng.random() < 0.9:
        chosen = marks == rng.choice(present) + 1
        for axis in (0, 1):
            inside = np.flatnonzero(chosen.any(axis=1 - axis))
            low = max(-(-(int(inside[-1]) + 1 - side) // patch), 0)
            high = min(int(inside[0]) // patch, room)
            if low <= high:
                corner[axis] = rng.integers(low, high + 1)
    return int(corner[0]) * patch, int(corner[1]) * patch


def _occlude(
    x: torch.Tensor, rng: np.random.Generator, occluded: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Dim a share of the pictures by smooth masks, noise where dim; return pictures and masks.

    The masks, (B, 1, H, W) in [0, 1], are what is left to see: 1 for untouched pictures and for
    those that only get noise, as in eq. 2's last term.
    """
    count, _, height, width = x.shape
    mask = torch.ones(count, 1, height, width)
    for i in np.flatnonzero(rng.random(count) < occluded):
        cells = int(rng.choice([2, 3, 4, 6, 8, 12]))
        coarse = torch.from_numpy(rng.random((1, 1, cells, cells), np.float32))
        field = F.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)
        gain, bias = rng.uniform(1.0, 5.0), rng.uniform(-0.35, 0.55)
        soft = ((field - 0.5) * gain + 0.5 + bias).clamp(0, 1)[0]
        grain = torch.from_numpy(rng.standard_normal((3, height, width), np.float32))
        grain *= float(rng.choice([0.0, 0.1, 0.1, 0.2]))
        if rng.random() < 0.2:
            x[i] += (1 - soft) * grain
        else:
            x[i] = x[i] * soft + (1 - soft) * grain
            mask[i] = soft
    return x, mask


def _presence(visible: torch.Tensor) -> torch.Tensor:
    return ((visible - _HIDDEN) / (_VISIBLE - _HIDDEN)).clamp(0, 1)


def _class_target(visible: torch.Tensor, kind: torch.Tensor) -> torch.Tensor:
    """Probabilities (B, C): shared by the objects in sight, uniform as far as none is."""
    weight = _presence(visible)
    weight = weight / weight.sum(1, keepdim=True).clamp(min=1)
    target = torch.zeros(len(kind), CLASSES).scatter_add_(1, kind, weight)
    return target + (1 - target.sum(1, keepdim=True)) / CLASSES


def _patch_target(share: torch.Tensor, kind: torch.Tensor) -> torch.Tensor:
    """Probabilities (B, h·w, C + 1) from the objects' shares (B, h·w, 2) of each patch."""
    count, patches, _ = share.shape
    target = torch.zeros(count, patches, CLASSES + 1)
    target.scatter_add_(2, kind[:, None, :].expand(-1, patches, -1), share)
    target[..., -1] = 1 - target.sum(2)
    return target


def fresh(
    first_seed: int, count: int, objects: int
) -> Iterator[tuple[torch.Tensor, list[list[int]]]]:
    """Whole, untouched scenes in batches of 100, (B, 3, H, W), with the classes in each."""
    for start in range(first_seed, first_seed + count, 100):
        stop = min(start + 100, first_seed + count)
        scenes = [make_scene(seed, objects=objects) for seed in range(start, stop)]
        pictures = torch.from_numpy(np.stack([s.image for s in scenes])).permute(0, 3, 1, 2)
        for_each = [[item.class_index for item in s.objects] for s in scenes]
        yield pictures.float() / 127.5 - 1, for_each
