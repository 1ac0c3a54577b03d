"""Scores learned from data by denoising."""
