"""The error of NVRTC."""


class CompileException(Exception):  # noqa: N818
    def get_message(self) -> str:
        return str(self)
