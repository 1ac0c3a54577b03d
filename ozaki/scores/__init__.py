"""Scores: of data, of models, of formulas."""
