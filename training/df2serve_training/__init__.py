"""Training of k-fold segmentation ensembles; see ``training/README.md`` for its state."""
