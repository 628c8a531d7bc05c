"""Follow the frequency axis of a network's input through the network.

The network runs once on a sample. For each operation a rule says what becomes of the axis: which
dimension it is, and which frequencies its bins stand for. Bin j of an axis stands for the frequency
``(j + origin)·scale·Δ``, where Δ is the distance of the input's bins.

A window of k bins, d apart, that starts p bins before the axis and moves by s, has its centre in
``s·j + c`` with ``c = d·(k − 1)/2 − p``. So a convolution or a pooling leads to

    origin' = (origin + c) / s,    scale' = scale·s

and a transposed convolution to the inverse. Where no rule says what an operation does, the axis is
lost, and the operation's name is kept as the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import accumulate
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["Axis", "Lost", "follow"]


@dataclass(frozen=True)
class Axis:
    """The frequency axis of a tensor; `dim` counts from its last dimension, -1."""

    dim: int
    origin: Fraction
    scale: Fraction = Fraction(1)
    n_resamplings: int = 0

    def windowed(self, centre: Fraction, step: Fraction | int) -> Axis:
        """Return the axis whose bin j stands where bin ``step·j + centre`` of this one does."""
        if centre == 0 and step == 1:
            return self
        return Axis(
            self.dim, (self.origin + centre) / step, self.scale * step, self.n_resamplings + 1
        )

    def agrees_with(self, other: Axis, n_bins: int) -> bool:
        """Whether bins of both stand for the same frequencies.

        To half a bin at the bottom, where it counts, and to two at the top: networks pool an odd
        number of bins and upsample to it again.
        """
        unit = max(self.scale, other.scale)
        bottom, top = (
            abs((j + self.origin) * self.scale - (j + other.origin) * other.scale) / unit
            for j in (0, n_bins - 1)
        )
        return self.dim == other.dim and 2 * bottom <= 1 and top <= 2


@dataclass(frozen=True)
class Lost:
    """Why the frequency axis of a tensor is not known."""

    reason: str


Known = Axis | Lost | None
"""None: the tensor says nothing of single frequencies: a parameter, or a mean over all bins."""


def follow(
    model: nn.Module,
    sample: tuple[Any, ...],
    freq_dim: int,
    origin: Fraction,
    layers: Iterable[nn.Conv2d],
    reads_harmonics: Callable[[nn.Conv2d, Axis], bool],
) -> tuple[dict[nn.Conv2d, list[Known]], list[tuple[int, int]]]:
    """Return the frequency axis of every input of every one of `layers`, and all strides seen.

    Strides are (along frequency, along the other axis). The model runs in evaluation mode without
    gradients, and is left as it was. Layers of which `reads_harmonics` says so keep the place of
    every bin that they compute.
    """
    follower = _Follower()
    for value in sample:
        if isinstance(value, Tensor) and value.ndim >= 3 and value.is_floating_point():
            follower.known[value] = Axis(freq_dim, origin)
    seen: dict[nn.Conv2d, list[Known]] = {layer: [] for layer in layers}

    def before(layer: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        tensors = [value for value in (*arguments, *named.values()) if isinstance(value, Tensor)]
        seen[layer].append(follower.known.get(tensors[0]) if tensors else None)  # type: ignore[index]

    def after(layer: Any, arguments: Any, output: Any) -> None:
        axis = seen[layer][-1]
        if isinstance(axis, Axis) and axis.dim in (-2, -1) and reads_harmonics(layer, axis):
            follower.known[output] = axis.windowed(Fraction(0), layer.stride[axis.dim])

    hooks = []
    for layer in seen:
        hooks.append(layer.register_forward_pre_hook(before, with_kwargs=True))
        hooks.append(layer.register_forward_hook(after))
    try:
        with _at_rest(model), torch.no_grad(), follower:
            model(*sample)
    finally:
        for hook in hooks:
            hook.remove()
    return seen, follower.strides


@contextmanager
def _at_rest(model: nn.Module) -> Iterator[None]:
    """Let a model run without a trace: no dropout, no statistics, no random numbers drawn."""
    training = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.random.fork_rng(devices=[]):  # the CPU's
            yield
    finally:
        for module, flag in training.items():
            module.training = flag


# -------------------------------------------------------------------- operations


class _Follower(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.known: Any = WeakTensorKeyDictionary()
        self.strides: list[tuple[int, int]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        outputs = output if isinstance(output, (tuple, list)) else (output,)
        results = [value for value in outputs if isinstance(value, Tensor)]
        if results:
            call = _Call(self, func, args, kwargs or {}, results)
            for result, known in zip(results, call.result(), strict=False):
                if known is not None:
                    self.known[result] = known
        return output


class _Call:
    """One call of an operator, and what it makes of the axes of its inputs."""

    def __init__(
        self, follower: _Follower, func: Any, args: Any, kwargs: Any, outputs: list[Tensor]
    ) -> None:
        self.name = func.name().partition("::")[2].partition(".")[0].rstrip("_")
        self.is_pointwise = torch.Tag.pointwise in func.tags
        self.outputs = outputs
        self.strides = follower.strides
        schema = func._schema.arguments
        self.given = {argument.name: argument.default_value for argument in schema}
        self.given.update(zip((argument.name for argument in schema), args, strict=False))
        self.given.update(kwargs)
        self.tensors = [t for value in self.given.values() for t in _tensors(value)]
        self.known: list[Known] = [follower.known.get(tensor) for tensor in self.tensors]

    def result(self) -> list[Known]:
        """Return what is known of each output."""
        if self.name == "_fft_r2c" and self.given["onesided"]:
            dim = _from_last(self.given["dim"][-1], self.tensors[0].ndim)
            return [Axis(dim, Fraction(0))]
        if all(known is None for known in self.known):
            return []
        joins = _JOINS.get(self.name) or (_pointwise if self.is_pointwise else None)
        rule = _RULES.get(self.name)
        known: Any
        if joins and not rule:
            known = joins(self)
        elif isinstance(self.known[0], Axis):
            known = rule(self, self.known[0]) if rule else self.lost()
        elif self.known[0] is None and rule:
            known = None  # a parameter that is normalised, say
        else:
            known = next(k for k in self.known if k is not None)
            known = known if isinstance(known, Lost) else self.lost()
        return list(known) if isinstance(known, list) else [known] * len(self.outputs)

    def lost(self) -> Lost:
        """Return that nothing is known from here on."""
        return Lost(f"{self.name} has no rule that says what becomes of it")

    def agreed(self, axes: list[tuple[Known, int]]) -> Known:
        """Return the one axis of several tensors, given with the number of their bins."""
        for known, _ in axes:
            if isinstance(known, Lost):
                return known
        found = [(known, n) for known, n in axes if isinstance(known, Axis)]
        if not found:
            return None
        best = min((axis for axis, _ in found), key=lambda axis: axis.n_resamplings)
        if all(axis.agrees_with(best, n) for axis, n in found):
            return best
        return Lost(f"{self.name} joins tensors whose bins stand for different frequencies")


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, (tuple, list)):
        return [entry for entry in value if isinstance(entry, Tensor)]
    return []


def _from_last(dim: int, ndim: int) -> int:
    return dim if dim < 0 else dim - ndim


def _entry(values: Any, n: int, index: int) -> int:
    """Return an entry of a list of `n`, which may be one number for all."""
    entries = list(values) if isinstance(values, (tuple, list)) else [values]
    return int(entries[index] if len(entries) == n else entries[0])


def _pointwise(call: _Call) -> Known:
    shape = call.outputs[0].shape
    axes: list[tuple[Known, int]] = []
    for tensor, known in zip(call.tensors, call.known, strict=True):
        if isinstance(known, Axis) and (
            -known.dim > tensor.ndim or (tensor.shape[known.dim] == 1 and shape[known.dim] > 1)
        ):
            continue  # one number for all bins
        axes.append((known, tensor.shape[known.dim] if isinstance(known, Axis) else 1))
    return call.agreed(axes)


def _same(call: _Call, axis: Axis) -> Known:
    return axis


def _permute(call: _Call, axis: Axis) -> Known:
    ndim = call.tensors[0].ndim
    order = list(range(-ndim, 0))
    if call.name == "permute":
        order = [_from_last(dim, ndim) for dim in call.given["dims"]]
    else:
        first, second = (call.given["dim0"], call.given["dim1"]) if call.name != "t" else (0, 1)
        a, b = _from_last(first, ndim), _from_last(second, ndim)
        order[a], order[b] = order[b], order[a]
    return replace(axis, dim=order.index(axis.dim) - ndim)


def _unsqueeze(call: _Call, axis: Axis) -> Known:
    new = _from_last(call.given["dim"], call.outputs[0].ndim)
    return replace(axis, dim=axis.dim - 1) if new >= axis.dim else axis


def _reduce(call: _Call, axis: Axis) -> Known:
    ndim = call.tensors[0].ndim
    given = call.given.get("dim")
    dims = given if isinstance(given, (tuple, list)) else [] if given is None else [given]
    gone = {_from_last(dim, ndim) for dim in dims} or set(range(-ndim, 0))
    if axis.dim in gone:
        return None
    if call.outputs[0].ndim == ndim:
        return axis
    return replace(axis, dim=axis.dim + sum(dim > axis.dim for dim in gone))


def _squeeze(call: _Call, axis: Axis) -> Known:
    ndim = call.tensors[0].ndim
    if call.outputs[0].ndim == ndim:
        return axis
    given = call.given.get("dim", range(-ndim, 0))
    dims = {_from_last(dim, ndim) for dim in (given if not isinstance(given, int) else [given])}
    gone = {dim for dim in dims if call.tensors[0].shape[dim] == 1}
    if axis.dim in gone:
        return Lost("squeeze takes it away")
    return replace(axis, dim=axis.dim + sum(dim > axis.dim for dim in gone))


def _view(call: _Call, axis: Axis) -> Known:
    old, new = call.tensors[0].shape, call.outputs[0].shape
    before, n_bins = prod(old[: axis.dim]), old[axis.dim]
    for place, outer in enumerate(accumulate(new, int.__mul__, initial=1)):
        if place < len(new) and outer == before and new[place] == n_bins:
            return replace(axis, dim=place - len(new))
    return Lost(f"{call.name} merges it with another axis, or splits it")


def _slice(call: _Call, axis: Axis) -> Known:
    tensor = call.tensors[0]
    if _from_last(call.given["dim"], tensor.ndim) != axis.dim:
        return axis
    start, n_bins = call.given["start"] or 0, tensor.shape[axis.dim]
    start = min(max(start + n_bins, 0) if start < 0 else start, n_bins)
    return axis.windowed(Fraction(start), call.given["step"])


def _select(call: _Call, axis: Axis) -> Known:
    dim = _from_last(call.given["dim"], call.tensors[0].ndim)
    if dim == axis.dim:
        return Lost(f"{call.name} takes a single bin")
    return replace(axis, dim=axis.dim + 1) if dim > axis.dim else axis


def _split(call: _Call, axis: Axis) -> Any:
    dim = _from_last(call.given["dim"], call.tensors[0].ndim)
    if dim != axis.dim:
        return axis
    starts = accumulate((part.shape[dim] for part in call.outputs), initial=0)
    return [axis.windowed(Fraction(start), 1) for start in starts][: len(call.outputs)]


def _cat(call: _Call) -> Known:
    dim = _from_last(call.given["dim"], call.outputs[0].ndim)
    start, axes = 0, []
    for tensor, known in zip(call.tensors, call.known, strict=True):
        if isinstance(known, Axis) and known.dim == dim:
            known = known.windowed(Fraction(-start), 1)
        n_bins = call.outputs[0].shape[known.dim] if isinstance(known, Axis) else 1
        axes.append((known, n_bins))
        start += tensor.shape[dim]
    return call.agreed(axes)


def _stack(call: _Call) -> Known:
    new = _from_last(call.given["dim"], call.outputs[0].ndim)
    axes = [(known, call.tensors[0].shape[known.dim] if isinstance(known, Axis) else 1)
            for known in call.known]  # fmt: skip
    known = call.agreed(axes)
    if isinstance(known, Axis) and new >= known.dim:
        return replace(known, dim=known.dim - 1)
    return known


def _pad(call: _Call, axis: Axis) -> Known:
    pad = call.given["pad"] if "pad" in call.given else call.given["padding"]
    first = 2 * (-axis.dim - 1)
    return axis.windowed(Fraction(-pad[first] if first < len(pad) else 0), 1)


def _convolution(call: _Call, axis: Axis) -> Known:
    weight, given = call.tensors[1], call.given
    n = weight.ndim - 2
    if -axis.dim > n:
        return Lost("a convolution takes bins as channels")
    index = n + axis.dim
    size = weight.shape[2 + index]
    stride, padding, dilation = (
        _entry(given[name], n, index) for name in ("stride", "padding", "dilation")
    )
    centre = Fraction(dilation * (size - 1), 2) - padding
    if given["transposed"]:
        return axis.windowed(-centre / stride, Fraction(1, stride))
    call.strides.append((stride, _entry(given["stride"], n, n - 1 - index)))
    return axis.windowed(centre, stride)


def _pool(call: _Call, axis: Axis) -> Known:
    given = call.given
    n = int(call.name.partition("pool")[2][0])
    if -axis.dim > n:
        return axis  # it pools other axes
    index = n + axis.dim
    strides = given["stride"] or given["kernel_size"]
    size, stride, padding, dilation = (
        _entry(value, n, index)
        for value in (given["kernel_size"], strides, given["padding"], given.get("dilation", 1))
    )
    call.strides.append((stride, _entry(strides, n, n - 1 - index)))
    return axis.windowed(Fraction(dilation * (size - 1), 2) - padding, stride)


def _adaptive_pool(call: _Call, axis: Axis) -> Known:
    n_bins, n_out = call.tensors[0].shape[axis.dim], call.outputs[0].shape[axis.dim]
    factor, rest = divmod(n_bins, n_out)
    if n_out == 1 and n_bins > 1:
        return None
    if rest:
        return Lost(f"{call.name} makes {n_out} bins of {n_bins}, of unequal widths")
    return axis.windowed(Fraction(factor - 1, 2), factor)


def _upsample(call: _Call, axis: Axis) -> Known:
    n_bins, n_out = call.tensors[0].shape[axis.dim], call.outputs[0].shape[axis.dim]
    if n_bins == n_out:
        return axis
    if call.given.get("align_corners") and n_out > 1:
        return axis.windowed(Fraction(0), Fraction(n_bins - 1, n_out - 1))
    step = Fraction(n_bins, n_out)
    return axis.windowed((step - 1) / 2, step)


_JOINS: dict[str, Callable[[_Call], Known]] = {"cat": _cat, "stack": _stack}

_RULES: dict[str, Callable[[_Call, Axis], Any]] = {
    **dict.fromkeys(
        (
            "alias", "clone", "contiguous", "cudnn_batch_norm", "detach", "expand",
            "lift_fresh", "native_batch_norm", "native_dropout", "native_group_norm",
            "native_layer_norm", "_batch_norm_no_update", "_batch_norm_with_update",
            "_fused_rms_norm", "_log_softmax", "_native_batch_norm_legit",
            "_native_batch_norm_legit_no_training", "_softmax", "_to_copy", "miopen_batch_norm",
        ),
        _same,
    ),
    **dict.fromkeys(("permute", "transpose", "t"), _permute),
    **dict.fromkeys(
        ("mean", "sum", "amax", "amin", "max", "min", "var", "std", "logsumexp", "var_mean",
         "linalg_vector_norm"),
        _reduce,
    ),
    **dict.fromkeys(("view", "_unsafe_view", "_reshape_alias"), _view),
    **dict.fromkeys(("select", "unbind"), _select),
    **dict.fromkeys(("split", "split_with_sizes", "chunk"), _split),
    **dict.fromkeys(("convolution", "cudnn_convolution"), _convolution),
    **dict.fromkeys(("_adaptive_avg_pool2d", "adaptive_max_pool2d"), _adaptive_pool),
    **dict.fromkeys(
        (f"{kind}_pool{n}d{end}" for kind, end in (("avg", ""), ("max", "_with_indices"))
         for n in (1, 2, 3)),
        _pool,
    ),
    **dict.fromkeys(
        ("upsample_nearest2d", "_upsample_nearest_exact2d", "upsample_bilinear2d",
         "upsample_bicubic2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"),
        _upsample,
    ),
    **dict.fromkeys(
        ("constant_pad_nd", *(f"{kind}_pad{n}d" for kind in ("reflection", "replication")
                              for n in (1, 2, 3))),
        _pad,
    ),
    "slice": _slice,
    "squeeze": _squeeze,
    "unsqueeze": _unsqueeze,
    "view_as_complex": lambda call, axis: replace(axis, dim=axis.dim + 1),
    "view_as_real": lambda call, axis: replace(axis, dim=axis.dim - 1),
}  # fmt: skip
