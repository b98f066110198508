"""Pictures drawn by code, with questions whose right answers are known.

Knows painters and wordings; does not know what is trained or measured on them.
"""
