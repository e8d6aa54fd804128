"""Runs turns, each in a child process of its own, and keeps what they say. Runs no agent code."""
