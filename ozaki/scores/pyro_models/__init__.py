"""Pyro models as scores, and scores as sites of Pyro models."""
