"""Thin Ray shells over `pipeline`: what runs where, what is asked of whom, what happens when
something dies.
"""
