"""ViT-CX at pixel resolution, step by step as the paper writes it (float64)."""

import numpy as np

from tests.oracle.upsampling import upsample


def min_max(surface):
    """A surface to [0, 1]; None where it is constant up to float32 rounding."""
    least, greatest = surface.min(), surface.max()
    if greatest - least <= 1e-6 * max(abs(least), abs(greatest)):
        return None
    return (surface - least) / (greatest - least)


def vit_masks(embedding, size):
    """(D,h,w) to the list of (H,W) masks of the channels that are not constant."""
    masks = [min_max(upsample(np.asarray(channel, float), size)) for channel in embedding]
    return [mask for mask in masks if mask is not None]


def distance(a, b):
    """1 - cos over pixels."""
    return 1 - (a * b).sum() / (np.sqrt((a * a).sum()) * np.sqrt((b * b).sum()))


def complete_linkage(masks, threshold):
    """Merge the nearest pair of clusters while it is within the threshold: lists of indices."""
    clusters = [[i] for i in range(len(masks))]
    pair = {(i, j): distance(masks[i], masks[j]) for i in range(len(masks)) for j in range(i)}

    def farthest(one, other):
        return max(pair[max(i, j), min(i, j)] for i in one for j in other)

    while len(clusters) > 1:
        candidates = [
            (farthest(clusters[i], clusters[j]), i, j)
            for i in range(len(clusters))
            for j in range(i)
        ]
        nearest, i, j = min(candidates)
        if nearest > threshold:
            break
        clusters[j] += clusters.pop(i)
    return sorted((sorted(c) for c in clusters), key=lambda c: c[0])


def cluster_masks(masks, clusters, how):
    """One (H,W) mask for each cluster."""
    merged = []
    for members in clusters:
        total = sum(masks[i] for i in members)
        mean = total / len(members)
        again = min_max(total)
        merged.append(mean if how == "mean" or again is None else again)
    return merged


def impacts(predict, image, masks, noise, noise_std, estimator):
    """(K,C): eq. 2 for every class, one forward pass after the other."""
    base = predict(image)
    rows = []
    for mask, z in zip(masks, noise, strict=True):
        epsilon = noise_std * (1 - mask) * z
        masked = predict(image * mask + epsilon)
        if estimator == "fast":
            rows.append(masked)
            continue
        noisy = predict(image + epsilon)
        if estimator == "antithetic":
            masked = (masked + predict(image * mask - epsilon)) / 2
            noisy = (noisy + predict(image - epsilon)) / 2
        rows.append(masked + (base - noisy))
    return np.array(rows)


def saliency(masks, impact, correct_coverage=True):
    """(H,W): eq. 5 divided by K, or eq. 1 divided by K; and the coverage."""
    count = len(masks)
    total = sum(s * mask for s, mask in zip(impact, masks, strict=True))
    coverage = sum(masks) / count
    if not correct_coverage:
        return total / count, coverage
    result = np.zeros_like(coverage)
    covered = coverage > 1e-6
    result[covered] = total[covered] / coverage[covered] / count
    return result, coverage
