"""What a version of the engine allows, overrides or refuses, derived from its own source."""
