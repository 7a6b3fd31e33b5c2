"""Build it into the running environment: `python -m tests.cuda_on_cpu`.

The libraries go to the folder `cuda_on_cpu` of `sys.prefix`. CuPy's wheel has NVIDIA's runtime inside of its modules
`runtime` and `thrust`, so these two are built again from CuPy's source distribution, against the libraries here. The
packages of NVIDIA stay as they are.
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
import tarfile
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.cuda_on_cpu import FOLDER, HOME, VERSIONS, digest, missing

SITE = Path(sysconfig.get_path("platlib"))
CUDA = SITE / "nvidia/cuda_runtime/include"
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
MODULES = ("cupy_backends/cuda/api/runtime", "cupy/cuda/thrust")
# Every process that imports CuPy reads these: CUB and cuTENSOR have machine code, and kernels are not NVIDIA's.
ENVIRONMENT = """
import os as _os
_os.environ["CUPY_ACCELERATORS"] = ""
_os.environ.setdefault("CUPY_CACHE_DIR", _os.path.join(
    _os.environ.get("XDG_CACHE_HOME") or _os.path.expanduser("~/.cache"), "cuda_on_cpu"))
"""
# The options of CuPy's own build.
CYTHONIZE = """
import sys
from Cython.Build import cythonize
from setuptools import Extension
cythonize(
    [Extension(name.replace("/", "."), [name + ".pyx"], language="c++") for name in sys.argv[1:]],
    language_level=3,
    compiler_directives={"embedsignature": True, "c_api_binop_methods": True, "binding": False,
                         "warn.deprecated.IF": False, "freethreading_compatible": True},
    compile_time_env={"CUPY_USE_CUDA_PYTHON": False, "CUPY_CUFFT_STATIC": False, "CUPY_CYTHON_VERSION": "3.2.4",
                      "CUPY_CUDA_VERSION": 12090, "CUPY_HIP_VERSION": 0},
)
"""
NOT_SUPPORTED, BLAS_NOT_SUPPORTED = 801, 15
# Functions of which nobody needs more than that they succeed.
NOTHING = {"cudaGetLastError", "cudaPeekAtLastError", "cudaGraphUpload", "cuCtxSetCurrent", "cuModuleUnload"}
NOTHING |= {"cuCtxDestroy_v2", "cuDevicePrimaryCtxRelease_v2", "cuLinkAddFile_v2"}


def unsupported() -> str:
    """Return why nothing can be built here; nothing where it can."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"it needs Linux on x86-64, and this is {sys.platform} on {platform.machine()}"
    if shutil.which("g++") is None:
        return "it needs g++"
    if importlib.util.find_spec("cupy") is None or not (CUDA / "cuda.h").exists():
        return "it needs the packages cupy-cuda12x and nvidia-cuda-runtime-cu12"
    version = importlib.metadata.version("cupy-cuda12x")
    return "" if version in VERSIONS else f"it is built against CuPy {' and '.join(VERSIONS)}, and this is {version}"


