"""A table as factors: their shape, the budget they have to fit, and how they are found."""
