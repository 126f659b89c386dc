"""What several images of one robot tell."""
