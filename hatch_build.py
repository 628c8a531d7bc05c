"""Put the native core into wheels: one library for each instruction set.

`pip install .` compiles for this machine's platform, and goes on without the core where there is no
compiler. ``make wheel`` builds for a platform that ``HARMONIC_LOWERING_PLATFORM`` names (see
`CROSS`), where anything that fails is an error; "any" makes the wheel without a core.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shlex
import shutil
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NATIVE = Path("src/harmonic_lowering/engines/native")
ZIG = f"{shlex.quote(sys.executable)} -m ziglang c++ -fno-sanitize=undefined -target"
# Platform: tag, machine, suffix, compiler. Not GCC for Windows, where it does not align vectors
# on the stack (its bug 54412).
CROSS = {
    "linux-x86_64": ("manylinux_2_28_x86_64", "x86_64", ".so", "g++"),
    "linux-aarch64": ("manylinux_2_28_aarch64", "aarch64", ".so", "aarch64-linux-gnu-g++"),
    "macos-arm64": ("macosx_11_0_arm64", "aarch64", ".dylib", f"{ZIG} aarch64-macos.11.0"),
    "windows-x86_64": ("win_amd64", "x86_64", ".dll", f"{ZIG} x86_64-windows-gnu"),
}


class NativeCoreHook(BuildHookInterface):  # type: ignore[type-arg]
    """Compiles the libraries and adds them to the wheel, which then has a platform."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile."""
        self.folder = Path(tempfile.mkdtemp(prefix="harmonic-lowering-"))
        wanted = os.environ.get("HARMONIC_LOWERING_PLATFORM", "")
        if wanted == "any":
            return
        if version == "editable":
            self.app.display_info("the native core: build it with: harmonic-lowering build-native")
            return
        compiler = _load(Path(self.root) / NATIVE / "compiler.py")
        try:
            if wanted:
                tag, machine, suffix, command = CROSS[wanted]
                compile_with = shlex.split(command)
            else:
                tag, machine, suffix = _this_platform()
                compile_with = compiler.find_compiler()
            sets = compiler.INSTRUCTION_SETS.get(machine)
            if not sets:
                raise compiler.BuildError(f"there is none for {machine}")
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                jobs = [
                    pool.submit(
                        compiler.compile_library,
                        compile_with,
                        _as_zig_says(flags) if "ziglang" in compile_with else flags,
                        self.folder,
                        f"tap_conv-{name}",
                        suffix=suffix,
                    )
                    for name, flags in sets.items()
                ]
                made = [job.result() for job in jobs]
        except (compiler.BuildError, OSError) as error:
            if wanted:
                raise
            reason = str(error).strip().splitlines()[-1]
            self.app.display_warning(
                f"Without the native core ({reason}): everything works, the layers are slower on "
                "the CPU. Once there is a compiler: harmonic-lowering build-native"
            )
            return
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{tag}"
        for library in made:
            to = (NATIVE / "lib" / library.name).relative_to("src")
            build_data["force_include"][str(library)] = to.as_posix()

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what was compiled."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _this_platform() -> tuple[str, str, str]:
    tag = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    machine = {"arm64": "aarch64", "amd64": "x86_64"}.get(
        platform.machine().lower(), platform.machine().lower()
    )
    if sys.platform == "darwin":  # Python may be built for several machines, the core is for one
        tag = f"macosx_11_0_{platform.machine()}"
    return tag, machine, {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")


def _as_zig_says(flags: tuple[str, ...]) -> list[str]:
    """Return -march=x86-64-v4 -mavx512bf16 as -mcpu=x86_64_v4+avx512bf16."""
    cpu = "".join(
        flag.removeprefix("-march=").replace("-", "_")
        if flag.startswith("-march=")
        else "+" + flag.removeprefix("-m")
        for flag in flags
    )
    return [f"-mcpu={cpu}"] if cpu else []


def _load(path: Path) -> ModuleType:
    """Load a file of the package without the package, which needs torch."""
    spec = importlib.util.spec_from_file_location("native_core_compiler", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
