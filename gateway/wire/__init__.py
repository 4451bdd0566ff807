"""Protocols as functions from bytes to events and back: no sockets, no clock, no loop, nothing else of Sprawl."""
