"""Finished experiments: the scripts behind figures in the documentation, and their logs."""
