"""This package makes scores of Pyro models, and makes sites of Pyro models from scores."""
