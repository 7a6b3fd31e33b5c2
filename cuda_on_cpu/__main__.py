"""Build it into the running environment: `python -m cuda_on_cpu`.

The libraries go to the folder `cuda_on_cpu` of `sys.prefix`. CuPy's wheel has NVIDIA's runtime
inside its module `runtime`. So this module is built again from CuPy's source distribution, against
the libraries here. NVIDIA's packages stay unchanged.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from cuda_on_cpu import FOLDER, HOME, RUNTIME, VERSION, digest, missing

SITE = Path(sysconfig.get_path("platlib"))
CUDA = SITE / "nvidia/cuda_runtime/include"
MODULE = "cupy_backends/cuda/api/runtime"
# Every process that imports CuPy reads these: CUB and cuTENSOR have machine code, and kernels are
# not NVIDIA's.
ENVIRONMENT = """
import os as _os
_os.environ["CUPY_ACCELERATORS"] = ""
_os.environ.setdefault("CUPY_CACHE_DIR", _os.path.expanduser("~/.cache/cuda_on_cpu"))
"""
# as CuPy's own build
CYTHON = ["-m", "cython", "-3", "--cplus", "-X", "binding=False,c_api_binop_methods=True"]
CYTHON += ["-E", "CUPY_CUDA_VERSION=12090,CUPY_HIP_VERSION=0,CUPY_USE_CUDA_PYTHON=False"]
# Functions that only have to succeed.
NOTHING = {"cudaGetLastError", "cudaGraphUpload", "cuModuleUnload"}


def unsupported() -> str:
    """Return why nothing can be built here, or "" if it can."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"it needs Linux on x86-64, and this is {sys.platform} on {platform.machine()}"
    if not (
        shutil.which("g++") and importlib.util.find_spec("cupy") and (CUDA / "cuda.h").exists()
    ):
        return "it needs g++ and the packages cupy-cuda12x and nvidia-cuda-runtime-cu12"
    version = importlib.metadata.version("cupy-cuda12x")
    return (
        "" if version == VERSION else f"it is built against CuPy {VERSION}, and this is {version}"
    )


