"""What people write on the command line of training, as what the package takes."""

from __future__ import annotations

import tomllib
from typing import Any

from df2serve.errors import ConfigError
from df2serve_training.settings import JobSettings

__all__ = ["parse_jobs", "parse_overrides", "short_name", "split_names"]


def parse_overrides(settings: list[str]) -> dict[str, Any]:
    """Return ``section.name=value`` as nested mappings; values are those of TOML.

    Raises:
        ConfigError: a setting has another form.
    """
    nested: dict[str, Any] = {}
    for setting in settings:
        path, found, value = setting.partition("=")
        try:
            parsed = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            parsed = value
        if not found or not path:
            message = f"got --set {setting!r}; expected a name and a value, as training.steps=500"
            raise ConfigError(message)
        *sections, name = path.split(".")
        place = nested
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = parsed
    return nested


def parse_jobs(executor: str | None, options: list[str]) -> JobSettings | None:
    """Return where jobs run, if they are wanted.

    Raises:
        ConfigError: there are options of jobs without an executor, or they have another form.
    """
    pairs = [option.partition("=") for option in options]
    wrong = [name for name, found, value in pairs if not (name and found and value)]
    if wrong:
        message = f"got --job {wrong[0]!r}; expected a name and a value, as partition=gpu"
        raise ConfigError(message)
    if executor is None and options:
        message = f"got --job {options[0]} without --executor; add --executor slurm"
        raise ConfigError(message)
    if executor is None:
        return None
    values = {name: int(value) if value.isdecimal() else value for name, _, value in pairs}
    return JobSettings().updated(executor=executor, options=values)


def short_name(name: str) -> str:
    """Return a name in lower case with nothing but letters, digits, dots and hyphens."""
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in name.lower())
    return kept.strip("._-")[:96] or "ensemble"


def split_names(names: str | None) -> tuple[str, ...]:
    """Return names that are separated by commas; none where nothing is given."""
    return () if names is None else tuple(part.strip() for part in names.split(","))
