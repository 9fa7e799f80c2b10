"""Errors of the device layer."""

from __future__ import annotations


class DeviceError(RuntimeError):
    """A GPU, driver or library that is needed and missing, or a device call that failed.

    The message is one line: what is missing, and what to do.
    """


class DeviceArrayError(ValueError):
    """An array that the device layer cannot take as it is, with no copy."""


def first_line(error: BaseException) -> str:
    """What an error says in one line; the name of its class if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
