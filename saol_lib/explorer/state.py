"""What the reader of the page has chosen."""

from dataclasses import dataclass, fields

COLOURS = ("viridis", "cividis")
SCALES = ("own", "shared")


@dataclass(frozen=True)
class State:
    """What the reader chose: with the models and pictures it reproduces everything that is shown."""

    model: str = ""  # its name; empty: the explorer's first
    base: int | str = 0  # the picture below: its number, or an uploaded one as base64 of a file
    source: int | str = 1  # the picture that the patch is cut from
    box: tuple[int, int, int, int] | None = None  # the patch: x0, y0, x1, y1, half-open pixels; None: a first one
    shift: tuple[int, int] = (0, 0)  # how far the second picture is moved under the patch: pixels right and down
    overlay: str | None = None  # "none", "attention", "spatial", "saol", "mask", "cam", "grad_cam"; None: the first
    k: int | None = None  # the class of Y_k; None: the network's first
    opacity: float = 0.9  # of the map's strongest place; weaker ones are more transparent
    scale: str = "own"  # colours from a map's least to its largest value; "shared": one scale for all classes
    colours: str = "viridis"
    threshold: float = 0.5  # of the map stretched to 0..1, below 1; the largest area above it is boxed

    @classmethod
    def of(cls, values: dict) -> "State":
        """A state from foreign JSON; ValueError with one sentence where it is none."""
        known = [field.name for field in fields(cls)]
        if not isinstance(values, dict) or not set(values) <= set(known):
            told = str(values)[:60]
            names = ", ".join(known)
            raise ValueError(f"{told} is no state: give a JSON object with some of {names}")
        frozen = {name: _frozen(value) for name, value in values.items()}
        return cls(**frozen)

    @property
    def scene(self) -> tuple:
        """All that the network sees depends on."""
        return self.base, self.source, self.box, self.shift


def _frozen(value):
    if isinstance(value, list):
        return tuple(value)
    return value


def check_choices(state: State, size: tuple[int, int], classes: int, overlays: list[str]) -> None:
    """Raise ValueError with one sentence for the first value that is out of range; the pictures are not looked at."""
    height, width = size
    is_box = _is_box(state.box, width, height)
    _require(state, "box", is_box, f"x0, y0, x1, y1 in {width} x {height} pixels")
    _check_shift(state, width, height)

    is_class = type(state.k) is int and 0 <= state.k < classes
    is_overlay = state.overlay in overlays
    _require(state, "k", state.k is None or is_class, f"null or a class, 0 to {classes - 1}")
    _require(state, "overlay", is_overlay, f"one of {', '.join(overlays)}")

    below_one = _is_share(state.threshold) and state.threshold < 1
    _require(state, "opacity", _is_share(state.opacity), "in 0..1")
    _require(state, "threshold", below_one, "in 0..1, below 1")
    _require(state, "scale", state.scale in SCALES, "own or shared")
    _require(state, "colours", state.colours in COLOURS, f"one of {', '.join(COLOURS)}")


def _check_shift(state: State, width: int, height: int) -> None:
    """The patch must stay filled: the second picture reaches over all of it."""
    x0, y0, x1, y1 = state.box
    least_right = x1 - width
    least_down = y1 - height
    fine = False
    if _whole(state.shift, 2):
        right, down = state.shift
        fine = least_right <= right <= x0 and least_down <= down <= y0
    reach = f"{least_right} to {x0} pixels right and {least_down} to {y0} down, so that the patch stays filled"
    _require(state, "shift", fine, reach)


def _require(state: State, name: str, fine: bool, wanted: str) -> None:
    if not fine:
        raise ValueError(f"{name}={getattr(state, name)!r} must be {wanted}")


def _is_share(value) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1


def _whole(values, count: int) -> bool:
    if not isinstance(values, tuple) or len(values) != count:
        return False
    return all(type(value) is int for value in values)


def _is_box(box, width: int, height: int) -> bool:
    if not _whole(box, 4):
        return False
    x0, y0, x1, y1 = box
    return 0 <= x0 <= x1 <= width and 0 <= y0 <= y1 <= height
