"""What answers a question about an image at several budgets of visual tokens.

Knows weights, prompts and devices; knows no tables, no sources and no scores.
"""
