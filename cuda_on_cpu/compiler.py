"""The text of a kernel as g++ takes it; nvrtc.cpp calls `translated`, in the process that has CuPy.

The text stays C++. Inline PTX and dynamic shared memory are replaced, and every kernel is listed at
the end.
"""

import re

STRING = r'"(?:[^"\\]|\\.)*"'
COMMENT = re.compile(rf"({STRING})|//[^\n]*|/\*.*?\*/", re.DOTALL)
BRACKETS = r"\((?:[^()]|\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\))*\)"  # four deep
ASM = re.compile(
    rf"\b(?:asm|__asm__)\b[\s\\]*(?:volatile\b)?[\s\\]*\(((?:{STRING}|[^\"])*?)\)[\s\\]*;",
    re.DOTALL,
)
DYNAMIC = re.compile(
    r"\bextern\s+__shared__\s+(?:__align__\s*\(\w+\)\s*)?([\w\s:]+?)\s+(\w+)\s*\[\s*\]"
)
KERNEL = re.compile(rf"\b__global__((?:\s+(?:__\w+\s*{BRACKETS}|\w+))*?)\s+(?!__)(\w+)\s*\(")
# These read the words before a kernel's name, which the end of the text has once more.
WORDS = """
#undef __launch_bounds__
#undef __cluster_dims__
#define __launch_bounds__(threads_, ...) cuda_on_cpu_k.threads = (threads_);
#define __cluster_dims__(blocks_, ...) cuda_on_cpu_k.cluster = (blocks_);
"""


def instruction(found: re.Match[str]) -> str:
    """asm("name ..." : "=r"(out) : "r"(in) : "memory"); is made a call; a text that a macro makes
    is given, too.
    """
    text = re.match(rf"(?:{STRING}|[^:])*", found[1])[0]  # type: ignore[index]
    operands = re.findall(rf"{STRING}[\s\\]*({BRACKETS})", found[1][len(text) :])
    name = re.sub(r"\W+", "_", re.findall(r"[a-z]\w*(?:(?:\.|::)\w+)+", text)[0])
    given = [text] if len(re.findall(STRING, text)) > 1 else []
    return f"ptx::{name}({', '.join(given + operands)});"


def translated(text: str, options: str, expressions: str) -> str:
    """Translate a text that has kernels; the options of NVRTC, and names of templates, come line by
    line.
    """
    text = COMMENT.sub(lambda found: found[1] or " " + "\n" * found[0].count("\n"), text)
    kernels = ""
    for found in KERNEL.finditer(text):
        if "template" not in re.split("[;{}]", text[: found.start()])[-1]:
            before = re.sub(r"\b(void|static|inline)\b", "", found[1])
            kernels += f"CUDA_ON_CPU_KERNEL({found[2]}, {before})\n"
    for k, expression in enumerate(expressions.splitlines()):
        kernels += f"CUDA_ON_CPU_KERNEL_(name{k}, ({expression}),)\n"
    text = DYNAMIC.sub(r"\1* \2 = (\1*)::cuda_on_cpu::shared_memory()", ASM.sub(instruction, text))
    arch = next(
        (option.rpartition("_")[2] for option in options.splitlines() if "arch=" in option), "90"
    )
    macros = [
        option[2:].partition("=") for option in options.splitlines() if option.startswith("-D")
    ]
    head = "".join(
        f"#define {name} {value or 1}\n"
        for name, _, value in [("__CUDA_ARCH__", "=", f"{arch}0"), *macros]
    )
    return f'{head}#line 1 "kernel.cu"\n{text}{WORDS}{kernels}'
