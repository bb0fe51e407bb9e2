"""A network as an ONNX model, for runtimes without torch: grey images in, score map and descriptor maps out.

The model pads its input to the network's stride and cuts the score map again, as extraction does, so it takes images of
any size. What is left to do outside it is told in docs/EXPORT.md.
"""

import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sekd_cli.errors import MissingExtraError
from sekd_cli.networks import DenseNetwork
from sekd_cli.networks.folding import fold_batch_norms
from sekd_cli.new_file import new_file

OPSET = 17  # of 2022: every runtime in use knows it
EXAMPLE_SIZE = 67, 93  # height, width traced: no multiples of any stride, so that padding is part of the model


class AnySizeNetwork(nn.Module):
    """A network that pads: images (B, 1, H, W) of any size -> score map (B, H, W), then each descriptor map."""

    def __init__(self, network: DenseNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Descriptor map i is (B, D_i, ceil(H / stride) * stride / stride_i, ...), not normalised.

        It is wide enough for two strides at least.
        """
        height, width = image.shape[-2:]
        deviation, mean = torch.std_mean(image, dim=(1, 2, 3), correction=0)  # without what is padded
        stride = self.network.stride
        second_column = (width <= stride) * stride  # as LEAST_COLUMNS of extraction; `max` can't be traced
        padded = F.pad(image, (0, -width % stride + second_column, 0, -height % stride), mode="replicate")
        maps = self.network(padded, torch.stack((mean, deviation), dim=1))
        return maps.score_map[:, :height, :width], *maps.descriptor_maps


def descriptor_strides(network: DenseNetwork) -> list[int]:
    """Pixels of the image per pixel of each descriptor map, coarse to fine."""
    with torch.inference_mode():
        maps = network(torch.zeros(1, 1, network.stride, network.stride))
    return [network.stride // one.shape[-1] for one in maps.descriptor_maps]


def export_onnx(network: DenseNetwork, path: Path, metadata: Mapping[str, str], *, overwrite: bool = False) -> None:
    """Write a network as an ONNX model; `metadata` is stored in it beside its name and defaults.

    Input `image` (batch, 1, height, width) float32 in [0, 1], all three dynamic. Outputs: `score_map` (batch, height,
    width), keypoint probabilities, and for each descriptor map `descriptor_map_<stride>`. Raises MissingExtraError
    without the package onnx, OutputError if `path` exists (unless `overwrite`) or can't be written.
    """
    try:
        import onnx  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise MissingExtraError("onnx", "onnx") from error
    strides = descriptor_strides(network)
    outputs = ["score_map", *(f"descriptor_map_{stride}" for stride in strides)]
    facts = {
        "network": network.name,
        "threshold": str(network.default_threshold),
        "nms_radius": str(network.default_nms_radius),
        "scales": ",".join(f"{scale:g}" for scale in network.default_scales),
        "descriptor_dim": str(network.descriptor_dim),
        "descriptor_maps": ",".join(outputs[1:]),
        **metadata,
    }
    with new_file(path, overwrite=overwrite) as temporary, tempfile.TemporaryDirectory() as folder:
        traced = Path(folder) / "traced.onnx"  # torch can't open a file whose name is no text, as `path` may be
        _trace(network, traced, outputs, strides)
        model = onnx.load(traced)
        model.producer_name, model.producer_version = "sekd", metadata.get("sekd_version", "")
        onnx.helper.set_model_props(model, facts)
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, temporary)


def _trace(network: DenseNetwork, path: Path, outputs: list[str], strides: list[int]) -> None:
    dynamic = {"image": {0: "batch", 2: "height", 3: "width"}, "score_map": {0: "batch", 1: "height", 2: "width"}}
    for name, stride in zip(outputs[1:], strides, strict=True):
        dynamic[name] = {0: "batch", 2: f"height_{stride}", 3: f"width_{stride}"}
    module = AnySizeNetwork(fold_batch_norms(network)).eval()
    with warnings.catch_warnings(), torch.inference_mode():
        # The tracing exporter is called old, but is twenty times as fast as its successor and needs no other package.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.utils.export(
            module,
            (torch.rand(2, 1, *EXAMPLE_SIZE),),
            str(path),
            input_names=["image"],
            output_names=outputs,
            dynamic_axes=dynamic,
            opset_version=OPSET,
        )
