"""What operators see of a service: traces, logs and measures, as real programs receive them."""

import json
import shutil
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import BytesIO

import numpy as np
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from prometheus_client.parser import text_string_to_metric_families

from df2serve.service.auth import hash_key

pytestmark = pytest.mark.slow
KEY = "s" * 43
TRACE = "0af7651916cd43dd8448eb211c80319c"
METRICS = {
    "df2_requests",
    "df2_request_seconds",
    "df2_queue_depth",
    "df2_queue_oldest_seconds",
    "df2_jobs",
    "df2_tiles",
    "df2_tile_seconds",
    "df2_megapixels",
    "df2_uncertainty_score",
    "df2_needs_review",
    "df2_rejected",
    "df2_worker_heartbeat_age_seconds",
    "df2_model_resident_bytes",
    "df2_model_load_seconds",
}
PROMETHEUS = """
global: {{scrape_interval: 1s}}
scrape_configs:
  - job_name: df2serve
    authorization: {{credentials: {key}}}
    static_configs: [{{targets: ["{target}"]}}]
"""


@pytest.fixture(scope="module")
def collector():
    """An endpoint that speaks OTLP over HTTP; gives its address and the spans that came."""
    spans = []

    class Sink(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                spans.extend(span for scope in resource.scope_spans for span in scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Sink)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", spans
    server.shutdown()
    server.server_close()


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)


def test_traces_logs_and_measures(
    running, ensembles, collector, tmp_path, monkeypatch, capfd
) -> None:
    endpoint, spans = collector
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")
    state = tmp_path / "state"
    state.mkdir()
    values = {
        "models": (str(ensembles / "cells"),),
        "state": state,
        "devices": ("cpu",),
        "log_format": "json",
        "keys": (
            {"name": "ada", "sha256": hash_key(KEY), "scopes": ["predict", "jobs", "metrics"]},
        ),
    }
    image = BytesIO()
    np.save(image, np.arange(8000, dtype=np.uint16).reshape(100, 80))
    headers = {
        "Authorization": f"Bearer {KEY}",
        "traceparent": f"00-{TRACE}-b7ad6b7169203331-01",
        "X-Request-ID": "request-1",
    }
    with running("uvicorn", values) as (client, _):
        place = "/v1/models/tiny/predict"
        assert client.post(place, content=image.getvalue(), headers=headers).status_code == 200
        assert client.post(place, content=b"nonsense", headers=headers).status_code == 415

        text = client.get("/metrics", headers=headers).text
        families = {family.name for family in text_string_to_metric_families(text)}
        assert families >= METRICS
        assert_scraped(client, tmp_path)

        def found():
            return {span.name: span for span in spans if span.trace_id.hex() == TRACE}

        request = f"POST {place.replace('tiny', '{model}')}"
        wait_until(lambda: {request, "decode", "predict", "tiles", "encode"} <= set(found()))
        names = {span.span_id: span.name for span in found().values()}
        parents = {name: names.get(span.parent_span_id) for name, span in found().items()}
        assert parents["tiles"] == parents["encode"] == "predict"
        assert request in {
            span.name
            for span in spans
            if span.parent_span_id.hex() == headers["traceparent"][36:52]
        }

    logged = capfd.readouterr().err
    assert KEY not in logged
    assert hash_key(KEY) not in logged
    lines = [json.loads(line) for line in logged.splitlines() if line.startswith("{")]
    assert any(line.get("request_id") == "request-1" and line["level"] == "INFO" for line in lines)
    assert any(line.get("code") == "unsupported_format" for line in lines)
    assert any(line["logger"].startswith("df2serve.service.worker") for line in lines)
    assert not any("color_message" in line for line in lines)


def assert_scraped(client, folder):
    """Let a Prometheus read the service, where one is installed (apt: prometheus)."""
    program = shutil.which("prometheus")
    if program is None:
        return
    target = str(client.base_url).removeprefix("http://").rstrip("/")
    settings = folder / "prometheus.yml"
    settings.write_text(PROMETHEUS.format(key=KEY, target=target))
    port = int(target.rpartition(":")[2]) + 1
    command = [program, f"--config.file={settings}", f"--storage.tsdb.path={folder / 'tsdb'}"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"]
    query = urllib.parse.quote('sum(df2_requests_total{route="/v1/models/{model}/predict"})')
    process = subprocess.Popen(command)

    def counted():
        try:
            place = f"http://127.0.0.1:{port}/api/v1/query?query={query}"
            result = json.load(urllib.request.urlopen(place))["data"]["result"]
        except OSError:
            return False
        return bool(result) and float(result[0]["value"][1]) == 2

    try:
        wait_until(counted)
    finally:
        process.terminate()
        process.wait(30)
