"""Complete linkage in rounds, as the device does it: pairs that are each other's nearest merge."""

import numpy as np


def farthest(distances, one, other):
    """The distance of two clusters: of their farthest members."""
    return max(distances[i, j] for i in one for j in other)


def nearest(distances, clusters, index):
    """The cluster nearest to one of them; of equally near ones that whose first member is first."""
    others = [k for k in range(len(clusters)) if k != index]
    return min(
        others, key=lambda k: (farthest(distances, clusters[index], clusters[k]), clusters[k][0])
    )


def complete_linkage(distances, threshold):
    """Clusters as sorted lists, in the order of their first members; and the number of rounds."""
    clusters = [[i] for i in range(len(distances))]
    rounds = 0
    while len(clusters) > 1:
        near = [nearest(distances, clusters, k) for k in range(len(clusters))]
        pairs = [
            (k, other)
            for k, other in enumerate(near)
            if k < other
            and near[other] == k
            and farthest(distances, clusters[k], clusters[other]) <= threshold
        ]
        if not pairs:
            break
        rounds += 1
        merged = {other for _, other in pairs}
        taken = dict(pairs)
        clusters = sorted(
            sorted(cluster + (clusters[taken[k]] if k in taken else []))
            for k, cluster in enumerate(clusters)
            if k not in merged
        )
    return clusters, rounds


def labels(clusters, count):
    """(count,) the number of each one's cluster."""
    found = np.full(count, -1)
    for number, members in enumerate(clusters):
        found[members] = number
    return found
