"""The models of a worker: opened at the start, loaded when needed, unloaded for want of memory."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import cast

import numpy as np
from pydantic import JsonValue

from df2serve.artifact import Ensemble, load_ensemble
from df2serve.artifact.manifest import ReferenceKind
from df2serve.backends import MemberRunner, open_members
from df2serve.config import Precision, RuntimeConfig
from df2serve.errors import ArtifactNotFoundError, ConfigError, IntegrityError
from df2serve.inference import Predictor
from df2serve.service.schemas import (
    ClassFacts,
    ModelFacts,
    PixelSizeFacts,
    ReferenceFacts,
    ThresholdFacts,
)

__all__ = ["Loaded", "Shelf", "references_of"]

_log = logging.getLogger(__name__)
_CARD_BYTES = 1 << 20


@dataclass(eq=False)
class Loaded:
    """The members of one revision of a model, in one precision."""

    ensemble: Ensemble
    runners: Sequence[MemberRunner]
    bytes: int
    """Size of the weights."""
    used: float
    """When it was used last."""
    seconds: float
    """How long it took to load."""
    users: int = 0
    retired: bool = False
    """It is closed when its last user is done."""
    stack: ExitStack = field(default_factory=ExitStack)


class Shelf:
    """Models by name; may be used from many threads."""

    def __init__(
        self,
        sources: Mapping[str, str],
        *,
        runtime: RuntimeConfig,
        budget: int,
        changed: Callable[[], None],
    ) -> None:
        """Open all models, without their weights.

        Args:
            sources: of the models by name; a name that starts with ``:`` gives way to the
                ensemble's own.
            runtime: where members run.
            budget: bytes of weights that stay loaded.
            changed: called when :meth:`facts` have changed.

        Raises:
            ArtifactError: a model cannot be opened.
            ConfigError: two models have the same name.
        """
        self._runtime = runtime
        self._budget = budget
        self._changed = changed
        self._lock = threading.RLock()
        self._loading = threading.Lock()
        self._sources: dict[str, str] = {}
        self._ensembles: dict[str, Ensemble] = {}
        self._loaded: dict[tuple[str, Precision], Loaded] = {}
        self._states: dict[str, str] = {}
        for given, source in sources.items():
            ensemble = load_ensemble(source)
            name = ensemble.manifest.id if given.startswith(":") else given
            if name in self._sources:
                message = f"two models are called {name}; name one of them as NAME={source}"
                raise ConfigError(message)
            self._sources[name] = source
            self._ensembles[name] = ensemble

    @property
    def default(self) -> str | None:
        """Name of the first model."""
        return next(iter(self._sources), None)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all models."""
        return tuple(self._sources)

    def ensemble(self, name: str) -> Ensemble:
        """Return a model's newest revision that was opened.

        Raises:
            ArtifactNotFoundError: there is no such model.
        """
        with self._lock:
            if name not in self._ensembles:
                message = f"there is no model {name}; choose one of {', '.join(self._ensembles)}"
                raise ArtifactNotFoundError(message)
            return self._ensembles[name]

    @contextmanager
    def borrow(self, name: str, precision: Precision) -> Iterator[Loaded]:
        """Give the loaded members of a model; they stay loaded while the context lasts.

        Raises:
            ArtifactError: there is no such model, or it is damaged.
            BackendError: its members cannot run here.
        """
        loaded = self._acquire(name, precision)
        try:
            yield loaded
        finally:
            with self._lock:
                loaded.users -= 1
                loaded.used = monotonic()
                self._close_if_unused(loaded)

    def refresh(self, name: str) -> None:
        """Look for a new revision; it is loaded and tried before it takes the old one's place.

        Raises:
            ArtifactError: the new revision cannot be used; the old one goes on.
            BackendError: its members cannot run here.
        """
        current = self.ensemble(name)
        found = load_ensemble(self._sources[name])
        precision = found.manifest.inference.precision
        if found.sha256 == current.sha256:
            with self.borrow(name, precision):
                return
        with self._loading:
            fresh = self._load(name, found, precision)
            with self._lock:
                self._retire(name)
                self._ensembles[name] = found
                self._loaded[name, precision] = fresh
                self._states[name] = "loaded"
        _log.info("model %s is now revision %s", name, found.sha256[:12])
        self._changed()

    def is_outdated(self, name: str) -> bool:
        """Whether a model's source holds another revision than the one in use."""
        return load_ensemble(self._sources[name]).sha256 != self.ensemble(name).sha256

    def unload(self, name: str) -> None:
        """Free a model's memory, as soon as nobody uses it.

        Raises:
            ArtifactNotFoundError: there is no such model.
        """
        self.ensemble(name)
        with self._lock:
            self._retire(name)
            self._states[name] = "available"
        self._changed()

    def close(self) -> None:
        """Free all memory."""
        with self._lock:
            for name in self._sources:
                self._retire(name)

    def facts(self) -> tuple[ModelFacts, ...]:
        """Describe all models."""
        with self._lock:
            return tuple(
                _facts(
                    name,
                    ensemble,
                    state=self._states.get(name, "available"),
                    loaded=[loaded for (n, _), loaded in self._loaded.items() if n == name],
                    is_default=name == self.default,
                )
                for name, ensemble in self._ensembles.items()
            )

    def _acquire(self, name: str, precision: Precision) -> Loaded:
        if (loaded := self._take(name, precision)) is not None:
            return loaded
        with self._loading:
            if (loaded := self._take(name, precision)) is not None:
                return loaded
            ensemble = self.ensemble(name)
            self._say(name, "loading")
            try:
                loaded = self._load(name, ensemble, precision)
            except BaseException:
                self._say(name, "failed")
                raise
            with self._lock:
                loaded.users = 1
                self._loaded[name, precision] = loaded
            self._say(name, "loaded")
            self._make_room()
            return loaded

    def _take(self, name: str, precision: Precision) -> Loaded | None:
        with self._lock:
            loaded = self._loaded.get((name, precision))
            if loaded is not None:
                loaded.users += 1
            return loaded

    def _load(self, name: str, ensemble: Ensemble, precision: Precision) -> Loaded:
        """Load the members and predict a tile of checks with each of them, once."""
        started = monotonic()
        with ExitStack() as stack:
            runners = stack.enter_context(
                open_members(
                    ensemble,
                    runtime=self._runtime,
                    precision=precision,
                    tile_shape=ensemble.manifest.tile_shape,
                )
            )
            # an image without contrast has no normalization of its own
            tile = np.indices(ensemble.manifest.tile_shape).sum(axis=0) % 2
            image = np.stack([tile] * ensemble.manifest.num_channels).astype(np.uint8)
            config = ensemble.manifest.inference.updated(views=1)
            with Predictor(
                ensemble, config=config, runtime=self._runtime, runners=runners
            ) as predictor:
                predictor.predict(image, axes="CYX")
            seconds = monotonic() - started
            _log.info("loaded model %s in %.1f s", name, seconds)
            size = sum(
                ensemble.manifest.files[f"{member.folder}/model.safetensors"].bytes
                for member in ensemble.manifest.members
            )
            return Loaded(
                ensemble=ensemble,
                runners=runners,
                bytes=size,
                used=monotonic(),
                seconds=seconds,
                stack=stack.pop_all(),
            )

    def _make_room(self) -> None:
        """Unload what was unused for longest while there is more than the budget."""
        with self._lock:
            idle = sorted(
                ((key, loaded) for key, loaded in self._loaded.items() if not loaded.users),
                key=lambda item: item[1].used,
            )
            for key, loaded in idle:
                if sum(other.bytes for other in self._loaded.values()) <= self._budget:
                    return
                _log.info("unloading model %s for want of memory", key[0])
                del self._loaded[key]
                loaded.stack.close()
                if not any(name == key[0] for name, _ in self._loaded):
                    self._states[key[0]] = "available"
        self._changed()

    def _retire(self, name: str) -> None:
        for key in [key for key in self._loaded if key[0] == name]:
            loaded = self._loaded.pop(key)
            loaded.retired = True
            self._close_if_unused(loaded)

    def _close_if_unused(self, loaded: Loaded) -> None:
        if loaded.retired and not loaded.users:
            loaded.stack.close()

    def _say(self, name: str, state: str) -> None:
        with self._lock:
            self._states[name] = state
        self._changed()


