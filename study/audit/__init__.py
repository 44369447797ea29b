"""May these results be believed? The referee for results of others."""
