"""draft"""
import numpy as np
from xlstm.interop.c import arrays
from xlstm.interop.c.arrays import Node, Weight
from xlstm.interop.c.kernels import Store, plan
from xlstm.interop.c.memory import Layout, Memory
from xlstm.interop.c.tables import tables, is_uniform
from xlstm.interop.c.writer import Writer, indented
from xlstm.layers.sequence import Leaf, SequenceLayer

def leaves_of(states, prefix=""):
    for k, leaf in enumerate(states):
        if isinstance(leaf, Leaf):
            yield f"{leaf.name}{prefix}", leaf
        else:
            yield from leaves_of(leaf, f"{prefix}_{k}")

NAMES={"exp":"expf","expm1":"expm1f","log":"logf","log1p":"log1pf","tanh":"tanhf","sqrt":"sqrtf","abs":"fabsf"}
def to_c(layer, params, name="model", quantized=False):
    from xlstm.interop.c.one_step import recurrences
    p={n:Weight.of(n,a) for n,a in params.items()}
    memory={}
    if layer.symbols is not None:
        xn=Node("input",(1,),name="x"); x=xn.array(np.int64); kind="int32_t"
    else:
        xn=Node("input",(1,layer.input_size),name="x"); x=xn.array(); kind="float"
    memory[xn]=Memory("x",xn.size)
    states=[]; leaf_nodes=[]
    through=isinstance(layer,SequenceLayer)
    def build(part, prefix=""):
        out=[]
        for k,leaf in enumerate(part):
            if isinstance(leaf,Leaf):
                n=Node("input",tuple(leaf.dims(1).values()),name=f"{leaf.name}{prefix}")
                memory[n]=Memory(f"state->{n.name}",n.size); n.size and leaf_nodes.append((n,leaf)); out.append(n.array())
            else: out.append(build(leaf,f"{prefix}_{k}"))
        return tuple(out)
    with recurrences(arrays):
        if through:
            start=build(layer.states)
            y,end=layer.run_step(arrays,p,x,start)
        else:
            y,end=layer.apply(arrays,p,x)[0],()
    def flat(s): return [a for q in s for a in (flat(q) if isinstance(q,tuple) else [q])]
    yn=Node("input",y.shape,name="y"); memory[yn]=Memory("y",y.size)
    stores=[Store(n,0,e) for (n,_),e in zip(leaf_nodes,[e for e in flat(end) if e.size])]+[Store(yn,0,y)]
    kernels=plan(stores)
    tabs=tables(kernels,name,quantized)
    layout=Layout(kernels,memory)
    fn={**NAMES,"maximum":f"{name}_max","minimum":f"{name}_min"}
    w=Writer(kernels,layout,tabs,fn)
    body=w.body()
    text=["#include <math.h>","#include <stdint.h>",f'typedef struct {{']+[f"    float {n.name}[{n.size}];" for n,_ in leaf_nodes]+["    char unused;" if not leaf_nodes else "",f"}} {name}_state;"]
    text+=[f"void {name}_init({name}_state *state);",f"void {name}_step({name}_state *state, const {kind} *x, float *y);"]
    if "maximum" in w.functions: text+=[f"static inline float {name}_max(float a, float b)","{","    return (a > b || a != a) ? a : b;","}"]
    if "minimum" in w.functions: text+=[f"static inline float {name}_min(float a, float b)","{","    return (a < b || a != a) ? a : b;","}"]
    for t in tabs.values(): text+=["",*t.lines]
    text+=["",f"void {name}_init({name}_state *state)","{"]
    for n,leaf in leaf_nodes:
        rest = "-INFINITY" if leaf.rest==-np.inf else f"{float(leaf.rest)}f"
        text+=[f"    for (int32_t unit = 0; unit < {n.size}; unit++) {{",f"        state->{n.name}[unit] = {rest};","    }"]
    text+=["    (void)state;","}","",f"void {name}_step({name}_state *state, const {kind} *x, float *y)","{",*indented(body),"    (void)state;","}"]
    return "\n".join(text)+"\n"
