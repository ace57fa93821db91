"""mapsaved: the service of one host."""
