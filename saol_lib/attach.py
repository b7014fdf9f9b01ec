"""SAOL on any convolutional classifier: `attach_saol`, and the network it gives, `SAOLNet`.

The user's own forward runs as it is. Forward hooks read the maps that it makes on its way; X_L, where it is made and
pooled by functions alone, is read as the argument of a call. Which maps: `finding`.
"""

import difflib
import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from saol_lib.finding import (
    SQUARE,
    WIDE,
    Call,
    End,
    Recording,
    Spot,
    Use,
    descendants,
    find_end,
    finer_levels,
    is_map,
    maps_before,
    place,
    record,
    shallowest,
    spare,
    spot_given,
    tensor_at,
    version_of,
)
from saol_lib.layers import GAPFC, SAOL, Outputs, SaolOptions
from saol_lib.streams import seeded

HEADS = ("gap", "saol")
LEVELS = 3  # maps that feed SAOL where none is named, as in the paper

log = logging.getLogger(__name__)
_running = threading.local()  # of the forward pass that runs in this thread: .maps, and .listening, a Listening


# --- running ---------------------------------------------------------------------------------------------------------


class Tap:
    """A forward hook, or a pre-hook, that keeps the map which a module gives, or gets, for the SAOLNet that runs.

    clone: keep a copy, since the network changes this map in place later. Outside a SAOLNet's pass it does nothing.
    """

    def __init__(self, name: str, clone: bool) -> None:
        self.name, self.clone = name, clone

    def __call__(self, module: nn.Module, given: tuple, made: Tensor | None = None) -> None:
        maps = getattr(_running, "maps", None)
        if maps is None:
            return
        tensor = given[0] if made is None else made
        maps[self] = tensor.clone() if self.clone else tensor


class FunctionTap:
    """What a call of a function in the backbone's own forward is given, in training (True) and evaluation (False)."""

    def __init__(self, name: str, clone: bool, spots: dict[bool, Spot]) -> None:
        self.name, self.clone, self.spots = name, clone, spots


class Listening(TorchFunctionMode):
    """Keeps the map that a `FunctionTap` tells of, in the pass that runs under this mode."""

    def __init__(self, tap: FunctionTap, training: bool, maps: dict) -> None:
        super().__init__()
        self.tap, self.spot, self.maps = tap, tap.spots[training], maps
        self.counting = self.spot.after is None
        self.calls = 0

    def begin(self) -> None:
        self.counting, self.calls = True, 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if self.counting and function.__name__ == self.spot.function:
            if self.calls == self.spot.number:
                tensor = [*args, *kwargs.values()][self.spot.argument]
                self.maps[self.tap] = tensor.clone() if self.tap.clone else tensor
            self.calls += 1
        return function(*args, **kwargs)


class Begin:
    """A forward hook on the module after which a `Listening` counts calls."""

    def __init__(self, tap: FunctionTap, after: str) -> None:
        self.tap, self.after = tap, after

    def __call__(self, module: nn.Module, given: tuple, made: object) -> None:
        listening = getattr(_running, "listening", None)
        if isinstance(listening, Listening) and listening.tap is self.tap and listening.spot.after == self.after:
            listening.begin()


