"""Tuning: what trains, and the adapters that make it possible."""
