"""Tables in few bits: packed codes for coefficients and bases, more of them for frequent rows."""
