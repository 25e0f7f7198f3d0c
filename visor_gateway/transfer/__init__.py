"""The engine that moves bytes."""
