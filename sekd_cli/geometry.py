"""Everything that moves points or pixels between images, by torch; what a point is stands in `coordinates`.

A map is a 3x3 matrix named by its direction: `target_xy = warp_points(source_xy, target_from_source)`. No other file
writes `align_corners`.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from sekd_cli.coordinates import rescale_points


def warp_points(source_xy: Tensor, target_from_source: Tensor) -> Tensor:
    """Points (B, N, 2) through maps (B, 3, 3); points on the horizon or behind it become inf."""
    homogeneous = F.pad(source_xy, (0, 1), value=1.0) @ target_from_source.transpose(-1, -2)
    depth = homogeneous[..., 2:]
    return torch.where(depth > 1e-8, homogeneous[..., :2] / depth, torch.full_like(homogeneous[..., :2], torch.inf))


def pixel_grid(height: int, width: int, *, device: torch.device | str = "cpu") -> Tensor:
    """Centres of all pixels, (H * W, 2), row by row."""
    y, x = torch.meshgrid(
        torch.arange(height, device=device, dtype=torch.float32),
        torch.arange(width, device=device, dtype=torch.float32),
        indexing="ij",
    )
    return torch.stack((x, y), dim=-1).reshape(-1, 2)


def inside(xy: Tensor, height: int, width: int, border: float = 0.0) -> Tensor:
    """Which points (..., 2) lie between the outermost pixel centres, at least `border` pixels in. (...,) bool."""
    x, y = xy[..., 0], xy[..., 1]
    return (x >= border) & (y >= border) & (x <= width - 1 - border) & (y <= height - 1 - border)


def distances(points: Tensor, others: Tensor) -> Tensor:
    """How far each of points (B, P, 2) is from each of others (B, Q, 2), in pixels, (B, P, Q).

    By x and y apart: on a GPU `torch.cdist` takes a hundred times as long for two dimensions.
    """
    (x, y), (other_x, other_y) = points.unbind(-1), others.unbind(-1)
    return torch.hypot(x[:, :, None] - other_x[:, None], y[:, :, None] - other_y[:, None])


def sample_map(values: Tensor, xy: Tensor, *, map_scale: float = 1.0) -> Tensor:
    """Bilinear samples of a map at points; outside, the nearest border value. Points that are NaN lie in the middle.

    values: (B, C, h, w), a map of an image whose size is `map_scale` times the map's (4 for a map at 1/4).
    xy: (B, N, 2) pixels of that image. Returns (B, C, N).
    """
    height, width = values.shape[-2:]
    on_map = rescale_points(xy, 1.0 / map_scale)
    size = on_map.new_tensor((width, height))
    grid = (2.0 * on_map + 1.0) / size - 1.0
    grid = grid.nan_to_num(nan=0.0).clamp(-4.0, 4.0)  # at NaN, torch's backward on a CPU writes out of bounds
    sampled = F.grid_sample(values, grid[:, None], mode="bilinear", padding_mode="border", align_corners=False)
    return sampled[:, :, 0]


def warp_image(image: Tensor, image_from_view: Tensor, height: int, width: int) -> Tensor:
    """Views of images: the value at a view's pixel p is the image's at `image_from_view` p.

    image: (B, C, H, W); image_from_view: (B, 3, 3). Returns (B, C, height, width); beyond the image its border repeats.
    """
    sizes = image.new_tensor((image.shape[-1], image.shape[-2])).expand(len(image), 2)
    return look_through(image, sizes, image_from_view, height, width)[0]


def look_through(
    image: Tensor,
    sizes: Tensor,
    image_from_view: Tensor,
    height: int,
    width: int,
    *,
    border: float = 0.0,
    displacement: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """`warp_image` of images of different sizes, and which pixels of the views see them, at least `border` pixels in.

    image: (B, C, H, W), of which only the top-left `sizes` (B, 2), widths and heights, are looked at. displacement: of
    places (B, N, 2) of the image, added to those that the views' pixels come to.
    Returns (B, C, height, width) and (B, height, width) bool.
    """
    # a map is a sum of what x and what y add: a third of the time that `warp_points` of a `pixel_grid` takes
    along_x = image_from_view[:, :, 0, None] * torch.arange(width, device=image.device, dtype=image.dtype)
    along_y = image_from_view[:, :, 1, None] * torch.arange(height, device=image.device, dtype=image.dtype)
    along_y += image_from_view[:, :, 2, None]
    depth = along_y[:, 2, :, None] + along_x[:, 2, None]  # (B, height, width)
    seen = depth > 1e-8  # in front of the horizon
    inverse = depth.clamp_(min=1e-8).reciprocal_()
    grid = image.new_empty(*seen.shape, 2)
    positions = [(along_y[:, axis, :, None] + along_x[:, axis, None]).mul_(inverse) for axis in (0, 1)]
    if displacement is not None:
        moved = displacement(torch.stack(positions, dim=-1).flatten(1, 2)).reshape(grid.shape)
        positions = [position + moved[..., axis] for axis, position in enumerate(positions)]
    for axis, position in enumerate(positions):
        last = (sizes[:, axis] - 1)[:, None, None]
        seen &= (position >= border) & (position <= last - border)
        looked_at = torch.minimum(position.clamp_(min=0), last)
        extent = image.shape[3 - axis]
        torch.add(1 / extent - 1, looked_at, alpha=2 / extent, out=grid[..., axis])
    return F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=False), seen


def resize_image(image: Tensor, height: int, width: int) -> Tensor:
    """Bilinear resize of (B, C, H, W), antialiased where it shrinks; consistent with `rescale_points`."""
    shrinks = height < image.shape[-2] or width < image.shape[-1]
    return F.interpolate(image, (height, width), mode="bilinear", align_corners=False, antialias=shrinks)


def halved(values: Tensor, octave: int) -> Tensor:
    """Maps or images (..., H, W) at half their size, `octave` times over: means of cells of 2^octave pixels."""
    if octave == 0:
        return values
    cell = 2**octave
    return F.avg_pool2d(values.flatten(0, -3)[:, None], cell).reshape(
        *values.shape[:-2], values.shape[-2] // cell, values.shape[-1] // cell
    )


def upsample(values: Tensor, factor: int) -> Tensor:
    """Bilinear enlargement of a map (B, C, h, w) by a whole factor; consistent with `sample_map`'s `map_scale`.

    Where a CPU has channels together in memory it goes along rows, then along columns: torch's kernel gives a thread
    whole images, of which there may be but one, and takes its time for few channels.
    """
    if values.device.type != "cpu" or not values.is_contiguous(memory_format=torch.channels_last):
        return F.interpolate(values, scale_factor=float(factor), mode="bilinear", align_corners=False)
    batch, channels, height, width = values.shape
    rows = values.permute(0, 2, 3, 1).reshape(batch * height, 1, width, channels)
    rows = _stretched(rows, (1.0, float(factor))).reshape(batch, height, 1, factor * width * channels)
    columns = _stretched(rows, (float(factor), 1.0)).reshape(batch, factor * height, factor * width, channels)
    return columns.permute(0, 3, 1, 2)


def _stretched(values: Tensor, factors: tuple[float, float]) -> Tensor:
    """(B, h, w, C) -> (B, H, W, C), bilinear."""
    maps = values.permute(0, 3, 1, 2)
    return F.interpolate(maps, scale_factor=factors, mode="bilinear", align_corners=False).permute(0, 2, 3, 1)


def translation(x: Tensor, y: Tensor) -> Tensor:
    """Maps (B, 3, 3) that add (x, y), each (B,)."""
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    return torch.stack((one, zero, x, zero, one, y, zero, zero, one), dim=-1).reshape(-1, 3, 3)


def affinity(rotation: Tensor, scale: Tensor, shear: Tensor, stretch: Tensor) -> Tensor:
    """Maps (B, 3, 3) about the origin: rotate (radians) after scaling, shearing (radians) and stretching x by a factor.

    All parameters (B,); the area is multiplied by scale ** 2.
    """
    zero, one = torch.zeros_like(scale), torch.ones_like(scale)
    cos, sin, root = rotation.cos(), rotation.sin(), stretch.sqrt()
    turn = torch.stack((cos, -sin, zero, sin, cos, zero, zero, zero, one), -1).reshape(-1, 3, 3)
    skew = torch.stack((one, shear.tan(), zero, zero, one, zero, zero, zero, one), -1).reshape(-1, 3, 3)
    size = torch.stack((scale * root, zero, zero, zero, scale / root, zero, zero, zero, one), -1).reshape(-1, 3, 3)
    return turn @ skew @ size


def tilt(x: Tensor, y: Tensor) -> Tensor:
    """Maps (B, 3, 3) with vanishing terms x, y (B,), in 1 / pixel: the perspective part of a homography."""
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    return torch.stack((one, zero, zero, zero, one, zero, x, y, one), dim=-1).reshape(-1, 3, 3)
