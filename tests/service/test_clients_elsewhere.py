"""The service behind nginx, and the script for Fiji in a real ImageJ."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile

import df2serve
from df2serve import errors
from df2serve.inference import predict

pytestmark = pytest.mark.slow
CLIENTS = Path(__file__).parents[2] / "docs/clients"

RUN = """
ij.macro.Interpreter.batchMode = true
def image = ij.IJ.openImage(args[0])
ij.WindowManager.setTempCurrentImage(image)
def script = new File(args[2]).readLines().findAll { !it.startsWith('#@') }.join('\\n')
def values = [service: args[1], model: '', output: args[4], key: '']
new GroovyShell(new Binding(values)).evaluate(script)
def result = ij.WindowManager.getCurrentImage()
assert result.title == "${args[4]} of ${image.title}"
new ij.io.FileSaver(result).saveAsTiff(args[3])
"""


def pattern(height, width):
    rows, columns = np.mgrid[:height, :width]
    return ((rows * 7 + columns * 3) % 251).astype(np.uint8)


@pytest.fixture(scope="module")
def groovy() -> list[str]:
    """The command of Groovy with the classes of ImageJ."""
    places = [Path(sys.prefix) / "foreign/ij.jar", Path("/usr/share/java/ij.jar")]
    jar = next((place for place in places if place.is_file()), None)
    if jar is None or shutil.which("groovy") is None or shutil.which("java") is None:
        pytest.skip("it needs java, groovy and ij.jar ('make foreign' fetches the last)")
    return ["groovy", "-cp", str(jar)]


@pytest.mark.parametrize("output", ["mask", "uncertainty"])
def test_the_script_for_fiji_in_imagej(groovy, address, cells, tmp_path, output) -> None:
    """ImageJ sends its image and shows what a local prediction gives."""
    path, out, run = tmp_path / "my cells.tif", tmp_path / "out.tif", tmp_path / "run.groovy"
    tifffile.imwrite(path, pattern(70, 90).astype(np.uint16) * 100, imagej=True)
    run.write_text(RUN)
    java = Path(shutil.which("java")).resolve().parents[1]
    options = "-Djava.awt.headless=true"
    command = [*groovy, run, path, address, CLIENTS / "df2serve_fiji.groovy", out, output]
    done = subprocess.run(
        command,
        env=os.environ | {"JAVA_HOME": str(java), "JAVA_OPTS": options},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    local = predict(path, ensemble=cells)
    expected = {"mask": local.mask, "uncertainty": local.total}[output]
    assert np.array_equal(tifffile.imread(out), expected)
    assert f"my cells.tif: U = {local.scores.u!r}" in done.stdout + done.stderr


NGINX = """
daemon off; pid {folder}/pid; error_log {folder}/error.log;
events {{}}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  map $http_x_api_key $who {{ default ""; "{key}" ada; }}
  server {{
    listen 127.0.0.1:{port}; client_max_body_size 512m;
    location / {{
      if ($who = "") {{ return 401; }}
      proxy_pass {address}; proxy_http_version 1.1;
      proxy_request_buffering off; proxy_buffering off; proxy_read_timeout 1h;
      proxy_set_header X-API-Key ""; proxy_set_header X-Request-ID $request_id;
    }}
  }}
}}
"""


def test_behind_nginx_that_asks_for_keys(address, cells, tmp_path) -> None:
    if shutil.which("nginx") is None:
        pytest.skip("it needs nginx (apt-get install nginx-light)")
    key, config = "k" * 43, tmp_path / "nginx.conf"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config.write_text(NGINX.format(folder=tmp_path, key=key, port=port, address=address))
    process = subprocess.Popen(["nginx", "-p", tmp_path, "-c", config])
    proxy = f"http://127.0.0.1:{port}"
    try:
        with df2serve.Client(proxy) as client, pytest.raises(errors.ServiceAccessError):
            client.models()
        with df2serve.Client(proxy, api_key=key) as client:
            image = pattern(70, 90)
            result = client.predict(image, probs=True)
            assert np.array_equal(result.probs, predict(image, ensemble=cells).probs)
            told = []
            job = client.submit([pattern(600, 600)])
            assert job.wait(told.append).state == "successful"
            assert len(told) > 2  # events come while they happen
    finally:
        process.terminate()
        process.wait(30)
