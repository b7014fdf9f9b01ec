"""Where a network's maps are: its forward pass, recorded on an image without content. `attach_saol` is built on it.

Nothing here runs when a network trains or predicts, and nothing of the user's network is changed: what is recorded
is a copy without numbers, on torch's meta device, or one that shares the weights where a network decides by numbers.
"""

import random
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field, is_dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

BATCH = 2
WIDE = (192, 320)  # (H, W); a map is known by following such a shape
SQUARE = (224, 32, 28, 299, 64, 96, 128, 256, 331, 384, 48, 160, 192, 240, 288, 320, 380, 448, 512)
WIDER = 1.5  # a finer level is so many times wider than the next
ALIKE = 1.2  # widths of one level, as far as convolutions without padding part them


# --- a forward pass without numbers ----------------------------------------------------------------------------------


def spare(model: nn.Module, hooks: bool = False, real: bool = False) -> nn.Module:
    """A copy to try things on, with the hooks or without: all its tensors are on the meta device, which has no numbers.

    real: it shares the parameters instead, and has buffers of its own.
    """
    shared = list(model.parameters())
    for module in model.modules():
        shared += [value for value in vars(module).values() if isinstance(value, Tensor)]  # weight norm's, say

    if real:
        instead = {id(tensor): tensor for tensor in shared}
    else:
        instead = {id(tensor): _without_numbers(tensor) for tensor in [*shared, *model.buffers()]}
    copy = deepcopy(model, instead)
    if not hooks:
        for module in copy.modules():
            _clear_hooks(module)
    return copy


def _without_numbers(tensor: Tensor) -> Tensor:
    empty = tensor.detach().to("meta")
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def _clear_hooks(module: nn.Module) -> None:
    for name, registered in vars(module).items():
        if name.endswith("_hooks") and isinstance(registered, dict):
            registered.clear()


class QuickNorms(TorchDispatchMode):
    """Batch norms on the meta device give their shapes at once, where torch takes fifty times longer."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.native_batch_norm.default:
            maps = args[0]
        elif function is torch.ops.aten.native_batch_norm_backward.default:
            maps = args[1]
        else:
            return function(*args, **(kwargs or {}))
        channels = maps.new_empty(maps.shape[1])
        return torch.empty_like(maps), channels, torch.empty_like(channels)


@contextmanager
def fake_pass(model: nn.Module, channels: int, size: tuple[int, int], batch: int = 1):
    """Gives images (B, C, H, W) on which `model`, a spare, can be called; only shapes are computed where it has no
    numbers. No random state is moved.
    """
    tensors = [*model.parameters(), *model.buffers()]
    device = tensors[0].device if tensors else torch.device("cpu")
    floating = [tensor.dtype for tensor in tensors if tensor.is_floating_point()]
    dtype = floating[0] if floating else torch.float32

    fake = device.type == "meta"
    new_tensors_too = device if fake else nullcontext()
    norms = QuickNorms() if fake else nullcontext()
    state = random.getstate()
    try:
        with torch.inference_mode(False), torch.random.fork_rng(), new_tensors_too, norms, torch.no_grad():
            yield torch.zeros(batch, channels, *size, device=device, dtype=dtype)
    finally:
        random.setstate(state)


# --- recording -------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Value:
    """What a tensor's memory holds between two writes, and what it was computed from."""

    time: int
    sources: list["Use"] = field(default_factory=list)
    maps: list[Tensor] = field(default_factory=list)  # its views that are maps
    channels_last: bool = False  # one of its views is a map with the channels at the end


@dataclass(eq=False)
class Use:
    """A value as an operation, or a module's caller, sees it."""

    value: Value
    tensor: Tensor
    version: int


@dataclass(eq=False)
class Call:
    """A module's call: the tensors it was given, and the one it gave."""

    name: str
    given: list[Tensor]
    made: Use

    @property
    def depth(self) -> int:
        return self.name.count(".")


class Spot(NamedTuple):
    """An argument of a call of a torch function in some module's forward.

    after, number  the call: the number-th one of that function since the module `after` was called (None: since the
                   pass began). So blocks left out at random, or hooks of the user's elsewhere, do not matter
    argument       its place among the arguments
    """

    after: str | None
    function: str
    number: int
    argument: int


@dataclass(eq=False)
class FunctionCall:
    """A call of a torch function, and the maps among its arguments by their places."""

    after: str | None
    function: str
    number: int
    given: dict[int, Use]
    made: list[Value] = field(default_factory=list)  # the values of the tensors that it gives

    @property
    def key(self) -> tuple:
        return self.after, self.function, self.number


def place(tensor: Tensor) -> tuple:
    """Equal for tensors that are the same view of the same memory."""
    return _memory(tensor), tuple(tensor.shape), tensor.stride(), tensor.storage_offset()


def _memory(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):  # sparse ones have none
        return id(tensor)


