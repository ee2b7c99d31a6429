"""Training: recipes, the trainer, and the mini made from nothing."""