class SAOLNet(nn.Module):
    """A backbone with a GAP-FC layer, a SAOL, or both.

    body   the backbone; its own forward runs as it is
    taps   where its maps are read, shallow to deep: hooks on its modules, or a `FunctionTap` as the last one; the last
           map is X_L, what the backbone pools
    logits where the backbone's own logits stand in what it returns, in training (True) and evaluation (False), if its
           classifier serves as the GAP-FC layer; else None
    gap    a new GAP-FC layer on X_L, or None
    saol   a SAOL on the maps, or None
    channels, size  those of the images on which the maps were found; other sizes (H, W) may be given
    `forward(images, mask=None)`: (B, C, H, W) to `Outputs`; `mask` as for `SAOL`.
    """

    def __init__(
        self,
        body: nn.Module,
        taps: list[Tap | FunctionTap],
        logits: dict[bool, tuple] | None,
        gap: nn.Module | None,
        saol: SAOL | None,
        channels: int,
        size: tuple[int, int],
    ) -> None:
        super().__init__()
        self.body, self.gap, self.saol = body, gap, saol
        self.taps, self.logits = taps, logits
        self.channels, self.size = channels, size

    def forward(self, images: Tensor, mask: bool | None = None) -> Outputs:
        return self.look(images, mask)[0]

    def look(self, images: Tensor, mask: bool | None = None) -> tuple[Outputs, Tensor]:
        """`forward`, and beside it the last map X_L (B, C, H_L, W_L), which CAM reads."""
        self._check(images)
        made, maps = self.maps(images)
        outputs = self.saol(maps, mask) if self.saol is not None else Outputs()
        if self.gap is not None:
            outputs = outputs._replace(gap_logits=self.gap(maps[-1]))
        elif self.logits is not None:
            outputs = outputs._replace(gap_logits=self._own_logits(made))
        return outputs, maps[-1]

    def maps(self, images: Tensor) -> tuple[object, list[Tensor]]:
        """What the backbone returns for images (B, C, H, W), and the maps (B, C_l, H_l, W_l) it makes on its way."""
        found = {}
        listening = nullcontext()
        if isinstance(self.taps[-1], FunctionTap):
            listening = Listening(self.taps[-1], self.body.training, found)

        outer = getattr(_running, "maps", None), getattr(_running, "listening", None)
        _running.maps, _running.listening = found, listening
        try:
            with listening:
                made = self.body(images)
        finally:
            _running.maps, _running.listening = outer
        for tap in self.taps:
            if tap not in found:
                raise RuntimeError(f"{tap.name!r} was not called in this pass, so it gives no map; name another node")
        return made, [found[tap] for tap in self.taps]

    def _own_logits(self, made: object) -> Tensor:
        logits = tensor_at(made, self.logits[self.body.training])
        if not isinstance(logits, Tensor):
            raise RuntimeError(
                f"the backbone returned a {type(made).__name__}, in which its logits were not looked for"
            )
        return logits

    def _check(self, images: Tensor) -> None:
        if images.ndim != 4 or images.shape[1] != self.channels:
            raise ValueError(f"images have shape {tuple(images.shape)}; expected (B, {self.channels}, H, W)")
        size = self.saol.output_size if self.saol is not None else None
        if size and (size[0] > images.shape[2] or size[1] > images.shape[3]):
            raise ValueError(f"output_size={size} is larger than the images, {tuple(images.shape[2:])}")


class WholeMap(nn.Module):
    """An average pooling whose window was the whole map: pools a map of that size as ever, any other one whole."""

    def __init__(self, pool: nn.AvgPool2d, size: tuple[int, int]) -> None:
        super().__init__()
        self.pool, self.size = pool, size

    def forward(self, x: Tensor) -> Tensor:
        if tuple(x.shape[2:]) == self.size:
            return self.pool(x)
        return x.mean(dim=(2, 3), keepdim=True)


# --- attaching -------------------------------------------------------------------------------------------------------


def attach_saol(
    model: nn.Module,
    nodes: Sequence[str] | None = None,
    num_classes: int | None = None,
    *,
    heads: Sequence[str] = HEADS,
    seed: int | None = None,
    options: SaolOptions | None = None,
    **changes,
) -> SAOLNet:
    """SAOL on any convolutional classifier (torchvision, timm, pytorchcv, your own), whose forward runs untouched.

    nodes: names of the modules whose maps (B, C, H, W) feed SAOL, shallow to deep; the last one must give X_L, what
    the network pools (where it pools nothing, its last map before flattening). None: X_L and two finer levels, each
    at least 1.5 times wider than the next; of each the output of the module least nested, the latest of several.
    Where functions alone make and pool X_L, `F.avg_pool2d(F.relu(self.bn(x)), 4)` say, name the call that pools it
    instead, "avg_pool2d()"; torch.export, torch.compile and threads read it there as well.
    num_classes: None for as many as the network's own classifier gives. That stays as the GAP-FC layer if it gives
    `num_classes`; else a new linear layer takes its place. The modules are shared with `model`, not copied.
    heads: "gap", "saol" or both. seed: of the new layers' first weights.
    options: a `SaolOptions`; changes: single fields of it, by name, separable=True say.
    Returns a network whose `Outputs` have gap_logits, saol_log_probs, attention, ... by name.
    Raises ValueError for unknown or repeated nodes, where X_L is not what is pooled, and where no map can be found.
    """
    plan, body = read_network(model, nodes, num_classes, heads)
    return attached(body, plan, seed, options, **changes)


