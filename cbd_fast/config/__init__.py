"""What a run is: typed settings, read from files and overrides."""
