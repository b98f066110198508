"""Making and judging M3 models: drawn images with known answers, the M3 objective, accuracy per scale."""
