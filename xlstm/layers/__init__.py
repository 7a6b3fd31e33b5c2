"""Layers: frozen descriptions that hold no arrays. Each can `init`, run `forward` and run
`backward`.
"""
