"""Mutual nearest neighbours between two sets of descriptors, without ever holding the whole similarity matrix."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sekd_cli.config import MatchingSettings

NO_MATCH = -1
CPU_BLOCK_ROWS = 128  # of the similarity matrix at once: 1 MB at 2048 columns, which stays in a CPU's cache
GPU_BLOCK_VALUES = 1 << 27  # similarities at once: 512 MB, few launches
NOTHING = -math.inf  # similarity where there is no candidate


class _Scan(NamedTuple):
    """What one pass over the similarities leaves; `rest` is of those that are not the largest of their row."""

    column: Tensor  # (N0,) int64, each row's nearest neighbour; of equals the first
    similarity: Tensor  # (N0,) to it
    row_rest: Tensor  # (N0,) the largest of the rest of the row
    column_rest: Tensor  # (N1,) the largest of the rest of the column
    row_sum: Tensor  # (N0,) of exp((similarity - 1) / temperature), and
    column_sum: Tensor  # (N1,) likewise; of no use if there is no temperature


@torch.no_grad()
def match_descriptors(descriptors0: Tensor, descriptors1: Tensor, settings: MatchingSettings) -> tuple[Tensor, Tensor]:
    """Mutual nearest neighbours by cosine similarity, then the filters of `settings` (paper Sec. 3.4).

    descriptors0, descriptors1: (N0, D), (N1, D), rows of unit length, on one device.
    Returns matches0 (N0,) int64, the match of each row of descriptors0 or -1, and scores0 (N0,) float32: the match's
    cosine similarity, or its dual-softmax probability where `settings.temperature` is given; 0 where there is none.

    i and j match if their similarity is the largest of i's row and of j's column. Of equal ones a row takes the lowest
    j, and a column the lowest i of the rows that came to it. A match that has no rival passes the ratio test; one that
    has an equal fails it.
    """
    count0, count1 = descriptors0.shape[0], descriptors1.shape[0]
    device = descriptors0.device
    if count0 == 0 or count1 == 0:
        matches = torch.full((count0,), NO_MATCH, dtype=torch.int64, device=device)
        return matches, torch.zeros(count0, dtype=torch.float32, device=device)
    if device.type == "cpu":
        scan, rows = _scan_on_cpu, CPU_BLOCK_ROWS
    else:
        scan, rows = _scan, max(1, GPU_BLOCK_VALUES // count1)
    found = scan(descriptors0.float(), descriptors1.float(), rows, settings)
    return _decide(found, settings)


@torch.no_grad()
def match_batch(pairs: Sequence[tuple[Tensor, Tensor]], settings: MatchingSettings) -> list[tuple[Tensor, Tensor]]:
    """What `match_descriptors` gives for each of several pairs of descriptors, by few large operations: for GPUs.

    pairs: each (N0, D), (N1, D), all of one D and on one device. They are padded to the largest, so it takes as many
    similarities as there are pairs times the most rows times the most columns.
    """
    most0, most1 = (max(1, *(len(pair[side]) for pair in pairs)) for side in (0, 1))
    own0, there0 = _padded([pair[0] for pair in pairs], most0)
    own1, there1 = _padded([pair[1] for pair in pairs], most1)
    similarities = own0 @ own1.transpose(1, 2)
    similarities.masked_fill_(~(there0[:, :, None] & there1[:, None, :]), NOTHING)
    column = similarities.argmax(dim=2, keepdim=True)
    largest = similarities.gather(2, column)
    row_sum = column_sum = similarities.new_zeros(0)
    if settings.temperature > 0:
        likelihood = ((similarities - 1) / settings.temperature).exp_()
        row_sum, column_sum = likelihood.sum(dim=2).flatten(), likelihood.sum(dim=1).flatten()
    similarities.scatter_(2, column, NOTHING)
    first_columns = torch.arange(len(pairs), device=column.device)[:, None] * most1
    scan = _Scan(  # of all pairs in a row, each with columns of its own
        column=(column[:, :, 0] + first_columns).flatten(),
        similarity=largest.flatten(),
        row_rest=similarities.amax(dim=2).flatten(),
        column_rest=similarities.amax(dim=1).flatten(),
        row_sum=row_sum,
        column_sum=column_sum,
    )
    matches, scores = (values.view(len(pairs), most0) for values in _decide(scan, settings))
    matches = torch.where(matches == NO_MATCH, matches, matches - first_columns)
    return [(matches[index, : len(one)], scores[index, : len(one)]) for index, (one, _) in enumerate(pairs)]


def _padded(parts: Sequence[Tensor], length: int) -> tuple[Tensor, Tensor]:
    """Rows (N_i, D) padded with zeros, (B, length, D) float32, and which are no padding, (B, length) bool."""
    rows = parts[0].new_zeros((len(parts), length, parts[0].shape[1]), dtype=torch.float32)
    there = torch.zeros(rows.shape[:2], dtype=torch.bool, device=rows.device)
    for index, part in enumerate(parts):
        rows[index, : len(part)] = part
        there[index, : len(part)] = True
    return rows, there


def _decide(scan: _Scan, settings: MatchingSettings) -> tuple[Tensor, Tensor]:
    """Matches (N0,) and scores (N0,) of all that a scan left."""
    kept, column_rest = _mutual(scan)
    if settings.ratio < 1:
        rival = torch.maximum(scan.row_rest, column_rest[scan.column])
        kept &= _squared_distance(scan.similarity) < settings.ratio**2 * _squared_distance(rival)
    kept &= scan.similarity >= settings.min_similarity
    scores = scan.similarity
    if settings.temperature > 0:
        likelihood = ((scan.similarity - 1) / settings.temperature).exp()
        scores = (likelihood / scan.row_sum) * (likelihood / scan.column_sum[scan.column])
        kept &= scores >= settings.min_probability
    return scan.column.masked_fill(~kept, NO_MATCH), scores.masked_fill(~kept, 0.0)


@torch.no_grad()
def match_among(
    descriptors0: Tensor,
    descriptors1: Tensor,
    candidates: Iterable[tuple[Tensor, Tensor]],
    settings: MatchingSettings,
) -> tuple[Tensor, Tensor]:
    """What `match_descriptors` gives where few may match, and others are neither neighbours nor rivals.

    descriptors0, descriptors1: (N0, D), (N1 > 0, D) float32, on one device. candidates: which may, rows of both, (K,)
    int64 each, on any device, in parts; all of a row of the first are in one part.
    """
    scan = _nothing_seen(descriptors0, descriptors1)
    for part in candidates:
        row, column = (rows.to(descriptors0.device) for rows in part)
        similarity = (descriptors0[row] * descriptors1[column]).sum(dim=1)
        scan.similarity.scatter_reduce_(0, row, similarity, "amax")
        leads = similarity == scan.similarity[row]
        lowest = torch.full_like(scan.column, len(descriptors1)).scatter_reduce_(0, row[leads], column[leads], "amin")
        scan.column[row] = lowest[row]
        if settings.temperature > 0:
            likelihood = ((similarity - 1) / settings.temperature).exp_()
            scan.row_sum.scatter_add_(0, row, likelihood)
            scan.column_sum.scatter_add_(0, column, likelihood)
        similarity.masked_fill_(column == scan.column[row], NOTHING)
        scan.row_rest.scatter_reduce_(0, row, similarity, "amax")
        scan.column_rest.scatter_reduce_(0, column, similarity, "amax")
    return _decide(scan, settings)


def _nothing_seen(descriptors0: Tensor, descriptors1: Tensor) -> _Scan:
    """A scan's beginning, to be filled in."""
    count0, count1 = len(descriptors0), len(descriptors1)
    return _Scan(
        column=torch.zeros(count0, dtype=torch.int64, device=descriptors0.device),
        similarity=descriptors0.new_full((count0,), NOTHING),
        row_rest=descriptors0.new_full((count0,), NOTHING),
        column_rest=descriptors0.new_full((count1,), NOTHING),
        row_sum=descriptors0.new_zeros(count0),
        column_sum=descriptors0.new_zeros(count1),
    )


