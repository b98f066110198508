"""The M3 objective on a LLaVA checkpoint and instruction data, with transformers' Trainer."""
