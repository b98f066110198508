"""Making and judging M3 models and predictors: drawings with known answers, training, benchmarks, calibration.

Knows every room of m3score; none of them knows it.
"""
