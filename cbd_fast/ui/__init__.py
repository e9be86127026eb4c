"""What a person sees; it only looks."""
