"""Networks by name, their weights, what they cost, and SAOL's peers."""

from saol_lib.networks.abn import ABN
from saol_lib.networks.backbones import Backbone, Scaling, build_backbone, check_backbone, input_scaling
from saol_lib.networks.build import build_model
from saol_lib.networks.counting import multiply_adds
from saol_lib.networks.enlarge import enlarge
from saol_lib.networks.shakedrop import ShakeDrop, add_shakedrop
from saol_lib.networks.weights import find_weights, load_weights, read_weights, start_from, weights_fingerprint

__all__ = [
    "ABN",
    "Backbone",
    "Scaling",
    "ShakeDrop",
    "add_shakedrop",
    "build_backbone",
    "build_model",
    "check_backbone",
    "enlarge",
    "find_weights",
    "input_scaling",
    "load_weights",
    "multiply_adds",
    "read_weights",
    "start_from",
    "weights_fingerprint",
]
