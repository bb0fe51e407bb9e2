"""What each precision changes: nothing but the last digits of the maps, and so keypoints by hundredths of a pixel."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from sekd_cli import Sekd
from sekd_cli.errors import UsageError
from sekd_cli.geometry import distances
from sekd_cli.networks import NETWORKS, DenseMaps, DenseNetwork, precision
from sekd_cli.networks.byte_convolutions import can_convolve_bytes
from sekd_cli.networks.inference import dense_function, inference_network
from sekd_cli.networks.precision import (
    has_fast_bytes,
    has_matrix_units,
    has_vnni,
    possible_precisions,
    reads_weights_alike,
    resolve_precision,
)
from sekd_cli.networks.tracing import RECORDING_PAYS, traced
from sekd_cli.networks.weights_file import load_network, packaged_weights

CPU = torch.device("cpu")
EVERY = [
    (name, chosen)
    for name, kind in NETWORKS.items()
    for chosen in possible_precisions(CPU, quantisable=kind.quantisable)
]
OF_COMPACT = [chosen for name, chosen in EVERY if name == "compact"]
LOWER = [both for both in EVERY if both[1] != "float32"]
FARTHEST = {"bfloat16": 0.04, "int8": 0.15}  # from float32, root mean square in deviations
SAME = {"bfloat16": 0.95, "int8": 0.93}  # share of its keypoints, to a pixel


@pytest.mark.parametrize(
    ("cpu", "expected", "in_bytes"),
    [
        ("GenuineIntel avx2 avx512f avx512_vnni avx512_bf16 amx_bf16", "bfloat16", True),
        ("GenuineIntel avx2 avx512f avx512_bf16", "float32", False),
        ("GenuineIntel avx2 avx_vnni", "float32", True),
        ("AuthenticAMD avx2 avx512f avx512_vnni avx512_bf16", "bfloat16", True),
        ("AuthenticAMD avx2 avx512f", "float32", False),
        ("AuthenticAMD avx2", "float32", True),
        ("AuthenticAMD avx", "float32", False),
        ("", "float32", False),
    ],
)
def test_auto_is_what_the_cpu_is_fastest_in(
    cpu: str, expected: str, in_bytes: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for variable in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(precision, "_cpu_words", lambda: frozenset(cpu.split()))
    monkeypatch.setattr(precision, "can_convolve_bytes", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    assert resolve_precision("auto", CPU, quantisable=False) == expected
    assert resolve_precision("auto", CPU, quantisable=True) == ("int8" if in_bytes else expected)
    assert resolve_precision("auto", torch.device("mps"), quantisable=True) == "float32"
    assert resolve_precision("float32", CPU, quantisable=True) == "float32"
    assert not caplog.records
    assert resolve_precision("bfloat16", CPU, quantisable=True) == "bfloat16"
    assert ("ten times as long" in caplog.text) == (expected != "bfloat16"), "who asks for what is slow is told"
    monkeypatch.setattr(precision, "can_convolve_bytes", lambda: False)
    assert resolve_precision("auto", CPU, quantisable=True) == expected
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    assert resolve_precision("auto", CPU, quantisable=True) == "float32"


@pytest.mark.parametrize(
    ("limit", "wide", "narrow"),  # of a CPU with AVX512-VNNI, of one with AVX2-VNNI: bytes are fast, and add up whole
    [
        ("DEFAULT", (True, True), (True, True)),
        ("AVX512_CORE_VNNI", (True, True), (True, False)),
        ("avx512_core_amx", (True, True), (True, False)),
        ("AVX512_CORE", (False, False), (True, False)),
        ("AVX2_VNNI", (True, False), (True, True)),
        ("AVX2_VNNI_2", (True, False), (True, True)),
        ("AVX10_1_512", (True, True), (True, False)),
        ("AVX2", (True, False), (True, False)),
        ("AVX", (False, False), (False, False)),
        ("SSE41", (False, False), (False, False)),
        ("", (True, True), (True, True)),
    ],
)
def test_products_of_bytes_that_onednn_may_not_use_are_none(
    limit: str, wide: tuple[bool, bool], narrow: tuple[bool, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    monkeypatch.setattr(precision, "can_convolve_bytes", lambda: True)
    for words, has in (("avx2 avx512f avx512_vnni", wide), ("avx2 avx_vnni", narrow)):
        monkeypatch.setattr(precision, "_cpu_words", lambda words=words: frozenset(words.split()))
        assert (has_fast_bytes(CPU), has_vnni()) == has


@pytest.mark.parametrize("fault", ["", "gone", "other arguments", "saturates", "sum ignored"])
def test_a_torch_without_convolutions_of_bytes_is_noticed(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not precision._has_bytes(CPU):
        pytest.skip("this one is")
    convolution = torch.ops.onednn.qconv2d_pointwise

    def faulty(*arguments: object, **options: object) -> Tensor:
        if fault == "other arguments":
            raise RuntimeError("onednn::qconv2d_pointwise() Expected a value of type ...")
        found: Tensor = convolution(*arguments, **options)
        if "qaccum" in options:
            return found - 1 if fault == "sum ignored" else found
        return found.clamp(max=2 * 32767) if fault == "saturates" else found

    replaced = SimpleNamespace() if fault == "gone" else SimpleNamespace(qconv2d_pointwise=faulty)
    monkeypatch.setattr(torch.ops, "onednn", replaced)
    assert can_convolve_bytes.__wrapped__() is not bool(fault)


@pytest.mark.parametrize(
    ("capability", "fast"), [("AVX2", True), ("AVX512", False), ("DEFAULT", False), ("new", False)]
)
def test_where_linux_isnt_torch_tells_of_the_cpu(
    capability: str, fast: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.setattr(precision, "Path", lambda path: tmp_path / path.lstrip("/"))
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(precision, "_cpu_words", precision._cpu_words.__wrapped__)
    monkeypatch.setattr(precision, "can_convolve_bytes", lambda: True)
    assert has_fast_bytes(CPU) is fast
    assert ("int8" in possible_precisions(CPU, quantisable=True)) is capability.startswith("AVX")
    assert not has_vnni()
    assert not has_matrix_units()
    assert not reads_weights_alike() or capability.startswith(("DEFAULT", "new"))


@pytest.mark.parametrize(
    ("words", "alike"),
    [
        ("avx2 avx512f avx512_vnni amx_bf16", True),
        ("avx2 avx512f avx512_vnni", False),
        ("avx2 avx_vnni", False),
        ("avx2", True),
    ],
)
def test_which_kernels_read_weights_in_one_order(words: str, alike: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.setattr(precision, "_cpu_words", lambda: frozenset(words.split()))
    assert reads_weights_alike() is alike


@pytest.mark.parametrize(("device", "quantisable"), [(CPU, False), (torch.device("cuda"), True)])
def test_bytes_are_refused_where_there_are_none(device: torch.device, quantisable: bool) -> None:
    with pytest.raises(UsageError, match=r"--precision int8: it takes the compact network and an x86 CPU with AVX2"):
        resolve_precision("int8", device, quantisable=quantisable)


def test_another_precision_is_refused() -> None:
    with pytest.raises(UsageError, match=r"--precision half: give auto, float32"):
        resolve_precision("half", CPU, quantisable=True)


def maps_at(name: str, chosen: str, photograph: Tensor) -> DenseMaps:
    torch.manual_seed(0)
    network = load_network(packaged_weights()) if name == "compact" else NETWORKS[name]().eval()
    network = inference_network(network, chosen, CPU)
    with torch.inference_mode():
        maps: DenseMaps = network(photograph[..., :96, :128])
    return maps


@pytest.mark.parametrize(("name", "chosen"), LOWER)
@pytest.mark.parametrize("matrix_units", [True, False])
def test_a_lower_precision_says_nearly_the_same(
    name: str, chosen: str, matrix_units: bool, photograph: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("inference", "fusing", "precision"):
        monkeypatch.setattr(f"sekd_cli.networks.{module}.has_matrix_units", lambda: matrix_units)
    exact, rounded = maps_at(name, "float32", photograph), maps_at(name, chosen, photograph)
    assert rounded.score_logits.dtype == torch.float32
    pairs = zip(
        (rounded.score_logits, *rounded.descriptor_maps), (exact.score_logits, *exact.descriptor_maps), strict=True
    )
    for one, other in pairs:
        error = (one.float() - other).square().mean().sqrt() / other.std()
        assert 0 < error < FARTHEST[chosen]


@pytest.mark.parametrize("chosen", OF_COMPACT)
def test_every_precision_repeats_itself_bit_by_bit(chosen: str, photograph: Tensor) -> None:
    one, other = maps_at("compact", chosen, photograph), maps_at("compact", chosen, photograph)
    assert torch.equal(one.score_logits, other.score_logits)
    assert all(map(torch.equal, one.descriptor_maps, other.descriptor_maps))


@pytest.mark.parametrize("name", NETWORKS)
def test_in_bfloat16_only_the_detector_and_norms_keep_their_digits(name: str) -> None:
    network = inference_network(NETWORKS[name](), "bfloat16", CPU)
    exact = {module for module in network.modules() if isinstance(module, nn.BatchNorm2d)}
    if not has_matrix_units() or name != "compact":  # those give its digits otherwise: FusedInTwoParts
        exact |= set(network.detector.modules())
    for module in network.modules():
        expected = torch.float32 if module in exact else torch.bfloat16
        assert all(parameter.dtype == expected for parameter in module.parameters(recurse=False))


@pytest.mark.parametrize("chosen", OF_COMPACT[1:])
def test_a_lower_precision_finds_and_describes_the_same_keypoints(chosen: str, examples: Path) -> None:
    """Nearly all keypoints are within a pixel; half of these within 0.1 px, their descriptors alike to 0.99."""
    exact, rounded = (
        Sekd.from_pretrained(device="cpu", precision=name, max_keypoints=500, max_size=320).extract(
            examples / "china.jpg"
        )
        for name in ("float32", chosen)
    )
    distance, nearest = distances(exact.keypoints[None], rounded.keypoints[None])[0].min(dim=1)
    found = distance < 1
    likeness = (exact.descriptors * rounded.descriptors[nearest]).sum(dim=1)[found]
    assert found.float().mean() >= SAME[chosen]
    assert distance[found].median() < 0.1
    assert likeness.quantile(0.05) > 0.99
    torch.testing.assert_close(rounded.descriptors.norm(dim=1), torch.ones(len(rounded)))


@pytest.mark.parametrize(("name", "chosen"), EVERY)
def test_traced_networks_say_the_same_to_the_bit_whatever_the_size(name: str, chosen: str, photograph: Tensor) -> None:
    torch.manual_seed(0)
    network = inference_network(NETWORKS[name](), chosen, CPU)
    graph = traced(network)
    for batch, height, width in ((1, 96, 128), (2, 64, 64), (1, 32, 192)):
        images = (255 * photograph[..., :height, :width]).byte().expand(batch, -1, -1, -1)
        images = images.contiguous(memory_format=torch.channels_last)
        statistics = torch.tensor([[0.4, 0.2]]).expand(batch, -1)
        with torch.inference_mode():
            maps, expected = graph(images, statistics), network(images, statistics)
        assert torch.equal(maps.score_logits, expected.score_logits)
        assert all(map(torch.equal, maps.descriptor_maps, expected.descriptor_maps))


def test_without_tracing_the_network_runs_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.jit, "trace")
    network = NETWORKS["compact"]()
    assert traced(network) is network


@pytest.mark.parametrize("chosen", OF_COMPACT)
def test_only_for_many_images_is_a_network_recorded(chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded: list[DenseNetwork] = []

    def keep(network: DenseNetwork) -> DenseNetwork:
        recorded.append(network)
        return network

    monkeypatch.setattr("sekd_cli.networks.inference.traced", keep)
    network = NETWORKS["compact"]()
    dense_function(network, chosen, CPU, RECORDING_PAYS - 1)
    assert not recorded
    for images in (RECORDING_PAYS, None):
        dense_function(network, chosen, CPU, images)
        assert len(recorded) == 1
        recorded.clear()


def test_matrix_units_that_onednn_may_not_use_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_cpu_words", lambda: frozenset(("GenuineIntel", "amx_bf16", "avx512_bf16")))
    for limit, units in (("AVX512_CORE", False), ("AVX2", False), ("ALL", True), ("AVX10_1_512_AMX", True)):
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
        assert precision.has_matrix_units() is units
