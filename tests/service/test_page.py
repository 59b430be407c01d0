"""The page of the service: its files, what they are allowed, and a browser that uses it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient

from df2serve.service import Settings, create_app
from df2serve.service.auth import hash_key
from df2serve.testing import FITTED_SCENE, generate_cells, generate_ood

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "df2serve/service/page"
ASSETS = sorted(PAGE.glob("assets/*"))
MODULES = ROOT / ".venv/foreign/npm/node_modules"
KEY = "k" * 43
VOID = {"br", "col", "hr", "img", "input", "link", "meta"}
TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> TestClient:
    """A service that asks for a key; its workers do not run."""
    keys = ({"name": "ada", "sha256": hash_key(KEY)},)
    return TestClient(create_app(Settings(state=tmp_path_factory.mktemp("state"), keys=keys)))


class Page(HTMLParser):
    """Checks that elements are closed in order, and gathers what they refer to."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.labelled: list[str] = []
        self.addresses: list[str] = []
        self.inline: list[str] = []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        self.ids += [values["id"]] if "id" in values else []
        self.labelled += [values["for"]] if "for" in values else []
        self.labelled += values.get("aria-labelledby", "").split()
        self.addresses += [values[name] for name in ("href", "src") if name in values]
        self.inline += [name for name in values if name == "style" or name.startswith("on")]
        self.inline += ["script"] if tag == "script" and "src" not in values else []
        self.inline += ["style"] if tag == "style" else []
        assert tag != "img" or "alt" in values

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.mark.parametrize("place", ["/", "/docs"])
def test_pages(client, place) -> None:
    answer = client.get(place)  # without a key: it holds nothing of anybody
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(
        part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; ")
    )
    assert policy["default-src"] == "'self'"
    assert policy["img-src"] == "'self' blob:"
    assert "unsafe" not in str(policy)
    assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert answer.headers["cache-control"] == "no-cache"
    page = Page()
    page.feed(answer.text)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert set(page.labelled) <= set(page.ids)
    assert page.inline == []
    for address in page.addresses:
        path, _, fragment = address.partition("#")
        assert path or fragment in page.ids
        if path:
            assert client.get(path).status_code == 200
    assert client.head(place).status_code == 200
    assert client.put(place).json()["code"] == "method_not_allowed"


@pytest.mark.parametrize("path", ASSETS, ids=lambda path: path.name)
def test_assets(client, path) -> None:
    answer = client.get(f"/assets/{path.name}")
    assert answer.content == path.read_bytes()
    assert answer.headers["content-type"].partition(";")[0] == TYPES[path.suffix]
    assert answer.headers["x-content-type-options"] == "nosniff"
    again = client.get(f"/assets/{path.name}", headers={"If-None-Match": answer.headers["etag"]})
    assert again.status_code == 304
    imported = re.findall(r'^import .* from "\./(.*)";$', answer.text, re.MULTILINE)
    assert {*imported} <= {other.name for other in ASSETS}


def test_nothing_comes_from_elsewhere() -> None:
    texts = [path.read_text() for path in (*PAGE.glob("*.html"), *ASSETS)]
    found = {
        address
        for text in texts
        for address in re.findall(r"(?:https?:|url\(|//\w)[^\s\"')]*", text)
    }
    assert found == {"http://www.w3.org/2000/svg"}  # a name, not an address
    assert not any(
        re.search(r"innerHTML|outerHTML|document\.write|\beval\(", text) for text in texts
    )
    assert not any("localStorage" in text or "cookie" in text for text in texts)


@pytest.mark.parametrize("name", ["missing.js", "../index.html", "..%2findex.html", ""])
def test_other_assets(client, name) -> None:
    answer = client.get(f"/assets/{name}")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Few images, one of them none, and large ones of a job that takes a while."""
    few, many = tmp_path / "images/few", tmp_path / "images/many"
    few.mkdir(parents=True)
    many.mkdir()
    for seed in range(3):
        np.save(few / f"ordinary-{seed}.npy", generate_cells(FITTED_SCENE, seed=seed).image[0])
    np.save(few / "blurred.npy", generate_ood("blurred", FITTED_SCENE, seed=2).image[0])
    (few / "zz-broken.tif").write_bytes(b"broken")
    rng = np.random.default_rng(0)
    for number in range(4):
        np.save(many / f"{number}.npy", rng.integers(0, 255, (2000, 2000), dtype=np.uint8))
    return few.parent


@pytest.mark.slow
def test_a_browser_uses_it(ensembles, running, images, tmp_path) -> None:
    browser, node = shutil.which("chromium"), shutil.which("node")
    if browser is None or node is None or not (MODULES / "playwright-core").is_dir():
        pytest.skip("needs chromium, node and 'make foreign'")
    values = {
        "models": (str(ensembles / "cells"),),
        "state": tmp_path / "state",
        "devices": ("cpu",),
        "keys": ({"name": "ada", "sha256": hash_key(KEY)},),
    }
    with running("uvicorn", values) as (client, _):
        client.headers["X-API-Key"] = KEY
        command = [node, Path(__file__).with_name("browse_page.mjs"), browser,
                   str(client.base_url).rstrip("/"), images, KEY]  # fmt: skip
        answer = subprocess.run(
            command, env=os.environ | {"NODE_PATH": str(MODULES)}, capture_output=True, check=False,
            timeout=500,
        )  # fmt: skip
        assert answer.returncode == 0, answer.stderr.decode()
        seen = json.loads(answer.stdout)
        job = f"/v1/jobs/{seen['job']}"
        listed = client.get(f"{job}/ranking").json()["images"]
        items = client.get(f"{job}/results").json()["items"]
        mask = client.get(f"{job}/results/0/mask").content
        paths = client.get("/openapi.json").json()["paths"]
    assert seen["complaints"] == []
    assert seen["stored"] == [[KEY], 0, ""]

    (first,) = (item for item in items if item["name"] == "blurred.npy")
    assert float(seen["u"]) == pytest.approx(first["quality"]["uncertainty_score"], abs=5e-4)
    assert len(seen["told"]) >= 3
    assert re.fullmatch(r"Objects\s+[\d,]+(\s.*)?", seen["objects"], re.DOTALL)
    assert re.fullmatch(r"uncertainty here: [01]\.\d{3}", seen["readout"])
    assert seen["moved"][0] == seen["moved"][1] == "translate(-62.5%, -62.5%) scale(2.25)"
    assert seen["mask"] == ["blurred-mask.tif", hashlib.sha256(mask).hexdigest()]

    assert seen["ranking"] == [row["source"] for row in listed]
    assert seen["verdicts"] == ["review" if row["needs_review"] else "fine" for row in listed]
    assert seen["review"] == seen["verdicts"].count("review")
    assert seen["failures"][0].startswith("zz-broken.tif")
    assert (seen["first"], seen["second"]) == tuple(seen["ranking"][:2])
    assert seen["focused"] == "main"
    assert seen["widths"] == [360] * 4
    assert (seen["bar"], seen["cancelled"]) == (True, "cancelled")
    told = [name for name in seen["operations"] if "/" in name]
    assert sorted(told) == sorted(
        f"{method.upper()}{path}" for path, item in paths.items() for method in item
    )
