"""Compiled programs, kept by what they read."""