class Recording(TorchDispatchMode):
    """One forward pass: which value came from which, through every operation, and what every module gave."""

    def __init__(self, size: tuple[int, int], training: bool) -> None:
        super().__init__()
        self.size, self.training = size, training
        self.values: list[Value] = []
        self.calls: list[Call] = []
        self.functions: list[FunctionCall] = []
        self.image: Value | None = None
        self.outputs: list[tuple[tuple, Use]] = []  # the network's own, each with its place in what it returns
        self._latest: dict[int, Value] = {}
        self._kept: list[Tensor] = []  # alive, so that no memory is used twice
        self._after: str | None = None
        self._since: Counter[str] = Counter()  # how often each function was called after that module

    def use(self, tensor: Tensor) -> Use:
        memory = _memory(tensor)
        if memory not in self._latest:
            self._new_value(memory, [])
            self._note_map(tensor)
        self._kept.append(tensor)
        return Use(self._latest[memory], tensor, version_of(tensor))

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        sources = [self.use(tensor) for tensor in given]
        known = {_memory(tensor) for tensor in given}

        made = function(*args, **kwargs)

        written = list(_written(function, args, kwargs))
        changed = {_memory(tensor) for tensor in written}
        outputs = [leaf for leaf in tree_leaves(made) if isinstance(leaf, Tensor)]
        new = {_memory(tensor) for tensor in outputs} - known
        for memory in changed | new:
            before = self._latest.get(memory)
            self._new_value(memory, sources)
            if before is not None and memory in changed:
                self._latest[memory].maps += before.maps
        for tensor in outputs:
            self._kept.append(tensor)
            self._note_map(tensor)
        return made

    def _new_value(self, memory: int, sources: list[Use]) -> None:
        value = Value(len(self.values), sources)
        self.values.append(value)
        self._latest[memory] = value

    def _note_map(self, tensor: Tensor) -> None:
        value = self._latest.get(_memory(tensor))
        if value is None:
            return
        if is_map(tensor, self.size):
            value.maps.append(tensor)
        elif tensor.ndim == 4 and is_map(tensor.permute(0, 3, 1, 2), self.size):
            value.channels_last = True

    def note_function(self, name: str, given: list) -> FunctionCall:
        maps = {}
        for i, value in enumerate(given):
            if isinstance(value, Tensor) and is_map(value, self.size):
                maps[i] = self.use(value)
        call = FunctionCall(self._after, name, self._since[name], maps)
        self._since[name] += 1
        self.functions.append(call)
        return call

    def note_call(self, name: str, module: nn.Module, given: tuple, made: object) -> None:
        self._after, self._since = name, Counter()
        if isinstance(made, Tensor):
            tensors = [value for value in given if isinstance(value, Tensor)]
            self.calls.append(Call(name, tensors, self.use(made)))

    def last_calls(self) -> dict[str, Call]:
        """Each module's last call, in the order of the pass."""
        found = {}
        for call in self.calls:
            found.pop(call.name, None)
            found[call.name] = call
        return found


class Functions(TorchFunctionMode):
    """Tells a recording of the torch functions that are called in a pass."""

    def __init__(self, recording: Recording) -> None:
        super().__init__()
        self.recording = recording

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        call = self.recording.note_function(function.__name__, [*args, *kwargs.values()])
        made = function(*args, **kwargs)
        tensors = [leaf for leaf in tree_leaves(made) if isinstance(leaf, Tensor)]
        call.made = [self.recording.use(tensor).value for tensor in tensors]
        return made


def _written(function, args: tuple, kwargs: dict) -> Iterator[Tensor]:
    """The tensors that an operation changes in place."""
    for i, argument in enumerate(function._schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        value = args[i] if i < len(args) else kwargs.get(argument.name)
        yield from (leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor))


def is_map(tensor: Tensor, size: tuple[int, int]) -> bool:
    """Whether a tensor is (B, C, h, w) with h and w in the proportion of the image's size (H, W)."""
    if tensor.ndim != 4 or tensor.shape[0] != BATCH:
        return False
    rows, columns = tensor.shape[2:]
    if size[0] == size[1]:
        return rows == columns > 1
    return rows < columns and abs(rows - columns * size[0] / size[1]) <= 1


def record(recording: Recording, model: nn.Module, channels: int) -> None:
    """One pass of a spare, in the recording's mode. Raises whatever the network raises."""
    model.train(recording.training)
    hooks = []
    for name, module in model.named_modules():
        if name:
            hooks.append(module.register_forward_hook(partial(recording.note_call, name)))
    try:
        with fake_pass(model, channels, recording.size, BATCH) as images, recording:
            recording.image = recording.use(images).value
            with Functions(recording):
                made = model(images)
    finally:
        for hook in hooks:
            hook.remove()
    recording.outputs = [(path, recording.use(tensor)) for path, tensor in tensors_in(made)]


def version_of(tensor: Tensor) -> int:
    """How often a tensor's memory was written; weights made in inference mode do not count, and are never maps."""
    return 0 if tensor.is_inference() else tensor._version


