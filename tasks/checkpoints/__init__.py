"""Model folders and their weights: read, checked, converted, quantized layouts, model cards."""
