"""This package writes files whole or not at all, and reads them without running their content."""
