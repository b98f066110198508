"""A run over many inputs: its order, its resume state, its executors and its budget.

Knows how work is carried out; does not know the terminal, nor what a scorer computes.
"""
