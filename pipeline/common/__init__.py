"""The ground floor: errors, random streams, types, entry points, the process."""
