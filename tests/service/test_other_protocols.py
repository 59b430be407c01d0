"""The Open Inference Protocol and the addresses of model hosts give what predict gives."""

import base64
import io
import json

import numpy as np
import pytest
import tifffile

from df2serve.service.problems import Code

INFER = "/v2/models/tiny/infer"
LENGTH = "Inference-Header-Content-Length"


def pattern(height, width):
    rows, columns = np.mgrid[:height, :width]
    return ((rows * 7 + columns * 3) % 251).astype(np.uint8)


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def tensor(array, datatype="UINT8", **more):
    return {"name": "image", "shape": array.shape, "datatype": datatype, **more}


def arrays(answer):
    """Read an answer by the words of the protocol alone."""
    assert answer.status_code == 200, answer.text
    length = int(answer.headers.get(LENGTH, len(answer.content)))
    body, tail = json.loads(answer.content[:length]), answer.content[length:]
    kinds = {"UINT8": "<u1", "FP32": "<f4", "UINT16": "<u2"}
    found = {}
    for output in body["outputs"]:
        if "data" in output:
            values = np.array(output["data"], kinds[output["datatype"]])
        else:
            size = output["parameters"]["binary_data_size"]
            values, tail = np.frombuffer(tail[:size], kinds[output["datatype"]]), tail[size:]
        found[output["name"]] = values.reshape(output["shape"])
    assert tail == b""
    return found, body


@pytest.fixture(scope="module")
def image():
    return pattern(50, 70)


@pytest.fixture(scope="module")
def expected(service, image):
    answer = service.post("/v1/models/tiny/predict", params={"format": "npz"}, content=npy(image))
    with np.load(io.BytesIO(answer.content)) as archive:
        return dict(archive), float(answer.headers["df2-uncertainty"])


