"""How well a mini knows its new senses: on held-out media, by retrieval and by what it answers."""