class Plan(NamedTuple):
    """How output layers go on a network: where its maps are, what of it stays. It holds nothing of the network."""

    wheres: list["Where"]  # shallow to deep; the last one is X_L
    num_classes: int
    heads: tuple[str, ...]
    logits: dict[bool, tuple] | None  # where the network's own ones are, if its classifier serves
    unread: list[str]  # modules that no output needs
    leave_out: bool  # the network runs without those
    device: torch.device
    dtype: torch.dtype
    channels: int  # of the images on which it was found
    size: tuple[int, int]


def read_network(
    model: nn.Module, nodes: Sequence[str] | None, num_classes: int | None, heads: Sequence[str]
) -> tuple[Plan, nn.Module]:
    """The plan for a network (it may be on the meta device), and the network as it runs on images of any size."""
    _check_request(model, nodes, heads)
    found = _find(model)
    ends = [_checked_end(model, recording, num_classes) for recording in found.recordings]
    if num_classes is None:
        num_classes = _own_classes(model, ends)
    own = "gap" in heads and all(_gives(end, num_classes) for end in ends)

    wheres = _choose(model, nodes, found.recordings, ends)
    unread = [] if own else _only_after(found, ends)
    plan = Plan(
        wheres,
        num_classes,
        tuple(heads),
        _logits(found.recordings, ends) if own else None,
        unread,
        bool(unread) and _runs_without(found, unread),
        _device(model),
        ends[0].last.tensor.dtype,
        found.channels,
        found.size,
    )
    return plan, found.body


def attached(body: nn.Module, plan: Plan, seed: int | None, options: SaolOptions | None, **changes) -> SAOLNet:
    """The network with output layers as planned, in the mode that it is in."""
    channels = [where.channels for where in plan.wheres]
    with seeded(seed, "head"):
        saol = SAOL(channels, plan.num_classes, options, **changes) if "saol" in plan.heads else None
    with seeded(seed, "gap"):  # an own stream: the same first weights whatever SAOL's options are
        new_gap = "gap" in plan.heads and plan.logits is None
        gap = GAPFC(channels[-1], plan.num_classes) if new_gap else None
    for layer in (saol, gap):
        if layer is not None:
            layer.train(body.training)
            layer.to(device=plan.device, dtype=plan.dtype)

    training = body.training
    body = _without(body, plan.unread, plan.leave_out)
    taps = [_tap(body, where) for where in plan.wheres]
    net = SAOLNet(body, taps, plan.logits, gap, saol, plan.channels, plan.size)
    net.training = training  # and not net.train(), which would undo frozen normalisations
    return net


def find_nodes(model: nn.Module) -> tuple[str, ...]:
    """The nodes that `attach_saol` chooses by itself, shallow to deep: up to two finer levels and X_L."""
    _check_request(model, None, HEADS)
    found = _find(model)
    ends = [_checked_end(model, recording, None) for recording in found.recordings]
    return tuple(where.name for where in _choose(model, None, found.recordings, ends))


def _device(model: nn.Module) -> torch.device:
    tensors = [*model.parameters(), *model.buffers()]
    return tensors[0].device if tensors else torch.device("cpu")


def _logits(recordings: list[Recording], ends: list[End]) -> dict[bool, tuple]:
    found = {recording.training: end.path for recording, end in zip(recordings, ends, strict=True)}
    return {mode: found.get(mode, ends[0].path) for mode in (True, False)}


