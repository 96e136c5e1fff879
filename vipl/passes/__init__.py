"""Rewritings of a staged program that change no value: equal equations once, loops split, loops written out."""
