"""Random masks are shared while they are in use, and gone afterwards; too many are refused."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

import pytest

from tests.runtime.numpy_session import numpy_explainer
from vitcx.runtime.errors import InputError
from vitcx.runtime.explainer import MOST_MASK_BYTES
from vitcx.runtime.method.random_masks import random_masks


def test_masks_are_shared_while_they_are_in_use_and_gone_afterwards() -> None:
    gc.collect()
    gc.disable()
    try:
        masks = random_masks(50, 7)
        assert random_masks(50, 7) is masks
        assert not masks.flags.writeable
        last = weakref.ref(masks)
        del masks
        assert last() is None
    finally:
        gc.enable()


def test_masks_that_would_not_fit_in_memory_are_refused_before_they_are_made() -> None:
    with numpy_explainer() as explainer:
        size = explainer.manifest.input_size
        explainer.request(None, method="occlusion", window=1, step=1)  # of a small picture
        large = (size[0] * 14, size[1] * 14)
        explainer.manifest = replace(explainer.manifest, input_size=large)
        with pytest.raises(InputError, match=r"would take 9\.4 GiB, and the limit is 1: ask"):
            explainer.request(None, method="occlusion", window=1, step=1)
    assert MOST_MASK_BYTES == 1 << 30