def tensors_in(output: object, path: tuple = ()) -> Iterator[tuple[tuple, Tensor]]:
    """The tensors in what a network returns (a tensor, tuple, dict, dataclass, nested), each with the way to it."""
    if isinstance(output, Tensor):
        yield path, output
    elif isinstance(output, Mapping):
        for key, value in output.items():
            yield from tensors_in(value, (*path, key))
    elif isinstance(output, (tuple, list)):
        for key, value in enumerate(output):
            yield from tensors_in(value, (*path, key))
    elif is_dataclass(output):
        for key, value in vars(output).items():
            yield from tensors_in(value, (*path, key))


def tensor_at(output: object, path: tuple) -> Tensor:
    """The tensor that `tensors_in` found at `path`."""
    for key in path:
        output = output[key] if isinstance(output, (Mapping, tuple, list)) else getattr(output, key)
    return output


# --- reading a recording ---------------------------------------------------------------------------------------------


@dataclass
class End:
    """The end of a network: its last map X_L as what pools it sees it, and its classifier's logits, if it has any."""

    last: Use
    logits: Use | None
    path: tuple  # to the logits, in what the network returns


def find_end(recording: Recording, num_classes: int | None) -> End:
    """X_L and the logits. Of several outputs, the one that the deepest map leads to; auxiliary ones read earlier maps.

    Raises ValueError where no map leads to an output.
    """
    ends = []
    for path, use in recording.outputs:
        last = _nearest_map(use, recording)
        if last is not None:
            ends.append(End(last, use, path))
    if not ends:
        raise ValueError("no map (B, C, H, W) that follows the image's size leads to the network's output")

    logits = [end for end in ends if end.logits.tensor.ndim == 2]
    if not logits:
        deepest = max(ends, key=lambda end: end.last.value.time)
        return End(deepest.last, None, ())

    before = set()
    for end in logits:
        before |= ancestors(end.logits.value) - {end.logits.value}
    ends = [end for end in logits if end.logits.value not in before]

    deepest = max(end.last.value.time for end in ends)
    ends = [end for end in ends if end.last.value.time == deepest]
    fitting = [end for end in ends if end.logits.tensor.shape[1] == num_classes]
    return (fitting or ends)[0]


def _nearest_map(output: Use, recording: Recording) -> Use | None:
    """The latest of the maps that one meets first on the way back from an output; the image is none."""
    found, seen, todo = [], {recording.image}, [output]
    while todo:
        use = todo.pop()
        if use.value is recording.image:
            continue
        if is_map(use.tensor, recording.size):
            found.append(use)
        elif use.value.maps:
            found.append(Use(use.value, use.value.maps[-1], use.version))
        elif use.value.channels_last:
            found.append(use)
        elif use.value not in seen:
            seen.add(use.value)
            todo += use.value.sources
    return max(found, key=lambda use: use.value.time, default=None)


def ancestors(value: Value) -> set[Value]:
    """The value and all that it was computed from."""
    seen, todo = set(), [value]
    while todo:
        value = todo.pop()
        if value not in seen:
            seen.add(value)
            todo += [use.value for use in value.sources]
    return seen


def descendants(recording: Recording, value: Value) -> set[Value]:
    """The value and all that was computed from it."""
    found = {value}
    for later in recording.values[value.time :]:
        if any(use.value in found for use in later.sources):
            found.add(later)
    return found


def spot_given(recording: Recording, end: End) -> Spot | None:
    """The first call of a function that is given X_L and computes from it, or views it, on the way to the logits.

    None where there is no such call, or where a later one would be taken for it.
    """
    wanted = end.last
    needed = ancestors(end.logits.value) if end.logits is not None else set(recording.values)
    computing, viewing = [], []
    latest = {call.key: call for call in recording.functions}
    for call in latest.values():
        for argument, use in call.given.items():
            if use.value is not wanted.value or place(use.tensor) != place(wanted.tensor):
                continue
            spot = Spot(*call.key, argument)
            if wanted.value in call.made:
                viewing.append(spot)
            elif needed.intersection(call.made):
                computing.append(spot)
    return next(iter(computing + viewing), None)


def maps_before(recording: Recording, last: Use) -> dict[str, Call]:
    """The modules whose last call gives a map that X_L is computed from, in the order of the pass."""
    before = ancestors(last.value)
    found = {}
    for name, call in recording.last_calls().items():
        if call.made.value in before and is_map(call.made.tensor, recording.size):
            found[name] = call
    return found


def finer_levels(maps: dict[str, Call], last: Use, count: int) -> list[str]:
    """Up to `count` levels before X_L, shallow to deep: of each the shallowest module, of those the latest."""
    names, width = [], last.tensor.shape[3]
    while len(names) < count:
        wider = {name: call for name, call in maps.items() if call.made.tensor.shape[3] >= WIDER * width}
        if not wider:
            break
        nearest = min(call.made.tensor.shape[3] for call in wider.values())
        level = [call for call in wider.values() if call.made.tensor.shape[3] <= ALIKE * nearest]
        chosen = shallowest(level)
        names.insert(0, chosen.name)
        width = chosen.made.tensor.shape[3]
    return names


def shallowest(calls: list[Call]) -> Call:
    """The call of the module least nested in others; of several, the latest."""
    least = min(call.depth for call in calls)
    return [call for call in calls if call.depth == least][-1]
