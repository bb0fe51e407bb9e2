"""The homography figures as tables and curves."""

from math import isfinite

import numpy as np

from sekd_cli.evaluation.homography import THRESHOLDS
from sekd_cli.evaluation.homography_benchmark import PairResult, groups_of, summarise
from sekd_cli.evaluation.plots import Panel
from sekd_cli.evaluation.tables import Row, Table, mark, number, percent, text

FAILED = 10.0  # pixels; a pair whose corners are further off counts at none of the thresholds


def summary_table(results: dict[str, list[PairResult]]) -> Table:
    """One row a method; the figures of all pairs, and those of each group under its name."""
    rows: list[Row] = []
    for label, pairs in results.items():
        row: Row = {"method": label}
        for group, members in groups_of(pairs).items():
            prefix = "" if group == "all" else f"{group}_"
            row |= {prefix + name: value for name, value in summarise(members).items()}
        rows.append(row)
    columns = (
        text("method", "method"),
        percent("ha", "HA"),
        percent(("ha_ransac", "ha_magsac"), "RANSAC/MAGSAC"),
        percent("illumination_ha", "HA light"),
        percent("viewpoint_ha", "HA view"),
        percent(("ha_ransac@1", "ha_ransac@3", "ha_ransac@5"), "HA@1/3/5"),
        percent(("auc_magsac@1", "auc_magsac@3", "auc_magsac@5"), "AUC@1/3/5"),
        percent(("mma@1", "mma@3", "mma@5"), "MMA@1/3/5"),
        percent("repeatability", "rep."),
        number("localisation", "loc. px", 2),
        number("keypoints", "keypoints"),
        number("matches", "matches"),
    )
    return Table(title="Homography", columns=columns, rows=rows)


def pair_table(results: dict[str, list[PairResult]]) -> Table:
    """One row a pair and method, in the order of the sequences; corner errors are medians over seeds."""
    rows: list[Row] = []
    for label, pairs in results.items():
        for pair in pairs:
            errors = {f"error_{name}": float(np.median(values)) for name, values in pair.corner_errors.items()}
            rows.append(
                {
                    "method": label,
                    "pair": f"{pair.sequence} 1-{pair.image}",
                    **errors,
                    "failed": min(errors.values()) > FAILED,
                    "mma@3": float(pair.matching_accuracy[2]),
                    "repeatability": pair.repeatability,
                    "localisation": pair.localisation if isfinite(pair.localisation) else None,
                    "keypoints": pair.keypoints,
                    "matches": pair.matches,
                }
            )
    columns = (
        text("method", "method"),
        text("pair", "pair"),
        number("error_ransac", "RANSAC px", 2),
        number("error_magsac", "MAGSAC px", 2),
        percent("mma@3", "MMA@3"),
        percent("repeatability", "rep."),
        number("localisation", "loc. px", 2),
        number("matches", "matches"),
        mark("failed", "failed"),
    )
    return Table(title="Pairs", columns=columns, rows=rows)


def panels(table: Table) -> list[Panel]:
    """Homography accuracy and matching accuracy against the threshold, of a `summary_table`."""
    thresholds = [float(threshold) for threshold in THRESHOLDS]
    titles = {
        "ha_ransac": "Homography accuracy (RANSAC)",
        "ha_magsac": "Homography accuracy (MAGSAC)",
        "mma": "Mean matching accuracy",
    }
    return [
        Panel(
            title=title,
            x_label="threshold, pixels",
            y_label="share of pairs" if name != "mma" else "share of matches",
            curves={row["method"]: (thresholds, [row[f"{name}@{t}"] for t in THRESHOLDS]) for row in table.rows},
        )
        for name, title in titles.items()
    ]
