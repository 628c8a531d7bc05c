"""Every question that this package asks torch's internals, under a plain name.

Private names move between releases of torch: each is used here and nowhere else.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import itertools
import operator
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from functools import lru_cache, wraps
from types import SimpleNamespace
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch._functorch.utils import enable_single_level_autograd_function
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction
from torch.library import Library

__all__ = [
    "allows_tf32_in_convolutions",
    "apply_to_plain",
    "compile_time_constant",
    "constant_object",
    "device_property",
    "fx_call",
    "has_forward_mode",
    "has_matrix_units",
    "is_eager",
    "is_exporting_to_onnx",
    "is_fx_proxy",
    "is_jit_tracing",
    "is_plain",
    "is_released",
    "knows_autocast",
    "making_constants",
    "may_be_autocasting",
    "mixes_fake_tensors",
    "obeys_operators",
    "register_autograd",
    "register_flop_formula",
    "replicated_beside",
]

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


def compile_time_constant(function: F) -> F:
    """Let torch.compile call `function` while it traces, and take the result as a constant.

    The same as `torch.compiler.assume_constant_result`, which would import all of Dynamo.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


_objects = SimpleNamespace()
_numbers = itertools.count()
_FRACTION = "Fraction"


def constant_object(make: Callable[..., T], maxsize: int = 1024) -> Callable[..., T]:
    """Cache what `make` returns for each set of arguments, and let compiled code call it.

    torch.compile can neither trace fractions nor take an object as the constant result of a
    function. It does take strings, and attributes of a global. So while it traces, a function that
    it need not trace makes the object and gives it a name, under which the object is found.
    Sequences among the arguments are taken as tuples.
    """

    @lru_cache(maxsize, typed=True)
    def cached(kinds: tuple[object, ...], *constants: Any) -> T:
        return make(*constants)

    names: dict[int, str] = {}

    @compile_time_constant
    def name(*constants: Any) -> str:
        restored = tuple(map(_restore, constants))
        made = cached(_kinds(restored), *restored)
        if id(made) not in names:
            names[id(made)] = f"object_{next(_numbers)}"  # two threads never get the same one
            setattr(_objects, names[id(made)], made)  # which also keeps the id from another's use
        return names[id(made)]

    @wraps(make)
    def call(*arguments: Any) -> T:
        if torch.compiler.is_compiling():
            return getattr(_objects, name(*[_constant(a) for a in arguments]))  # type: ignore[no-any-return]
        constants = tuple([_tuple(argument) for argument in arguments])
        kinds = _kinds(constants)
        try:
            hash(constants)
        except Exception:  # what cannot be hashed is no number either: let `make` say so
            return make(*constants)
        return cached(kinds, *constants)

    return call


def _kinds(constants: tuple[Any, ...]) -> tuple[object, ...]:
    """Return the types of what tuples hold: 1, 1.0 and True are equal, and not the same to `make`.

    Of what stands alone, a typed cache knows the type.
    """
    return tuple([_entry_types(c) if type(c) is tuple else None for c in constants])


def _entry_types(entries: tuple[Any, ...]) -> tuple[object, ...]:
    return tuple([_entry_types(e) if type(e) is tuple else type(e) for e in entries])


def _tuple(value: Any) -> Any:
    if type(value) is list:
        return tuple(map(_tuple, value))
    if isinstance(value, (Sequence, Iterator)) and not isinstance(value, (str, bytes, bytearray)):
        return tuple(map(_tuple, value))
    if getattr(value, "ndim", 0) > 0 and not isinstance(value, Tensor):  # NumPy's
        return tuple(map(_tuple, value))
    return value


def _constant(value: Any) -> Any:
    """Return an argument of a compiled function as a constant.

    It is a symbol until it is used. Each line uses it in a way that makes torch.compile take its
    value, and compile again for another one.
    """
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return operator.index(value)
    if type(value) is float:
        return float.fromhex(value.hex())
    if isinstance(value, str):
        return value[:]
    if isinstance(value, Fraction):
        return _FRACTION, operator.index(value.numerator), operator.index(value.denominator)
    if isinstance(value, Iterable) and not isinstance(value, Tensor):
        return tuple([_constant(entry) for entry in value])
    return value


