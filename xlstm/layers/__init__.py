"""Layers: frozen descriptions without arrays, each with `init`, `forward` and `backward`."""
