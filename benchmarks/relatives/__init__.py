"""Published blocks that shift and concatenate, beside the layer that computes the same."""
