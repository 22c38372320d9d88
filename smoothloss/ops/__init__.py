"""The primitive: its schema and autograd, its definition, and the implementations."""