def _restore(constant: Any) -> Any:
    if not isinstance(constant, tuple):
        return constant
    is_fraction = constant[:1] == (_FRACTION,)
    return Fraction(*constant[1:]) if is_fraction else tuple(map(_restore, constant))


@compile_time_constant
def is_jit_tracing() -> bool:
    """Whether torch.jit.trace (or the ONNX exporter built on it) is recording."""
    return torch._C._is_tracing()


@compile_time_constant
def is_exporting_to_onnx() -> bool:
    """Whether torch.onnx.export is at work."""
    onnx = sys.modules.get("torch.onnx")  # whoever exports has imported it
    return onnx is not None and bool(onnx.is_in_onnx_export())


@compile_time_constant
def has_forward_mode() -> bool:
    """Whether forward-mode derivatives are being computed."""
    if forward_ad._current_level >= 0:
        return True
    stack = torch._C._functorch.get_interpreter_stack()
    jvp = torch._C._functorch.TransformType.Jvp
    return any(interpreter.key() == jvp for interpreter in stack or ())


def obeys_operators(tensor: Tensor) -> bool:
    """Whether a tensor may be handed to this package's operators.

    Other subclasses may override operators, of which they know torch's own only.
    """
    kind = type(tensor)
    return kind is Tensor or issubclass(kind, (torch.nn.Parameter, FakeTensor, FunctionalTensor))


def is_eager() -> bool:
    """Whether nothing but ordinary autograd is at work: no compiler, tracer, transform or mode.

    Asked at every call, so without a function in between.
    """
    return not (
        torch.compiler.is_compiling()
        or torch._C._is_tracing()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
        or torch._C._len_torch_dispatch_stack() > 0
    )


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is an ordinary one, not a subclass nor a transform's."""
    if type(tensor) not in (Tensor, torch.nn.Parameter):
        return False
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    return not (wrapped or torch._C._functorch.is_legacy_batchedtensor(tensor))


def is_fx_proxy(value: object) -> bool:
    """Whether a value stands for a tensor in torch.fx.symbolic_trace."""
    return isinstance(value, torch.fx.Proxy)


def fx_call(function: Callable[..., Tensor], input: Any, *arguments: Any) -> Tensor:
    """Record in torch.fx's graph that `function` is called, without tracing what it does."""
    return input.tracer.create_proxy("call_function", function, (input, *arguments), {})  # type: ignore[no-any-return]


def replicated_beside(tensor: Tensor, *constants: Tensor | None) -> tuple[Tensor | None, ...]:
    """Return constants as operations on a tensor take them: a DTensor's on each of its devices."""
    distributed = sys.modules.get("torch.distributed.tensor")  # whoever has one has imported it
    if distributed is None or not isinstance(tensor, distributed.DTensor):
        return constants
    mesh = tensor.device_mesh
    everywhere = [distributed.Replicate()] * mesh.ndim
    return tuple(
        t if t is None else distributed.DTensor.from_local(t, mesh, everywhere, run_check=False)
        for t in constants
    )


def mixes_fake_tensors(tensors: Sequence[Tensor]) -> bool:
    """Whether some of several tensors are fake and some real, and their mode refuses that."""
    fake = [tensor for tensor in tensors if isinstance(tensor, FakeTensor)]
    return 0 < len(fake) < len(tensors) and not fake[0].fake_mode.allow_non_fake_inputs


def is_released(tensor: Tensor) -> bool:
    """Whether the memory of an ordinary tensor was given back, by ``storage.resize_(0)``."""
    return (
        is_eager()
        and is_plain(tensor)
        and tensor.device.type != "meta"
        and tensor.numel() > 0
        and not tensor._is_zerotensor()
        and tensor.untyped_storage().nbytes() == 0
    )


@contextmanager
def making_constants() -> Iterator[None]:
    """Make ordinary tensors, whatever is at work around.

    Not those of a function transform; not recorded by torch.jit.trace; on the CPU; and not of
    inference mode, whose tensors could not be saved for a later backward pass.
    """
    state = torch._C._get_tracing_state() if torch._C._is_tracing() else None
    if state is not None:
        torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
    try:
        with (
            temporarily_clear_interpreter_stack(),
            torch.inference_mode(False),
            torch.device("cpu"),
        ):
            yield
    finally:
        if state is not None:
            torch._C._set_tracing_state(state)  # type: ignore[attr-defined]


