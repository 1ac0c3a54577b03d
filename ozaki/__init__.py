"""Second-order scores of data, Pyro models and formulas, and the chains that walk on them."""

__version__ = "0.1.0"
