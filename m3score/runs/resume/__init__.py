"""What a run keeps, so that the next one can go on: its journal, the state of its inputs, their order.

Knows rows as bytes on a disk; does not know what made them.
"""
