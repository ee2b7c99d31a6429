"""The mini's other senses: their tables of pairs, and how trained towers join its pictures."""