def test_what_the_server_and_its_models_are(service, cells) -> None:
    assert service.get("/v2").json()["extensions"] == ["binary_tensor_data"]
    assert service.get("/v2/health/live").json() == {"live": True}
    assert service.get("/v2/health/ready").json() == {"ready": True}
    facts = service.get("/v2/models/tiny").json()
    assert facts["versions"] == [cells.sha256[:12]]
    assert facts["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [1, -1, -1]}]
    assert facts["outputs"][2]["shape"] == [2, -1, -1]
    where = f"/v2/models/tiny/versions/{cells.sha256[:12]}"
    assert service.get(where).json() == facts
    for path in ("/v2/models/tiny/ready", f"{where}/ready", "/v2/models/pairs/ready"):
        assert service.get(path).json()["ready"] is True
    for path in ("/health", "/ping"):
        assert service.get(path).json()["status"] == "ok"


@pytest.mark.parametrize("nested", [True, False])
def test_tensors_as_json(service, image, expected, nested) -> None:
    stack = image[None]
    data = stack.tolist() if nested else stack.ravel().tolist()
    answer = service.post(INFER, json={"id": "7", "inputs": [tensor(stack, data=data)]})
    found, body = arrays(answer)
    assert answer.headers["content-type"] == "application/json"
    assert (body["id"], body["model_name"]) == ("7", "tiny")
    assert body["parameters"]["uncertainty_score"] == expected[1]
    assert body["parameters"]["needs_review"] is (expected[1] >= 0.9)
    assert set(found) == set(expected[0])
    for name, array in expected[0].items():
        assert np.array_equal(found[name], array), name


def post_binary(service, array, datatype, path=INFER, **more):
    content = array.tobytes()
    inputs = [tensor(array, datatype, parameters={"binary_data_size": len(content)})]
    head = json.dumps({"inputs": inputs, **more}).encode()
    headers = {LENGTH: str(len(head)), "Content-Type": "application/octet-stream"}
    return service.post(path, content=head + content, headers=headers)


def test_tensors_as_bytes(service, image, expected, cells) -> None:
    path = f"/v2/models/tiny/versions/{cells.sha256[:12]}/infer"
    answer = post_binary(
        service, image[None], "UINT8", path, parameters={"binary_data_output": True}
    )
    assert answer.headers["content-type"] == "application/octet-stream"
    found, body = arrays(answer)
    assert all("data" not in output for output in body["outputs"])
    for name, array in expected[0].items():
        assert np.array_equal(found[name], array), name


def test_what_is_asked_for_is_answered_as_asked(service, image) -> None:
    asked = [{"name": "labels", "parameters": {"binary_data": True}}, {"name": "mask"}]
    real = image.astype("<f4")  # rows and columns alone
    answer = post_binary(
        service, real, "FP32", outputs=asked, parameters={"instances": "components", "tta": "none"}
    )
    found, body = arrays(answer)
    assert [output["name"] for output in body["outputs"]] == ["labels", "mask"]
    assert ["data" in output for output in body["outputs"]] == [False, True]
    query = {"outputs": "labels", "instances": "components", "tta": "none"}
    direct = service.post("/v1/models/tiny/predict", params=query, content=npy(real))
    assert np.array_equal(found["labels"], tifffile.imread(io.BytesIO(direct.content)))


def test_bad_tensors(service, image) -> None:
    def refused(answer, code):
        body = answer.json()
        assert (answer.status_code, body["code"]) == (code.status, code.slug), body
        assert body["error"] == body["detail"]

    def post(path=INFER, **request):
        return service.post(path, **request)

    data = image.ravel().tolist()
    refused(post("/v2/models/other/infer", json={}), Code.MODEL_NOT_FOUND)
    refused(post("/v2/models/tiny/versions/1/infer", json={}), Code.MODEL_NOT_FOUND)
    refused(post(content=b"{"), Code.MALFORMED_REQUEST)
    for inputs in (
        [],
        [tensor(image)],
        [tensor(image, data=data[:-1])],
        [tensor(image, data=["a"])],
        [tensor(image, data=[[1], [2, 3]])],
        [tensor(image, data=[-1, *data[1:]])],
        [tensor(image, "BYTES", data=data)],
        [tensor(image[None, None], data=data)],
        [tensor(image, parameters={"binary_data_size": 1})],
    ):
        refused(post(json={"inputs": inputs}), Code.BAD_PARAMETER)
    refused(post(json={"inputs": [tensor(image, data=data)], "parameters": {"tiel": 1}}),
            Code.BAD_PARAMETER)  # fmt: skip
    short = {"inputs": [tensor(image, parameters={"binary_data_size": image.size})]}
    refused(post(json=short), Code.MALFORMED_REQUEST)
    headers = {LENGTH: "99999"}
    refused(post(content=b"{}", headers=headers), Code.MALFORMED_REQUEST)
    wide = np.zeros((4, 40, 40), np.uint8)
    answer = post_binary(service, wide, "UINT8", "/v2/models/pairs/infer")
    refused(answer, Code.CHANNEL_MISMATCH)


@pytest.mark.parametrize("path", ["/", "/predict", "/invocations"])
def test_hosts_of_models(service, image, path) -> None:
    content = npy(image)
    request = {
        "inputs": base64.b64encode(content).decode(),
        "parameters": {"tta": "none", "name": "a.npy", "outputs": ["mask", "uncertainty"]},
    }
    answer = service.post(path, json=request)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    for output in ("mask", "uncertainty"):
        query = {"outputs": output, "tta": "none", "name": "a.npy"}
        direct = service.post("/v1/models/tiny/predict", params=query, content=content)
        assert base64.b64decode(body["outputs"][output]) == direct.content
    assert str(body["result"]["quality"]["uncertainty_score"]) == direct.headers["df2-uncertainty"]


def test_bad_invocations(service) -> None:
    for inputs in ("%%%", base64.b64encode(b"no image").decode(), "http://127.0.0.1:9/a.tif"):
        assert service.post("/invocations", json={"inputs": inputs}).status_code in (415, 422)
    image = base64.b64encode(npy(pattern(40, 40))).decode()
    request = {"inputs": image, "parameters": {"tiel": 3}}
    assert service.post("/invocations", json=request).json()["code"] == "bad_parameter"