def run(*command: str | Path, **options: object) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)  # type: ignore[call-overload]
    if done.returncode:
        sys.exit(f"cuda_on_cpu: {shlex.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return str(done.stdout)


def symbols(path: Path, *options: str) -> set[str]:
    found = (line.split()[-1].partition("@")[0] for line in run("nm", *options, path).splitlines())
    return {name for name in found if re.match("(cuda|cu|cublas)[A-Z]", name)}


def sources(version: str) -> Path:
    """Return the folder of CuPy's source distribution, with the two modules translated; it is kept."""
    tree = HOME / f"cupy-{version}"
    HOME.mkdir(exist_ok=True)
    if not tree.exists():
        with tempfile.TemporaryDirectory(dir=HOME) as folder:
            fetch = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-build-isolation", "--no-binary"]
            # With this variable CuPy's setup.py asks for no CUDA.
            run(*fetch, "cupy", "-d", folder, f"cupy=={version}", env={**os.environ, "READTHEDOCS": "True"})
            with tarfile.open(next(Path(folder).glob("cupy-*.tar.gz"))) as archive:
                archive.extractall(folder, filter="data")
            made = Path(folder, tree.name)
            with (made / f"{MODULES[0]}.pyx").open("a") as file:
                file.write(ENVIRONMENT)
            run(sys.executable, "-c", CYTHONIZE, *MODULES, cwd=made)
            made.rename(tree)
    return tree


def build() -> None:
    (HOME / "stamp").unlink(missing_ok=True)
    cupy = sources(importlib.metadata.version("cupy-cuda12x"))
    library, include, objects = HOME / "lib", HOME / "include", cupy / "objects"
    for folder in (library, objects):
        folder.mkdir(exist_ok=True)
    (library / "libcudadevrt.a").touch()
    shutil.copytree(FOLDER / "include", include, dirs_exist_ok=True)
    own, cccl = SITE / "cupy/_core/include", SITE / "cupy/_core/include/cupy/_cccl"
    folders = [include, cccl / "libcudacxx", cccl / "thrust", cccl / "cub", own, CUDA]
    compiler = ["g++", "-std=gnu++20", "-w", "-fPIC", *(f"-I{path}" for path in folders)]
    kernels = [*compiler, "-march=x86-64-v3", "-O1", "-fvisibility=hidden", "-ffp-contract=off", "-fno-strict-aliasing"]
    kernels += ["-fpermissive", "-U_FORTIFY_SOURCE", "-x", "c++"]
    against = [f"-L{library}", "-Wl,--no-as-needed", f"-Wl,-rpath,{library}", "-l:libcuda.so.1"]
    folders = [objects, sysconfig.get_path("include"), cupy, cupy / "cupy/cuda", cupy / "cupy_backends"]
    for name, header, word in (("runtime", "driver_types.h", "cudaError"), ("driver", "cuda.h", "CUDA_ERROR_")):
        listed = re.findall(rf"^\s*({word}\w+)\s*=\s*(\d+)", (CUDA / header).read_text(), re.MULTILINE)
        (objects / f"{name}_errors.inc").write_text("".join(f'{{{number}, "{error}"}},\n' for error, number in listed))

    def compiled(path: Path) -> Path:
        if path.suffix == ".hpp":
            run(*kernels[:-1], "c++-header", path, "-o", f"{path}.gch")
        made = objects / f"{path.stem}.o"
        if path.suffix == ".cpp" and (path.parent == FOLDER or not made.exists()):
            run(*compiler, *(f"-I{folder}" for folder in folders), "-O3", "-c", path, "-o", made)
        return made

    def linked(name: str, parts: Iterable[Path | str], asked: Iterable[str] = (), status: int = 0) -> None:
        """Make a library; what is asked for and not there is a function that returns an error."""
        have = set().union(*(symbols(part, "--defined-only") for part in parts if isinstance(part, Path)))
        results = {name: 0 if name in NOTHING else status for name in sorted({*asked} - have)}
        stubs = objects / f"{name}.cpp"
        stubs.write_text("".join(f'extern "C" int {f}() {{ return {value}; }}\n' for f, value in results.items()))
        run("g++", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", library / name, stubs, *parts, "-ldl")

    texts = [
        *FOLDER.glob("*.cpp"),
        *(cupy / f"{name}.cpp" for name in MODULES),
        include / "plain.hpp",
        include / "cupy.hpp",
    ]
    with ThreadPoolExecutor(2) as pool:
        made = dict(zip((path.stem for path in texts), pool.map(compiled, texts), strict=True))
    driver = [made[name] for name in ("calls", "devices", "launches", "streams", "threads")]
    linked("libcuda.so.1", driver, symbols(made["runtime"], "--undefined-only") | NOTHING, NOT_SUPPORTED)
    cublas = next(SITE.glob("cupy_backends/cuda/libs/cublas.*.so"))
    linked("libcublas.so.12", [made["cublas"], *against], symbols(cublas, "-D", "--undefined-only"), BLAS_NOT_SUPPORTED)
    linked("libcublasLt.so.12", [])
    linked("libnvrtc.so.12", [made["nvrtc"]])
    (HOME / "command").write_text(shlex.join([*kernels, *against]))
    # Whoever imports CuPy has all of them loaded, and so finds these where it looks for a library by its name.
    against += [f"-l:{path.name}" for path in library.glob("*.so.*")]
    for name, parts in zip(MODULES, (["runtime"], ["thrust", "sorting"]), strict=True):
        run("g++", "-shared", "-o", objects / "module.so", *(made[part] for part in parts), *against)
        (SITE / f"{name}{SUFFIX}").unlink()  # a process may have it loaded
        shutil.copy(objects / "module.so", SITE / f"{name}{SUFFIX}")
    (HOME / "stamp").write_text(digest())


if __name__ == "__main__":
    if reason := unsupported():
        sys.exit(f"cuda_on_cpu: {reason}")
    if missing():
        build()
    sys.stdout.write(f"cuda_on_cpu: built into {HOME}\n")
