"""Exceptions of df2serve.

Every message says what was got, what was expected and what to do about it::

    Df2ServeError
    ├── InputError (ValueError)              the caller's arguments or data                    422
    │   ├── ConfigError                      a setting out of range, an unknown preset         422
    │   ├── DecodeError                      the bytes are not the image they claim to be      422
    │   ├── UnsupportedFormatError           a format, codec or layout that is not read        415
    │   ├── LimitExceededError               more pixels, bytes, time or memory than allowed   413
    │   ├── AxesError                        axis order missing, ambiguous or contradicting    422
    │   ├── ImageMismatchError               the image does not fit the ensemble               422
    │   └── SourceNotFoundError (FileNotFoundError)  no such file or not readable              404
    ├── ArtifactError                        an ensemble that cannot be used                   422
    │   ├── ArtifactNotFoundError (FileNotFoundError)                                          404
    │   ├── ManifestError                    ensemble.json does not follow the schema          422
    │   ├── IntegrityError                   a file is missing or its hash differs             422
    │   └── UnsafeArtifactError              a file of weights asks for more than data         422
    ├── HubError                             a hub of models could not be used              502
    │   └── HubAccessError (PermissionError) it wants a login, consent or a right           403
    ├── ServiceError                         a df2serve service refused or failed                502
    │   ├── ServiceAccessError (PermissionError)  it wants an API key, or one that may do this   403
    │   └── ServiceBusyError (ConnectionError)    it is not there, or has no time                503
    ├── BackendError                         a member network could not run                    500
    │   ├── BackendUnavailableError          device, provider or precision not available       503
    │   └── OutOfMemoryError (MemoryError)   not even one tile fits                            507
    ├── ExportError                          an ensemble that cannot be exported as asked      422
    │   └── ParityError                      an export that deviates from its ensemble         500
    ├── OutputError (OSError)                results could not be written                      507
    └── CancelledError                       stopped on request between two batches            499

``http_status`` is a hint for the HTTP service; ``exit_code`` is what the command line returns.
"""

from __future__ import annotations

__all__ = [
    "ArtifactError",
    "ArtifactNotFoundError",
    "AxesError",
    "BackendError",
    "BackendUnavailableError",
    "CancelledError",
    "ConfigError",
    "DecodeError",
    "Df2ServeError",
    "ExportError",
    "HubAccessError",
    "HubError",
    "ImageMismatchError",
    "InputError",
    "IntegrityError",
    "LimitExceededError",
    "ManifestError",
    "OutOfMemoryError",
    "OutputError",
    "ParityError",
    "ServiceAccessError",
    "ServiceBusyError",
    "ServiceError",
    "SourceNotFoundError",
    "UnsafeArtifactError",
    "UnsupportedFormatError",
]


class Df2ServeError(Exception):
    """Root of every exception that df2serve raises on purpose."""

    http_status: int = 500
    """Status code that the HTTP service answers with."""

    exit_code: int = 1
    """Exit code of the command line."""


class InputError(Df2ServeError, ValueError):
    """The caller's arguments or data cannot be used."""

    http_status = 422
    exit_code = 2


class ConfigError(InputError):
    """A setting is out of range, unknown or contradicts another one."""


class DecodeError(InputError):
    """The bytes are not the image, mask or array that they claim to be."""


class UnsupportedFormatError(InputError):
    """A file format, codec or layout that is not read."""

    http_status = 415


class LimitExceededError(InputError):
    """The input asks for more pixels, bytes, time or memory than is allowed."""

    http_status = 413


class AxesError(InputError):
    """The axis order is missing, ambiguous or contradicts the array."""


class ImageMismatchError(InputError):
    """The image does not fit the ensemble."""


class SourceNotFoundError(InputError, FileNotFoundError):
    """The input does not exist or cannot be read."""

    http_status = 404


class ArtifactError(Df2ServeError):
    """The ensemble cannot be used."""

    http_status = 422
    exit_code = 2


class ArtifactNotFoundError(ArtifactError, FileNotFoundError):
    """There is no ensemble at this place."""

    http_status = 404


class ManifestError(ArtifactError):
    """The manifest does not follow the schema."""


class IntegrityError(ArtifactError):
    """A file of the ensemble is missing, or its hash is not the recorded one."""


class UnsafeArtifactError(ArtifactError):
    """A file of weights asks for more than data: it would run code if it were loaded as usual."""


class HubError(Df2ServeError):
    """A hub of models could not be reached, or refused what was asked of it."""

    http_status = 502
    exit_code = 2


class HubAccessError(HubError, PermissionError):
    """The hub wants a login, consent to conditions, or a right that the account lacks."""

    http_status = 403


class ServiceError(Df2ServeError):
    """A df2serve service refused a request or failed with it."""

    http_status = 502


class ServiceAccessError(ServiceError, PermissionError):
    """The service wants an API key, or one that may do this."""

    http_status = 403
    exit_code = 2


class ServiceBusyError(ServiceError, ConnectionError):
    """The service cannot be reached, or has no time for the request."""

    http_status = 503


class BackendError(Df2ServeError):
    """A member network could not be built or run."""


class BackendUnavailableError(BackendError):
    """The requested backend, device, provider or precision is not available here."""

    http_status = 503
    exit_code = 2


class OutOfMemoryError(BackendError, MemoryError):
    """The device's memory does not hold even a batch of one."""

    http_status = 507


class ExportError(Df2ServeError):
    """The ensemble cannot be exported as asked."""

    http_status = 422
    exit_code = 2


class ParityError(ExportError):
    """What an export computes deviates from the ensemble; nothing was left at the target."""

    http_status = 500
    exit_code = 1


class OutputError(Df2ServeError, OSError):
    """Results could not be written; what was there before is untouched."""

    http_status = 507
    exit_code = 2


class CancelledError(Df2ServeError):
    """The work was stopped on request, between two batches."""

    http_status = 499
    exit_code = 130
