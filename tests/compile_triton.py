"""Compile the Triton kernels for cards that need not be here, and print what each one takes.

    TRITON_INTERPRET=0 python tests/compile_triton.py [--quick] [CAPABILITY ...]

Real calls of the layers say which kernels, with which arguments: their launches are recorded, on
the CPU, instead of made. A line of JSON for each kernel: registers, spilled bytes, shared memory.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from harmonic_lowering import HarmonicConv2d
from harmonic_lowering.engines.triton import cards, core, kernels
from harmonic_lowering.engines.triton.launches import Launch

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16",
         torch.int32: "*i32"}  # fmt: skip

# kernel, channels, dtype, whether TF32 is allowed, other arguments
CALLS = {
    "Setting 1, TF32": (7, (16, 32), torch.float32, True, {}),
    "Setting 1, bfloat16": (7, (16, 32), torch.bfloat16, True, {}),
    "Setting 1, float32": (7, (16, 32), torch.float32, False, {}),
    "Setting 1a, TF32": (7, (16, 32), torch.float32, True, {"anchor": 7}),
    "Setting 1a, bfloat16, channels last": (7, (16, 32), torch.bfloat16, True, {"anchor": 7}),
    "Setting 1a, float32": (7, (16, 32), torch.float32, False, {"anchor": 7}),
    "Setting 2, TF32": (5, (16, 32), torch.float32, True, {}),
    "Setting 3, TF32": (3, (16, 32), torch.float32, True, {}),
    "Setting 3, bfloat16, channels last": (3, (16, 32), torch.bfloat16, True, {}),
    "Setting 3, float32": (3, (16, 32), torch.float32, False, {}),
    "strided, wide, float16": (3, (64, 64), torch.float16, True, {"stride": (1, 2)}),
    "wide, TF32, channels last": (3, (128, 128), torch.float32, True, {}),
    "first layer, TF32": (3, (2, 8), torch.float32, True, {}),
    "dilated groups, bfloat16": (3, (32, 64), torch.bfloat16, True, {"dilation": 4, "groups": 4}),
}

QUICK = ("Setting 1a, TF32", "Setting 3, bfloat16, channels last", "strided, wide, float16",
         "first layer, TF32")  # fmt: skip


def launches(kernel, channels, dtype, last, options):
    """Return the launches of one training step: (name, arguments, options)."""
    found = []

    def record(launch, *tensors):
        constants = dict(launch.constants)
        options = {key: constants.pop(key) for key in ("num_warps", "num_stages")}
        arguments = (*tensors, *(launch.table[:4] if launch.table else ()), *launch.numbers)
        found.append((launch.name, arguments, constants, {**options, "enable_fp_fusion": True}))

    Launch.__call__ = record
    core._COPIED_FROM = 0  # as for large tensors
    cards._unsupported_machine = cards._unsupported_device = lambda *device: None
    padding = kernel // 2 * options.get("dilation", 1)
    layer = HarmonicConv2d(
        *channels, kernel, padding=padding, engine="triton", dtype=dtype, **options
    )
    form = torch.channels_last if last else torch.contiguous_format
    x = torch.zeros(1, channels[0], 16, 256, dtype=dtype).contiguous(memory_format=form)
    y = layer.to(memory_format=form)(x.requires_grad_())
    y.backward(torch.zeros_like(y))
    return found


def source(name, arguments, constants):
    """Return what Triton's launcher would compile for these arguments."""
    function = getattr(kernels, name)
    signature, known, attributes = {}, {}, {}
    for index, (parameter, value) in enumerate(zip(function.params, arguments, strict=False)):
        if value is None or (type(value) is int and value == 1 and not parameter.do_not_specialize):
            signature[parameter.name], known[(index,)] = "constexpr", value
            continue
        if isinstance(value, int):
            signature[parameter.name] = "i32"
            aligned = value % 16 == 0 and not parameter.do_not_specialize
        else:
            signature[parameter.name], aligned = TYPES[value.dtype], True
        if aligned:
            attributes[(index,)] = [["tt.divisibility", 16]]
    for parameter in function.params[len(arguments) :]:
        signature[parameter.name] = "constexpr"
        known[(parameter.num,)] = constants[parameter.name]
    return ASTSource(function, signature, known, attributes)


def usage(cubin):
    """Return registers, spilled bytes and shared memory of a compiled kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    numbers = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", text))
    return {
        "registers": int(numbers["REG"]),
        "spilled": int(numbers["STACK"]) + int(numbers["LOCAL"]),
    }


def main(capabilities, chosen):
    for what in chosen:
        kernel, channels, dtype, tf32, options = CALLS[what]
        torch.backends.cudnn.allow_tf32 = tf32
        for name, arguments, constants, launch in launches(
            kernel, channels, dtype, "channels last" in what, options
        ):
            for capability in capabilities:
                target = GPUTarget("cuda", int(capability), 32)
                compiled = triton.compile(source(name, arguments, constants), target, launch)
                tensor_cores = bool(re.search(r"(wgmma|mma\.sync|tcgen05)", compiled.asm["ptx"]))
                phases = constants.get("PHASES")
                line = {
                    "call": what, "kernel": name, "capability": capability, "phases": phases,
                    "tensor_cores": tensor_cores,
                    "shared": compiled.metadata.shared, **usage(compiled.asm["cubin"]), **launch,
                }  # fmt: skip
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    numbers = [word for word in sys.argv[1:] if word.isdigit()]
    main(numbers or ["80", "90", "100"], QUICK if "--quick" in sys.argv else CALLS)
