"""Errors a user can act on.

Each carries one sentence that says what came, what was expected and what to do. The command line
prints that sentence and exits with 2; a program catches `VitcxError`, or the built-in class too.
"""

from __future__ import annotations


class VitcxError(Exception):
    """Base of the errors that vitcx raises on purpose."""


class InputError(VitcxError, ValueError):
    """A picture, array, target or setting that cannot be used."""


class BundleError(VitcxError, ValueError):
    """A bundle that is missing, damaged or of another schema."""


class EngineError(VitcxError, RuntimeError):
    """An engine that was asked for by name and cannot run here."""


class BusyError(EngineError):
    """Work that was put off because others wait: it may be asked for again."""


class NoAnswerError(EngineError):
    """An engine that works and has no finite number for a picture, or for its masked versions."""


class MissingExtraError(VitcxError, ImportError):
    """An optional dependency that is not installed.

    Parameters
    ----------
    feature : what was asked for, as the subject of a sentence.
    module : the import that failed.
    extra : the extra of vitcx that installs it.
    """

    def __init__(self, feature: str, module: str, extra: str) -> None:
        super().__init__(
            f"{feature} needs the module '{module}', which is not installed: "
            f"run  pip install 'vitcx[{extra}]'"
        )
        self.extra = extra
