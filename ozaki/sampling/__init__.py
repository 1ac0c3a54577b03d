"""This package runs chains: it holds `MCMC`, the draws of a run, its checkpoint and its store."""
