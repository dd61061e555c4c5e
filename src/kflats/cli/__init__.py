"""The ``kflats`` command: parsing and printing only."""
