"""From embeddings to answers: prompt trees, generation, verification and batches that fit into memory.

Knows one language model at work; does not know which checkpoint it came from.
"""
