"""Vision language models as they are served, with the budget of visual tokens as their ladder.

Knows transformers' processors and models, whatever the family; what a budget is to a family stands in
models/budgets.
"""