def _check_request(model: nn.Module, nodes: Sequence[str] | None, heads: Sequence[str]) -> None:
    if isinstance(heads, str) or not heads or not set(heads) <= set(HEADS):
        raise ValueError(f"heads={heads!r} must name one or both of {HEADS}; build_model also takes ('abn',)")
    if isinstance(model, SAOLNet):
        raise ValueError("this network has its output layers already; attach SAOL to the plain backbone")
    wrapped = type(model).__name__
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise ValueError(f"this network is wrapped in {wrapped}: attach SAOL to its .module, then wrap the result")
    if hasattr(model, "_orig_mod"):
        raise ValueError("this network is compiled: attach SAOL to its ._orig_mod, then compile the result")
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError(f"{wrapped} is a scripted network, which runs no hooks: attach SAOL to the Python module")
    if not isinstance(model, nn.Module):
        raise ValueError(f"model is of type {wrapped}; expected an nn.Module, a convolutional classifier")
    if isinstance(nodes, str):
        raise ValueError(f"nodes={nodes!r} must be a list of names")
    if nodes is not None and (not nodes or len(set(nodes)) < len(nodes)):
        raise ValueError(f"nodes={list(nodes)}: name at least one block, and none twice")


# --- finding out how the network runs --------------------------------------------------------------------------------


class Found(NamedTuple):
    """How a network was made to run; its recording in evaluation and, where it takes images alone, in training."""

    body: nn.Module
    channels: int
    size: tuple[int, int]
    recordings: list[Recording]
    real: bool


def _find(model: nn.Module) -> Found:
    """Record the network on a wide image; where it refuses that, on a square one of its own size."""
    squares = [(side, side) for side in SQUARE]
    errors = []
    for real in (False, True):
        for both in (True, False):
            if found := _try(model, [WIDE], real, both, errors):
                return found
            if found := _try(model, squares, real, both, errors):
                return _widened(found)
        if not any(_wants_numbers(error) for error in errors):
            break
    why = str(errors[0]).strip().split("\n")[0]
    raise ValueError(
        f"{type(model).__name__} runs on no image (B, C, H, W) of the sizes tried ({type(errors[0]).__name__}: "
        f"{why}); its forward must take a batch of images alone"
    )


def _wants_numbers(error: Exception) -> bool:
    """Whether a pass without numbers failed since the network decides by them, or brings tensors that have some."""
    return isinstance(error, NotImplementedError) or "meta" in str(error).lower()


def _try(
    model: nn.Module, sizes: Sequence[tuple[int, int]], real: bool, both: bool, errors: list[Exception]
) -> Found | None:
    """The first size and number of channels with which the network runs, in evaluation or in both modes."""
    modes = (False, True) if both else (False,)
    for size in sizes:
        for channels in _channels_to_try(model):
            recordings = [Recording(size, training) for training in modes]
            trial = spare(model, real=real)
            try:
                for recording in recordings:
                    record(recording, trial, channels)
            except Exception as error:
                errors.append(error)
                if not real and _wants_numbers(error):
                    return None
                if _took_image(model, recordings[0]):
                    break
                continue
            return Found(model, channels, size, recordings, real)
    return None


def _took_image(model: nn.Module, recording: Recording) -> bool:
    """Whether the image's number of channels was right: a convolution has given a map."""
    return any(isinstance(model.get_submodule(call.name), nn.Conv2d) for call in recording.calls)


def _channels_to_try(model: nn.Module) -> list[int]:
    """Of an image: 3, 1, then what the network's convolutions take."""
    taken = [module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d)]
    return list(dict.fromkeys([3, 1, *taken[:2], 4, 2]))


def _widened(found: Found) -> Found:
    """The same on a wide image, where the network takes it, or does so once its last pooling pools any map whole."""
    side = found.size[0]
    body = _pooling_whole(found)
    wide = _try(body, [(side, 2 * side)], found.real, len(found.recordings) == 2, [])
    if wide is None:
        log.warning("%s takes images of %d x %d pixels alone", type(body).__name__, side, side)
    return wide or found


def _pooling_whole(found: Found) -> nn.Module:
    """The network; if the window of its last pooling is the whole map, made to pool maps of any size whole."""
    recording = found.recordings[0]
    try:
        last = find_end(recording, None).last.tensor
    except ValueError:
        return found.body
    for name, call in recording.last_calls().items():
        module = found.body.get_submodule(name)
        whole = call.made.tensor.shape[2:] == (1, 1) and call.given and place(call.given[0]) == place(last)
        if whole and type(module) is nn.AvgPool2d:
            return replaced(found.body, name, WholeMap(module, tuple(last.shape[2:])))
    return found.body


