"""Settings of the service: environment ``DF2SERVE_*``, a TOML file, or arguments."""

from __future__ import annotations

import ipaddress
import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from platformdirs import user_state_path
from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from df2serve.config import Frozen, describe_validation_error
from df2serve.errors import ConfigError

__all__ = ["KeyEntry", "Scope", "Settings", "load_settings", "named_sources"]

Scope = Literal["predict", "jobs", "admin", "metrics"]
_MIB = 1 << 20
Texts = Annotated[tuple[str, ...], NoDecode]


class KeyEntry(Frozen):
    """A client that may use the service."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._@-]{1,64}$")]
    """Whom the key belongs to; owner of the jobs made with it."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Hash of the key; the key itself is stored nowhere."""
    scopes: frozenset[Scope] = frozenset({"predict", "jobs"})
    rate: str | None = None
    """Requests that compute, such as ``60/minute``; that of the settings when absent."""


class Settings(BaseSettings):
    """Everything that an operator decides."""

    model_config = SettingsConfigDict(
        env_prefix="DF2SERVE_",
        env_nested_delimiter="__",
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
    )

    models: Texts = ()
    """Ensembles: ``SOURCE`` or ``NAME=SOURCE``, where a source is a folder, a zip file, a package
    or ``hf://org/name[@revision]``. The first one is the default model."""
    warm: bool = True
    """Load the default model at the start, instead of with its first request."""
    poll_seconds: Annotated[float, Field(gt=0)] | None = None
    """How often to look for new revisions of the models; only when told to where absent."""
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 3000
    keys: tuple[KeyEntry, ...] = ()
    """Clients; without any, everybody who reaches the service may use it."""
    insecure: bool = False
    """Listen on a public address without keys."""
    rate: str = "600/minute"
    """Requests that compute, per client."""
    state: Path = Field(default_factory=lambda: user_state_path("df2serve"))
    """Folder of uploads, results and jobs."""
    database: SecretStr | None = None
    """URL of a Postgres database for jobs; a SQLite file in ``state`` when absent."""
    devices: Texts = ("auto",)
    """One worker process each: ``auto``, ``cpu``, ``cuda:N`` or ``mps``. Several ``cpu`` share the
    cores, and each of them predicts an image of its own."""
    backend: Literal["auto", "torch", "onnx"] = "auto"
    batch_size: Annotated[int, Field(ge=1)] | None = None
    """Network inputs per forward pass; suited to the device when absent."""
    model_bytes: Annotated[int, Field(ge=1)] = 8 << 30
    """Weights that a worker keeps loaded; the model unused for longest is unloaded first."""
    log_format: Literal["text", "json"] = "text"
    """``json`` logs one object per line, with the id of the request among its members."""
    max_body_bytes: Annotated[int, Field(ge=1)] = 512 * _MIB
    """Bytes of a request."""
    max_pixels: Annotated[int, Field(ge=1)] = 1 << 28
    """Pixels of an image, counted once for all channels."""
    max_channels: Annotated[int, Field(ge=1)] = 64
    max_decode_seconds: Annotated[float, Field(gt=0)] = 60.0
    """Time that the decoding of an image may take."""
    max_decode_bytes: Annotated[int, Field(ge=1 << 27)] = 4 << 30
    """Memory that the decoding of an image may take."""
    max_upload_bytes: Annotated[int, Field(ge=1)] = 4 << 30
    """Bytes of an upload that may come in several requests; never more than ``queue_bytes``."""
    max_uploads: Annotated[int, Field(ge=1)] = 1000
    """Such uploads of a client that are kept at a time, whole or not."""
    max_uploads_bytes: Annotated[int, Field(ge=1)] = 32 << 30
    """Bytes of these, counted as announced."""
    upload_hours: Annotated[float, Field(gt=0)] = 24.0
    """How long such an upload is kept after its last byte came."""
    max_images: Annotated[int, Field(ge=1)] = 1000
    """Images of a job."""
    sync_seconds: Annotated[float, Field(gt=0)] = 30.0
    """How long a request may wait for its result before it becomes a job."""
    queue: Annotated[int, Field(ge=1)] = 64
    """Images that wait or are computed at a time."""
    queue_bytes: Annotated[int, Field(ge=1)] = 8 << 30
    """Uploaded bytes of these."""
    queue_tiles: Annotated[int, Field(ge=1)] = 200_000
    """Tiles that wait or are computed; more are refused until some are done."""
    result_hours: Annotated[float, Field(gt=0)] = 24.0
    """How long the results of a job are kept."""
    sweep_seconds: Annotated[float, Field(gt=0)] = 60.0
    """How often what is old is removed, and jobs that were interrupted are taken up again."""
    drain_seconds: Annotated[float, Field(ge=0)] = 30.0
    """How long to wait for running requests at the end."""

    @field_validator("models", "devices", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        """Take environment variables as JSON lists or as texts with commas."""
        if not isinstance(value, str):
            return value
        if value.lstrip().startswith("["):
            return json.loads(value)
        return [part.strip() for part in value.split(",") if part.strip()]

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments win over the environment, and the environment over the file."""
        del dotenv_settings, file_secret_settings
        path = os.environ.get("DF2SERVE_CONFIG")
        file = TomlConfigSettingsSource(settings_cls, Path(path) if path else None)
        return init_settings, env_settings, file

    @property
    def is_public(self) -> bool:
        """Whether others than this machine can reach the address."""
        try:
            return not ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host != "localhost"

    def check_exposure(self) -> None:
        """Refuse to be open to a network without keys.

        Raises:
            ConfigError: the address is public and there are no keys.
        """
        if self.is_public and not self.keys and not self.insecure:
            message = (
                f"host {self.host} can be reached from a network, and there are no API keys; make "
                "one with 'df2serve serve --new-key NAME', or listen on 127.0.0.1"
            )
            raise ConfigError(message)


def load_settings(**given: Any) -> Settings:
    """Read the settings; arguments that are None are taken from environment and file.

    Raises:
        ConfigError: a setting is unknown or out of range; the file is no TOML.
    """
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        raise ConfigError(describe_validation_error("settings of the service", error)) from error
    except ValueError as error:
        message = f"the settings of the service cannot be read: {error}"
        raise ConfigError(message) from error


def named_sources(models: tuple[str, ...]) -> dict[str, str]:
    """Return sources by name; those without a name are to have the ensemble's own.

    Raises:
        ConfigError: a name is given twice.

    Example:
        >>> named_sources(("nuclei=hf://a/b@1.0", "/ensembles/cells"))
        {'nuclei': 'hf://a/b@1.0', ':1': '/ensembles/cells'}
    """
    sources: dict[str, str] = {}
    for number, text in enumerate(models):
        name, separator, source = text.partition("=")
        if not separator or "/" in name:
            name, source = f":{number}", text
        if name in sources:
            message = f"two models are called {name}; give them different names"
            raise ConfigError(message)
        sources[name] = source
    return sources
