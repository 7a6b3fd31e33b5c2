"""Benchmarks. Nothing imports this package; times are ratios measured side by side in one run."""
