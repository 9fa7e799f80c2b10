"""Models of Hugging Face transformers: from a local folder, or by name from the hub."""

from __future__ import annotations

import contextlib
import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitcx.export.graph.heads import logits_of
from vitcx.export.quiet import only_errors_from
from vitcx.export.sources.huggingface_preprocessing import preprocessing_of_folder
from vitcx.export.sources.source import Source
from vitcx.runtime.digests import sha256_of
from vitcx.runtime.errors import InputError, MissingExtraError

PREFIX = "hf:"
# The configuration's word for what the outputs are -> the bundle's head.
_PROBLEMS = {
    "single_label_classification": "softmax",
    "multi_label_classification": "sigmoid",
    "regression": "regression",
}


class Logits(nn.Module):
    """Images to the logits of a classifier of transformers."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return logits_of(self.model(pixel_values=images))


class Features(nn.Module):
    """Images to the features of a backbone of transformers: pooled, or those of its first token."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return pooled(self.model(pixel_values=images))


def pooled(output: Any) -> Tensor:
    """(B,D) of what a tower gave."""
    if isinstance(output, Tensor):
        return output
    features = getattr(output, "pooler_output", None)
    tokens: Tensor = output.last_hidden_state if features is None else features
    if tokens.ndim == 2:
        return tokens
    return tokens[:, 0] if tokens.ndim == 3 else tokens.flatten(2).mean(2)


def is_folder_of_huggingface(model: str) -> bool:
    """Whether `model` is a folder that transformers or PEFT has saved."""
    folder = Path(model)
    return (folder / "config.json").is_file() or (folder / "adapter_config.json").is_file()


def huggingface_source(model: str, size: tuple[int, int] | None, *, headless: bool) -> Source:
    """A classifier of transformers, with its pictures' preparation and its class names.

    Parameters
    ----------
    model : ``hf:NAME`` of the hub, or ``hf:FOLDER`` or a folder with ``config.json`` (or PEFT's
        ``adapter_config.json``, whose adapter is merged). Of a folder nothing is asked of the
        network.
    size : (H, W) in pixels; None takes the preprocessor's.
    headless : features are wanted, not classes.

    Raises
    ------
    InputError
        If it cannot be had, or has no classifier.
    MissingExtraError
        Without transformers, or for an adapter without peft.
    """
    transformers = import_transformers()
    name = model.removeprefix(PREFIX)
    local = Path(name).is_dir()
    with plain_errors(name):
        adapter = _adapter_of(name)
        base = adapter or name
        local_base = Path(base).is_dir()
        options = {"local_files_only": local_base, "trust_remote_code": False}
        config = transformers.AutoConfig.from_pretrained(base, **options)
        module, missing = _model(transformers, base, config, options, headless=headless)
        if adapter is not None:
            module = _merged(module, name)
            config = module.config
            missing = [key for key in missing if not _trained_with(name, key)]
    if missing and not headless:
        raise InputError(
            f"'{name}' has no classifier (it lacks {missing[0]}), so there are no classes to "
            "explain: give one that was fine-tuned, or explain its features: --head none"
        )
    preprocessing = preprocessing_of_folder(base, config, size, local=local_base)
    wrapped: nn.Module = Features(module) if headless else Logits(module)
    return Source(
        wrapped.eval(),
        Path(name).name if local else name,
        _origin(Path(name)) if local else f"Hugging Face hub: {name}",
        preprocessing,
        int(getattr(config, "num_channels", None) or len(preprocessing.mean)),
        None if headless else class_names_of(config),
        None if headless else _head_of(config),
    )


def import_transformers() -> Any:
    """The module transformers; `MissingExtraError` names the extra."""
    from vitcx.export.timm_import import import_timm

    import_timm()  # so that torchvision's missing operators are declared before it is imported
    try:
        return importlib.import_module("transformers")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "transformers":
            raise
        raise MissingExtraError("vitcx export hf:", "transformers", "hf") from None


@contextlib.contextmanager
def plain_errors(name: str) -> Iterator[None]:
    """What transformers says against a model, in one sentence, and nothing else that it says."""
    chatter: Any = importlib.import_module("transformers.utils.logging")
    showed = chatter.is_progress_bar_enabled()
    chatter.disable_progress_bar()
    try:
        with only_errors_from("transformers"):
            yield
    except (InputError, MissingExtraError):
        raise
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"transformers cannot open '{name}': {reason}") from None
    finally:
        if showed:
            chatter.enable_progress_bar()


def _model(
    transformers: Any, base: str, config: Any, options: dict[str, Any], *, headless: bool
) -> tuple[Any, list[str]]:
    """The model in float32, and the keys that its weights lack."""
    made_as = (getattr(config, "architectures", None) or [""])[0]
    if headless:
        kind = transformers.AutoModel
    elif "ForImageClassification" in made_as and hasattr(transformers, made_as):
        kind = getattr(transformers, made_as)  # DeiT's with teacher is no automatic choice
    else:
        kind = transformers.AutoModelForImageClassification
    try:
        module, loaded = kind.from_pretrained(
            base, dtype=torch.float32, output_loading_info=True, **options
        )
    except ValueError as error:
        if "Unrecognized configuration class" not in str(error):
            raise
        raise InputError(
            f"'{base}' is a {config.model_type}, of which transformers has no image classifier"
        ) from None
    if headless and hasattr(module, "vision_model"):
        module = module.vision_model  # of CLIP and SigLIP the tower that sees
    return module, sorted(loaded["missing_keys"])


def _adapter_of(name: str) -> str | None:
    """The base model of a folder with an adapter of PEFT; None for others."""
    file = Path(name) / "adapter_config.json"
    if not file.is_file() or (Path(name) / "config.json").is_file():
        return None
    base = json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not base:
        raise InputError(f"'{file}' does not say which model it is an adapter of")
    beside = Path(name) / base
    return str(beside) if beside.is_dir() else str(base)


def _merged(module: Any, folder: str) -> Any:
    try:
        peft = importlib.import_module("peft")
    except ModuleNotFoundError:
        raise MissingExtraError("an adapter", "peft", "hf") from None
    return peft.PeftModel.from_pretrained(module, folder).merge_and_unload()


def _trained_with(folder: str, key: str) -> bool:
    """Whether the adapter brings the module of a key that the base model lacks."""
    config = json.loads((Path(folder) / "adapter_config.json").read_text(encoding="utf-8"))
    return any(part in key.split(".") for part in config.get("modules_to_save") or ())


def _origin(folder: Path) -> str:
    files = sorted((*folder.glob("*.safetensors"), *folder.glob("*.bin")))
    digests = ", ".join(f"{file.name} sha256 {sha256_of(file)}" for file in files)
    return f"folder: {folder.name} ({digests})"


def class_names_of(config: Any) -> tuple[str, ...] | None:
    """Names by index; None where they are transformers' own LABEL_0, LABEL_1, ..."""
    names = getattr(config, "id2label", None) or {}
    ordered = tuple(str(names[index]) for index in sorted(names))
    return None if all(n == f"LABEL_{i}" for i, n in enumerate(ordered)) else ordered


def _head_of(config: Any) -> str | None:
    problem = getattr(config, "problem_type", None)
    if problem is None and getattr(config, "num_labels", 2) == 1:
        return "regression"  # as transformers' own loss has it
    return _PROBLEMS.get(problem or "")
