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
        known = {field.name for field in fields(cls)}
        if not isinstance(values, dict) or not set(values) <= known:
            names = ", ".join(cls.__dataclass_fields__)
            raise ValueError(f"{str(values)[:60]} is no state: give a JSON object with some of {names}")
        return cls(**{name: _frozen(value) for name, value in values.items()})

    @property
    def scene(self) -> tuple:
        """All that the network sees depends on."""
        return self.base, self.source, self.box, self.shift


def _frozen(value):
    return tuple(value) if isinstance(value, list) else value


def check_choices(state: State, size: tuple[int, int], classes: int, overlays: list[str]) -> None:
    """Raise ValueError with one sentence for the first value that is out of range; the pictures are not looked at."""
    height, width = size
    _require(state, "box", _is_box(state.box, width, height), f"x0, y0, x1, y1 in {width} x {height} pixels")

    x0, y0, x1, y1 = state.box
    right, down = (x1 - width, x0), (y1 - height, y0)
    inside = _whole(state.shift, 2) and right[0] <= state.shift[0] <= right[1] and down[0] <= state.shift[1] <= down[1]
    reach = f"{right[0]} to {right[1]} pixels right and {down[0]} to {down[1]} down, so that the patch stays filled"
    _require(state, "shift", inside, reach)

    known = state.k is None or (type(state.k) is int and 0 <= state.k < classes)
    _require(state, "k", known, f"null or a class, 0 to {classes - 1}")
    _require(state, "overlay", state.overlay in overlays, f"one of {', '.join(overlays)}")
    _require(state, "opacity", _is_share(state.opacity), "in 0..1")
    _require(state, "threshold", _is_share(state.threshold) and state.threshold < 1, "in 0..1, below 1")
    _require(state, "scale", state.scale in SCALES, "own or shared")
    _require(state, "colours", state.colours in COLOURS, f"one of {', '.join(COLOURS)}")


def _require(state: State, name: str, fine: bool, wanted: str) -> None:
    if not fine:
        raise ValueError(f"{name}={getattr(state, name)!r} must be {wanted}")


def _is_share(value) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1


def _whole(values, count: int) -> bool:
    return isinstance(values, tuple) and [type(value) for value in values] == [int] * count


def _is_box(box, width: int, height: int) -> bool:
    if not _whole(box, 4):
        return False
    x0, y0, x1, y1 = box
    return 0 <= x0 <= x1 <= width and 0 <= y0 <= y1 <= height
