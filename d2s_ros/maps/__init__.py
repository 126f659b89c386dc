"""Maps on disk: manifest, versions, bundles and update data."""
