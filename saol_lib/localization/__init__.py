"""Where a network looks: score maps, boxes, and what it makes of CutMix-ed pairs."""

from saol_lib.localization.accuracy import GRID, BoxAccuracy, BoxMeter, box_accuracy, contour_boxes
from saol_lib.localization.attention import area_share, mass_inside
from saol_lib.localization.boxes import best_centred_box, box_iou, fixed_box_accuracy
from saol_lib.localization.maps import METHODS, raw_maps, score_maps, stretch
from saol_lib.localization.pairs import (
    PairMeasures,
    attention_split,
    curve_points,
    draw_pairs,
    measure_pairs,
    mix_pairs,
    summarise_pairs,
)
from saol_lib.localization.protocol import Localization, Localizer, largest_box, localize, trivial_rows

__all__ = [
    "GRID",
    "METHODS",
    "BoxAccuracy",
    "BoxMeter",
    "Localization",
    "Localizer",
    "PairMeasures",
    "area_share",
    "attention_split",
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
