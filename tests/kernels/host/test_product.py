"""Matrix products on the calling thread."""

from __future__ import annotations

import time

import numpy as np
import pytest

from vitcx.kernels.host.product import product, symmetric_product


@pytest.mark.parametrize("shape", [(1, 1, 1), (33, 192, 196), (192, 196, 192), (70, 50, 3)])
def test_is_the_product(shape: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(0)
    a = rng.standard_normal(shape[:2], dtype=np.float32)
    b = rng.standard_normal(shape[1:], dtype=np.float32)
    # float32 sums of up to 196 products of order 1, in another order
    np.testing.assert_allclose(product(a, b), a @ b, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (36, 196), (37, 196), (192, 196), (70, 3)])
def test_is_the_symmetric_product(shape: tuple[int, int]) -> None:
    a = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    found = symmetric_product(a)
    np.testing.assert_array_equal(found, found.T)
    np.testing.assert_allclose(found, a @ a.T, atol=1e-4)


def test_nothing_has_no_product() -> None:
    assert symmetric_product(np.empty((0, 4), np.float32)).shape == (0, 0)
    assert not symmetric_product(np.empty((2, 0), np.float32)).any()
    assert product(np.empty((0, 4), np.float32), np.empty((4, 5), np.float32)).shape == (0, 5)
    assert not product(np.empty((2, 0), np.float32), np.empty((0, 5), np.float32)).any()


@pytest.mark.parametrize("multiply", [lambda a: product(a, a.T), symmetric_product])
def test_other_threads_do_not_spin_afterwards(multiply) -> None:
    resource = pytest.importorskip("resource", reason="nothing tells the time of threads here")
    a = np.ones((192, 196), np.float32)
    time.sleep(0.5)  # for those that an earlier test's BLAS call left spinning
    before = resource.getrusage(resource.RUSAGE_SELF)
    own = time.thread_time()
    for _ in range(5):
        multiply(a)
        time.sleep(0.05)
    own = time.thread_time() - own
    after = resource.getrusage(resource.RUSAGE_SELF)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    # BLAS's own threads would add about 0.02 s for each of the five pauses.
    assert spent - own < 0.05
