"""Swap the convolutions of an existing network for harmonic ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from fractions import Fraction
from inspect import signature
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.parametrize import is_parametrized

from .checks import Ratio, as_fraction, check_freq_dim
from .frequency_axis import Axis, Known, Lost, follow
from .modules import FrequencyTapConv2d, HarmonicConv2d

__all__ = ["Swap", "SwapReport", "replace_conv2d"]


@dataclass(frozen=True)
class Swap:
    """What became of one convolution, and why."""

    name: str
    swapped: bool
    reason: str


@dataclass(frozen=True)
class SwapReport:
    """What `replace_conv2d` did, layer by layer; printed as a table."""

    layers: tuple[Swap, ...]
    dry_run: bool = False
    notes: tuple[str, ...] = ()

    @property
    def swapped(self) -> tuple[str, ...]:
        """The names of the layers that were swapped."""
        return tuple(layer.name for layer in self.layers if layer.swapped)

    @property
    def kept(self) -> tuple[str, ...]:
        """The names of the convolutions that were left as they are."""
        return tuple(layer.name for layer in self.layers if not layer.swapped)

    def __str__(self) -> str:
        width = max((len(layer.name) for layer in self.layers), default=0)
        verb = "would be swapped" if self.dry_run else "swapped"
        lines = [f"{len(self.swapped)} of {len(self.layers)} convolutions {verb}"]
        for layer in self.layers:
            mark = "swap" if layer.swapped else "keep"
            name = layer.name or "(the model itself)"
            lines.append(f"  {mark}  {name:<{width}}  {layer.reason}")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def replace_conv2d(
    model: nn.Module,
    layer: type[FrequencyTapConv2d] = HarmonicConv2d,
    *,
    select: Callable[[str, nn.Conv2d], bool] | str | Iterable[str] | None = None,
    origin: Ratio | Mapping[str, Ratio] = 0,
    freq_dim: int = -2,
    example_input: Tensor | tuple[Any, ...] | None = None,
    dry_run: bool = False,
    **harmonic: Any,
) -> SwapReport:
    """Swap Conv2d layers of a network for harmonic ones, in place.

    A layer is swapped if a harmonic layer of the same output shape exists: its kernel has several
    rows, its frequency padding keeps the number of bins, and it is neither dilated along frequency
    nor padded with anything but zeros. Everything else is left alone and reported with the reason.

    Parameters
    ----------
    model : Module
        Network to change.
    layer : {HarmonicConv2d, LogHarmonicConv2d} or a subclass
        What to put in.
    select : callable, str or iterable of str, optional
        Which layers to swap: ``select(name, conv) -> bool``, or names as in `named_modules`, where
        ``*`` stands for anything (``"encoder.*"``). All Conv2d layers if left out. A layer used in
        several places answers to each of its names.
    origin : float or mapping from name to float
        The `origin` of each layer, if `layer` is `HarmonicConv2d`: behind a pooling or a stride it
        differs, see `origin_after_pooling` and `example_input`. Names may hold ``*``, and the
        first that fits counts; layers not named get 0.
    freq_dim : {-2, -1}
        Which axis is frequency: -2 for inputs (batch, channel, freq, time), -1 for (batch,
        channel, time, freq).
    example_input : Tensor or tuple, optional
        An input of the network, or its positional arguments. The network runs on it once (in
        evaluation mode, without gradients), and its frequency axis is followed through strides,
        pooling, upsampling, slices and transpositions, from the input or from an STFT inside the
        network. Then `origin` and `freq_dim` are those of the *input*, each layer gets its own,
        and ``bins_per_octave`` is divided by the strides on the way. A layer whose axis cannot be
        followed is kept, with the reason, unless a mapping `origin` names it.
    dry_run : bool
        Change nothing and report what would be done.
    **harmonic
        Passed on to `layer`: ``anchor``, ``harmonics``, ``bins_per_octave``, ``engine`` … What
        Conv2d has too is each layer's own.

    Returns
    -------
    SwapReport
        Which layers were swapped and which were not, and why; ``print`` it.

    Raises
    ------
    ValueError
        If a selected name or one with an origin does not exist, or an argument does not fit.
        Nothing is changed then.
    TypeError
        If `layer` is not a harmonic layer.

    Notes
    -----
    The module itself changes its class, so whatever holds it (lists, hooks, parametrisations such
    as ``weight_norm``) goes on holding it. Weights and biases are the same parameters as before
    where shapes agree, which they do unless `anchor` is a sequence. Then the weight is new, and an
    optimiser made before the swap does not know it.

    With `LogHarmonicConv2d`, a Conv2d that is dilated along frequency becomes a layer of the same
    shifts, which computes the same as before.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 1))
    >>> print(replace_conv2d(net, anchor=2))
    1 of 2 convolutions swapped
      swap  0  HarmonicConv2d, weight carried over
      keep  2  its kernel has one row: there are no harmonics to read
    >>> type(net[0]).__name__
    'HarmonicConv2d'

    Behind a pooling bins stand for other frequencies, which a sample input tells:

    >>> import torch
    >>> net = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(1, 8, 3, padding=1))
    >>> print(replace_conv2d(net, example_input=torch.randn(1, 1, 256, 100)))
    1 of 1 convolutions swapped
      swap  1  HarmonicConv2d, weight carried over, origin 1/4
    """
    if not (isinstance(layer, type) and issubclass(layer, FrequencyTapConv2d)):
        raise TypeError(
            f"layer must be HarmonicConv2d, LogHarmonicConv2d or a subclass, got {layer!r}"
        )
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    is_linear = issubclass(layer, HarmonicConv2d)
    if origin != 0 and not is_linear:
        raise ValueError(
            f"origin belongs to a linear frequency axis and {layer.__name__} has none, "
            f"got origin={origin!r}"
        )
    if clash := _OF_CONV2D & harmonic.keys():
        raise ValueError(
            f"{', '.join(sorted(clash))} cannot be given: each layer keeps what its Conv2d has"
        )
    check_freq_dim(freq_dim)
    convolutions: dict[_ConvNd, list[str]] = {}  # one layer may have several names
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, _ConvNd):
            convolutions.setdefault(module, []).append(name)
    names = {
        conv: aliases
        for conv, aliases in convolutions.items()
        if isinstance(conv, nn.Conv2d) and not isinstance(conv, FrequencyTapConv2d)
    }
    chosen = _chosen(names, select)
    origins: Mapping[str, Ratio] = origin if isinstance(origin, Mapping) else {}
    _check_patterns("origin", origins, names)
    plan = _Plan(layer, harmonic, {conv for conv in names if chosen(names[conv], conv)})

    notes: list[str] = []
    axes: dict[nn.Conv2d, Axis | Lost]
    start = Fraction(0) if isinstance(origin, Mapping) else as_fraction("origin", origin)
    if example_input is None:
        axes = dict.fromkeys(names, Axis(freq_dim, start))
        strides = [pair for module in model.modules() for pair in _strides(module, freq_dim)]
    else:
        sample = example_input if isinstance(example_input, tuple) else (example_input,)
        layers = [conv for conv in convolutions if isinstance(conv, nn.Conv2d)]
        seen, strides = follow(model, sample, freq_dim, start, layers, plan.keeps_bins)
        axes = {conv: _one_axis(seen[conv]) for conv in names}
        notes += _bins_note(sample, freq_dim)
    notes += _strides_note(strides, freq_dim)

    outcomes: list[Swap] = []
    replacements: dict[nn.Conv2d, FrequencyTapConv2d] = {}
    for convolution, aliases in convolutions.items():
        if convolution not in names:
            outcomes.append(Swap(aliases[0], False, _other_reason(convolution)))
            continue
        conv: nn.Conv2d = convolution
        axis = axes[conv]
        named = [given for pattern, given in origins.items() if _fits(aliases, pattern)]
        if named:
            known = axis if isinstance(axis, Axis) else Axis(freq_dim, Fraction(0))
            axis = Axis(known.dim, as_fraction("origin", named[0]), known.scale)
        reason = plan.unsupported_reason(conv, axis)
        if reason is None and isinstance(axis, Axis):
            twin, words = plan.twin(conv, axis, dry_run)
            if is_linear and example_input is not None:
                words += f", origin {axis.origin}"
            if axis.dim != freq_dim:
                words += f", freq_dim {axis.dim}"
            if twin is not None:
                replacements[conv] = twin
            outcomes.append(Swap(aliases[0], twin is not None, words))
        else:
            outcomes.append(Swap(aliases[0], False, str(reason)))

    if any("new weight" in outcome.reason for outcome in outcomes):
        notes.append(
            "new weights are not in an optimiser made before: make it now, or it trains nothing "
            "of them"
        )
    if not dry_run:
        for conv, twin in replacements.items():
            _become(conv, twin)
    return SwapReport(tuple(outcomes), dry_run, tuple(notes))


_OF_CONV2D = set(signature(nn.Conv2d).parameters) | {"freq_dim"}


def _chosen(
    names: Mapping[nn.Conv2d, list[str]],
    select: Callable[[str, nn.Conv2d], bool] | str | Iterable[str] | None,
) -> Callable[[list[str], nn.Conv2d], bool]:
    if select is None:
        return lambda aliases, conv: True
    if callable(select):
        return lambda aliases, conv: any(select(name, conv) for name in aliases)
    patterns = (select,) if isinstance(select, str) else tuple(select)
    _check_patterns("select", patterns, names)
    return lambda aliases, conv: any(_fits(aliases, pattern) for pattern in patterns)


def _check_patterns(
    argument: str, patterns: Iterable[str], names: Mapping[nn.Conv2d, list[str]]
) -> None:
    for pattern in patterns:
        if not any(_fits(aliases, pattern) for aliases in names.values()):
            known = ", ".join(name for aliases in names.values() for name in aliases)
            raise ValueError(
                f"{argument} names {pattern!r}, but no Conv2d of the model is called so; "
                f"there are {known or 'none'}"
            )


def _fits(aliases: Iterable[str], pattern: str) -> bool:
    return any(fnmatchcase(name, pattern) for name in aliases)


@dataclass(frozen=True)
class _Plan:
    """What to put in the place of which Conv2d."""

    layer: type[FrequencyTapConv2d]
    harmonic: dict[str, Any]
    chosen: set[nn.Conv2d]

    def keeps_bins(self, conv: nn.Conv2d, axis: Axis) -> bool:
        """Whether output bin j of a layer will stand where its input bin j·stride does."""
        harmonic_already = isinstance(conv, FrequencyTapConv2d)
        return harmonic_already or self.unsupported_reason(conv, axis) is None

    def unsupported_reason(self, conv: nn.Conv2d, axis: Axis | Lost) -> str | None:
        """Return why there is no harmonic layer of the same shape, or None."""
        if conv not in self.chosen:
            return "it was not selected"
        kind = type(conv).__bases__[0] if is_parametrized(conv) else type(conv)
        if kind is nn.LazyConv2d:
            return "its shape is not known before its first call: call the network once, then swap"
        if kind is not nn.Conv2d:
            return f"it is a {kind.__name__}, which may compute something else"
        if max(conv.kernel_size) == 1:
            return "its kernel has one row: there are no harmonics to read"
        if isinstance(axis, Lost):
            return axis.reason
        if axis.dim not in (-2, -1):
            return "its input has frequency neither as its last axis nor as the one before"
        rows, dilation = conv.kernel_size[axis.dim], conv.dilation[axis.dim]
        if rows == 1:
            return "its kernel has one row: there are no harmonics to read"
        if conv.padding_mode != "zeros":
            return f"its padding_mode is {conv.padding_mode!r}"
        padding = conv.padding if isinstance(conv.padding, str) else conv.padding[axis.dim]
        if padding != "same" and (padding == "valid" or 2 * padding != dilation * (rows - 1)):
            return "its padding changes the number of bins"
        if dilation != 1 and not self._takes("shifts"):
            hint = ""
            if issubclass(self.layer, HarmonicConv2d):
                hint = ": on a logarithmic axis layer=LogHarmonicConv2d computes the same"
            return f"it is dilated along frequency (by {dilation}){hint}"
        if dilation == 1 and self._lacks_resolution(axis.dim):
            return "it is not dilated: to swap it give bins_per_octave= or shifts="
        return None

    def _takes(self, name: str) -> bool:
        return name in signature(self.layer).parameters

    def _lacks_resolution(self, dim: int) -> bool:
        """Whether only layers that are dilated say at which shifts to read."""
        return (
            self._takes("shifts")
            and not {"bins_per_octave", "shifts"} & self.harmonic.keys()
            and any(conv.dilation[dim] != 1 for conv in self.chosen)
        )

    def twin(
        self, conv: nn.Conv2d, axis: Axis, dry_run: bool
    ) -> tuple[FrequencyTapConv2d | None, str]:
        """Return the layer that takes the place of `conv`, and what becomes of its weights."""
        arguments, what = dict(self.harmonic), ""
        if conv.dilation[axis.dim] != 1:
            for name in ("anchor", "harmonics", "bins_per_octave", "interpolation"):
                arguments.pop(name, None)
            shifts = _shifts(conv, axis.dim)
            arguments["shifts"] = shifts
            what = f", shifts {', '.join(map(str, shifts))}: computes the same as before"
        elif axis.scale != 1 and arguments.get("bins_per_octave") is not None:
            arguments["bins_per_octave"] /= float(axis.scale)
            what = f", bins_per_octave {arguments['bins_per_octave']:g}"
        if axis.origin != 0 and issubclass(self.layer, HarmonicConv2d):
            arguments["origin"] = axis.origin
        if axis.dim != -2:
            arguments["freq_dim"] = axis.dim
        for name in ("origin", "freq_dim"):
            if name in arguments and not self._takes(name):
                raise ValueError(
                    f"{self.layer.__name__} has no {name}, and a layer needs "
                    f"{name}={arguments[name]}: use HarmonicConv2d or LogHarmonicConv2d"
                )
        twin = self._build(conv, axis.dim, arguments, "meta")  # draws no random numbers
        own = {name: parameter.shape for name, parameter in twin.named_parameters()}
        shape = (conv.out_channels, conv.in_channels // conv.groups, *conv.kernel_size)
        is_own_only = not (own.keys() - {"weight", "bias"} or twin._buffers or twin._modules)
        if own["weight"] == shape and is_own_only:
            return twin, f"{self.layer.__name__}, weight carried over{what}"
        if is_parametrized(conv) or "weight" not in conv._parameters:
            return None, "its weight is reparametrised, and the new one has another shape"
        if not dry_run:
            twin = self._build(conv, axis.dim, arguments, conv.weight.device)
            twin.requires_grad_(conv.weight.requires_grad)
        return twin, f"{self.layer.__name__}, new weight of shape {tuple(twin.weight.shape)}{what}"

    def _build(
        self, conv: nn.Conv2d, freq_dim: int, harmonic: dict[str, Any], device: Any
    ) -> FrequencyTapConv2d:
        def in_time(value: Any, along_frequency: int) -> Any:
            if isinstance(value, str):
                return value
            return (along_frequency, value[1]) if freq_dim == -2 else (value[0], along_frequency)

        return self.layer(  # by name: layers with the original's signature have another order
            in_channels=conv.in_channels,
            out_channels=conv.out_channels,
            kernel_size=(conv.kernel_size[0], conv.kernel_size[1]),
            stride=(conv.stride[0], conv.stride[1]),
            padding=in_time(conv.padding, 0),
            dilation=in_time(conv.dilation, 1),
            groups=conv.groups,
            bias=conv.bias is not None,
            device=device,
            dtype=next(conv.parameters()).dtype,
            **harmonic,
        )


def _shifts(conv: nn.Conv2d, dim: int) -> tuple[int, ...]:
    """Return the distances, in bins, at which the rows of a dilated kernel read."""
    rows, dilation = conv.kernel_size[dim], conv.dilation[dim]
    before = dilation * (rows - 1) // 2  # "same" puts an odd zero after the last bin
    return tuple(row * dilation - before for row in range(rows))


def _become(conv: nn.Conv2d, twin: FrequencyTapConv2d) -> None:
    """Let `conv` compute as `twin` does, with its own parameters where their shapes agree."""
    of_every_module = vars(nn.Module()).keys()
    conv.__dict__.update(
        {name: value for name, value in vars(twin).items() if name not in of_every_module}
    )
    kind: type[nn.Module] = type(twin)
    if is_parametrized(conv):  # its class, made for it alone, computes the weight
        members = {name: member for name, member in vars(type(conv)).items()
                   if name not in ("__dict__", "__weakref__", "__doc__", "__module__")}  # fmt: skip
        kind = type(f"Parametrized{kind.__name__}", (kind,), members)
    conv.__class__ = kind  # type: ignore[assignment]
    for name, parameter in twin._parameters.items():
        if parameter is not None and not parameter.is_meta and name != "bias":
            conv._parameters[name] = parameter
    conv._buffers.update(twin._buffers)
    conv._modules.update(twin._modules)


def _other_reason(conv: nn.Module) -> str:
    if isinstance(conv, FrequencyTapConv2d):
        return f"it is a {type(conv).__name__} already"
    if isinstance(conv, _ConvTransposeNd):
        return (
            f"a {type(conv).__name__} has no harmonic twin: to have one, upsample and convolve "
            "instead"
        )
    return f"a {type(conv).__name__} has no frequency axis beside its channels and time"


# -------------------------------------------------------------------- where frequency is


def _one_axis(seen: list[Known]) -> Axis | Lost:
    """Return the axis of a layer's input, if it is the same wherever the layer is used."""
    if not seen:
        return Lost("example_input does not reach it")
    for known in seen:
        if isinstance(known, Lost):
            return Lost(f"its frequency axis could not be followed: {known.reason}")
        if known is None:
            return Lost("no frequency axis of example_input leads to it")
    axes = {(axis.dim, axis.origin, axis.scale): axis for axis in seen if isinstance(axis, Axis)}
    if len(axes) > 1:
        found = ", ".join(str(axis.origin) for axis in axes.values())
        return Lost(f"it is used in places whose bins stand for different frequencies ({found})")
    return next(iter(axes.values()))


