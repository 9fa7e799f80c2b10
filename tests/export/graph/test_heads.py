"""What a model's outputs are: found where it can be, and refused where it cannot be right."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from vitcx.export.graph.heads import Head, logits_of, resolve_head, run_to_the_end
from vitcx.runtime.errors import InputError

IMAGES = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def model(outputs: int, *ends: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, outputs), *ends).eval()


class Averaged(nn.Module):
    """Two heads whose probabilities are averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = model(4, nn.Softmax(-1)), model(4, nn.Softmax(-1))

    def forward(self, images: Tensor) -> Tensor:
        mean: Tensor = (self.one(images) + self.two(images)) / 2
        return mean


def scores(head: Head, module: nn.Module) -> Tensor:
    with torch.no_grad():
        given: Tensor = head.scores(logits_of(module(IMAGES)))
    return given


@pytest.mark.parametrize(
    ("module", "asked", "guess", "name", "kind"),
    [
        (model(4), None, None, "softmax", "class"),
        (model(4), None, "sigmoid", "sigmoid", "label"),
        (model(4), "sigmoid", None, "sigmoid", "label"),
        (model(4, nn.Softmax(-1)), None, None, "softmax", "class"),
        (model(4, nn.LogSoftmax(-1)), None, None, "softmax", "class"),
        (Averaged(), None, None, "softmax", "class"),
        (model(4, nn.Sigmoid()), None, None, "sigmoid", "label"),
        (
            model(4, nn.Sigmoid(), nn.Unflatten(1, (4, 1)), nn.Flatten()),
            None,
            None,
            "sigmoid",
            "label",
        ),
        (model(1), "binary", None, "binary", "class"),
        (model(1, nn.Sigmoid()), None, None, "binary", "class"),
        (model(1), "regression", None, "regression", "value"),
        (model(4, nn.Sigmoid()), "regression", None, "regression", "value"),
        (model(4), "none", None, "none", "norm"),
    ],
)
def test_scores_are_made_once(
    module: nn.Module, asked: str | None, guess: str | None, name: str, kind: str
) -> None:
    head = resolve_head(asked, module, IMAGES, guess=guess)
    assert (head.name, head.target_kind) == (name, kind)
    with torch.no_grad():
        given = module(IMAGES)
    ends = type(module[-1]).__name__ if isinstance(module, nn.Sequential) else "Softmax"
    probability = given if "Sigmoid" in repr(module) else given.sigmoid()
    expected = {
        "softmax": given if ends == "Softmax" else given.softmax(-1),
        "sigmoid": probability,
        "binary": torch.cat([1 - probability, probability], 1),
        "regression": given,
        "none": given.norm(dim=1, keepdim=True),
    }[name]
    torch.testing.assert_close(scores(head, module), expected)
    assert len(head.default_names) == expected.shape[1]


@pytest.mark.parametrize(
    ("module", "asked", "message"),
    [
        (model(1), None, "a softmax over one is always 1.*--head binary.*--head regression"),
        (model(1), "softmax", "a softmax over one is always 1"),
        (model(4, nn.Sigmoid()), "softmax", "ends in a sigmoid.*give --head sigmoid"),
        (model(4, nn.Softmax(-1)), "sigmoid", "ends in a softmax.*give --head softmax"),
        (model(4), "binary", "binary is for one logit, and the model gives 4"),
        (model(4), "argmax", "head is 'argmax', expected one of softmax, sigmoid, binary"),
    ],
)
def test_a_head_that_cannot_be_right(module: nn.Module, asked: str | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve_head(asked, module, IMAGES)


def test_a_backbone_has_no_classes() -> None:
    with pytest.raises(InputError, match=r"no classifier: it gives 4 features.*--head none"):
        resolve_head(None, model(4), IMAGES, headless=True)
    assert resolve_head("none", model(4), IMAGES, headless=True).target_kind == "norm"


def test_similarity_to_reference_pictures() -> None:
    module = model(4)
    references = [("cat.png", IMAGES[:1]), ("dog.png", IMAGES[1:2])]
    head = resolve_head("none", module, IMAGES, headless=True, references=references)
    assert head.target_kind == "similarity"
    assert head.default_names == ("similar to cat.png", "similar to dog.png")
    with torch.no_grad():
        features = module(IMAGES)
    expected = torch.stack(
        [torch.cosine_similarity(features, features[i : i + 1]) for i in range(2)], 1
    )
    torch.testing.assert_close(scores(head, module), expected)


def test_logits_in_what_models_give() -> None:
    matrix, maps = torch.zeros(2, 4), torch.zeros(2, 3, 4)
    for output in (
        matrix,
        (matrix, maps),
        [matrix],
        {"logits": matrix, "x": matrix},
        {"y": matrix},
    ):
        assert logits_of(output) is matrix
    for output in (maps, (matrix, matrix), None, {"x": maps}):
        with pytest.raises(InputError, match=r"expected logits \(B, C\)"):
            logits_of(output)


def test_a_model_that_does_not_run() -> None:
    with pytest.raises(InputError, match="does not run on two 4x4 pictures"):
        run_to_the_end(model(4), torch.zeros(2, 3, 4, 4))
