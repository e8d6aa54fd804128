"""Measurements: each a module with `measure(size)`, run by `python -m bench` or alone as `python -m bench.NAME`.

What is measured, against whom and how to repeat it: docs/performance.md.
"""
