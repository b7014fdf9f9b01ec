"""Networks by name, their weights, what they cost, and SAOL's peers."""

from saol_lib.networks.backbones import Backbone, build_backbone
from saol_lib.networks.build import build_model
from saol_lib.networks.enlarge import enlarge, multiply_adds
from saol_lib.networks.peers import ABN, ShakeDrop, add_shakedrop
from saol_lib.networks.weights import load_weights

__all__ = [
    "ABN",
    "Backbone",
    "ShakeDrop",
    "add_shakedrop",
    "build_backbone",
    "build_model",
    "enlarge",
    "load_weights",
    "multiply_adds",
]
