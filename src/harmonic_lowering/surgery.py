"""Swap the convolutions of an existing network for harmonic ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from .modules import FrequencyTapConv2d, HarmonicConv2d, LogHarmonicConv2d
from .taps import Ratio

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
    layer: type[HarmonicConv2d] | type[LogHarmonicConv2d] = HarmonicConv2d,
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
    layer : {HarmonicConv2d, LogHarmonicConv2d}
        What to put in.
    select : callable, str or iterable of str, optional
        Which layers to swap: ``select(name, conv) -> bool``, or names as in `named_modules`, where
        ``*`` stands for anything (``"encoder.*"``). All Conv2d layers if left out.
    origin : float or mapping from name to float
        The `origin` of each layer, if `layer` is `HarmonicConv2d`: behind a pooling or a stride it
        differs, see `origin_after_pooling`. Names may hold ``*``; layers not named get 0.
    dry_run : bool
        Change nothing and report what would be done.
    **harmonic
        Passed on to `layer`: ``anchor``, ``harmonics``, ``bins_per_octave``, ``engine`` …

    Returns
    -------
    SwapReport
        Which layers were swapped and which were not, and why; ``print`` it.

    Raises
    ------
    ValueError
        If `model` is a Conv2d itself, or a selected name does not exist. Nothing is changed then.

    Notes
    -----
    Weights and biases are carried over where their shapes agree (they do unless `anchor` is a
    sequence), as the same parameters, so that an optimiser that holds them goes on working. A
    layer used in two places of the network is one layer afterwards too. Reparametrised layers
    (``weight_norm`` and the like) are kept: swap first, then reparametrise.

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
    convolutions = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and not isinstance(module, FrequencyTapConv2d)
    }
    chosen = _chosen(convolutions, select)
    origins = origin if isinstance(origin, Mapping) else {"*": origin}

    outcomes: list[Swap] = []
    replacements: dict[nn.Module | None, nn.Module] = {}
    for name, conv in convolutions.items():
        obstacle = _obstacle(conv) if chosen(name, conv) else "it was not selected"
        if obstacle is None:
            arguments = dict(harmonic)
            if issubclass(layer, HarmonicConv2d):
                matches = [o for pattern, o in origins.items() if fnmatchcase(name, pattern)]
                arguments["origin"] = matches[0] if matches else 0
            replacements[conv], weight = _harmonic_twin(conv, layer, arguments)
            outcomes.append(Swap(name, True, f"{layer.__name__}, {weight}"))
        else:
            outcomes.append(Swap(name, False, obstacle))

    if not dry_run:
        for parent in model.modules():
            for child_name, child in list(parent._modules.items()):
                if child in replacements:
                    parent.add_module(child_name, replacements[child])
    return SwapReport(tuple(outcomes), dry_run)


def _chosen(
    convolutions: Mapping[str, nn.Conv2d],
    select: Callable[[str, nn.Conv2d], bool] | str | Iterable[str] | None,
) -> Callable[[str, nn.Conv2d], bool]:
    if select is None:
        return lambda name, conv: True
    if callable(select):
        return select
    patterns = (select,) if isinstance(select, str) else tuple(select)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in convolutions):
            raise ValueError(
                f"select names {pattern!r}, but no Conv2d of the model is called so; "
                f"there are {', '.join(convolutions) or 'none'}"
            )
    return lambda name, conv: any(fnmatchcase(name, pattern) for pattern in patterns)


def _obstacle(conv: nn.Conv2d) -> str | None:
    """Return why there is no harmonic layer of the same shape, or None."""
    rows = conv.kernel_size[0]
    if is_parametrized(conv) or conv._forward_pre_hooks or conv._forward_hooks:
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
    conv: nn.Conv2d,
    layer: type[HarmonicConv2d] | type[LogHarmonicConv2d],
    harmonic: dict[str, Any],
) -> tuple[nn.Module, str]:
    """Return the layer that takes the place of `conv`, and what became of its weights."""
    twin = layer(
        conv.in_channels,
        conv.out_channels,
        (conv.kernel_size[0], conv.kernel_size[1]),
        (conv.stride[0], conv.stride[1]),
        conv.padding if isinstance(conv.padding, str) else (0, conv.padding[1]),
        (1, conv.dilation[1]),
        conv.groups,
        conv.bias is not None,
        device=conv.weight.device,
        dtype=conv.weight.dtype,
        **harmonic,
    )
    twin.train(conv.training)
    twin.bias = conv.bias
    if twin.weight.shape != conv.weight.shape:
        return twin, f"new weight of shape {tuple(twin.weight.shape)}"
    twin.weight = conv.weight
    return twin, "weight carried over"