def _strides(module: nn.Module, freq_dim: int) -> list[tuple[int, int]]:
    """Return the strides of a layer along frequency and along the other axis, if it has any."""
    if not isinstance(module, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)):
        return []
    stride: Any = module.stride
    pair = (stride, stride) if isinstance(stride, int) else tuple(stride)
    return [(pair[freq_dim], pair[-3 - freq_dim])]


def _strides_note(strides: list[tuple[int, int]], freq_dim: int) -> list[str]:
    """Suspect the other axis where it alone is strided: such networks keep their frames."""
    along_frequency, along_time = (any(pair[i] > 1 for pair in strides) for i in range(2))
    if along_frequency or not along_time:
        return []
    return [
        f"every stride and pooling is along {_NAMES[-3 - freq_dim]} and none along frequency, "
        f"{_NAMES[freq_dim]}. {_SWAPPED[freq_dim]}"
    ]


def _bins_note(sample: tuple[Any, ...], freq_dim: int) -> list[str]:
    """Suspect the other axis where it alone has as many bins as an STFT."""
    for tensor in sample:
        if isinstance(tensor, Tensor) and tensor.ndim >= 3:
            bins, others = tensor.shape[freq_dim], tensor.shape[-3 - freq_dim]
            if _is_stft(others) and not _is_stft(bins):
                return [
                    f"{_NAMES[-3 - freq_dim]} has {others} = {2 * (others - 1)}/2 + 1 entries, as "
                    f"many as an STFT has bins, and {_NAMES[freq_dim]}, given as frequency, has "
                    f"{bins}. {_SWAPPED[freq_dim]}"
                ]
    return []


def _is_stft(n_bins: int) -> bool:
    """Whether a window of a power of two has as many bins."""
    return n_bins >= 65 and (n_bins - 1) & (n_bins - 2) == 0


_NAMES = {-1: "the last axis", -2: "the last but one"}
_SWAPPED = {
    -2: "If inputs are (batch, channel, time, freq), pass freq_dim=-1",
    -1: "If inputs are (batch, channel, freq, time), leave out freq_dim=-1",
}
