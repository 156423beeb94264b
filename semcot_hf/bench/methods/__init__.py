"""The bench of methods: every method of the field on the same host, questions, budget and checker."""
