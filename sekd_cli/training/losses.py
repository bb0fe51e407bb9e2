"""What one update asks of one batch: the losses of the detector, of the descriptor, or of both (paper Sec. 3.3)."""

import torch
from torch import Tensor, nn

from sekd_cli.features import sample_descriptors
from sekd_cli.networks import DenseMaps, DenseNetwork
from sekd_cli.networks.precision import mixed_precision
from sekd_cli.training.dataset import PairBatch
from sekd_cli.training.descriptor_update import dual_softmax_loss, hardest_in_batch_loss
from sekd_cli.training.detector_update import draw_targets, focal_loss
from sekd_cli.training.octaves import images_at
from sekd_cli.training.ranking import (
    OwnKeypoints,
    matching_losses,
    own_keypoints,
    position_loss,
    ranking_loss,
)
from sekd_cli.training.repeatability import (
    detector_repeatability,
    frozen_descriptor_loss,
    frozen_detector_loss,
)
from sekd_cli.training.settings import TrainingSettings


def descriptor_losses(
    maps: DenseMaps, batch: PairBatch, own: OwnKeypoints | None, settings: TrainingSettings
) -> dict[str, Tensor]:
    """Tell the points of the pairs apart, and from the network's own keypoints."""
    descriptors = sample_descriptors(maps.descriptor_maps, batch.points, batch.images.shape[-1])
    first, second = descriptors.chunk(2)
    if settings.descriptor_loss == "dual-softmax":
        points = batch.points.chunk(2)
        loss = dual_softmax_loss(
            first,
            second,
            (points[0], points[1]),
            batch.matched,
            scale=settings.similarity_scale,
            safe_radius=settings.safe_radius,
            own=own,
        )
    else:
        loss = hardest_in_batch_loss(first, second, batch.matched, settings.triplet_ratio)
    return {"descriptor": settings.descriptor_weight * loss}


def detector_losses(
    maps: DenseMaps, batch: PairBatch, own: OwnKeypoints | None, settings: TrainingSettings
) -> dict[str, Tensor]:
    """Fire on the labels, on the same points in both views, and most on what will be matched."""
    height, width = batch.images.shape[-2:]
    correspondence = batch.correspondence
    gaussian = settings.detector_target == "gaussian"
    targets = draw_targets(batch.keypoints, height, width, settings.target_sigma if gaussian else 0.0)
    found = focal_loss(maps.score_logits, targets, batch.seen, settings.focal_gamma, balance=not gaussian)
    losses = {"detector": settings.detector_weight * found}
    if settings.detector_repeatability:
        first, second = maps.score_logits.chunk(2)
        first_seen, second_seen = batch.seen.chunk(2)
        losses["repeatability"] = settings.repeatability_weight * detector_repeatability(
            first, second, correspondence, second_seen, first_seen if settings.hidden_share else None
        )
    if own is not None and settings.ranking_weight > 0:
        losses["ranking"] = settings.ranking_weight * ranking_loss(own, correspondence, height, width)
    if own is not None and settings.position_weight > 0:
        losses["position"] = settings.position_weight * position_loss(own, correspondence)
    return losses


def losses_of(
    network: nn.Module, frozen: DenseNetwork | None, batch: PairBatch, part: str, settings: TrainingSettings
) -> dict[str, Tensor]:
    """The losses of one batch by name; their sum is what the update descends.

    part: "both", or "descriptor" or "detector", while `frozen` holds the other still (paper steps B and D).
    """
    device = batch.images.device
    images = batch.images.contiguous(memory_format=torch.channels_last)
    with mixed_precision(device):
        maps: DenseMaps = network(images)
        with torch.no_grad():
            held = frozen(images) if frozen is not None else None
    losses: dict[str, Tensor] = {}
    own: OwnKeypoints | None = None
    if settings.own_keypoints:
        with mixed_precision(device):
            smaller = [network(images_at(batch.images, octave)) for octave in range(1, settings.octaves)]
        own = own_keypoints((maps, *smaller), batch.seen, settings.own_keypoints, settings.label_nms_radius)
    if part in ("both", "descriptor"):
        losses |= descriptor_losses(maps, batch, own, settings)
    if part in ("both", "detector"):
        losses |= detector_losses(maps, batch, own, settings)
    if own is not None and (settings.matching_weight > 0 or settings.selection_weight > 0):
        of_all, of_best = matching_losses(own, batch.correspondence, settings.matching_scale)
        losses |= {"matching": settings.matching_weight * of_all, "selection": settings.selection_weight * of_best}
    if held is not None and part == "descriptor":
        losses["held"] = settings.frozen_detector_weight * frozen_detector_loss(maps.score_logits, held.score_logits)
    if held is not None and part == "detector":
        losses["held"] = settings.frozen_descriptor_weight * frozen_descriptor_loss(
            maps.descriptor_maps, held.descriptor_maps
        )
    return losses
