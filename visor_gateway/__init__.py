"""Streaming gateway for virtual machine images."""

__version__ = "0.1.0"
