"""Encoded images and a Plan to uint8 crops."""
