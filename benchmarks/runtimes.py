"""The compact network in other ways than ours: python benchmarks/runtimes.py [--rounds 20] [--compile].

Needs sekd[onnx]; where openvino is installed it is among them, and with --compile, which wants a C++ compiler, torch's.
Prints for each the CPU time of one 640x480 photograph, network only, one thread, median of rounds in which all take
turns, and how many of float32's 1,000 best keypoints are the same to a pixel. ONNX Runtime's int8 is its static
quantization, calibrated on the example photographs (one of which is then measured), but for the detector's layer, which
stays float32; "int8 (sekd)", where the CPU has AVX2, is what `sekd extract` runs.
"""

import argparse
import copy
import importlib
import importlib.util
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median

import cv2
import numpy as np
import onnxruntime
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor

from sekd_cli.config import DetectionSettings
from sekd_cli.detection import detect
from sekd_cli.device import keep_freed_memory
from sekd_cli.export.onnx import export_onnx
from sekd_cli.networks import CompactNetwork, DenseNetwork
from sekd_cli.networks.folding import fold_batch_norms
from sekd_cli.networks.fusing import fuse
from sekd_cli.networks.inference import inference_network
from sekd_cli.networks.packing import pack_fine_levels
from sekd_cli.networks.precision import possible_precisions
from sekd_cli.networks.weights_file import load_network, packaged_weights

EXAMPLES = Path(__file__).parents[1] / "examples"
CPU = torch.device("cpu")
SETTINGS = DetectionSettings(max_keypoints=1000, threshold=0, nms_radius=2)

Way = Callable[[], Tensor]
"""Runs the network once; returns score logits (H, W)."""


def photographs() -> list[np.ndarray]:
    """The examples, grey, (1, 1, 480, 640) in [0, 1]."""
    paths = sorted(path for path in EXAMPLES.iterdir() if path.suffix in {".jpg", ".png"})
    greys = [cv2.resize(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE), (640, 480)) for path in paths]
    return [grey.astype(np.float32)[None, None] / 255 for grey in greys]


class Calibration(CalibrationDataReader):
    """Feeds photographs to the quantization."""

    def __init__(self, images: list[np.ndarray]) -> None:
        self._images = iter(images)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next one."""
        image = next(self._images, None)
        return None if image is None else {"image": image}


def onnx_way(path: Path, image: np.ndarray) -> Way:
    """ONNX Runtime on a model."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda: torch.from_numpy(session.run(None, {"image": image})[0][0]).logit(eps=1e-6)


def torch_way(network: DenseNetwork, image: np.ndarray, *, autocast: bool = False) -> Way:
    """Torch on a network."""
    batch = torch.from_numpy(image).contiguous(memory_format=torch.channels_last)

    def run() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits: Tensor = network(batch).score_logits[0]
        return logits

    return run


def openvino_way(model: Path, image: np.ndarray, precision: str) -> Way:
    """OpenVINO on a model."""
    openvino = importlib.import_module("openvino")
    hints = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": precision}
    request = openvino.Core().compile_model(str(model), "CPU", hints).create_infer_request()
    return lambda: torch.from_numpy(np.array(request.infer({0: image})[0][0])).logit(eps=1e-6)


def compiled_way(network: DenseNetwork, image: np.ndarray) -> Way:
    """Torch's compiler on a network; says how long the first pass took."""
    run = torch_way(torch.compile(network), image)  # type: ignore[arg-type]  # it returns what it is given
    start = time.monotonic()
    run()
    print(f"torch.compile: {time.monotonic() - start:.0f} s for the first pass of a size", flush=True)
    return run


def plain_bfloat16(network: DenseNetwork) -> DenseNetwork:
    """bfloat16 weights, nothing fused."""
    plain = copy.deepcopy(network).bfloat16()
    plain.get_submodule("detector").float()
    plain.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return plain


def ways(folder: Path, *, compiled: bool) -> dict[str, Way]:
    """By name."""
    network, images = load_network(packaged_weights()), photographs()
    image = images[-1]
    batch = torch.from_numpy(image).contiguous(memory_format=torch.channels_last)
    folded = fold_batch_norms(network)
    assert isinstance(folded, CompactNetwork)
    plain = plain_bfloat16(folded)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        frozen = torch.jit.freeze(torch.jit.trace(plain, batch).eval())  # fuses activations, orders weights beforehand
    exact = inference_network(network, "float32", CPU)
    model, prepared, quantized = (folder / f"{name}.onnx" for name in ("float32", "prepared", "int8"))
    export_onnx(network, model, {})
    quant_pre_process(str(model), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        str(prepared),
        str(quantized),
        Calibration(images),
        op_types_to_quantize=["Conv", "Add", "Relu"],
        per_channel=True,
        activation_type=QuantType.QUInt8,  # signed ones take twice the time
        weight_type=QuantType.QInt8,
        nodes_to_exclude=["/network/detector/Conv"],
    )
    own = inference_network(network, "bfloat16", CPU)
    packed = plain_bfloat16(pack_fine_levels(folded))
    further: dict[str, Way] = {"bfloat16, torch.compile": compiled_way(own, image)} if compiled else {}
    if "int8" in possible_precisions(CPU, quantisable=True):
        further |= {"int8 (sekd)": torch_way(inference_network(network, "int8", CPU), image)}
    if importlib.util.find_spec("openvino"):
        further |= {f"OpenVINO, {kind}": openvino_way(model, image, kind) for kind in ("f32", "bf16")}
    return further | {
        "float32": torch_way(exact, image),
        "bfloat16 (sekd)": torch_way(own, image),
        "bfloat16, packed and fused": torch_way(fuse(copy.deepcopy(packed)), image),
        "bfloat16, only packed": torch_way(packed, image),
        "bfloat16, neither": torch_way(plain, image),
        "float32, not fused": torch_way(folded.to(memory_format=torch.channels_last), image),
        "bfloat16, traced and frozen": lambda: frozen(batch)[0][0],
        "bfloat16 by autocast": torch_way(folded, image, autocast=True),
        "ONNX Runtime, float32": onnx_way(model, image),
        "ONNX Runtime, int8": onnx_way(quantized, image),
    }


def same_keypoints(logits: Tensor, exact: Tensor) -> float:
    """Share of the keypoints of `exact` that `logits` have within a pixel."""
    one, other = (detect(values, SETTINGS)[0] for values in (logits, exact))
    return float((torch.cdist(other, one).amin(dim=1) < 1).float().mean())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        chosen = ways(Path(folder), compiled=options.compile)
        seconds: dict[str, list[float]] = {name: [] for name in chosen}
        for turn in range(options.rounds + 1):
            for name, run in chosen.items():
                start = time.process_time()
                run()
                if turn:
                    seconds[name].append(time.process_time() - start)
        exact = chosen["float32"]()
        for name, run in chosen.items():
            ratio = median(one / other for one, other in zip(seconds[name], seconds["float32"], strict=True))
            same = 100 * same_keypoints(run(), exact)
            print(f"{name:28} {1e3 * median(seconds[name]):6.1f} ms  {ratio:5.2f}  {same:5.1f} % the same keypoints")


if __name__ == "__main__":
    main()
