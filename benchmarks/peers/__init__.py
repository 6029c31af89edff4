"""Participants of the comparison, ours among them: each runs in a process of its own and answers over pipes."""
