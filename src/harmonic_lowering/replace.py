"""Swap the convolutions of an existing network for harmonic ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from inspect import signature
from typing import Any

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from .checks import Ratio
from .modules import FrequencyTapConv2d, HarmonicConv2d

__all__ = ["Swap", "SwapReport", "replace_conv2d"]


@dataclass(frozen=True)
class Swap:
    """What became of one Conv2d, and why."""

    name: str
    swapped: bool
    reason: str


@dataclass(frozen=True)
class SwapReport:
    """What `replace_conv2d` did, layer by layer; printed as a table."""

    layers: tuple[Swap, ...]
    dry_run: bool = False

    @property
    def swapped(self) -> tuple[str, ...]:
        """The names of the layers that were swapped."""
        return tuple(layer.name for layer in self.layers if layer.swapped)

    @property
    def kept(self) -> tuple[str, ...]:
        """The names of the Conv2d layers that were left as they are."""
        return tuple(layer.name for layer in self.layers if not layer.swapped)

    def __str__(self) -> str:
        width = max((len(layer.name) for layer in self.layers), default=0)
        verb = "would be swapped" if self.dry_run else "swapped"
        lines = [f"{len(self.swapped)} of {len(self.layers)} Conv2d layers {verb}"]
        for layer in self.layers:
            mark = "swap" if layer.swapped else "keep"
            lines.append(f"  {mark}  {layer.name:<{width}}  {layer.reason}")
        return "\n".join(lines)


def replace_conv2d(
    model: nn.Module,
    layer: type[FrequencyTapConv2d] = HarmonicConv2d,
    *,
    select: Callable[[str, nn.Conv2d], bool] | str | Iterable[str] | None = None,
    origin: Ratio | Mapping[str, Ratio] = 0,
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
        Network to change, of inputs (batch, channel, freq, time). It must not itself be the Conv2d
        to swap.
    layer : {HarmonicConv2d, LogHarmonicConv2d} or a subclass
        What to put in.
    select : callable, str or iterable of str, optional
        Which layers to swap: ``select(name, conv) -> bool``, or names as in `named_modules`, where
        ``*`` stands for anything (``"encoder.*"``). All Conv2d layers if left out. A layer used in
        several places answers to each of its names.
    origin : float or mapping from name to float
        The `origin` of each layer, if `layer` is `HarmonicConv2d`: behind a pooling or a stride it
        differs, see `origin_after_pooling`. Names may hold ``*``, and the first that fits counts;
        layers not named get 0.
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
        If `model` is a Conv2d itself, a selected name or one with an origin does not exist, or an
        argument does not fit. Nothing is changed then.
    TypeError
        If `layer` is not a harmonic layer.

    Notes
    -----
    Weights and biases are carried over where their shapes agree (they do unless `anchor` is a
    sequence), as the same parameters, so that an optimiser that holds them goes on working. A
    layer used in two places of the network is one layer afterwards too. Reparametrised layers
    (``weight_norm`` and the like) and layers with hooks are kept: swap first, then add them.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 1))
    >>> print(replace_conv2d(net, anchor=2))
    1 of 2 Conv2d layers swapped
      swap  0  HarmonicConv2d, weight carried over
      keep  2  its kernel has one row: there are no harmonics to read
    >>> type(net[0]).__name__
    'HarmonicConv2d'
    """
    if isinstance(model, nn.Conv2d):
        raise ValueError(
            f"model is a {type(model).__name__} itself and cannot be swapped in place: build the "
            "harmonic layer directly, or pass the network that holds it"
        )
    if not (isinstance(layer, type) and issubclass(layer, FrequencyTapConv2d)):
        raise TypeError(
            f"layer must be HarmonicConv2d, LogHarmonicConv2d or a subclass, got {layer!r}"
        )
    if origin != 0 and not issubclass(layer, HarmonicConv2d):
        raise ValueError(
            f"origin belongs to a linear frequency axis and {layer.__name__} has none, "
            f"got origin={origin!r}"
        )
    if clash := _OF_CONV2D & harmonic.keys():
        raise ValueError(
            f"{', '.join(sorted(clash))} cannot be given: each layer keeps what its Conv2d has"
        )
    names: dict[nn.Conv2d, list[str]] = {}  # one layer may have several
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, nn.Conv2d) and not isinstance(module, FrequencyTapConv2d):
            names.setdefault(module, []).append(name)
    chosen = _chosen(names, select)
    origins = origin if isinstance(origin, Mapping) else {"*": origin}
    if isinstance(origin, Mapping):
        _check_patterns("origin", origins, names)

    outcomes: list[Swap] = []
    replacements: dict[nn.Module | None, nn.Module] = {}
    for conv, aliases in names.items():
        obstacle = _unsupported_reason(conv) if chosen(aliases, conv) else "it was not selected"
        if obstacle is None:
            arguments = dict(harmonic)
            here = next((o for pattern, o in origins.items() if _fits(aliases, pattern)), 0)
            if here != 0:
                arguments["origin"] = here
            replacements[conv], weight = _harmonic_twin(conv, layer, arguments, dry_run)
            outcomes.append(Swap(aliases[0], True, f"{layer.__name__}, {weight}"))
        else:
            outcomes.append(Swap(aliases[0], False, obstacle))

    if not dry_run:
        for parent in model.modules():
            for child_name, child in list(parent._modules.items()):
                if child in replacements:
                    parent.add_module(child_name, replacements[child])
    return SwapReport(tuple(outcomes), dry_run)


