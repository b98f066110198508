"""The bundled m3-tiny from its first random weights on: recipe, stages and objective."""
