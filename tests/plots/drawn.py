"""Layers to draw, and texts of pictures."""

import xlstm

T = 7
B = 3
D = 2
H = 4
LAYERS = {
    "lstm": xlstm.LSTM(D, H),
    "coupled": xlstm.LSTM(D, H, coupled_input_forget=True),
    "peepholes": xlstm.LSTM(D, H, peepholes=True, activations=("tanh", "tanh", "tanh")),
    "gru": xlstm.GRU(D, H),
    "reset before": xlstm.GRU(D, H, reset_after=False),
    "slstm": xlstm.sLSTM(D, H),
    "exponential": xlstm.sLSTM(D, H, forget_gate="exponential"),
    "mlstm": xlstm.mLSTM(D, H, num_heads=2),
    "minlstm": xlstm.minLSTM(D, H),
    "mingru": xlstm.minGRU(D, H),
    "rnn": xlstm.RNN(D, H),
}


def ran(layer, x, **options):
    params = layer.init(seed=1, backend="numpy", dtype="float64")
    return params, layer.forward(params, x, keep=True, train=False, **options)[2]


def texts(figure):
    from matplotlib.text import Text

    return [t.get_text() for t in figure.findobj(Text) if t.get_text()]


def overlapping(figure):
    """Return the texts of tick labels, titles and labels that lie on top of one another."""
    figure.draw_without_rendering()
    boxes = []
    for axes in figure.axes:
        names = [axes.xaxis.label, axes.yaxis.label, axes.title, axes._left_title]
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            names += [
                tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high
            ]
        boxes += [
            (t.get_text(), t.get_window_extent()) for t in names if t.get_visible() and t.get_text()
        ]
    pairs = [
        (a, b) for k, (a, one) in enumerate(boxes) for b, other in boxes[:k] if one.overlaps(other)
    ]
    inside = figure.bbox.padded(1)
    return pairs + [
        a
        for a, box in boxes
        if not (inside.contains(box.x0, box.y0) and inside.contains(box.x1, box.y1))
    ]