def run(*command: str | Path, **options: object) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)  # type: ignore[call-overload]
    if done.returncode:
        sys.exit(f"cuda_on_cpu: {shlex.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return str(done.stdout)


def asked(path: Path, *options: str) -> list[str]:
    """Return the functions of CUDA that a module calls."""
    found = (
        line.split()[-1].partition("@")[0]
        for line in run("nm", "--undefined-only", *options, path).splitlines()
    )
    return [name for name in found if re.match("(cuda|cublas|nccl)[A-Z]", name)]


def compiled_runtime(compiler: list[str]) -> Path:
    """Return CuPy's module, which is kept, compiled from its source distribution."""
    made = HOME / f"runtime-{VERSION}.o"
    if not made.exists():
        with tempfile.TemporaryDirectory() as folder:
            fetch = [
                sys.executable,
                "-m",
                "pip",
                "download",
                "-q",
                "--no-deps",
                "--no-build-isolation",
                "--no-binary",
            ]
            # With this variable CuPy's setup.py asks for no CUDA.
            run(
                *fetch,
                "cupy",
                "-d",
                folder,
                f"cupy=={VERSION}",
                env={**os.environ, "READTHEDOCS": "True"},
            )
            shutil.unpack_archive(next(Path(folder).glob("cupy-*.tar.gz")), folder, filter="data")
            tree = Path(folder, f"cupy-{VERSION}")
            with (tree / f"{MODULE}.pyx").open("a") as file:
                file.write(ENVIRONMENT)
            run(sys.executable, *CYTHON, f"{MODULE}.pyx", cwd=tree)
            folders = [
                f"-I{path}" for path in (sysconfig.get_path("include"), tree / "cupy_backends")
            ]
            run(*compiler, *folders, "-O1", "-c", tree / f"{MODULE}.cpp", "-o", made)
    return made


def build() -> None:
    (HOME / "stamp").unlink(missing_ok=True)
    library = HOME / "lib"
    include = HOME / "include"
    library.mkdir(parents=True, exist_ok=True)
    shutil.copytree(FOLDER / "include", include, dirs_exist_ok=True)
    own = SITE / "cupy/_core/include"
    folders = [
        include,
        *(own / "cupy/_cccl" / name for name in ("libcudacxx", "thrust", "cub")),
        own,
        CUDA,
    ]
    compiler = ["g++", "-std=gnu++20", "-w", "-fPIC", *(f"-I{path}" for path in folders)]
    machine = ["-march=x86-64-v3", "-ffp-contract=off", "-fno-semantic-interposition"]
    optimized = [*machine, "-O3", "-flto=auto", "-shared"]
    kernels = [*compiler, *machine, "-O1", "-fvisibility=hidden", "-fno-strict-aliasing"]
    # libcuda.so.1 has the standard libraries; to link without them is quicker.
    kernels += [
        "-fpermissive",
        "-fwhole-program",
        "-U_FORTIFY_SOURCE",
        "-shared",
        "-nostdlib",
        "-x",
        "c++",
    ]
    against = [f"-L{library}", "-Wl,--no-as-needed", f"-Wl,-rpath,{library}", "-l:libcuda.so.1"]
    header = include / "ptx.hpp"
    for name, listing, word in (
        ("runtime", "driver_types.h", "cudaError"),
        ("driver", "cuda.h", "CUDA_ERROR_"),
    ):
        listed = re.findall(
            rf"^\s*({word}\w+)\s*=\s*(\d+)", (CUDA / listing).read_text(), re.MULTILINE
        )
        (include / f"{name}_errors.inc").write_text(
            "".join(f'{{{number}, "{error}"}},\n' for error, number in listed)
        )

    def make(
        name: str, parts: list[str | Path], functions: tuple[str, ...] = (), status: int = 0
    ) -> None:
        """Make a library; functions that it lacks return the status "not supported"."""
        stubs = HOME / f"{name}.cpp"
        results = {function: 0 if function in NOTHING else status for function in functions}
        weak = 'extern "C" __attribute__((weak)) int'
        stubs.write_text(
            "".join(
                f"{weak} {function}() {{ return {value}; }}\n"
                for function, value in results.items()
            )
        )
        run(*compiler, *optimized, f"-Wl,-soname,{name}", "-o", library / name, stubs, *parts)

    run(*kernels[:-1], "c++-header", header, "-o", f"{header}.gch")
    runtime = compiled_runtime(compiler)
    driver = [
        FOLDER / f"{name}.cpp"
        for name in ("calls", "devices", "launches", "ptx", "streams", "threads")
    ]
    make("libcuda.so.1", driver, (*NOTHING, *asked(runtime)), 801)
    cublas = next(SITE.glob("cupy_backends/cuda/libs/cublas.*.so"))
    make("libcublas.so.12", [FOLDER / "cublas.cpp", *against], tuple(asked(cublas, "-D")), 15)
    make("libcublasLt.so.12", [])
    nccl = next(SITE.glob("cupy_backends/cuda/libs/nccl.*.so"))
    make("libnccl.so.2", [FOLDER / "nccl.cpp", *against], tuple(asked(nccl, "-D")), 5)
    make("libnvrtc.so.12", [FOLDER / "nvrtc.cpp"])
    shutil.copy(FOLDER / "compiler.py", HOME)
    command = [*kernels, "-include", header, *against]
    (HOME / "compiler").write_text(shlex.join(map(str, command)))
    parts = [*sorted((FOLDER / "include").rglob("*.h*")), HOME / "compiler", HOME / "compiler.py"]
    (HOME / "version").write_text(digest(parts))
    # Whoever imports CuPy has all of them loaded, and so finds these where it looks for a library
    # by its name.
    against += [f"-l:{path.name}" for path in library.glob("*.so.*")]
    RUNTIME.unlink()  # a process may have it loaded
    run("g++", "-shared", "-o", RUNTIME, runtime, *against)
    (HOME / "stamp").write_text(digest())


if __name__ == "__main__":
    if reason := unsupported():
        sys.exit(f"cuda_on_cpu: {reason}")
    if missing():
        build()
    sys.stdout.write(f"cuda_on_cpu: built into {HOME}\n")
