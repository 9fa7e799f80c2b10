"""Teams as they are described, at pixel resolution in float64, one patch and pixel at a time."""

from __future__ import annotations

import math

import numpy as np

from tests.oracle.blend import patch_of_pixel, upsampled


def team_of(mask, share):
    """1 for the patches of a team and 0 for the others: the highest, the first of equal ones."""
    height, width = mask.shape
    places = [(y, x) for y in range(height) for x in range(width)]
    size = min(len(places) - 1, math.floor(share * len(places) + 0.5))
    size = max(1, size)
    # Sorted is stable: among equals the first in reading order goes first.
    chosen = sorted(places, key=lambda place: -float(mask[place]))[:size]
    team = np.zeros(mask.shape)
    for place in chosen:
        team[place] = 1
    return team


def shown(image, team, normals, scale):
    """The picture with the team's patches kept and the others noise."""
    result = np.zeros(image.shape)
    channels, height, width = image.shape
    for y in range(height):
        for x in range(width):
            kept = patch_of_pixel(team, (height, width), y, x)
            for c in range(channels):
                hidden = scale * float(normals[c, y, x])
                result[c, y, x] = float(image[c, y, x]) if kept else hidden
    return result


def summed(masks, impacts, size):
    """eq. 5 over the soft masks, divided by K: (H,W)."""
    pixels = np.array([upsampled(mask, size) for mask in masks])
    coverage = np.clip(pixels.mean(axis=0), 0, 1)
    total = np.einsum("k,khw->hw", np.asarray(impacts, float), pixels) / len(masks)
    return np.where(coverage > 1e-6, total / np.where(coverage > 1e-6, coverage, 1), 0)


def fitted(teams, masks, kept, dropped, strength, likeness):
    """The linear fit over all 2 K rows, in its primal form: ``(AᵀA + λ C⁻¹) φ = Aᵀ (s - s̄)``.

    With the prior's inverse it is another way to the same numbers than the dual form.
    """
    rows = np.concatenate([teams, 1 - teams]).reshape(2 * len(teams), -1).astype(float)
    scores = np.concatenate([kept, dropped]).astype(float)
    height, width = teams.shape[1:]
    places = np.array([(y, x) for y in range(height) for x in range(width)], float)
    apart = ((places[:, None] - places[None]) ** 2).sum(axis=-1)
    prior = (1 - likeness) * np.exp(-apart / 2)
    values = np.array(
        [np.asarray(mask, float).ravel() - np.mean(mask, dtype=float) for mask in masks]
    )
    for p in range(len(places)):
        for q in range(len(places)):
            lengths = np.linalg.norm(values[:, p]) * np.linalg.norm(values[:, q])
            if lengths > 0:
                prior[p, q] += likeness * (values[:, p] @ values[:, q]) / lengths
    centred = rows - rows.mean(axis=0)
    ridge = strength * np.trace(centred @ prior @ centred.T) / len(rows)
    system = centred.T @ centred + ridge * np.linalg.inv(prior)
    effects = np.linalg.solve(system, centred.T @ (scores - scores.mean()))
    return effects.reshape(height, width)
