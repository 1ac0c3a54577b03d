"""Kernels: one transition, its proposals and corrections, its warm-up and its Pyro face."""
