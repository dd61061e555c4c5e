"""How much of a model's behaviour is left after compression."""
