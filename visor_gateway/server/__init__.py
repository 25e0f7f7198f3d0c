"""The socket edge."""
