"""The diagnosis of a run: what its reports show, and what is to be changed."""
