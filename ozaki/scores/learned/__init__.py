"""This package learns scores from data by denoising."""
