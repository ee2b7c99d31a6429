"""Teach a new sense to a joint space: a tower learns to agree with the pictures, or the text, of pairs."""
