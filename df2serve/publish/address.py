"""Where an ensemble lives on the Hugging Face Hub."""

from __future__ import annotations

import re
from dataclasses import dataclass

from df2serve.errors import ConfigError

__all__ = ["HubAddress"]

_NAME = r"[A-Za-z0-9](?:[\w.-]{0,94}[A-Za-z0-9_])?"
_ADDRESS = re.compile(rf"hf://(?P<repo>{_NAME}/{_NAME})(?:@(?P<revision>[\w./+-]+))?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubAddress:
    """A repository, and what of its history."""

    repo: str
    """``org/name``."""
    revision: str | None = None
    """Branch, tag or commit; the branch ``main`` where absent."""

    @classmethod
    def parse(cls, text: str) -> HubAddress:
        """Read ``hf://org/name`` or ``hf://org/name@revision``.

        Raises:
            ConfigError: it has another form.

        Example:
            >>> HubAddress.parse("hf://lab/nuclei@1.2.0")
            HubAddress(repo='lab/nuclei', revision='1.2.0')
        """
        match = _ADDRESS.fullmatch(text)
        revision = match["revision"] if match else None
        if match is None or ".." in text or "--" in match["repo"] or _odd(revision):
            message = f"got {text!r}; expected hf://org/name or hf://org/name@revision"
            raise ConfigError(message)
        return cls(repo=match["repo"], revision=revision)

    @property
    def is_pinned(self) -> bool:
        """Whether it names one commit, which never changes."""
        return self.revision is not None and _COMMIT.fullmatch(self.revision) is not None

    def __str__(self) -> str:
        """Return the address as it is written."""
        return f"hf://{self.repo}" + (f"@{self.revision}" if self.revision else "")


def _odd(revision: str | None) -> bool:
    """Return whether a revision could not be the name of a branch or tag."""
    return revision is not None and (
        revision[0] in "/.-" or revision[-1] in "/." or "//" in revision
    )
