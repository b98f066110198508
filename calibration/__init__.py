"""Making and judging M3 models and predictors: drawings, training, benchmarks, calibration.

Knows every room of m3score; none of them knows it.
"""
