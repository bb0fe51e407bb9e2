"""ONNX models: equal to torch for any size and batch; the recipe of docs/EXPORT.md does what `sekd extract` does."""

import os
import re
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from sekd_cli.config import DetectionSettings
from sekd_cli.errors import MissingExtraError, OutputError
from sekd_cli.export.onnx import AnySizeNetwork, export_onnx
from sekd_cli.extraction import Extractor
from sekd_cli.images import read_image
from sekd_cli.networks import NETWORKS, DenseNetwork
from sekd_cli.networks.weights_file import load_network, packaged_weights

RECIPE = Path(__file__).parents[1] / "docs" / "EXPORT.md"
SIZES = [(1, 64, 96), (3, 128, 64), (2, 33, 47), (1, 5, 3), (1, 1, 1), (1, 240, 320)]  # batch, height, width


def lively_network(name: str) -> DenseNetwork:
    """Untrained, but with statistics of batch norms that are none of the first ones."""
    torch.manual_seed(0)
    network = NETWORKS[name]().train()
    with torch.no_grad():
        for _ in range(3):
            network(torch.rand(2, 1, 128, 128))
    return network.eval()


@pytest.fixture(scope="module", params=list(NETWORKS))
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[DenseNetwork, Any]:
    """A network and a session of its model."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    network = lively_network(request.param)
    path = tmp_path_factory.mktemp("onnx") / "network.onnx"
    export_onnx(network, path, {"weights_sha256": "ab"})
    assert [one.name for one in path.parent.iterdir()] == ["network.onnx"]  # all in one file
    return network, onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(("batch", "height", "width"), SIZES)
def test_the_model_agrees_with_torch(exported: tuple[DenseNetwork, Any], batch: int, height: int, width: int) -> None:
    network, session = exported
    image = torch.rand(batch, 1, height, width, generator=torch.Generator().manual_seed(height))
    with torch.inference_mode():
        expected = AnySizeNetwork(network)(image)
    found = session.run(None, {"image": image.numpy()})
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == tuple(theirs.shape)
        assert np.abs(ours - theirs.numpy()).max() < 1e-4
    assert found[0].shape == (batch, height, width)
    assert found[1].std() > 0.01  # and it says something


def test_whole_multiples_of_the_stride_go_through_the_network_as_they_are(exported: tuple[DenseNetwork, Any]) -> None:
    network, session = exported
    image = torch.rand(1, 1, 2 * network.stride, 3 * network.stride)
    with torch.inference_mode():
        maps = network(image)
    score_map, *descriptor_maps = session.run(None, {"image": image.numpy()})
    np.testing.assert_allclose(score_map, maps.score_map.numpy(), atol=1e-4)
    for ours, theirs in zip(descriptor_maps, maps.descriptor_maps, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-4)


def test_outputs_are_named_by_their_stride_and_metadata_tell_the_rest(exported: tuple[DenseNetwork, Any]) -> None:
    network, session = exported
    [image], outputs = session.get_inputs(), session.get_outputs()
    assert (image.name, image.shape, image.type) == ("image", ["batch", 1, "height", "width"], "tensor(float)")
    maps = {"compact": ["descriptor_map_8", "descriptor_map_4"], "published": ["descriptor_map_4"]}[network.name]
    assert [output.name for output in outputs] == ["score_map", *maps]
    assert outputs[0].shape == ["batch", "height", "width"]
    assert sum(output.shape[1] for output in outputs[1:]) == network.descriptor_dim
    facts = session.get_modelmeta().custom_metadata_map
    assert facts["descriptor_maps"] == ",".join(maps)
    assert float(facts["threshold"]) == network.default_threshold
    assert (facts["network"], facts["weights_sha256"]) == (network.name, "ab")


def test_a_model_is_replaced_only_if_asked_for(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    path = tmp_path / "sekd.onnx"
    path.write_bytes(b"precious")
    with pytest.raises(OutputError, match="--overwrite"):
        export_onnx(lively_network("compact"), path, {})
    assert path.read_bytes() == b"precious"
    export_onnx(lively_network("compact"), path, {}, overwrite=True)
    assert len(path.read_bytes()) > 2_000_000


def test_a_name_that_is_no_text_is_a_name(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.onnx"))
    export_onnx(lively_network("compact"), path, {})
    assert onnx.load_from_string(path.read_bytes()).producer_name == "sekd"


def test_no_kernel_is_computed_in_a_model(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    export_onnx(lively_network("published"), tmp_path / "sekd.onnx", {})
    graph = onnx.load(tmp_path / "sekd.onnx").graph
    stored = {one.name for one in graph.initializer}
    kernels = [node.input[1] for node in graph.node if node.op_type in {"Conv", "ConvTranspose"}]
    assert kernels
    assert stored.issuperset(kernels)


def test_without_onnx_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingExtraError, match=r"sekd\[onnx\]"):
        export_onnx(lively_network("compact"), tmp_path / "sekd.onnx", {})


def detecting_network() -> DenseNetwork:
    """The shipped one; where there is none yet, one that fires here and there."""
    if packaged_weights().exists():
        return load_network(packaged_weights())
    network = lively_network("compact")
    with torch.no_grad():
        network.get_parameter("detector.bias").fill_(-2.9)
        network.get_parameter("detector.weight").mul_(20)
    return network


def test_the_documented_recipe_finds_what_extract_finds(
    tmp_path: Path, examples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    monkeypatch.chdir(tmp_path)
    network = detecting_network()
    export_onnx(network, Path("sekd.onnx"), {})
    recipe = re.search(r"```python\n(.*?)```", RECIPE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert recipe is not None
    namespace: dict[str, Any] = {}
    exec(recipe[1], namespace)

    grey = cv2.imread(str(examples / "china.jpg"), cv2.IMREAD_GRAYSCALE)[:333, :475]  # no multiples of a stride
    keypoints, scores, descriptors = namespace["extract"](grey, max_keypoints=500)
    cv2.imwrite("grey.png", grey)
    extractor = Extractor(network, DetectionSettings(max_keypoints=500), device=torch.device("cpu"))
    expected = extractor.extract([extractor.prepare(read_image(Path("grey.png")))])[0]

    assert 400 <= len(keypoints) <= 500
    distances = np.linalg.norm(keypoints[:, None] - expected.keypoints[None], axis=2)
    nearest = distances.argmin(axis=1)
    same = distances.min(axis=1) < 0.01
    assert same.mean() > 0.98  # rounding decides which are the last of the best
    np.testing.assert_allclose(scores[same], expected.scores[nearest[same]], atol=1e-4)
    similarity = (descriptors[same] * expected.descriptors[nearest[same]]).sum(axis=1)
    assert similarity.min() > 0.999

    narrow = grey[100:164, 200:264]  # half of it is padded to twice its width
    cv2.imwrite("narrow.png", narrow)
    expected = extractor.extract([extractor.prepare(read_image(Path("narrow.png")))])[0]
    assert len(expected) > 20
    np.testing.assert_allclose(namespace["extract"](narrow)[0], expected.keypoints, atol=0.01)

    even = namespace["extract"](np.full((60, 80), 128, np.uint8))
    assert [part.shape for part in even] == [(0, 2), (0,), (0, network.descriptor_dim)]
