"""Keys of other libraries' models: converted to timm's where that is exact, else recognised."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

# Of the same ViT, with other names. (pattern, replacement) for each part of a key.
_VITS: dict[str, tuple[str, tuple[tuple[str, str], ...]]] = {
    "torchvision": (
        "encoder.layers.encoder_layer_0.self_attention.in_proj_weight",
        (
            (r"^class_token$", "cls_token"),
            (r"^encoder\.pos_embedding$", "pos_embed"),
            (r"^conv_proj\.", "patch_embed.proj."),
            (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
            (r"\.ln_([12])\.", r".norm\1."),
            (r"\.self_attention\.in_proj_(weight|bias)$", r".attn.qkv.\1"),
            (r"\.self_attention\.out_proj\.", ".attn.proj."),
            (r"\.mlp\.(0|linear_1)\.", ".mlp.fc1."),
            (r"\.mlp\.(3|linear_2)\.", ".mlp.fc2."),
            (r"^encoder\.ln\.", "norm."),
            (r"^heads\.(head\.)?", "head."),
        ),
    ),
    "MMPretrain": (
        "layers.0.ffn.layers.0.0.weight",
        (
            (r"^backbone\.", ""),
            (r"^patch_embed\.projection\.", "patch_embed.proj."),
            (r"^layers\.(\d+)\.", r"blocks.\1."),
            (r"\.ln([12])\.", r".norm\1."),
            (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
            (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
            (r"^ln1\.", "norm."),
            (r"^head\.(layers\.head|fc)\.", "head."),
        ),
    ),
}
# A piece of a key -> what the weights are of, and what to do.
_KNOWN = (
    ("lora_A", "an adapter (LoRA) and not the model: merge it into the model and save that"),
    (
        "embeddings.patch_embeddings",
        "a Hugging Face transformers model: give its folder, with config.json, as MODEL",
    ),
    (
        "embeddings.patch_embedding.",
        "a Hugging Face CLIP or SigLIP: give its folder, with config.json, as MODEL",
    ),
    ("visual.transformer.resblocks", "an OpenCLIP model: use timm's name of its image tower"),
    ("attn.w_msa", "MMPretrain's Swin, which merges patches in another order than timm's"),
    (
        "encoder.layers.encoder_layer_0",
        "torchvision's ViT: give its name there, such as torchvision:vit_b_16",
    ),
    (
        "features.1.0.attn.qkv",
        "torchvision's Swin: give its name there, such as torchvision:swin_t",
    ),
    ("decoder_blocks.0.", "a masked autoencoder from pretraining, without a classifier"),
)


def converted_keys(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str] | None:
    """`state` in timm's keys, and whose keys they were; None if they are of no known ViT."""
    for library, (sign, rules) in _VITS.items():
        if not any(key.endswith(sign) for key in state):
            continue
        renamed = {}
        for key, value in state.items():
            name = key
            for pattern, replacement in rules:
                name = re.sub(pattern, replacement, name)
            renamed[name] = value
        return renamed, library
    return None


def recognised(keys: Iterable[str]) -> str | None:
    """What weights with such keys are of; None if nobody knows."""
    listed = list(keys)
    for piece, what in _KNOWN:
        if any(piece in key for key in listed):
            return f"the keys are those of {what}"
    return None
