"""Runs with recorded results: each a function that names data, model and schedule. A page of the documentation holds what came out."""
