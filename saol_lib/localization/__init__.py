"""Where a network looks: score maps, boxes, and what it makes of CutMix-ed pairs."""

from saol_lib.localization.boxes import (
    BoxAccuracy,
    best_centred_box,
    box_accuracy,
    box_iou,
    contour_boxes,
    fixed_box_accuracy,
)
from saol_lib.localization.maps import (
    area_share,
    largest_box,
    localize,
    mass_inside,
    raw_maps,
    score_maps,
    stretch,
    trivial_rows,
)
from saol_lib.localization.pairs import (
    curve_points,
    draw_pairs,
    measure_pairs,
    mix_pairs,
    summarise_pairs,
)

__all__ = [
    "BoxAccuracy",
    "area_share",
    "best_centred_box",
    "box_accuracy",
    "box_iou",
    "contour_boxes",
    "curve_points",
    "draw_pairs",
    "fixed_box_accuracy",
    "largest_box",
    "localize",
    "mass_inside",
    "measure_pairs",
    "mix_pairs",
    "raw_maps",
    "score_maps",
    "stretch",
    "summarise_pairs",
    "trivial_rows",
]
