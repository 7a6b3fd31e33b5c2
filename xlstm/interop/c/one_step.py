"""draft"""
import contextlib
from xlstm.engines import engine
from xlstm.engines.array_api import ARRAY_API
class _One(engine.Engine):
    name="c"
    def __init__(self,xp): self.xp=xp
    def refuses(self, step, widths): return "" if step.xp is self.xp else "it writes C"
    def forward(self, step, x, state, widths, keep):
        y, after = ARRAY_API.step(step, x, tuple(s.T for s in state))
        return y, [s.T for s in after], None
    def backward(self, tape, dy, dstate): raise NotImplementedError
@contextlib.contextmanager
def recurrences(xp):
    e=_One(xp); engine.ENGINES.insert(0,e)
    try: yield
    finally: engine.ENGINES.remove(e)
