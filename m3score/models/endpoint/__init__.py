"""A model behind an OpenAI-compatible server: asked by HTTP at every budget of its ladder. Imports no torch.

Knows requests and replies, not weights. One server is named, and no other is ever asked.
"""
