"""What a budget of visual tokens is to each family of vision language models, a file for each.

Knows how an image processor turns a picture's size into tokens; loads no processor and no model, and imports
no torch.
"""
