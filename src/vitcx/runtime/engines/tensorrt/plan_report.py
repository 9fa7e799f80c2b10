"""What a build says of the plan it made: time, size, layers, and whether attention was fused.

No plan can be opened without a GPU. But TensorRT lists the layers of the engine in its log, and an
attention that became one kernel is called so there.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

# A layer in the library's listing: "Name: N, LayerType: T, Inputs: ...".
_LAYER = re.compile(r"^Name: (.*?), LayerType: (\w+)", re.MULTILINE)
# In the names that NVIDIA's libraries give fused attention: _gemm_mha_v2, fmha_v2_flash_...
_FUSED_ATTENTION = re.compile(r"mha|flash_?attention", re.IGNORECASE)


@dataclass(frozen=True)
class PlanReport:
    """What is known of a plan without running it.

    Attributes
    ----------
    library : flavour and version that built it.
    targets : compute capabilities it was built for; empty means the library's own choice.
    seconds, bytes : that building took, and of the plan.
    profiles : optimisation profiles in it; each has its own compiled layers.
    attentions : attentions in the graph.
    layers : layers by kind over all profiles; empty where the library did not list them.
    fused : attentions that became one kernel, over all profiles; None where that is not known.
    warnings : of the parser and the builder, each once.
    """

    library: str
    targets: tuple[str, ...]
    seconds: float
    bytes: int
    profiles: int
    attentions: int
    layers: Mapping[str, int] = field(default_factory=dict)
    fused: int | None = None
    warnings: tuple[str, ...] = ()

    def attention_in_words(self) -> str:
        """One phrase on what became of the graph's attentions."""
        if self.attentions == 0:
            return "no attention in the graph"
        if self.fused is None:
            return "whether attention was fused is not known: the library listed no layers"
        expected = self.attentions * self.profiles
        if self.fused == expected:
            return f"all {expected} attentions are fused kernels"
        return f"{self.fused} of {expected} attentions are fused kernels"


def count_layers(messages: Iterable[str]) -> tuple[dict[str, int], int | None]:
    """Layers by kind, and how many are fused attention, in a library's own listing.

    Parameters
    ----------
    messages : of the build's log, or an engine inspector's text in the format ONELINE.

    Returns
    -------
    dict, int or None
        Empty and None where nothing there lists layers.
    """
    kinds: Counter[str] = Counter()
    fused = 0
    for message in messages:
        for name, kind in _LAYER.findall(message):
            kinds[kind] += 1
            fused += bool(_FUSED_ATTENTION.search(name) or _FUSED_ATTENTION.search(kind))
    return dict(sorted(kinds.items())), fused if kinds else None


def each_once(lines: Sequence[str]) -> tuple[str, ...]:
    """The lines without repetitions, in the order in which they came first."""
    return tuple(dict.fromkeys(" ".join(line.split()) for line in lines))
