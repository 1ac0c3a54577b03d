"""What every package may use: checks of arguments, shapes as types, and torch's own state."""
