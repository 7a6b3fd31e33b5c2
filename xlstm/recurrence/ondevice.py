"""A pass that runs in kernels of its own, with what the others have: parts, states and runs."""

from __future__ import annotations

from collections.abc import Sequence

from xlstm.arrays.backend import Array
from xlstm.engines import cuda
from xlstm.engines.cuda import DevicePass, Kept
from xlstm.engines.runs import Runs, split
from xlstm.recurrence.loop import Loop
from xlstm.recurrence.parts import Later, Part, before, beside


def on_device(loop: Loop, x: Array, runs: Runs, hs: Array, keep: bool, recompute: bool) -> OnDevice | None:
    """A pass over packed rows x (N, D), or None where the array library is to do it; see `recurrence.Forward`."""
    if not runs or runs[0][1] == 0:
        return None
    device = cuda.device_pass(loop.xp, loop.cell, loop.Wh, loop.own | loop.biases, runs, loop.obstacle)
    return None if device is None else OnDevice(device, loop, x, runs, hs, keep, recompute)


class OnDevice:
    """Over one layer and direction, the whole batch at once. What `Part` has by runs are views, made when asked for."""

    def __init__(
        self, device: DevicePass, loop: Loop, x: Array, runs: Runs, hs: Array, keep: bool, recompute: bool
    ) -> None:
        self.device, self.loop, self.x, self.hs, self.recompute = device, loop, x, hs, recompute
        self.keep = ("states" if recompute else "all") if keep else "nothing"
        (self.runs,) = split(runs, 1)
        self.y = hs[device.first :, :]
        self._kept: Kept = {}
        self._made: Kept | None = None  # again, while it is read run by run

    def forward(self, carry: Sequence[Array]) -> Part:
        """From the carried states (H, B); h is in hs already."""
        first, n = [s[:, : self.device.first].T for s in carry], len(self.runs)
        ends, self._kept = self.device.forward(self._inputs(), self.hs, first, self.keep)
        self._final = [end.T for end in ends]
        return Part(self.runs, Later(self._start, n), Later(self._end, n), Later(self._arrays, n), self._final)

    def backward(self, dy: Array | None, dstate: Sequence[Array], dZ: Array, dQ: Array) -> Sequence[Array]:
        """Gradients of the initial states (H, B), from those of y (N, H) and of the final states; dZ, dQ (N, R) too."""
        return [d.T for d in self.device.backward(dy, [d.T for d in dstate], self._whole(), dZ, dQ)]

    def _inputs(self) -> Array:
        """Wx x of all steps, (N, R)."""
        return self.x @ self.loop.w["Wx"].T if "Wx" in self.loop.w else self.x

    def _whole(self) -> Kept:
        """What backward needs; what was not kept of it is made again."""
        if not self.recompute:
            return self._kept
        h = before(self.loop.xp, self.hs, self.device.runs)
        return self.device.again(self._inputs(), h, self._kept)

    def _start(self, k: int) -> Array:
        n = self.runs[k].n
        return (self.hs[:n, :] if k == 0 else self._last(k - 1)[:n, :]).T

    def _last(self, k: int) -> Array:
        """h after the last step of a run."""
        return self.y[self.runs[k].rows(self.runs[k].k - 1), :]

    def _end(self, k: int) -> Sequence[Array]:
        run, after = self.runs[k], self.runs[k + 1 : k + 2]
        found = [self._last(k).T]
        for name, last in zip(self.device.step.carried, self._final[1:], strict=True):
            on = [self._kept[name][one.rows(0), :].T for one in after]  # of sequences that go on
            found.append(beside(self.loop.xp, [*on, last[:, sum(one.n for one in after) : run.n]]))
        return found

    def _arrays(self, k: int) -> list[Array]:
        xp, run = self.loop.xp, self.runs[k]
        made = self._whole() if self._made is None else self._made
        self._made = made if self.recompute and k + 1 < len(self.runs) else None
        found = [run.steps(xp, a, 0, run.k) for a in made.values()]
        return [xp.permute_dims(a, (0, *range(2, a.ndim), 1)) for a in found]
