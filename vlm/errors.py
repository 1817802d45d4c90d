"""Every error a user can meet, in one small tree.

Each message names the offending value and the way out. ``VLMError`` is what a command-line or web front end catches.
"""

from __future__ import annotations


class VLMError(Exception):
    """Base class of all errors raised on purpose by this package."""


class ConfigError(VLMError, ValueError):
    """A configuration or argument is wrong; the message names the key, the value and what is allowed."""


class MediaError(VLMError):
    """A file cannot be used as the medium it was given for.

    Attributes:
        source: Name of the file or a description of the bytes.
        cause: One sentence saying what is wrong with it.
    """

    def __init__(self, source: str, cause: str) -> None:
        super().__init__(f"{source}: {cause}")
        self.source = source
        self.cause = cause

    def __reduce__(self) -> tuple[type[MediaError], tuple[str, str]]:
        return type(self), (self.source, self.cause)


class MediaLimitError(MediaError):
    """The medium is larger than `MediaLimits` allows; nothing was decoded past the limit."""


class MediaWarning(UserWarning):
    """The medium could be used, but not all of it or not as asked."""


class TruncatedMediaWarning(MediaWarning):
    """The file ends early; the frames before the cut are used."""


class CheckpointError(VLMError):
    """A checkpoint is missing, damaged or does not fit the model; the message names the component and the key."""


class AlignmentError(VLMError, ValueError):
    """The number of media tokens in the text and of media features disagree; the message gives both numbers."""


class DataError(VLMError, ValueError):
    """A dataset record is malformed; the message names file, record and field."""


class TrainingError(VLMError):
    """Training cannot go on (NaN loss, disk full, ...); the message says which step and batch."""


class MissingDependencyError(VLMError, ImportError):
    """An optional package is not installed; the message names the extra that brings it."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package {package!r}. Install it with: pip install 'vlm[{extra}]'")
        self.package = package
        self.extra = extra
        self.purpose = purpose

    def __reduce__(self) -> tuple[type[MissingDependencyError], tuple[str, str, str]]:
        return type(self), (self.package, self.extra, self.purpose)
