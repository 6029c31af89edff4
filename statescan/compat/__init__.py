"""Drop-in modules that speak other projects' names, arguments and layouts: change the import, keep the code."""
