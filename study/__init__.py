"""A reproducible study of LLM serving: measure, prove that the measurement is valid, report."""
