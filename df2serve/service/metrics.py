"""What Prometheus is told."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from df2serve.service.schemas import ResultInfo

__all__ = ["Metrics"]

_SECONDS = tuple(0.001 * 4**k for k in range(8))
_SHARES = tuple(k / 20 for k in range(1, 20))


class Metrics:
    """All measures of one service, in a registry of their own."""

    def __init__(self) -> None:
        """Start at zero."""
        own = self.registry = CollectorRegistry()
        self._requests = Counter(
            "df2_requests_total", "Requests.", ["route", "status", "model"], registry=own
        )
        self._phases = Histogram(
            "df2_request_seconds", "Time of predictions.", ["phase"], registry=own
        )
        self._rejected = Counter("df2_rejected_total", "Problems.", ["code"], registry=own)
        self._tiles = Counter("df2_tiles_total", "Tiles that were predicted.", registry=own)
        self._tile_seconds = Histogram(
            "df2_tile_seconds",
            "Time on the device per tile; one value per image.",
            buckets=_SECONDS,
            registry=own,
        )
        self._megapixels = Counter("df2_megapixels_total", "Image area predicted.", registry=own)
        self._uncertainty = Histogram(
            "df2_uncertainty_score", "U of images.", ["model"], buckets=_SHARES, registry=own
        )
        self._review = Counter(
            "df2_needs_review_total", "Images to be reviewed.", ["model"], registry=own
        )
        self._lost = Counter("df2_workers_lost_total", "Workers that ended.", registry=own)
        self.queue_depth = Gauge("df2_queue_depth", "Images that wait or run.", registry=own)
        self.queue_oldest = Gauge(
            "df2_queue_oldest_seconds", "Age of the oldest image that waits or runs.", registry=own
        )
        self.jobs = Gauge("df2_jobs", "Jobs.", ["state"], registry=own)
        self.heartbeat = Gauge(
            "df2_worker_heartbeat_age_seconds", "Silence of workers.", ["device"], registry=own
        )
        self.resident = Gauge(
            "df2_model_resident_bytes", "Weights in memory.", ["model"], registry=own
        )
        self.load = Gauge(
            "df2_model_load_seconds", "Time that loading took.", ["model"], registry=own
        )

    def request(self, route: str, status: int, model: str) -> None:
        """Count an answer."""
        self._requests.labels(route, str(status), model).inc()

    def rejected(self, code: str) -> None:
        """Count a problem."""
        self._rejected.labels(code).inc()

    def tiles(self, count: int) -> None:
        """Count tiles."""
        if count > 0:
            self._tiles.inc(count)

    def tile_seconds(self, seconds: float) -> None:
        """Take note of the mean time of an image's tiles."""
        self._tile_seconds.observe(seconds)

    def worker_lost(self) -> None:
        """Count a worker that ended."""
        self._lost.inc()

    def result(self, info: ResultInfo) -> None:
        """Take note of a prediction."""
        for phase, seconds in info.timing.model_dump().items():
            self._phases.labels(phase).observe(max(0.0, seconds))
        self._megapixels.inc(info.input.shape[1] * info.input.shape[2] / 1e6)
        if info.quality.uncertainty_score is not None:
            self._uncertainty.labels(info.model.name).observe(info.quality.uncertainty_score)
        if info.quality.needs_review:
            self._review.labels(info.model.name).inc()

    def text(self) -> bytes:
        """Return everything in Prometheus's text format."""
        return generate_latest(self.registry)
