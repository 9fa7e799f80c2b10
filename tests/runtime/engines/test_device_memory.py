"""Taking a smaller batch where the device's memory does not hold the one asked for."""

import logging
import weakref

import pytest

from vitcx.runtime.engines.device_memory import open_fitting
from vitcx.runtime.errors import EngineError


class OutOfMemoryError(RuntimeError):
    pass


def fitting(room):
    """Opens what fits into `room` rows; also the sizes that were tried."""
    tried = []

    def open(size):
        tried.append(size)
        if size > room:
            raise OutOfMemoryError(f"{size} rows do not fit")
        return size

    return open, tried


def is_out_of_memory(error):
    return isinstance(error, OutOfMemoryError)


def test_a_batch_that_does_not_fit_is_halved_and_that_is_said_once(caplog):
    open, tried = fitting(20)
    with caplog.at_level(logging.DEBUG, "vitcx"):
        assert open_fitting(open, 128, is_out_of_memory) == 16
    assert tried == [128, 64, 32, 16]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "128" in record.message
    assert "16" in record.message


def test_a_batch_that_fits_is_not_talked_about(caplog):
    open, tried = fitting(128)
    with caplog.at_level(logging.DEBUG, "vitcx"):
        assert open_fitting(open, 128, is_out_of_memory) == 128
    assert tried == [128]
    assert not caplog.records


def test_where_one_row_does_not_fit_it_is_an_error():
    open, tried = fitting(0)
    with pytest.raises(EngineError, match="one row of a mask batch"):
        open_fitting(open, 5, is_out_of_memory)
    assert tried == [5, 2, 1]


def test_another_error_is_not_taken_for_one_of_memory():
    def open(size):
        raise ValueError("something else")

    with pytest.raises(ValueError, match="something else"):
        open_fitting(open, 8, is_out_of_memory)


def test_the_failed_attempt_is_let_go_before_the_next():
    """An error's traceback holds the frames, and so the buffers, of what failed."""

    class Memory:
        pass

    held = []

    def open(size):
        assert all(reference() is None for reference in held)
        memory = Memory()
        held.append(weakref.ref(memory))
        if size > 4:
            raise OutOfMemoryError
        return memory

    assert open_fitting(open, 16, is_out_of_memory) is not None
    assert len(held) == 3
