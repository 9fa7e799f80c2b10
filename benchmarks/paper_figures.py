"""The figures of the paper's tables 1 and 2 (Xie et al., IJCAI 2023), to print beside ours."""

from __future__ import annotations

# Deletion, insertion, pointing accuracy; None where the paper has a dash.
Figures = tuple[float, float, float]

TABLE_1: dict[str, dict[str, Figures | None]] = {
    "ViT-CX": {
        "ViT-B": (0.161, 0.620, 0.8642),
        "DeiT-B": (0.211, 0.802, 0.8693),
        "Swin-B": (0.271, 0.761, 0.9231),
    },
    "Rollout": {"ViT-B": (0.251, 0.517, 0.6091), "DeiT-B": (0.406, 0.642, 0.3570), "Swin-B": None},
    "Partial LRP": {
        "ViT-B": (0.239, 0.499, 0.6652),
        "DeiT-B": (0.349, 0.655, 0.6125),
        "Swin-B": None,
    },
    "CGW1": {"ViT-B": (0.201, 0.542, 0.7714), "DeiT-B": (0.286, 0.717, 0.7054), "Swin-B": None},
    "CGW2": {"ViT-B": (0.209, 0.549, 0.7094), "DeiT-B": (0.271, 0.736, 0.7054), "Swin-B": None},
    "TAM": {"ViT-B": (0.180, 0.556, 0.7787), "DeiT-B": (0.240, 0.747, 0.7547), "Swin-B": None},
    "Occlusion": {
        "ViT-B": (0.291, 0.571, 0.6475),
        "DeiT-B": (0.380, 0.801, 0.5951),
        "Swin-B": (0.448, 0.752, 0.6965),
    },
    "RISE": {
        "ViT-B": (0.234, 0.581, 0.7330),
        "DeiT-B": (0.366, 0.759, 0.7184),
        "Swin-B": (0.416, 0.727, 0.7507),
    },
    "Score-CAM": {
        "ViT-B": (0.291, 0.471, 0.4889),
        "DeiT-B": (0.439, 0.576, 0.5012),
        "Swin-B": (0.424, 0.641, 0.6965),
    },
    "Grad-CAM": {
        "ViT-B": (0.212, 0.456, 0.5045),
        "DeiT-B": (0.250, 0.743, 0.7924),
        "Swin-B": (0.356, 0.693, 0.8846),
    },
    "Integrated-Grad": {
        "ViT-B": (0.184, 0.263, 0.1061),
        "DeiT-B": (0.259, 0.362, 0.1074),
        "Swin-B": (0.420, 0.483, 0.0769),
    },
    "Smooth-Grad": {
        "ViT-B": (0.174, 0.438, 0.1696),
        "DeiT-B": (0.231, 0.528, 0.3105),
        "Swin-B": (0.369, 0.505, 0.1452),
    },
}

# DeiT-B.
TABLE_2: dict[str, Figures] = {
    "ViT-CX": (0.211, 0.802, 0.8693),
    "Variant 1": (0.232, 0.810, 0.8552),
    "Variant 2": (0.323, 0.734, 0.7512),
    "Variant 3": (0.281, 0.742, 0.7778),
    "Variant 4": (0.303, 0.727, 0.7437),
    "Variant 5": (0.339, 0.686, 0.6756),
}


def column_of(model: str) -> str | None:
    """The paper's column for a timm model, or None."""
    for start, column in (
        ("vit_base_patch16_224", "ViT-B"),
        ("deit_base_distilled_patch16_224", "DeiT-B"),
        ("swin_base_patch4_window7_224", "Swin-B"),
    ):
        if model.startswith(start):
            return column
    return None
