"""Weights into networks."""

from torch import Tensor, nn


def load_weights(model: nn.Module, weights: dict[str, Tensor], origin: str) -> None:
    """Load weights that must fit exactly; ValueError naming the origin and the first name that does not."""
    own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in weights.items()}
    if wrong := sorted(name for name in own.keys() | given.keys() if own.get(name) != given.get(name)):
        raise ValueError(
            f"the weights of {origin} are another network's: {wrong[0]} differs, and {len(wrong) - 1} more"
        )
    model.load_state_dict(weights)
