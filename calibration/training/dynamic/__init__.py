"""Training of a small model of dynamic resolution, in transformers' Qwen2.5-VL classes, from drawn signs and
pages.

Knows drawings, losses and checkpoints; does not know how m3score asks the finished model.
"""
