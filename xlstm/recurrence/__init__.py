"""The parts that all engines share: packing, and the passes forward and backward over one layer and
direction.
"""
