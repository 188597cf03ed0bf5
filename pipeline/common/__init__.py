"""What every room may use: errors, random streams, types, entry points, the process."""
