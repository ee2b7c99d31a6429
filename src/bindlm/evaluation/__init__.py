"""Evaluation: real photographs with labels, and how often an answer names them."""