@compile_time_constant  # torch 2.11 cannot trace it
def knows_autocast(device: str) -> bool:
    """Whether a type of device has autocasting."""
    return torch.amp.is_autocast_available(device)


def may_be_autocasting() -> bool:
    """Nearly never true, and what it saves takes microseconds."""
    return torch.compiler.is_compiling() or torch._C._is_any_autocast_enabled()


@compile_time_constant
def has_matrix_units() -> bool:
    """Whether this processor multiplies half-precision matrices in units of their own (AMX)."""
    probe = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return probe is not None and bool(probe())


def allows_tf32_in_convolutions() -> bool:
    """Whether torch's switches let convolutions of float32 multiply in TF32."""
    if _switches is None:
        return bool(torch.backends.cudnn.allow_tf32)
    return bool(_switches.fp32_precision == "tf32")


_switches = getattr(torch.backends.cudnn, "conv", None)  # torch 2.9 and newer


def device_property(device: torch.device, name: str) -> int:
    """Return what an accelerator says of itself, or 0 if it does not."""
    properties_of = getattr(torch.get_device_module(device), "get_device_properties", None)
    return int(getattr(properties_of(device), name, 0)) if properties_of else 0


def apply_to_plain(function: type[torch.autograd.Function]) -> Callable[..., Tensor]:
    """Return a function's `apply` for plain tensors, whose Python small calls notice.

    What it leaves out is the search for tensors of transforms that have ended.
    """
    return super(torch.autograd.Function, function).apply  # type: ignore[misc,no-any-return]


def register_autograd(
    library: Library,
    operator: OpOverload,
    backward: Callable[..., tuple[Tensor | None, ...]],
    setup_context: Callable[[Any, tuple[Any, ...], Any], None],
) -> None:
    """Give an operator its derivative, also under function transforms.

    `torch.library.register_autograd` does the same for eager and compiled calls, but the function
    that it makes is refused by torch.func.grad and all that is built on it. An operator is
    differentiated one level of transforms at a time, for which torch has a function of its own.
    """

    class Derivative(_SingleLevelFunction):
        @staticmethod
        def forward(ctx: Any, *arguments: Any) -> Any:
            *inputs, keyset = arguments
            with torch.enable_grad():  # a function's forward disables it, for lower levels too
                output = below_autograd(keyset, *inputs)
            setup_context(ctx, tuple(inputs), output)
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
            return *backward(ctx, *grads), None

    def below_autograd(keyset: Any, *arguments: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            lower = keyset & torch._C._after_autograd_keyset
            return operator.redispatch(lower, *arguments)

    def differentiable(keyset: Any, *arguments: Any) -> Any:
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*arguments):
            with enable_single_level_autograd_function():
                return Derivative.apply(*arguments, keyset)  # type: ignore[attr-defined]
        return below_autograd(keyset, *arguments)

    name = operator._schema.name.partition("::")[2]
    library.impl(name, differentiable, "Autograd", with_keyset=True)  # type: ignore[no-untyped-call]


_FLOP_COUNTER = "torch.utils.flop_counter"


def register_flop_formula(operator: Any, formula: Callable[..., int]) -> None:
    """Have `FlopCounterMode` count an operator.

    Importing its module imports Triton, where that is installed, which takes longer than all of
    this package. So this waits until somebody imports it.
    """
    if _FLOP_COUNTER in sys.modules:
        sys.modules[_FLOP_COUNTER].register_flop_formula(operator)(formula)
        return
    if not any(isinstance(finder, _FlopCounterFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _FlopCounterFinder())
    _FlopCounterFinder.waiting.append((operator, formula))


class _FlopCounterFinder(importlib.abc.MetaPathFinder):
    waiting: ClassVar[list[tuple[Any, Callable[..., int]]]] = []

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name != _FLOP_COUNTER:
            return None
        sys.meta_path.remove(self)  # so that what is found is the module itself
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module: Any) -> None:
            execute(module)
            for counted, formula in self.waiting:
                module.register_flop_formula(counted)(formula)

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec
