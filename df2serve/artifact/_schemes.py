"""Ensembles at addresses: whoever can open a scheme registers it as an entry point."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, cast

from df2serve.errors import ArtifactNotFoundError, BackendUnavailableError

if TYPE_CHECKING:
    from df2serve.artifact.folder import Ensemble

__all__ = ["GROUP", "open_address", "scheme_of"]

GROUP = "df2serve.sources"
"""Entry-point group of functions that open an ensemble by its address; named by the scheme."""
_HUB = EntryPoint("hf", "df2serve.publish.hub:open_ensemble", GROUP)
"""Ours; stated here, so that it is known where the package is not installed, as in a Bento."""


def scheme_of(source: str) -> str | None:
    """Return the scheme of an address, or None of a path.

    Example:
        >>> scheme_of("hf://org/name"), scheme_of("C:/ensembles/name")
        ('hf', None)
    """
    match = re.match(r"([a-z][a-z0-9+.-]*)://", source)
    return match[1] if match else None


def open_address(address: str) -> Ensemble:
    """Open an ensemble with what is registered for the address's scheme.

    Raises:
        ArtifactNotFoundError: nothing is registered for it, or there is no ensemble.
        BackendUnavailableError: what is registered needs packages that are not installed.
    """
    scheme = scheme_of(address)
    registered = (_HUB, *entry_points(group=GROUP))
    found = [entry for entry in registered if entry.name == scheme]
    if not found:
        known = ", ".join(f"{entry.name}://" for entry in registered) or "no scheme at all"
        message = f"got {address}; expected a folder, a zip file, or an address of {known}"
        raise ArtifactNotFoundError(message)
    try:
        opener = cast("Callable[[str], Ensemble]", found[0].load())
    except ImportError as error:
        message = f"{scheme}:// needs packages that are not installed ({error}); for hf:// "
        message += "pip install 'df2serve[publish]'"
        raise BackendUnavailableError(message) from error
    return opener(address)
