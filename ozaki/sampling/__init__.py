"""Runs: chains on their way, their draws, and where these are kept."""
