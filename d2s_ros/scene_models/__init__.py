"""Scene models: what a map learns of a scene, one folder each."""