def _scan(descriptors0: Tensor, descriptors1: Tensor, block_rows: int, settings: MatchingSettings) -> _Scan:
    """One pass over the similarities on any device, `block_rows` rows at a time.

    Column maxima of the whole matrix are slow (strided), so they are kept up block by block. Only a row's largest can
    match, so of a column it takes just the largest of all others.
    """
    count0, count1 = descriptors0.shape[0], descriptors1.shape[0]
    scan = _nothing_seen(descriptors0, descriptors1)
    buffer = descriptors0.new_empty(min(block_rows, count0), count1)
    for start in range(0, count0, block_rows):
        rows = slice(start, start + block_rows)
        own = descriptors0[rows]
        block = torch.mm(own, descriptors1.T, out=buffer[: len(own)])
        column = block.argmax(dim=1, keepdim=True)
        scan.column[rows] = column[:, 0]
        scan.similarity[rows] = block.gather(1, column)[:, 0]
        if settings.temperature > 0:
            likelihood = ((block - 1) / settings.temperature).exp_()
            scan.row_sum[rows] = likelihood.sum(dim=1)
            scan.column_sum.add_(likelihood.sum(dim=0))
        block.scatter_(1, column, NOTHING)
        if settings.ratio < 1:
            scan.row_rest[rows] = block.amax(dim=1)
        torch.maximum(scan.column_rest, block.amax(dim=0), out=scan.column_rest)
    return scan