_OF_CONV2D = set(signature(nn.Conv2d).parameters)


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


def _unsupported_reason(conv: nn.Conv2d) -> str | None:
    """Return why there is no harmonic layer of the same shape, or None."""
    rows = conv.kernel_size[0]
    has_hooks = any(held for name, held in vars(conv).items() if name.endswith("_hooks"))
    if is_parametrized(conv) or has_hooks:
        return "it is reparametrised or has hooks: swap first, then add them"
    if type(conv) is not nn.Conv2d:
        return f"it is a {type(conv).__name__}, which may compute something else"
    if rows == 1:
        return "its kernel has one row: there are no harmonics to read"
    if conv.padding_mode != "zeros":
        return f"its padding_mode is {conv.padding_mode!r}"
    if conv.dilation[0] != 1:
        return f"it is dilated along frequency (by {conv.dilation[0]})"
    if conv.padding == "valid" or (conv.padding != "same" and 2 * conv.padding[0] != rows - 1):
        return "its padding changes the number of bins"
    return None


def _harmonic_twin(
    conv: nn.Conv2d, layer: type[FrequencyTapConv2d], harmonic: dict[str, Any], dry_run: bool
) -> tuple[nn.Module, str]:
    """Return the layer that takes the place of `conv`, and what became of its weights."""
    # by name: layers with the original's signature have another order
    twin = layer(
        in_channels=conv.in_channels,
        out_channels=conv.out_channels,
        kernel_size=(conv.kernel_size[0], conv.kernel_size[1]),
        stride=(conv.stride[0], conv.stride[1]),
        padding=conv.padding if isinstance(conv.padding, str) else (0, conv.padding[1]),
        dilation=(1, conv.dilation[1]),
        groups=conv.groups,
        bias=conv.bias is not None,
        device="meta" if dry_run else conv.weight.device,  # trying draws no random numbers
        dtype=conv.weight.dtype,
        **harmonic,
    )
    twin.train(conv.training)
    twin.requires_grad_(conv.weight.requires_grad)
    twin.bias = conv.bias
    if twin.weight.shape != conv.weight.shape:
        return twin, f"new weight of shape {tuple(twin.weight.shape)}"
    twin.weight = conv.weight
    return twin, "weight carried over"
