"""The demonstration on all-MiniLM-L6-v2: what every size and method costs."""
