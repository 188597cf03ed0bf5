"""The configuration: sections, their combinations, and how a command line becomes one. Light to
import.
"""