def _scan_on_cpu(descriptors0: Tensor, descriptors1: Tensor, block_rows: int, settings: MatchingSettings) -> _Scan:
    """`_scan` by numpy, but for the product.

    Its argmax takes a tenth of the time of torch's; and torch lets go of Python's lock at every slice of a tensor, for
    which threads that match and write then wait for each other, numpy at large operations only.
    """
    count0, count1 = len(descriptors0), len(descriptors1)
    column, similarity = np.empty(count0, np.int64), np.empty(count0, np.float32)
    row_rest, column_rest = np.full(count0, NOTHING, np.float32), np.full(count1, NOTHING, np.float32)
    row_sum, column_sum = np.zeros(count0, np.float32), np.zeros(count1, np.float32)
    buffer, largest = torch.empty(min(block_rows, count0), count1, dtype=torch.float32), np.empty(count1, np.float32)
    for start in range(0, count0, block_rows):
        own = descriptors0[start : start + block_rows]
        rows, within = slice(start, start + len(own)), np.arange(len(own))
        block = torch.mm(own, descriptors1.T, out=buffer[: len(own)]).numpy()
        chosen = block.argmax(axis=1)
        column[rows], similarity[rows] = chosen, block[within, chosen]
        if settings.temperature > 0:
            likelihood = np.exp((block - 1) / np.float32(settings.temperature))
            row_sum[rows] = likelihood.sum(axis=1)
            column_sum += likelihood.sum(axis=0)
        block[within, chosen] = NOTHING
        if settings.ratio < 1:
            row_rest[rows] = block.max(axis=1)
        np.maximum(column_rest, block.max(axis=0, out=largest), out=column_rest)
    return _Scan(*map(torch.from_numpy, (column, similarity, row_rest, column_rest, row_sum, column_sum)))


def _mutual(scan: _Scan) -> tuple[Tensor, Tensor]:
    """Which rows are their column's nearest neighbour, (N0,) bool; and each column's largest rival of such a row."""
    column, similarity, count1 = scan.column, scan.similarity, len(scan.column_rest)
    rows = torch.arange(len(column), device=column.device)
    largest = similarity.new_full((count1,), NOTHING).scatter_reduce_(0, column, similarity, "amax")
    leads = similarity == largest[column]
    last = torch.full((count1,), len(column), dtype=torch.int64, device=column.device)
    first = last.scatter_reduce_(0, column, rows.masked_fill(~leads, len(column)), "amin")
    chosen = rows == first[column]
    column_rest = scan.column_rest.scatter_reduce(0, column, similarity.masked_fill(chosen, NOTHING), "amax")
    return chosen & (similarity >= scan.column_rest[column]), column_rest


def _squared_distance(similarity: Tensor) -> Tensor:
    """Squared Euclidean distance of unit vectors from their cosine similarity; infinite for no candidate."""
    return (2 - 2 * similarity).clamp(min=0)
