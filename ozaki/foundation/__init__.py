"""This package holds helpers that every package may use, such as checks of arguments."""
