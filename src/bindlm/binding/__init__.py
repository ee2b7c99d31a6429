"""Binding a new sense: a tower learns to say in a frozen encoder's joint space what a table of pairs shows it."""
