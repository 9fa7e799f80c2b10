// Complete linkage of masks, cut at a distance: which masks make one cluster.
//
// The distance of two clusters is that of their farthest members; clusters are merged until no two
// are within the threshold. Two clusters that are each other's nearest are merged whatever happens to
// the others: merging brings no cluster nearer to any other. So all such pairs are merged at once, in
// rounds, and no order of merges is kept. Of equally near clusters the nearest is the one whose first
// member comes first.
//
// One block per picture. Each step below is done by all its threads, and the block meets between two.
#ifndef VITCX_LINKAGE_CUH
#define VITCX_LINKAGE_CUH

#include "numeric.cuh"

namespace vitcx {

// What the threads of a block count together.
struct linkage_counts {
  int32_t lists[2];  // lengths of linkage::lists
  int32_t heads;     // length of linkage::heads
  int32_t refused;   // whether a distance, or an embedding, is no number
};

struct linkage {
  float* distances;     // (count, count), symmetric; the diagonal is not read; used up
  const int32_t* kept;  // (count) 1 for masks that are clustered, 0 left out, -1 refused
  int count;
  float threshold;
  // (count) each, by a cluster's first member.
  int32_t* nearest;   // the nearest other cluster
  int32_t* into;      // the cluster that it went into, itself as long as it is one
  int32_t* stale;     // whether `nearest` is to be found anew; in the end each mask's cluster
  int32_t* heads;     // clusters that took another one in this round
  int32_t* lists;     // twice: clusters that may still merge, in rounds that are even and odd
};

constexpr int kMostClustered = 32768;  // so that heads times clusters is an int
constexpr int kLinkageArrays = 6;  // of `count` numbers each, that a picture needs room for

VITCX_HD linkage linkage_of(float* distances, const int32_t* kept, float threshold, int32_t* room,
                            int picture, int count) {
  const int64_t first = static_cast<int64_t>(picture) * count;
  int32_t* own = room + first * kLinkageArrays;
  return linkage{distances + first * count,
                 kept + first,
                 count,
                 threshold,
                 own,
                 own + count,
                 own + int64_t{2} * count,
                 own + int64_t{3} * count,
                 own + int64_t{4} * count};
}

// The clusters of a round, in any order.
VITCX_HD int32_t* clusters_of(const linkage& l, int round) {
  return l.lists + ((round & 1) != 0 ? l.count : 0);
}

// The counter's value before one is added.
VITCX_HD int32_t add_one(int32_t* counter) {
#ifdef __CUDA_ARCH__
  return atomicAdd(counter, 1);
#else
  return (*counter)++;
#endif
}

VITCX_HD float& distance_of(const linkage& l, int row, int column) {
  return l.distances[static_cast<int64_t>(row) * l.count + column];
}

// Every mask that is kept is a cluster. The counts are 0 before.
VITCX_HD void linkage_begin(const linkage& l, linkage_counts& counts, int lane, int lanes) {
  for (int i = lane; i < l.count; i += lanes) {
    l.into[i] = i;
    l.stale[i] = 1;
    if (l.kept[i] < 0) counts.refused = 1;
    if (l.kept[i] > 0) clusters_of(l, 0)[add_one(&counts.lists[0])] = i;
  }
}

VITCX_HD void linkage_nearest(const linkage& l, linkage_counts& counts, int round, int lane,
                              int lanes) {
  const int32_t* list = clusters_of(l, round);
  const int length = counts.lists[round & 1];
  if (lane == 0) {
    counts.lists[1 - (round & 1)] = 0;
    counts.heads = 0;
  }
  for (int at = lane; at < length; at += lanes) {
    const int i = list[at];
    if (l.stale[i] == 0) continue;
    int nearest = i;
    float least = 0.0f;
    for (int other = 0; other < length; ++other) {
      const int j = list[other];
      if (j == i) continue;
      const float distance = distance_of(l, j, i);  // neighbouring threads read neighbouring columns
      if (!(distance == distance)) counts.refused = 1;
      if (nearest == i || distance < least || (distance == least && j < nearest)) {
        nearest = j;
        least = distance;
      }
    }
    l.nearest[i] = nearest;
  }
}

VITCX_HD void linkage_pair(const linkage& l, linkage_counts& counts, int round, int lane,
                           int lanes) {
  const int32_t* list = clusters_of(l, round);
  for (int at = lane; at < counts.lists[round & 1]; at += lanes) {
    const int i = list[at], j = l.nearest[i];
    if (i < j && l.nearest[j] == i && distance_of(l, i, j) <= l.threshold) {
      l.into[j] = i;
      l.heads[add_one(&counts.heads)] = i;
    }
  }
}

VITCX_HD float greater(float a, float b) { return a > b ? a : b; }

// Rows first, then columns: where both clusters of a pair of clusters have taken another one, their
// distance is the greatest of four.
VITCX_HD void linkage_merge(const linkage& l, const linkage_counts& counts, int round, bool columns,
                            int lane, int lanes) {
  const int32_t* list = clusters_of(l, round);
  const int length = counts.lists[round & 1];
  for (int item = lane; item < counts.heads * length; item += lanes) {
    const int head = l.heads[item / length], tail = l.nearest[head], k = list[item % length];
    if (columns) {
      float& to = distance_of(l, k, head);
      to = greater(to, distance_of(l, k, tail));
    } else {
      float& to = distance_of(l, head, k);
      to = greater(to, distance_of(l, tail, k));
    }
  }
}

// Those that may still merge. A cluster that is farther than the threshold from its nearest never
// will: distances only grow.
VITCX_HD void linkage_next(const linkage& l, linkage_counts& counts, int round, int lane,
                           int lanes) {
  const int32_t* list = clusters_of(l, round);
  int32_t* next = clusters_of(l, round + 1);
  for (int at = lane; at < counts.lists[round & 1]; at += lanes) {
    const int i = list[at], j = l.nearest[i];
    if (l.into[i] != i) continue;
    const bool changed = l.into[j] == i || l.into[j] != j || l.into[l.nearest[j]] == j;
    if (!changed && !(distance_of(l, i, j) <= l.threshold)) continue;
    l.stale[i] = changed ? 1 : 0;
    next[add_one(&counts.lists[1 - (round & 1)])] = i;
  }
}

VITCX_HD void linkage_roots(const linkage& l, int lane, int lanes) {
  for (int i = lane; i < l.count; i += lanes) {
    int root = i;
    while (l.into[root] != root) root = l.into[root];
    l.stale[i] = l.kept[i] > 0 ? root : -1;
  }
}

// The masks cluster by cluster, in the order of the clusters' first members, and where each cluster
// begins. `counts.heads` is 0 before, and the number of clusters afterwards.
VITCX_HD void linkage_members(const linkage& l, linkage_counts& counts, int32_t* members,
                              int32_t* offsets, int lane, int lanes) {
  for (int i = lane; i < l.count; i += lanes) {
    const int root = l.stale[i];
    if (root < 0) continue;
    int place = 0, label = 0;
    for (int j = 0; j < l.count; ++j) {
      const int other = l.stale[j];
      if (other < 0) continue;
      place += other < root || (other == root && j < i) ? 1 : 0;
      label += other == j && j < root ? 1 : 0;
    }
    members[place] = i;
    if (root == i) {
      offsets[label] = place;
      add_one(&counts.heads);
    }
  }
}

}  // namespace vitcx

#endif  // VITCX_LINKAGE_CUH
