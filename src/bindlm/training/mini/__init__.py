"""The mini: its pictures, its joint space and its stages."""
