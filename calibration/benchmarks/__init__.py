"""Benchmarks at every scale: their data, their official metrics, oracle and luck.

Knows questions with right answers; does not know how a model finds them.
"""
