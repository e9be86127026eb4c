"""What a person sees: the console, progress bars, the dashboard of a run. No other room is imported here."""
