"""Training of models: m3-tiny from drawings, and the finetuning of a LLaVA into an M3.

Knows losses, recipes and checkpoints; does not know how a trained model is judged.
"""

from m3score.models.torchvision import mend_torchvision

mend_torchvision()  # before any file of this room imports transformers
