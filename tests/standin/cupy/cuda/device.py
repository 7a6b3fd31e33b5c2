"""A device by its number."""

from __future__ import annotations

from typing import Any

from cupy import cards
from cupy._streams import synchronize_all


class Device:
    def __init__(self, device: Any = None) -> None:
        self.id = cards.current.number if device is None else int(device)
        self._before: list[int] = []

    def __int__(self) -> int:
        return self.id

    def __enter__(self) -> Device:
        self._before.append(cards.current.number)
        self.use()
        return self

    def __exit__(self, *error: object) -> None:
        cards.current.number = self._before.pop()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and other.id == self.id

    __hash__ = None

    def __repr__(self) -> str:
        return f"<CUDA Device {self.id}>"

    def use(self) -> None:
        from cupy.cuda import runtime

        runtime.setDevice(self.id)

    def synchronize(self) -> None:
        synchronize_all()

    @property
    def compute_capability(self) -> str:
        return str(cards.CARDS[self.id].capability)

    @property
    def mem_info(self) -> tuple[int, int]:
        return 60 << 30, 80 << 30
