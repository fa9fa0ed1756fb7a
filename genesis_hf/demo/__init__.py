"""The embedded default: data for the whole road, made from what every machine with Python already has."""
