"""The Matryoshka LLaVA of Cai et al. (ICLR 2025): preprocessing, encoder, ladder, conversation, checkpoints.

Knows one family of models; how text is generated is the business of models/inference.
"""
