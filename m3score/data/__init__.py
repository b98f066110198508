"""Inputs and their questions: where they lie, what is asked of them, and how an answer is graded.

Knows sources and references; knows nothing about scores.
"""