def _facts(
    name: str, ensemble: Ensemble, *, state: str, loaded: list[Loaded], is_default: bool
) -> ModelFacts:
    manifest = ensemble.manifest
    size = manifest.pixel_size_um
    threshold = ensemble.calibration.threshold("u")
    return ModelFacts(
        name=name,
        is_default=is_default,
        id=manifest.id,
        title=manifest.name,
        description=manifest.description,
        license=manifest.license,
        card=_card(ensemble),
        revision=ensemble.sha256[:12],
        sha256=ensemble.sha256,
        state=state,
        resident_bytes=sum(item.bytes for item in loaded),
        load_seconds=max((item.seconds for item in loaded), default=None),
        channels=tuple(channel.name for channel in manifest.channels),
        classes=tuple(ClassFacts(name=c.name, color=c.color) for c in manifest.classes),
        pixel_size_um=size and PixelSizeFacts(y_um=size.y_um, x_um=size.x_um),
        normalization=manifest.normalization.model_dump(mode="json"),
        tile_shape=manifest.tile_shape,
        zoom_out=manifest.zoom_out,
        members=len(ensemble),
        has_distance=manifest.has_distance,
        config=cast("dict[str, JsonValue]", manifest.inference.model_dump(mode="json")),
        threshold=threshold
        and ThresholdFacts(
            value=threshold.value,
            source=threshold.kind,
            references=threshold.references,
            meaning=threshold.meaning,
        ),
        references=references_of(ensemble),
        has_example="test/input.npy" in manifest.files,
    )


def references_of(ensemble: Ensemble) -> ReferenceFacts | None:
    """Return what U compares with: held-out images where there are any."""
    kinds: tuple[ReferenceKind, ...] = ("held_out", "out_of_fold")
    for kind in kinds:
        if scores := ensemble.calibration.reference_scores("u", kind):
            return ReferenceFacts(source=kind, scores=tuple(sorted(scores)))
    return None


def _card(ensemble: Ensemble) -> str | None:
    """Return the model card, if the ensemble lists one that is a text of sensible length."""
    entry = ensemble.manifest.files.get("README.md")
    if entry is None or entry.bytes > _CARD_BYTES:
        return None
    try:
        return ensemble.read("README.md").decode("utf-8", errors="replace")
    except IntegrityError:
        return None