def replaced(model: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """The network with another module at `name`: those above it are copies, all others are shared with `model`."""
    first, _, rest = name.partition(".")
    shell = type(model).__new__(type(model))
    for key, value in vars(model).items():
        shell.__dict__[key] = value.copy() if isinstance(value, dict) else value
    child = model._modules[first]
    shell._modules[first] = replaced(child, rest, module) if rest else module
    return shell


# --- choosing maps ---------------------------------------------------------------------------------------------------


class Where(NamedTuple):
    """Where a map is read: at the output, or the input, of a module; or in a function's call, in both modes."""

    name: str
    of_input: bool
    clone: bool
    channels: int
    spots: dict[bool, Spot] | None = None


def _checked_end(model: nn.Module, recording: Recording, num_classes: int | None) -> End:
    kind = type(model).__name__
    try:
        end = find_end(recording, num_classes)
    except ValueError as error:
        raise ValueError(f"{kind}: {error}; attach SAOL to a convolutional classifier") from None
    if not is_map(end.last.tensor, recording.size):
        shape = tuple(end.last.tensor.shape[1:])
        raise ValueError(
            f"{kind} pools its last map with the channels at the end, {shape} for one image; SAOL reads maps "
            "(channels, H, W): permute the map before the pooling, by a module of its own"
        )
    return end


def _own_classes(model: nn.Module, ends: list[End]) -> int:
    if any(end.logits is None for end in ends):
        raise ValueError(f"{type(model).__name__} has no classifier that gives (B, K): say num_classes")
    return ends[0].logits.tensor.shape[1]


def _gives(end: End, num_classes: int) -> bool:
    return end.logits is not None and end.logits.tensor.shape[1] == num_classes


def _choose(model: nn.Module, nodes: Sequence[str] | None, recordings: list[Recording], ends: list[End]) -> list[Where]:
    """Where the maps are read, shallow to deep, the same in training and evaluation."""
    passes = list(zip(recordings, ends, strict=True))
    exact = _in_all([_giving(recording, end) for recording, end in passes])
    taking = _in_all([_taking(recording, end) for recording, end in passes])
    before = _in_all([maps_before(recording, end.last) for recording, end in passes])
    spots = {}
    if not exact and not taking:
        spots = _spots(model, passes, list(before))

    if spots:
        last_name = f"{spots[False].function}()"
        lasts = [last_name]
    else:
        lasts = list(exact or taking)
        last_name = shallowest(list((exact or taking).values())).name
    if nodes is None:
        finer = finer_levels(before, ends[0].last, LEVELS - 1)
    else:
        _check_nodes(model, nodes, recordings, lasts, last_name)
        *finer, last_name = nodes

    wheres = [_where(name, recordings) for name in finer]
    clone = any(_changes_later(end.last) for end in ends)
    return [*wheres, Where(last_name, not exact, clone, ends[0].last.tensor.shape[1], spots or None)]


def _spots(model: nn.Module, passes: list[tuple[Recording, End]], near: list[str]) -> dict[bool, Spot]:
    """The call of a function that is given X_L, in training and evaluation."""
    found = {recording.training: spot_given(recording, end) for recording, end in passes}
    if None in found.values():
        shape = tuple(passes[0][1].last.tensor.shape[1:])
        raise ValueError(
            f"the last map {shape} of {type(model).__name__} is seen by no module and no function of torch alone "
            f"(the last modules that give maps are {', '.join(near[-3:])}): pool it by a module, "
            "nn.AdaptiveAvgPool2d(1) say"
        )
    return {mode: found.get(mode, found[False]) for mode in (True, False)}


def _in_all(found: list[dict[str, Call]]) -> dict[str, Call]:
    """What was found in every pass, as the first one saw it."""
    return {name: call for name, call in found[0].items() if all(name in other for other in found)}


def _giving(recording: Recording, end: End) -> dict[str, Call]:
    """The modules that give X_L, or its memory before it was changed in place."""
    wanted = place(end.last.tensor)
    found = {name: call for name, call in recording.last_calls().items() if place(call.made.tensor) == wanted}
    if _changes_later(end.last):
        return {name: call for name, call in found.items() if call.made.value is end.last.value}
    return found


def _changes_later(use: Use) -> bool:
    return use.version != version_of(use.tensor)


def _taking(recording: Recording, end: End) -> dict[str, Call]:
    """The modules that are given X_L first of all."""
    wanted = place(end.last.tensor)
    found = {}
    for name, call in recording.last_calls().items():
        if call.given and place(call.given[0]) == wanted:
            found[name] = call
    return found


def _where(name: str, recordings: list[Recording]) -> Where:
    calls = [recording.last_calls()[name] for recording in recordings]
    clone = any(_changes_later(call.made) for call in calls)
    return Where(name, False, clone, calls[0].made.tensor.shape[1])


def _check_nodes(
    model: nn.Module, nodes: Sequence[str], recordings: list[Recording], lasts: list[str], pooled: str
) -> None:
    kind, recording = type(model).__name__, recordings[0]
    calls = _in_all([recording.last_calls() for recording in recordings])
    named = [node for node in nodes if node not in lasts or node in calls]
    maps = [name for name, call in calls.items() if is_map(call.made.tensor, recording.size)]
    for node in named:
        if node not in calls:
            near = difflib.get_close_matches(node, maps, n=3, cutoff=0.3) or maps[-3:]
            there = node in dict(model.named_modules())
            why = "gives no tensor in a forward pass" if there else f"is not in {kind}"
            raise ValueError(f"node {node!r} {why}; the nearest are {', '.join(near)}")
    for node in nodes[:-1]:
        if node not in maps:
            shape = tuple(calls[node].made.tensor.shape[1:])
            raise ValueError(f"node {node!r} gives {shape} for one image; expected a map (channels, H, W)")
    if nodes[-1] not in lasts:
        raise ValueError(f"the last node is {nodes[-1]!r}, but the network pools {pooled!r}: end the nodes with that")
    places = [place(calls[node].made.tensor) for node in named]
    if len(set(places)) < len(places):
        raise ValueError(f"nodes={list(nodes)}: name at least one block, and none twice")


def _tap(body: nn.Module, where: Where) -> Tap | FunctionTap:
    if where.spots:
        tap = FunctionTap(where.name, where.clone, where.spots)
        for after in {spot.after for spot in where.spots.values()} - {None}:
            body.get_submodule(after).register_forward_hook(Begin(tap, after))
        return tap

    tap, module = Tap(where.name, where.clone), body.get_submodule(where.name)
    register: Callable = module.register_forward_pre_hook if where.of_input else module.register_forward_hook
    register(tap)
    return tap


# --- a classifier that is not used -----------------------------------------------------------------------------------


def _without(body: nn.Module, names: list[str], leave_out: bool) -> nn.Module:
    """The network without the layers after X_L, whose answer nobody reads: they cost nothing and are not trained.

    Where the network does not run without them (not `leave_out`) they stay, as frozen copies.
    """
    for name in names:
        module = nn.Identity() if leave_out else _frozen(body.get_submodule(name))
        body = replaced(body, name, module)
    return body


def _runs_without(found: Found, names: list[str]) -> bool:
    body = _without(found.body, names, True)
    try:
        trial = spare(body, real=found.real)
        for recording in found.recordings:
            record(Recording(found.size, recording.training), trial, found.channels)
    except Exception:
        return False
    return True


def _only_after(found: Found, ends: list[End]) -> list[str]:
    """The innermost modules with parameters that are called after X_L alone."""
    after, before = {}, set()
    for recording, end in zip(found.recordings, ends, strict=True):
        later = descendants(recording, end.last.value) - {end.last.value}
        for call in recording.calls:
            if call.made.value in later:
                after[call.name] = call
            else:
                before.add(call.name)
    modules = {name: found.body.get_submodule(name) for name in after if name not in before}
    return [name for name, module in modules.items() if module._parameters and not module._modules]


def _frozen(module: nn.Module) -> nn.Module:
    """A copy of a module whose weights, shared with it, take no gradient."""
    shell = type(module).__new__(type(module))
    for key, value in vars(module).items():
        shell.__dict__[key] = value.copy() if isinstance(value, dict) else value
    for name, weight in module._parameters.items():
        if weight is not None:
            shell._parameters[name] = nn.Parameter(weight.detach(), requires_grad=False)
    return shell
