"""Models as flat lists of units that pass a carry of tensors."""
